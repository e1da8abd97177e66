"""The registered datasets and the readers of their files.

A `DatasetSpec` describes a dataset; ``user_files.py`` makes one from the user's data. A file that
is missing, broken or malicious raises a `DataError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoopt_nas.errors import DataError, MissingDataError, MissingDependencyError
from zoopt_nas.nas.data.array_files import (
    Labels,
    Pixels,
    Split,
    check_arrays,
    one_line,
    read_pickle,
)
from zoopt_nas.nas.data.augmentation import Augmentation
from zoopt_nas.nas.data.image_files import DECODE_ERRORS, list_images, stratified_split
from zoopt_nas.registry import Registry

# Images are pixels (n, h, w, c), or image files if the pixels would exceed the memory.
Loaded = tuple[Pixels | tuple[Path, ...], Labels]


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset that can be loaded.

    Attributes:
        name: Name in messages.
        n_classes, in_channels, image_size: Dimensions of the images and labels.
        mean, std: Per-channel statistics of pixels in 0..1; None: computed from the training
            images.
        augmentation: Random changes of training images.
        load: (data_dir, split, download) -> images and labels (n,) in 0..n_classes-1. The images
            are uint8 (n, h, w, c), or paths of image files that are decoded on demand.
        class_names: Names by label, or None.
        fingerprint: split -> a digest of its images and labels as stored; None: the digest of the
            result of ``load``.
    """

    name: str
    n_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augmentation: Augmentation
    load: Callable[[Path, Split, bool], Loaded]
    class_names: tuple[str, ...] | None = None
    fingerprint: Callable[[Split], str] | None = None


def _require(
    paths: Sequence[Path], name: str, download: bool, fetch: Callable[[Any], object]
) -> None:
    """Raise MissingDataError if a file is missing and not downloaded with torchvision."""
    missing = [path for path in paths if not path.is_file()]
    if missing and download:
        import torchvision.datasets

        try:
            fetch(torchvision.datasets)
        except (OSError, RuntimeError) as error:
            raise DataError(f"{name}: the download failed: {one_line(error)}") from error
        missing = [path for path in paths if not path.is_file()]
    if missing:
        raise MissingDataError(
            f"{name}: no file {missing[0].name} in {missing[0].parent}; "
            "set data_dir to the folder of the data, or download to fetch it"
        )


# ------------------------------------------------------------------------ the loaders


def _load_digits(data_dir: Path, split: Split, download: bool) -> Loaded:
    """Load scikit-learn's 1797 handwritten digits: 1437 to train, 360 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "dataset digits needs scikit-learn: pip install 'zoopt-nas[nas]'"
        ) from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    train, test = stratified_split(labels)
    kept = train if split == "train" else test
    return images[kept], labels[kept]


def _cifar_loader(
    name: str, folder: str, files: dict[Split, tuple[str, ...]], label_key: str, n_classes: int
) -> Callable[[Path, Split, bool], Loaded]:
    """Return the loader of CIFAR-10 or CIFAR-100."""

    def load(data_dir: Path, split: Split, download: bool) -> Loaded:
        paths = [data_dir / folder / file for file in files[split]]
        _require(
            paths,
            name,
            download,
            lambda torchvision: getattr(torchvision, name.upper())(data_dir, download=True),
        )
        parts = [_load_cifar_file(path, label_key, n_classes) for path in paths]
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    return load


def _load_cifar_file(path: Path, label_key: str, n_classes: int) -> tuple[Pixels, Labels]:
    content = read_pickle(path)
    for key in ("data", label_key):
        if key not in content:
            raise DataError(f"{path}: the key {key!r} is missing")
    rows = np.asarray(content["data"])
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32:
        raise DataError(
            f"{path}: data must be uint8 of shape (n, 3072), got {rows.dtype} {rows.shape}"
        )
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return check_arrays(images, content[label_key], path, ("data", label_key), n_classes)


def _load_svhn(data_dir: Path, split: Split, download: bool) -> Loaded:
    """Load Street View House Numbers, cropped digits, without ``extra``, as in the papers."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = data_dir / f"{split}_32x32.mat"
    _require(
        [path],
        "svhn",
        download,
        lambda torchvision: torchvision.SVHN(data_dir, split=split, download=True),
    )
    try:
        content = loadmat(path, variable_names=("X", "y"))
    except (
        *DECODE_ERRORS, MatReadError, TypeError, LookupError, ArithmeticError, NotImplementedError,
        MemoryError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: not a usable MATLAB file: {one_line(error)}") from error
    for name in ("X", "y"):
        if name not in content:
            raise DataError(f"{path}: the variable {name!r} is missing")
    images, labels = content["X"], content["y"]
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X must have shape (32, 32, 3, n), got {images.shape}")
    labels = np.where(labels == 10, 0, labels)  # the file calls the digit 0 class 10
    return check_arrays(images.transpose(3, 0, 1, 2), labels, path, ("X", "y"), 10)


def _load_imagenet(data_dir: Path, split: Split, download: bool) -> Loaded:
    """List the files of ILSVRC 2012 in the class folders of ``imagenet/train`` or ``/val``."""
    root = data_dir / "imagenet" / ("train" if split == "train" else "val")
    if not root.is_dir():
        raise MissingDataError(
            f"imagenet: no folder {root}; it cannot be downloaded from here, "
            "set data_dir to the folder that holds imagenet"
        )
    paths, labels, classes = list_images(root)
    if len(classes) != 1000:
        raise DataError(f"{root}: must hold 1000 class folders, it holds {len(classes)}")
    return paths, labels


# ------------------------------------------------------------------------ the table

_CROP_AND_FLIP = Augmentation(crop_padding=4, flip=True)
_CIFAR10_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_CIFAR100_FILES: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test",)}

# Means and deviations are as in the DARTS family of papers, so that results are comparable.
# fmt: off
_SPECS = (
    DatasetSpec(
        name="digits", n_classes=10, in_channels=1, image_size=8, mean=None, std=None,
        augmentation=Augmentation(crop_padding=1),  # a mirrored digit is another shape
        load=_load_digits, class_names=tuple("0123456789")),
    DatasetSpec(
        name="cifar10", n_classes=10, in_channels=3, image_size=32,
        mean=(0.49139968, 0.48215827, 0.44653124), std=(0.24703233, 0.24348505, 0.26158768),
        augmentation=_CROP_AND_FLIP,
        load=_cifar_loader("cifar10", "cifar-10-batches-py", _CIFAR10_FILES, "labels", 10),
        class_names=("airplane", "automobile", "bird", "cat", "deer",
                     "dog", "frog", "horse", "ship", "truck")),
    DatasetSpec(
        name="cifar100", n_classes=100, in_channels=3, image_size=32,
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), augmentation=_CROP_AND_FLIP,
        load=_cifar_loader("cifar100", "cifar-100-python", _CIFAR100_FILES, "fine_labels", 100)),
    DatasetSpec(
        name="svhn", n_classes=10, in_channels=3, image_size=32,
        mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970),
        augmentation=_CROP_AND_FLIP,  # every released code flips SVHN, too
        load=_load_svhn, class_names=tuple("0123456789")),
    DatasetSpec(
        name="imagenet", n_classes=1000, in_channels=3, image_size=224,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        augmentation=Augmentation(
            flip=True, resized_crop=224, colour_jitter=(0.4, 0.4, 0.4, 0.2)),
        load=_load_imagenet),
)
# fmt: on
DATASETS: Registry[DatasetSpec] = Registry(
    "dataset",
    {spec.name: spec for spec in _SPECS},
    group="zoopt_nas.datasets",
    check=lambda entry: isinstance(entry, DatasetSpec),
)
