"""Images on the device: loaded datasets, disjoint splits, streams of batches.

The images of a dataset lie in one uint8 tensor and are augmented on the device, a batch at a time.
The tensor is on the device too, unless it would take much of its memory: then it stays on the host,
and batches are copied. ImageNet, which does not fit there either, is decoded batch by batch. All
random draws come from CPU generators that are passed in, so that a seed gives the same batches on
every device.
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
    """Labelled images on one device.

    Args:
        images: uint8 (n, c, h, w).
        labels: int64 (n,), on the same device.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """What it takes of the memory of the device on which its batches are."""
        return self.images.nbytes + self.labels.nbytes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""
        height, width = self.images.shape[-2:]
        return height, width

    def fetch(self, indices: Tensor, moved: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the images (b, c, h, w), uint8, and labels (b,) at some indices.

        Args:
            indices: int64 (b,), on the CPU.
            moved: the same on the device of the labels, where someone has copied them already.
        """
        moved = self._moved(indices) if moved is None else moved
        return self.images.index_select(0, moved), self.labels.index_select(0, moved)

    def _moved(self, indices: Tensor) -> Tensor:
        return to_device([indices], self.labels.device)[0]


class HostImageSet(ImageSet):
    """Labelled images that stay on the host; a batch is copied when it is fetched.

    Args:
        images: uint8 (n, c, h, w), on the CPU.
        labels: int64 (n,), on the device to which the batches go.
    """

    @property
    def nbytes(self) -> int:
        return self.labels.nbytes

    def fetch(self, indices: Tensor, moved: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `ImageSet.fetch`."""
        device = self.labels.device
        batch = staging((len(indices), *self.images.shape[1:]), device)
        torch.index_select(self.images, 0, indices.cpu(), out=batch)
        moved = self._moved(indices) if moved is None else moved
        return batch.to(device, non_blocking=True), self.labels.index_select(0, moved)


class LazyImageSet(ImageSet):
    """Labelled image files, decoded to squares when they are fetched; it has no ``images``.

    Args:
        paths: n image files.
        labels: int64 (n,), on the device to which the decoded images go.
        size: side in pixels of the decoded squares.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int) -> None:
        self.paths, self.labels, self._side = paths, labels, size
        self._decode = partial(decode_image, mode="RGB", size=size)
        self._pool = ThreadPoolExecutor()  # its threads start with the first fetch

    @property
    def nbytes(self) -> int:
        return self.labels.nbytes

    @property
    def size(self) -> tuple[int, int]:
        return self._side, self._side

    def fetch(self, indices: Tensor, moved: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `ImageSet.fetch`.

        Raises:
            DataError: a file cannot be decoded.
        """
        paths = [self.paths[i] for i in indices.tolist()]
        decoded = list(self._pool.map(self._decode, paths))
        device = self.labels.device
        pixels = staging((len(decoded), *decoded[0].shape), device)
        np.stack(decoded, out=pixels.numpy())
        images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        moved = self._moved(indices) if moved is None else moved
        return images, self.labels.index_select(0, moved)


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset; ``test`` is None when only the training images were asked for.

    ``fingerprints`` has a digest of each loaded split as it is stored, before ``n_train`` and
    ``image_size``: of pixels and labels; of the bytes and names of the files of an image folder; of
    the names and sizes of ImageNet's files.
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
        """Returns the transform of training batches, or of test batches (``augment=False``).

        Args:
            cutout: side of the square cut out of training images; 0 is none.
        """
        return Transform(
            self.mean,
            self.std,
            replace(self.augmentation, cutout=cutout) if augment else None,
            image_size=self.image_size,
            device=self.train.labels.device,
        )
