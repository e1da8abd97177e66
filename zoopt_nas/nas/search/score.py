"""The value of a candidate: its loss, or its error rate with ties broken by the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas._arrays import value_dtype

# Losses above about a million tie, so that a loss never counts as much as one image.
MAX_TIE_BREAK = 1 - 2**-20


class Scored(NamedTuple):
    """What candidates make of a batch; of a single candidate without ``n``."""

    loss: Tensor  # the mean cross-entropy, (n,)
    logits: Tensor  # (n, batch, classes)
    labels: Tensor  # (batch,)


def value_of(score: str, batches: Sequence[Scored]) -> Tensor:
    """Return the values ``(n,)`` of candidates, or ``()`` of one, over all ``batches``.

    ``score`` is ``"loss"``, the mean cross-entropy, or ``"accuracy"``, see ``error_then_loss``. A
    non-finite loss gives a non-finite value. Nothing waits for the device.
    """
    loss = torch.stack([one.loss for one in batches]).mean(0)
    if score == "loss":
        return loss
    errors = [(one.logits.argmax(-1) != one.labels).sum(-1) for one in batches]
    return error_then_loss(
        torch.stack(errors).sum(0), loss, sum(len(one.labels) for one in batches)
    )


def error_then_loss(n_errors: Tensor, loss: Tensor, n_images: int) -> Tensor:
    """Return ``(n_errors + squash) / n_images`` with squash = loss / (1 + loss), in [0, 1).

    The order of these values is the order of the pairs (n_errors, loss). With 50,000 images,
    float32 would leave 2^-8 of an image for the loss, so the result is in float64, which separates
    any two losses of float32 between 1e-4 and 1e4. MPS has float32 only, where close losses tie.
    """
    dtype = value_dtype(loss)
    loss = loss.to(dtype)
    squash = (loss / (1 + loss)).clamp(max=MAX_TIE_BREAK)
    return (n_errors.to(dtype) + squash) / n_images


def score_batches(
    network: Callable[[Tensor, Any], Tensor], alpha: Any, batches: Sequence[tuple[Tensor, Tensor]]
) -> list[Scored]:
    """Return losses and logits of one candidate on each batch of images and labels.

    ``network`` maps images and ``alpha`` to logits: a supernet, or its ``mix``.
    """
    logits = ((network(images, alpha), labels) for images, labels in batches)
    return [Scored(F.cross_entropy(x, labels), x, labels) for x, labels in logits]
