"""Split a data set and draw batches from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data.augmentation import ONE_RANK, RankSlice, Transform
from zoopt_nas.nas.data.image_sets import ImageSet
from zoopt_nas.nas.data.transfer import to_device


def split_indices(n: int, train_portion: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Split 0..n-1 at random: ⌊n · train_portion⌋ indices to train, the others to validate.

    Raises:
        InvalidValueError: A part would be empty.
    """
    if not 0 < train_portion < 1 or not 0 < int(n * train_portion) < n:
        raise InvalidValueError(
            f"train_portion must lie in (0, 1) and leave no part of {n} images empty, "
            f"got {train_portion}"
        )
    order = torch.randperm(n, generator=generator)
    n_train = int(n * train_portion)
    return order[:n_train], order[n_train:]


class BatchStream:
    """An endless stream of training batches that can be saved and resumed exactly.

    It draws batches from random permutations of the indices. The last batch of a permutation may be
    smaller. It is left out with ``drop_last`` or if it has one image, which BatchNorm cannot use.

    Args:
        image_set: The images.
        indices: int64 (n,), the images to use.
        batch_size: Images per batch, at most n.
        transform: Applied to each batch with ``generator``.
        generator: A CPU generator, saved with the stream and used by nothing else.
        drop_last: Whether to leave out the smaller last batch.
        rank_slice: The part of each batch to return, for several processes with equal generators.
            The last batch is cut to equal parts, and left out if these have fewer than two images.

    Raises:
        InvalidValueError: There is no index, or ``batch_size`` is not a positive integer.
    """

    def __init__(
        self,
        image_set: ImageSet,
        indices: Tensor,
        batch_size: int,
        *,
        transform: Transform,
        generator: Generator,
        drop_last: bool = False,
        rank_slice: RankSlice = ONE_RANK,
    ) -> None:
        if len(indices) == 0:
            raise InvalidValueError("indices must hold at least one index, got none")
        self._image_set, self._transform, self._generator = image_set, transform, generator
        self._indices = indices.cpu()
        self._batch_size = min(check_positive_int("batch_size", batch_size), len(indices))
        self.n_batches, rest = divmod(len(indices), self._batch_size)
        self._rank_slice = rank_slice
        if rest // rank_slice.n_ranks > 1 and not drop_last:
            self.n_batches += 1
        self._shuffle()

    def _shuffle(self) -> None:
        order = torch.randperm(len(self._indices), generator=self._generator)
        self._permutation, self._n_used = self._indices[order], 0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return augmented and normalised images, float32 (b, c, h, w), and labels (b,)."""
        if self._n_used == self.n_batches:
            self._shuffle()
        start = self._n_used * self._batch_size
        self._n_used += 1
        batch = self._permutation[start : start + self._batch_size]
        part = self._rank_slice
        indices = part.of(batch[: len(batch) - len(batch) % part.n_ranks])
        images = self._image_set
        draws = self._transform.draw(len(indices), images.size, self._generator, part)
        # One copy for everything that was drawn.
        moved, *rest = to_device([indices, *draws.tensors], images.labels.device)
        pixels, labels = images.fetch(indices, moved)
        return self._transform.apply(pixels, draws._replace(tensors=tuple(rest))), labels

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream."""
        return {
            "permutation": self._permutation.clone(),
            "n_used": self._n_used,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            InvalidValueError: The state belongs to a stream over other images or batches.
        """
        permutation, n_used = state["permutation"].cpu(), int(state["n_used"])
        if not torch.equal(permutation.sort().values, self._indices.sort().values):
            raise InvalidValueError("permutation must hold the indices of this stream, it does not")
        if not 0 <= n_used <= self.n_batches:
            raise InvalidValueError(f"n_used must lie in 0..{self.n_batches}, got {n_used}")
        self._permutation, self._n_used = permutation.clone(), n_used
        self._generator.set_state(state["generator"].cpu())


def sequential_batches(
    image_set: ImageSet, indices: Tensor | None, batch_size: int, transform: Transform
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images at ``indices``, or all, in batches; the last may be smaller.

    ``transform`` must not augment.
    """
    chosen = torch.arange(len(image_set)) if indices is None else indices.cpu()
    check_positive_int("batch_size", batch_size)
    for start in range(0, len(chosen), batch_size):
        images, labels = image_set.fetch(chosen[start : start + batch_size])
        yield transform(images), labels
