"""Files into NumPy arrays, safely: what cannot be used ends in a one-line `DataError`.

No file read here can run code: images go through PIL, ``.npz`` files through NumPy without its
pickles, and the CIFAR pickles through an unpickler that can build arrays and nothing else.
"""

from __future__ import annotations

import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from zoopt_nas.errors import DataError

Split = Literal["train", "test"]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# What PIL is known to raise on a broken file, besides its own UnidentifiedImageError (an OSError).
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def check_arrays(
    images: Any, labels: Any, where: object, names: tuple[str, str], n_classes: int | None = None
) -> tuple[Pixels, Labels]:
    """Returns images (n, h, w, c) and labels (n,), or raises a `DataError` saying what is wrong."""
    x_name, y_name = names
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"{where}: {x_name} must be uint8 of shape (n, h, w) or (n, h, w, c), none of them "
            f"zero, got {images.dtype} {images.shape}"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:  # MATLAB and Keras write a column
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where}: {y_name} must be {len(images)} whole numbers, one for each image, "
            f"got {labels.dtype} {labels.shape}"
        )
    labels = labels.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (n_classes is not None and high >= n_classes):
        last = "n_classes - 1" if n_classes is None else n_classes - 1
        raise DataError(f"{where}: {y_name} must lie in 0..{last}, got {low if low < 0 else high}")
    return images, labels


def resize_pixels(images: Pixels, size: int) -> Pixels:
    """Returns images (n, size, size, c): the middle square of each, resized with antialiasing."""
    _, height, width, _ = images.shape
    if height == width == size:
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top : top + side, left : left + side]
    batch = torch.from_numpy(np.ascontiguousarray(square)).permute(0, 3, 1, 2)
    resized = functional.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
    return cast(Pixels, resized.permute(0, 2, 3, 1).contiguous().numpy())


def decode_image(path: Path, mode: str, size: int | None) -> Pixels:
    """Returns the pixels (h, w, c) of one image file.

    Args:
        mode: PIL's name of the pixel format: "L" (c = 1) or "RGB" (c = 3).
        size: the shorter side is resized to it and the middle square kept; None: as stored.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            pixels = image.convert(mode)
            if size is not None:
                pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BILINEAR)
            array = np.asarray(pixels, dtype=np.uint8)
    except DECODE_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image: {one_line(error)}") from error
    return array[..., None] if array.ndim == 2 else array


def stratified_split(labels: Labels) -> tuple[Labels, Labels]:
    """Returns indices of about 80 % and 20 % of the images, alike in every class, seed 0.

    Every fifth image is taken from the images shuffled and then sorted by class, so that each
    class gives its share to within one image and keeps at least one if it has two.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    is_test = np.arange(len(order)) % 5 == 0
    return np.sort(order[~is_test]), np.sort(order[is_test])


def one_line(error: BaseException) -> str:
    """Returns the message of an error raised elsewhere, fit to be part of ours."""
    return " ".join(str(error).split()) or type(error).__name__


def list_images(root: Path) -> tuple[tuple[Path, ...], Labels, list[str]]:
    """Returns the image files of ``root/<class>/``, their labels, the class names in order."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it should hold one folder of images per class")
    folders = sorted(
        entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not folders:
        raise DataError(f"{root}: must hold one folder of images per class, it holds no folder")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{folder}: the class folder holds no image file (png, jpg, ...)")
        paths += found
        labels += [label] * len(found)
    return tuple(paths), np.array(labels, dtype=np.int64), [folder.name for folder in folders]


def read_npz(path: Path, split: Split) -> tuple[Pixels, Labels]:
    """Returns the checked arrays ``x_<split>, y_<split>`` of an ``.npz`` file."""
    names = (f"x_{split}", f"y_{split}")
    try:
        # Opened here because NumPy leaves a broken file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            missing = [name for name in names if name not in content.files]
            arrays = {} if missing else {name: content[name] for name in names}
    except (
        *(OSError, ValueError, EOFError, AttributeError, TypeError, NotImplementedError),
        *(KeyError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error, MemoryError),
        tokenize.TokenError,  # NumPy parses an array's header as Python source
    ) as error:
        raise DataError(f"{path}: not a usable .npz file: {one_line(error)}") from error
    if missing:
        raise DataError(f"{path}: the array {missing[0]} is missing")
    return check_arrays(arrays[names[0]], arrays[names[1]], path, names)


def image_mode(paths: Sequence[Path], any_size: bool) -> str:
    """Returns "L" if every file is grey, else "RGB"; checks that they have one size."""
    grey = True
    first: tuple[Path, tuple[int, int]] | None = None
    for path in paths:
        try:
            with Image.open(path) as image:
                size, mode = image.size, image.mode
        except DECODE_ERRORS as error:
            raise DataError(f"{path}: cannot be read as an image: {one_line(error)}") from error
        if mode.startswith(("I", "F")):
            raise DataError(f"{path}: must have 8 bits per channel, its PIL mode is {mode}")
        grey = grey and mode in ("1", "L")
        first = first or (path, size)
        if not any_size and size != first[1]:
            raise DataError(
                f"images differ in size: {first[0]} is {first[1][0]}x{first[1][1]}, {path} is "
                f"{size[0]}x{size[1]}; give them one size with --image-size"
            )
    return "L" if grey else "RGB"


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stands in for `codecs.encode`, which would look up whatever codec a file names."""
    return text.encode("latin1")


# A pickle names the functions it wants called; NumPy arrays need these and nothing else.
_ARRAY_PARTS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,  # how Python 3 writes bytes in Python 2's protocol
    # Taken from arrays because NumPy 2 moved the private module that the files name.
    **{
        (f"numpy.{core}.{module}", function.__name__): function
        for core in ("core", "_core")
        for module, function in (
            ("multiarray", np.empty(0).__reduce__()[0]),
            ("numeric", np.empty(0).__reduce_ex__(5)[0]),
        )
        if callable(function)
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled lists, dicts and NumPy arrays; refuses whatever could run code."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")  # the files were written by Python 2

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ARRAY_PARTS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which no array needs"
            ) from None


def read_pickle(path: Path) -> dict[Any, Any]:
    """Returns the dict that a pickle file holds; a file that asks for more than data is refused."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file).load()
    except (
        *(pickle.UnpicklingError, EOFError, OSError, MemoryError, ImportError),
        *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError),
    ) as error:
        raise DataError(f"{path}: not a usable pickle file: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a dict, got {type(content).__name__}")
    return content
