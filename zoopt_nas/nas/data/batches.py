"""Disjoint parts of a data set, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data.augmentation import WHOLE, Share, Transform
from zoopt_nas.nas.data.image_sets import ImageSet
from zoopt_nas.nas.data.transfer import to_device


def split_indices(n: int, train_portion: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Splits 0..n-1 at random: ⌊n · train_portion⌋ indices to train, the others to validate.

    Returns:
        Two disjoint int64 tensors on the CPU, together all of 0..n-1.

    Raises:
        InvalidValueError: a part would be empty.
    """
    if not 0 < train_portion < 1 or not 0 < int(n * train_portion) < n:
        raise InvalidValueError(
            f"train_portion must lie in (0, 1) and leave both parts of {n} images some, "
            f"got {train_portion}"
        )
    order = torch.randperm(n, generator=generator)
    n_train = int(n * train_portion)
    return order[:n_train], order[n_train:]


class BatchStream:
    """An endless stream of training batches; it can be stopped and go on bit for bit.

    It walks through random permutations of the indices. The rest of a permutation that fills no
    batch is a smaller batch, unless ``drop_last``; a rest of one image is always left out, since
    BatchNorm cannot take it. If there are fewer images than ``batch_size``, a batch is all of them.

    Args:
        image_set: where the images come from.
        indices: int64 (n,), which images.
        transform: applied to each batch with the stream's generator.
        generator: a CPU generator of the stream's own: its state is saved with the stream.
        share: what it gives of each batch. Streams with the same generator and other shares give
            the rest; a last batch is cut so that the shares are equal, and left out below two
            images for each.

    Raises:
        InvalidValueError: there is no index, or ``batch_size`` is not a positive integer.
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
        share: Share = WHOLE,
    ) -> None:
        if len(indices) == 0:
            raise InvalidValueError("indices must hold at least one index, got none")
        self._image_set, self._transform, self._generator = image_set, transform, generator
        self._indices = indices.cpu()
        self._batch_size = min(check_positive_int("batch_size", batch_size), len(indices))
        self.n_batches, rest = divmod(len(indices), self._batch_size)
        self._share = share
        if rest // share.n > 1 and not drop_last:
            self.n_batches += 1
        self._shuffle()

    def _shuffle(self) -> None:
        order = torch.randperm(len(self._indices), generator=self._generator)
        self._permutation, self._n_used = self._indices[order], 0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Returns images, float32 (b, c, h, w), augmented and normalised, and labels (b,)."""
        if self._n_used == self.n_batches:
            self._shuffle()
        start = self._n_used * self._batch_size
        self._n_used += 1
        batch = self._permutation[start : start + self._batch_size]
        own = self._share.of(batch[: len(batch) - len(batch) % self._share.n])
        images = self._image_set
        draws = self._transform.draw(len(own), images.size, self._generator, self._share)
        # Everything that was drawn in one copy.
        moved, *rest = to_device([own, *draws.tensors], images.labels.device)
        pixels, labels = images.fetch(own, moved)
        return self._transform.apply(pixels, draws._replace(tensors=tuple(rest))), labels

    def state_dict(self) -> dict[str, Any]:
        """Returns the position as tensors and one int."""
        return {
            "permutation": self._permutation.clone(),
            "n_used": self._n_used,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            InvalidValueError: the state is that of a stream over other images or batches.
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
    """Yields each image once, in order, in batches (the last may be smaller).

    Args:
        indices: int64 (n,), which images; None is all of them.
        transform: one without augmentation.
    """
    chosen = torch.arange(len(image_set)) if indices is None else indices.cpu()
    check_positive_int("batch_size", batch_size)
    for start in range(0, len(chosen), batch_size):
        images, labels = image_set.fetch(chosen[start : start + batch_size])
        yield transform(images), labels
