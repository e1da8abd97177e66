"""A weight step, in one place for the search, its inner steps and the retraining."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.training import weight_step


class Losses(NamedTuple):
    """What a forward pass ends with.

    Attributes:
        total: what is minimised, ().
        loss: what is reported, (): without the share of an auxiliary head.
        logits: ``(batch, classes)``.
    """

    total: Tensor
    loss: Tensor
    logits: Tensor


Compute = Callable[..., Losses]
"""``(images, labels, *more)`` to losses: tensors in, tensors out, no look at their values."""


def cross_entropy_of(model: nn.Module) -> Compute:
    """The plain loss of a model that maps images, and whatever else it is given, to logits."""

    def compute(images: Tensor, labels: Tensor, *more: Tensor) -> Losses:
        logits = model(images, *more)
        loss = F.cross_entropy(logits, labels)
        return Losses(loss, loss, logits)

    return compute


class WeightStep:
    """One step of a model's weights: forward, backward, clipping, update.

    It waits for no value: everything that it returns is still on the device.

    Args:
        compute: the forward pass.
        model: whose weights the gradient is clipped over.
        optimizer: steps them.
        grad_clip: bound on the gradient's norm; None is no bound.
    """

    def __init__(
        self,
        compute: Compute,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        grad_clip: float | None,
    ) -> None:
        self._compute, self._model, self._optimizer = compute, model, optimizer
        self._grad_clip = grad_clip

    def __call__(self, images: Tensor, labels: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a step; returns the reported loss () and the logits (batch, classes), detached.

        Args:
            images: ``(batch, channels, height, width)``.
            labels: ``(batch,)``.
            more: what else the forward pass takes, as alpha.
        """
        losses = self._compute(images, labels, *more)
        weight_step(losses.total, self._model, self._optimizer, self._grad_clip)
        return losses.loss.detach(), losses.logits.detach()
