"""A data set by name or path, read, checked and put where its batches are made."""

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

# ImageNet's convention: the shorter side becomes 256 for crops of 224.
_DECODED_PER_CROP = 256 / 224


# Images that would take more than this share of what a device has free stay on the host: the rest
# is for the model (ours; a batch is small, and its copy need not be waited for).
MAX_SHARE_OF_DEVICE = 0.25


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
    """Loads a dataset of `DATASETS`, or a person's own ``.npz`` file or image folder.

    Args:
        source: a registered name, which wins over a path; a path, which ``./digits`` always is; or
            a spec.
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
        _fit_augmentation(spec, size),
        train=_image_set((images, labels), size, device),
        test=test,
        class_names=spec.class_names,
        fingerprints=fingerprints,
    )


def with_fingerprints(dataset: Dataset) -> Dataset:
    """Return the data set with a fingerprint of each split, also where it was made by hand."""
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
