"""Make a `DatasetSpec` from the user's ``.npz`` file or image folder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from zoopt_nas.errors import DataError, MissingDataError
from zoopt_nas.nas.data.array_files import Labels, Pixels, Split, arrays_fingerprint, read_npz
from zoopt_nas.nas.data.augmentation import Augmentation
from zoopt_nas.nas.data.datasets import DATASETS, DatasetSpec, Loaded
from zoopt_nas.nas.data.image_files import (
    check_same_size,
    decode_image,
    files_fingerprint,
    image_mode,
    list_images,
    resize_pixels,
    stratified_split,
)


class _ArrayFile:
    """An ``.npz`` file: see `read_npz`."""

    class_names = None

    def __init__(self, path: Path, image_size: int | None) -> None:
        self._path, self._image_size = path, image_size
        self._digests: dict[Split, str] = {}

    def read(self, split: Split) -> tuple[Pixels, Labels]:
        """Return the images of a split at their final size, and its labels."""
        images, labels = read_npz(self._path, split)
        self._digests[split] = arrays_fingerprint(images, labels)  # as stored: see DatasetSpec
        return resize_pixels(images, self._image_size) if self._image_size else images, labels

    def fingerprint(self, split: Split) -> str:
        """Return the digest of a split that has been read."""
        return self._digests[split]


class _Folder:
    """An image folder with splits."""

    def __init__(self, root: Path, image_size: int | None) -> None:
        self._root, self._image_size = root, image_size
        self._has_splits = (root / "train").is_dir()
        paths, self._labels, names = list_images(root / "train" if self._has_splits else root)
        self._paths, self.class_names = paths, tuple(names)
        self._mode = ""  # of the training images, which are read first

    def read(self, split: Split) -> tuple[Pixels, Labels]:
        """Return the images of a split at their final size, and its labels."""
        paths, labels = self._files(split)
        any_size = self._image_size is not None
        mode = image_mode(paths, any_size=any_size)
        self._mode = self._mode or mode
        decode = partial(decode_image, mode=self._mode, size=self._image_size)
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(decode, paths))
        for path, image in zip(paths, images, strict=True):
            check_same_size(paths[0], images[0].shape[1::-1], path, image.shape[1::-1])
        return np.stack(images), labels

    def fingerprint(self, split: Split) -> str:
        """Return the digest of every byte of a split's files."""
        return files_fingerprint(self._files(split)[0], with_content=True)

    def _files(self, split: Split) -> tuple[Sequence[Path], Labels]:
        if not self._has_splits:
            counts = np.bincount(self._labels)
            if counts.min() < 2:
                raise DataError(
                    f"{self._root / self.class_names[int(counts.argmin())]}: a class needs two "
                    "images, one to train and one to test, it has 1"
                )
            kept = stratified_split(self._labels)[0 if split == "train" else 1]
            return [self._paths[i] for i in kept], self._labels[kept]
        if split == "train":
            return self._paths, self._labels
        folder = next((self._root / x for x in ("test", "val") if (self._root / x).is_dir()), None)
        if folder is None:
            raise MissingDataError(f"{self._root}: no folder test or val beside train")
        paths, labels, classes = list_images(folder)
        unknown = [name for name in classes if name not in self.class_names]
        if unknown:
            raise DataError(f"{folder / unknown[0]}: this class has no folder in train")
        return paths, np.array([self.class_names.index(name) for name in classes])[labels]


def user_spec(path: Path, image_size: int | None) -> DatasetSpec:
    """Read the user's training images and describe them as a dataset.

    Args:
        path: An ``.npz`` file for `read_npz`, or a folder that holds ``train/<class>/`` and
            ``test/<class>/`` (or ``val``) with image files. A folder with only ``<class>/`` gives a
            fixed stratified fifth as test set. Class numbers follow the order of the names.
        image_size: Side in pixels to which images are resized; None: as stored, equal squares.

    Raises:
        DataError: The data cannot be used.
    """
    source: _Folder | _ArrayFile
    if path.is_dir():
        source = _Folder(path, image_size)
    elif path.suffix.lower() == ".npz":
        source = _ArrayFile(path, image_size)
    else:
        raise DataError(f"{path}: must be an .npz file or a folder of images")
    images, labels = source.read("train")
    n_classes = _count_classes(labels, path)
    _, height, width, channels = images.shape
    if height != width:
        raise DataError(
            f"{path}: images must be square, got {width}x{height}; crop them with image_size"
        )

    def load(data_dir: Path, split: Split, download: bool) -> Loaded:
        if split == "train":
            return images, labels
        x, y = source.read("test")
        if x.shape[1:] != images.shape[1:] or y.max() >= n_classes:
            raise DataError(
                f"{path}: test images must be {images.shape[1:]} (h, w, c) with labels below "
                f"{n_classes}, as in training, got {x.shape[1:]} and labels up to {y.max()}"
            )
        return x, y

    return DatasetSpec(
        name=path.stem,
        n_classes=n_classes,
        in_channels=channels,
        image_size=height,
        mean=None,
        std=None,
        augmentation=Augmentation(crop_padding=height // 8, flip=True),
        load=load,
        class_names=source.class_names,
        fingerprint=source.fingerprint,
    )


def _count_classes(labels: Labels, path: Path) -> int:
    present = np.unique(labels)
    absent = np.flatnonzero(present != np.arange(len(present)))
    if len(absent) or len(present) < 2:
        problem = f"class {absent[0]} has none" if len(absent) else "there is one class"
        raise DataError(
            f"{path}: two or more classes, numbered from 0 without gaps, need training images; "
            f"{problem}"
        )
    return len(present)


def find_spec(name_or_path: str, image_size: int | None) -> DatasetSpec:
    """Return the dataset of `DATASETS` with that name, or the user's data at that path.

    Raises:
        UnknownNameError: No dataset has that name.
        DataError: The path does not exist or cannot be used.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path not in DATASETS:
        if path.exists():
            return user_spec(path, image_size)
        if path.suffix or len(path.parts) > 1 or name_or_path.startswith(("~", ".", "/")):
            raise MissingDataError(f"dataset {name_or_path}: no such file or folder")
    return DATASETS[name_or_path]
