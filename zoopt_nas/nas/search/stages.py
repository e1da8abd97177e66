"""The stages of a search: parts of its epochs, each with a supernet of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SearchStage(NamedTuple):
    """Epochs in which one supernet is trained, from new weights.

    The schedules of the weights, the warm-up of alpha and its schedules run once in each stage.

    Attributes:
        first_epoch: the epoch with which it begins.
        n_epochs: number of epochs.
        n_cells: cells of the supernet.
        n_kept: number of candidates on each edge.
        drops_skips: whether skip connections have dropout.
    """

    first_epoch: int
    n_epochs: int
    n_cells: int
    n_kept: tuple[int, ...]
    drops_skips: bool = False


def stage_at(stages: Sequence[SearchStage], epoch: int) -> SearchStage:
    """Return the stage of an epoch; after the last epoch it is the last stage."""
    return [stage for stage in stages if stage.first_epoch <= epoch][-1]
