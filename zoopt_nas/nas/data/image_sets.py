"""Images on the device: loaded datasets, disjoint splits, streams of batches.

The images of a dataset lie in one uint8 tensor and are augmented on the device, a batch at a time.
The tensor is on the device too, unless it would take much of its memory: then it stays on the host,
and batches are copied. ImageNet, which does not fit there either, is decoded batch by batch. All
random draws come from CPU generators that are passed in, so that a seed gives the same batches on
every device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor

from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import InvalidValueError, MissingDataError
from zoopt_nas.nas.data.array_files import Pixels, Split, arrays_fingerprint, channel_statistics
from zoopt_nas.nas.data.augmentation import WHOLE, Augmentation, Share, Transform
from zoopt_nas.nas.data.datasets import DatasetSpec, Loaded
from zoopt_nas.nas.data.image_files import decode_image, files_fingerprint, resize_pixels
from zoopt_nas.nas.data.transfer import staging, to_device
from zoopt_nas.nas.data.user_files import find_spec
from zoopt_nas.nas.steps.devices import free_memory

# ImageNet's convention: the shorter side becomes 256 for crops of 224.
_DECODED_PER_CROP = 256 / 224
# Images that would take more than this share of what a device has free stay on the host: the rest
# is for the model (ours; a batch is small, and its copy need not be waited for).
MAX_SHARE_OF_DEVICE = 0.25


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


def load_dataset(
    name_or_path: str,
    *,
    data_dir: Path,
    device: torch.device,
    download: bool = False,
    splits: tuple[str, ...] = ("train", "test"),
    image_size: int | None = None,
    n_train: int | None = None,
    check_test: bool = False,
) -> Dataset:
    """Loads a dataset of `DATASETS`, or a person's own ``.npz`` file or image folder.

    Args:
        name_or_path: a registered name wins over a path; ``./digits`` is always a path.
        data_dir: the folder that holds the files of the registered datasets.
        download: fetch missing files into ``data_dir`` where that is possible.
        splits: ("train", "test"), or ("train",) to leave the test images alone.
        image_size: side in pixels that every image is resized to; None: the dataset's own.
        n_train: use this many training images only: the first of a permutation drawn with seed 0,
            so that a smaller subset is part of a larger one.
        check_test: read the test images too, and forget them: what is wrong with them is known
            before a search rather than after it. It is no error if there are none.

    Raises:
        UnknownNameError: no dataset has that name.
        DataError: a file is missing or cannot be used.
        InvalidValueError: ``splits``, ``image_size`` or ``n_train`` breaks its rule.
    """
    if tuple(splits) not in (("train", "test"), ("train",)):
        raise InvalidValueError(f"splits must be ('train', 'test') or ('train',), got {splits!r}")
    if image_size is not None:
        check_positive_int("image_size", image_size)
    spec = find_spec(name_or_path, image_size)
    size = image_size or spec.image_size
    loaded = spec.load(data_dir, "train", download)
    fingerprints = {"train": _fingerprint(spec, "train", loaded)}
    images, labels = loaded
    if n_train is not None:
        if check_positive_int("n_train", n_train) > len(labels):
            raise InvalidValueError(
                f"n_train must be at most {len(labels)}, the number of images, got {n_train}"
            )
        kept = np.random.default_rng(0).permutation(len(labels))[:n_train]
        images = tuple(images[i] for i in kept) if isinstance(images, tuple) else images[kept]
        labels = labels[kept]
    mean, std = spec.mean, spec.std
    if mean is None or std is None:
        mean, std = channel_statistics(cast(Pixels, images))
    test = None
    if "test" in splits:
        loaded = spec.load(data_dir, "test", download)
        fingerprints["test"] = _fingerprint(spec, "test", loaded)
        test = _image_set(loaded, size, device)
    elif check_test:
        with contextlib.suppress(MissingDataError):
            spec.load(data_dir, "test", False)
    return Dataset(
        spec.name,
        spec.n_classes,
        spec.in_channels,
        size,
        mean,
        std,
        _fit_augmentation(spec, size),
        train=_image_set((images, labels), size, device),
        test=test,
        class_names=spec.class_names,
        fingerprints=fingerprints,
    )


def _fingerprint(spec: DatasetSpec, split: Split, loaded: Loaded) -> str:
    images, labels = loaded
    if spec.fingerprint is not None:
        return spec.fingerprint(split)
    if isinstance(images, tuple):
        return files_fingerprint(images, with_content=False)  # reading them would take hours
    return arrays_fingerprint(images, labels)


def _fit_augmentation(spec: DatasetSpec, size: int) -> Augmentation:
    if size == spec.image_size:
        return spec.augmentation
    if spec.augmentation.resized_crop is not None:
        return replace(spec.augmentation, resized_crop=size)
    return replace(spec.augmentation, crop_padding=size // 8)


def _image_set(loaded: Loaded, size: int, device: torch.device) -> ImageSet:
    images, labels = loaded
    label_tensor = torch.from_numpy(np.ascontiguousarray(labels)).to(device)
    if isinstance(images, tuple):
        return LazyImageSet(images, label_tensor, round(size * _DECODED_PER_CROP))
    pixels = torch.from_numpy(np.ascontiguousarray(resize_pixels(images, size)))
    if _stays_on_host(pixels.nbytes, device):
        return HostImageSet(pixels.permute(0, 3, 1, 2).contiguous(), label_tensor)
    return ImageSet(pixels.to(device).permute(0, 3, 1, 2).contiguous(), label_tensor)


def _stays_on_host(n_bytes: int, device: torch.device) -> bool:
    free = None if device.type == "cpu" else free_memory(device)
    return free is not None and n_bytes > MAX_SHARE_OF_DEVICE * free


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
