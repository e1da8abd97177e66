"""Measure loss and accuracy over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EVAL_BATCH_SIZE = 256  # does not affect results


class Meter:
    """Mean loss and accuracy over images, summed on ``device`` without synchronization.

    Attributes:
        sums: ``(3,)``: sum of losses, number of correct predictions, number of images.
    """

    def __init__(self, device: torch.device) -> None:
        # float64 counts exactly and does not drift.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=dtype, device=device)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), logits (batch, classes) and labels (batch,)."""
        n_images = labels.shape[0]
        with torch.no_grad():
            self.sums[0] += loss.detach() * n_images
            self.sums[1] += (logits.argmax(dim=-1) == labels).sum()
            self.sums[2] += n_images

    @property
    def loss(self) -> float:
        """Mean loss per image; NaN without images."""
        return float(self.sums[0] / self.sums[2])

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions, in [0, 1]; NaN without images."""
        return float(self.sums[1] / self.sums[2])

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the sums."""
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums of ``state_dict``."""
        self.sums.copy_(state["sums"])


def evaluate(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> Meter:
    """Measure the cross-entropy and accuracy of ``forward``, which maps images to logits.

    The caller must put the model into evaluation mode.
    """
    meter = Meter(device)
    with torch.no_grad():
        for images, labels in batches:
            logits = forward(images)
            meter.update(F.cross_entropy(logits, labels), logits, labels)
    return meter
