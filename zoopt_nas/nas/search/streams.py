"""Which batches a search sees: those of the weight steps, of the inner steps, and of L_val."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoopt_nas.nas.data.batches import BatchStream
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.seeds import generator

Batch = tuple[Tensor, Tensor]
"""``(images, labels)``."""


class AheadStream:
    """A stream whose next batch can be seen before it is taken.

    DARTS unrolls the weight step that comes next, on the batch of that step.

    Args:
        stream: where the batches come from.
    """

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream
        self._next: Batch | None = None
        self._before: dict[str, Any] = {}  # the state of the stream before ``_next``

    @property
    def n_batches(self) -> int:
        """Batches of a pass over the images."""
        return self._stream.n_batches

    def peek(self) -> Batch:
        """The batch that ``next_batch`` will return; it stays where it is."""
        if self._next is None:
            self._before = self._stream.state_dict()
            self._next = self._stream.next_batch()
        return self._next

    def next_batch(self) -> Batch:
        """Take the next batch."""
        batch, self._next = self._next or self._stream.next_batch(), None
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict() if self._next is None else dict(self._before)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next = None
        self._stream.load_state_dict(state)


class Peeked:
    """The batches of the weight steps to come, for the inner steps of Eq. 2; it takes none."""

    def __init__(self, stream: AheadStream) -> None:
        self._stream = stream

    def next_batch(self) -> Batch:
        """The batch of the next weight step."""
        return self._stream.peek()


def make_streams(
    config: SearchConfig, dataset: Dataset, fit: Tensor, score: Tensor, seeds: Mapping[str, int]
) -> dict[str, AheadStream]:
    """The batches of the weights' steps, of the candidates' M inner steps, and of L_val.

    The last two have full batches only, so that every candidate loss weighs alike.

    Args:
        config: of the search.
        dataset: the images.
        fit: the indices of those that fit weights.
        score: of those that score alpha.
        seeds: of ``"train"``, ``"inner"`` and ``"val"``.
    """
    transform = dataset.transform(augment=True, cutout=config.cutout)

    def stream(name: str, indices: Tensor, drop_last: bool) -> AheadStream:
        return AheadStream(
            BatchStream(
                dataset.train,
                indices,
                config.batch_size,
                transform=transform,
                generator=generator(seeds[name]),
                drop_last=drop_last,
            )
        )

    return {
        "train": stream("train", fit, False),
        "inner": stream("inner", fit, True),
        "val": stream("val", score, True),
    }
