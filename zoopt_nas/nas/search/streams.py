"""The batches of a search: for weight steps, for inner steps, and for L_val."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

from torch import Tensor

from zoopt_nas.nas.data.augmentation import Transform
from zoopt_nas.nas.data.batches import BatchStream
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.search.candidates import Batch
from zoopt_nas.nas.settings.config import FRESH, SearchConfig
from zoopt_nas.nas.steps.seeds import generator


class Replayable(Protocol):
    """A stream with a position that can be saved."""

    def next_batch(self) -> Batch:
        """Return the next batch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position."""


class AheadStream:
    """A stream whose next batch can be read before it is taken.

    DARTS unrolls the next weight step, on the batch of that step.
    """

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream
        self._next: Batch | None = None
        self._before: dict[str, Any] = {}  # the state of the stream before ``_next``

    @property
    def n_batches(self) -> int:
        """Number of batches in a pass over the images."""
        return self._stream.n_batches

    def peek(self) -> Batch:
        """Return the batch that ``next_batch`` will return."""
        if self._next is None:
            self._before = self._stream.state_dict()
            self._next = self._stream.next_batch()
        return self._next

    def next_batch(self) -> Batch:
        """Take the next batch."""
        batch, self._next = self._next or self._stream.next_batch(), None
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream."""
        return self._stream.state_dict() if self._next is None else dict(self._before)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position that ``state_dict`` returned."""
        self._next = None
        self._stream.load_state_dict(state)


class Replayed(Sequence[Batch]):
    """The next batches of a stream, read anew at every pass; the stream stays where it is.

    They need no memory, and are the same in every pass as long as nothing else reads the stream.

    Args:
        stream: The stream.
        n: The number of batches.
        position: Where they begin; None is the present position of the stream.

    Attributes:
        position: Where they begin, as the stream's ``state_dict``.
    """

    def __init__(
        self, stream: Replayable, n: int, position: Mapping[str, Any] | None = None
    ) -> None:
        self._stream, self._n = stream, n
        self.position = stream.state_dict() if position is None else position

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Batch]:
        return self._read(self._n)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        """Return a batch, or the first ones for a slice ``[:n]``."""
        if isinstance(index, slice):
            return list(self)[index]
        return list(self._read(range(self._n)[index] + 1))[-1]

    def _read(self, n: int) -> Iterator[Batch]:
        now = self._stream.state_dict()
        self._stream.load_state_dict(self.position)
        try:
            for _ in range(n):
                yield self._stream.next_batch()
        finally:
            self._stream.load_state_dict(now)


class Peeked:
    """The batch of the next weight step, for the unrolled step of Eq. 2; it takes none."""

    def __init__(self, stream: AheadStream) -> None:
        self._stream = stream

    def next_batch(self) -> Batch:
        """Return the batch of the next weight step."""
        return self._stream.peek()


def make_streams(
    config: SearchConfig, dataset: Dataset, train: Tensor, val: Tensor, seeds: Mapping[str, int]
) -> dict[str, AheadStream]:
    """Return the streams ``"train"``, ``"inner"`` and ``"val"``; ``train`` and ``val`` are indices.

    The last two have full batches only, so that candidate losses have equal weight.
    """
    transform = dataset.transform(augment=config.augment, cutout=config.cutout)
    # DARTS augments the images that score alpha, too.
    plain = dataset.transform(augment=False) if config.weights == FRESH else transform

    def stream(
        name: str, indices: Tensor, drop_last: bool, transform: Transform = transform
    ) -> AheadStream:
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
        "train": stream("train", train, False),
        "inner": stream("inner", train, True),
        "val": stream("val", val, True, plain),
    }
