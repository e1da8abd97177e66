"""The datasets: what each one is, and its files read into plain NumPy arrays.

A dataset of the table below is one `DatasetSpec`; the user's own ``.npz`` file or image folder
becomes one in ``own_data.py``. Nothing here knows about devices or batches: see ``data.py``.
A file that is missing, broken or malicious ends in a `DataError`.
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

# Images are pixels (n, h, w, c), or image files where the pixels would not fit in memory.
Loaded = tuple[Pixels | tuple[Path, ...], Labels]


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset that can be loaded.

    Attributes:
        mean: per channel, for pixels in 0..1; None: computed from the training images.
        std: as ``mean``.
        load: (data_dir, split, download) -> images and labels (n,) in 0..n_classes-1. The images
            are uint8 (n, h, w, c), or paths of image files to be decoded when they are needed.
        class_names: by label; None: the labels have no names, or none that are known here.
        fingerprint: split -> a digest of its images and labels as they are stored. None: the digest
            of what ``load`` returns, see `data.load_dataset`.
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
    """Checks that the files are there, after fetching them with torchvision if asked to."""
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
    """Scikit-learn's 1797 handwritten digits: 1437 to train, 360 to test."""
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


@dataclass(frozen=True)
class _CifarFiles:
    """Where CIFAR-10 and CIFAR-100, which share one format, differ."""

    name: str
    folder: str
    files: dict[Split, tuple[str, ...]]
    label_key: str
    n_classes: int

    def load(self, data_dir: Path, split: Split, download: bool) -> Loaded:
        paths = [data_dir / self.folder / file for file in self.files[split]]
        _require(
            paths,
            self.name,
            download,
            lambda torchvision: getattr(torchvision, self.name.upper())(data_dir, download=True),
        )
        parts = [self._load_file(path) for path in paths]
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    def _load_file(self, path: Path) -> tuple[Pixels, Labels]:
        content = read_pickle(path)
        for key in ("data", self.label_key):
            if key not in content:
                raise DataError(f"{path}: the key {key!r} is missing")
        rows = np.asarray(content["data"])
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32:
            raise DataError(
                f"{path}: data must be uint8 of shape (n, 3072), got {rows.dtype} {rows.shape}"
            )
        images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        names = ("data", self.label_key)
        return check_arrays(images, content[self.label_key], path, names, self.n_classes)


_CIFAR10 = _CifarFiles(
    name="cifar10",
    folder="cifar-10-batches-py",
    files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    label_key="labels",
    n_classes=10,
)
_CIFAR100 = _CifarFiles(
    name="cifar100",
    folder="cifar-100-python",
    files={"train": ("train",), "test": ("test",)},
    label_key="fine_labels",
    n_classes=100,
)


def _load_svhn(data_dir: Path, split: Split, download: bool) -> Loaded:
    """Street View House Numbers, cropped digits; ``extra`` is not used, as in the papers."""
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
        *(*DECODE_ERRORS, MatReadError, TypeError, LookupError, ArithmeticError),
        *(NotImplementedError, MemoryError),
    ) as error:
        raise DataError(f"{path}: not a usable MATLAB file: {one_line(error)}") from error
    for name in ("X", "y"):
        if name not in content:
            raise DataError(f"{path}: the variable {name!r} is missing")
    images, labels = content["X"], content["y"]
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X must have shape (32, 32, 3, n), got {images.shape}")
    # The file calls the digit 0 class 10.
    labels = np.where(labels == 10, 0, labels)
    return check_arrays(images.transpose(3, 0, 1, 2), labels, path, ("X", "y"), 10)


def _load_imagenet(data_dir: Path, split: Split, download: bool) -> Loaded:
    """ILSVRC 2012 in class folders: ``imagenet/train`` and ``imagenet/val``, decoded later."""
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

_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CROP_AND_FLIP = Augmentation(crop_padding=4, flip=True)

# Means and deviations are those of the DARTS family of papers, so that numbers compare.
DATASETS: Registry[DatasetSpec] = Registry(
    "dataset",
    {
        "digits": DatasetSpec(
            name="digits",
            n_classes=10,
            in_channels=1,
            image_size=8,
            mean=None,
            std=None,
            augmentation=Augmentation(crop_padding=1),  # a mirrored digit is another shape
            load=_load_digits,
            class_names=tuple("0123456789"),
        ),
        "cifar10": DatasetSpec(
            name="cifar10",
            n_classes=10,
            in_channels=3,
            image_size=32,
            mean=(0.49139968, 0.48215827, 0.44653124),
            std=(0.24703233, 0.24348505, 0.26158768),
            augmentation=_CROP_AND_FLIP,
            load=_CIFAR10.load,
            class_names=_CIFAR10_CLASSES,
        ),
        "cifar100": DatasetSpec(
            name="cifar100",
            n_classes=100,
            in_channels=3,
            image_size=32,
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            augmentation=_CROP_AND_FLIP,
            load=_CIFAR100.load,
        ),
        "svhn": DatasetSpec(
            name="svhn",
            n_classes=10,
            in_channels=3,
            image_size=32,
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
            augmentation=_CROP_AND_FLIP,  # flipped like the others in every released code
            load=_load_svhn,
            class_names=tuple("0123456789"),
        ),
        "imagenet": DatasetSpec(
            name="imagenet",
            n_classes=1000,
            in_channels=3,
            image_size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augmentation=Augmentation(
                flip=True, resized_crop=224, colour_jitter=(0.4, 0.4, 0.4, 0.2)
            ),
            load=_load_imagenet,
        ),
    },
    group="zoopt_nas.datasets",
    check=lambda entry: isinstance(entry, DatasetSpec),
)
