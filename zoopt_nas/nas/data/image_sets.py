"""Loaded images and datasets.

The images of a dataset form a uint8 tensor on the device. A large tensor stays on the host, and its
batches are copied. ImageNet is decoded batch by batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoopt_nas.nas.data.augmentation import Augmentation, Transform
from zoopt_nas.nas.data.image_files import decode_image
from zoopt_nas.nas.data.transfer import staging, to_device


class ImageSet:
    """Labelled images on one device: uint8 (n, c, h, w), with labels int64 (n,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes it occupies on the device of its batches."""
        return self.images.nbytes + self.labels.nbytes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.images.shape[-2:]
        return height, width

    def fetch(self, indices: Tensor, moved: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the images (b, c, h, w), uint8, and labels (b,) at ``indices``.

        Args:
            indices: int64 (b,), on the CPU.
            moved: A copy of ``indices`` on the device of the labels, if there is one.
        """
        if moved is None:
            moved = to_device([indices], self.labels.device)[0]
        return self._pixels(indices, moved), self.labels.index_select(0, moved)

    def _pixels(self, indices: Tensor, moved: Tensor) -> Tensor:
        return self.images.index_select(0, moved)


class HostImageSet(ImageSet):
    """Labelled images on the host, with labels on the device of the batches."""

    @property
    def nbytes(self) -> int:
        """Bytes it occupies on the device of its batches."""
        return self.labels.nbytes

    def _pixels(self, indices: Tensor, moved: Tensor) -> Tensor:
        batch = staging((len(indices), *self.images.shape[1:]), self.labels.device)
        torch.index_select(self.images, 0, indices.cpu(), out=batch)
        return batch.to(self.labels.device, non_blocking=True)


class LazyImageSet(HostImageSet):
    """Labelled image files that are decoded on demand; it has no ``images``.

    Args:
        paths: n image files.
        labels: int64 (n,), on the device of the batches.
        size: Side in pixels of the decoded squares.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int) -> None:
        self.paths, self.labels, self._side = paths, labels, size
        self._decode = partial(decode_image, mode="RGB", size=size)
        self._pool = ThreadPoolExecutor()  # its threads start with the first fetch

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self._side, self._side

    def _pixels(self, indices: Tensor, moved: Tensor) -> Tensor:
        paths = [self.paths[i] for i in indices.tolist()]
        decoded = list(self._pool.map(self._decode, paths))
        pixels = staging((len(decoded), *decoded[0].shape), self.labels.device)
        np.stack(decoded, out=pixels.numpy())
        pixels = pixels.to(self.labels.device, non_blocking=True)
        return pixels.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset; ``test`` is None if only the training images were loaded.

    ``fingerprints`` has a digest of each loaded split before ``n_train`` and ``image_size``: of
    pixels and labels, of the files of an image folder, or of the names and sizes of ImageNet files.
    """

    name: str
    n_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    train: ImageSet
    test: ImageSet | None
    class_names: tuple[str, ...] | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def transform(self, augment: bool = True, cutout: int = 0) -> Transform:
        """Return the transform of training batches, or of test batches (``augment=False``).

        ``cutout`` is the side of the square that is cut out of training images; 0 is none.
        """
        return Transform(
            self.mean,
            self.std,
            replace(self.augmentation, cutout=cutout) if augment else None,
            image_size=self.image_size,
            device=self.train.labels.device,
        )
