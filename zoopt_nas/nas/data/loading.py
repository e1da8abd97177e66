"""Load a data set by name or path."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import InvalidValueError, MissingDataError
from zoopt_nas.nas.data.array_files import (
    Labels,
    Pixels,
    Split,
    arrays_fingerprint,
    channel_statistics,
)
from zoopt_nas.nas.data.augmentation import Augmentation
from zoopt_nas.nas.data.datasets import DatasetSpec, Loaded
from zoopt_nas.nas.data.image_files import files_fingerprint, resize_pixels
from zoopt_nas.nas.data.image_sets import Dataset, HostImageSet, ImageSet, LazyImageSet
from zoopt_nas.nas.data.user_files import find_spec
from zoopt_nas.nas.steps.devices import free_memory

_DECODED_PER_CROP = 256 / 224  # ImageNet's convention: resize the shorter side to 256, crop 224
# Larger sets of images stay on the host, to leave the device's free memory to the model. The value
# is this package's choice.
MAX_FRACTION_OF_DEVICE = 0.25


def load_dataset(
    source: str | DatasetSpec,
    *,
    data_dir: Path,
    device: torch.device,
    download: bool = False,
    splits: tuple[str, ...] = ("train", "test"),
    image_size: int | None = None,
    n_train: int | None = None,
    check_test: bool = False,
) -> Dataset:
    """Load a dataset of `DATASETS`, an ``.npz`` file or an image folder.

    Args:
        source: A registered name, which takes precedence over a path such as ``./digits``; a path;
            or a spec.
        data_dir: The folder with the files of the registered datasets.
        device: Device of the batches.
        download: Whether to download missing files into ``data_dir`` if possible.
        splits: ("train", "test"), or ("train",) to skip the test images.
        image_size: Side in pixels to which images are resized; None: the dataset's size.
        n_train: Number of training images to use: the first ones of a permutation drawn with seed
            0, so that smaller subsets are part of larger ones.
        check_test: Whether to read and discard the test images, to find errors in them early. A
            missing test split is no error.

    Raises:
        UnknownNameError: No dataset has that name.
        DataError: A file is missing or cannot be used.
        InvalidValueError: ``splits``, ``image_size`` or ``n_train`` is invalid.
    """
    if tuple(splits) not in (("train", "test"), ("train",)):
        raise InvalidValueError(f"splits must be ('train', 'test') or ('train',), got {splits!r}")
    if image_size is not None:
        check_positive_int("image_size", image_size)
    spec = source if isinstance(source, DatasetSpec) else find_spec(source, image_size)
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
        _scaled_augmentation(spec, size),
        train=_image_set((images, labels), size, device),
        test=test,
        class_names=spec.class_names,
        fingerprints=fingerprints,
    )


def with_fingerprints(dataset: Dataset) -> Dataset:
    """Return the data set with missing fingerprints added, as for one made by hand."""
    prints = dict(dataset.fingerprints)
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        if images is not None and split not in prints:
            labels = images.labels.cpu().numpy()
            if isinstance(images, LazyImageSet):
                prints[split] = _digest(tuple(images.paths), labels)
            else:
                prints[split] = _digest(images.images.permute(0, 2, 3, 1).cpu().numpy(), labels)
    return replace(dataset, fingerprints=prints)


def _fingerprint(spec: DatasetSpec, split: Split, loaded: Loaded) -> str:
    return _digest(*loaded) if spec.fingerprint is None else spec.fingerprint(split)


def _digest(images: Pixels | tuple[Path, ...], labels: Labels) -> str:
    if isinstance(images, tuple):
        return files_fingerprint(images, with_content=False)  # reading all bytes would take hours
    return arrays_fingerprint(images, labels)


def _scaled_augmentation(spec: DatasetSpec, size: int) -> Augmentation:
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
    return free is not None and n_bytes > MAX_FRACTION_OF_DEVICE * free
