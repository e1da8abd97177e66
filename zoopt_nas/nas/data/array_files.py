"""Arrays of a file into images and labels: which axis is which, and what the numbers mean.

Every form that can be read in one way only is accepted; any other ends in a one-line `DataError`
that says what to change. No file read here can run code: ``.npz`` files go through NumPy without
its pickles, and the CIFAR pickles through an unpickler that builds arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from zoopt_nas.errors import DataError, MissingDataError

Split = Literal["train", "test"]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

MAX_CHANNELS = 4  # of an ordinary image: grey or colour, with or without alpha
_ROUNDING = 1e-6  # by which fractions may leave 0..1: float32 does so where images were resized
_AT_ONCE = 1024  # images that are converted together, so that no float copy of all is made
# Names of images and labels: Keras, scikit-learn, MedMNIST.
_NAMES = (("x_{}", "y_{}"), ("X_{}", "y_{}"), ("{}_images", "{}_labels"))
_PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


class _Field(NamedTuple):
    """An array of a file, and how to call it in an error."""

    array: npt.NDArray[Any]
    where: object
    name: str

    def refuse(self, rule: str, fix: str = "") -> NoReturn:
        """Raises the error: what the array must be, what it is, and what to do."""
        got = f"got {self.array.dtype} {self.array.shape}"
        raise DataError(f"{self.where}: {self.name} {rule}, {got}" + (f"; {fix}" if fix else ""))


def check_arrays(
    images: Any, labels: Any, where: object, names: tuple[str, str], n_classes: int | None = None
) -> tuple[Pixels, Labels]:
    """Returns images (n, h, w, c) and labels (n,).

    Args:
        images: (n, h, w), (n, h, w, c) or (n, c, h, w), see `_channels_last`; whole numbers in
            0..255 of any type, floats in 0..1, or bool.
        labels: whole numbers of any type or bool, (n,) or (n, 1); or one-hot rows (n, n_classes).
        where: the file, for errors.
        names: of the two arrays, for errors.
        n_classes: labels must be below it; None: any number.

    Raises:
        DataError: the arrays have another form, or one that can be read in two ways.
    """
    pictures = _Field(np.asarray(images), where, names[0])
    classes = _Field(np.asarray(labels), where, names[1])
    shape, n_labels = pictures.array.shape, len(np.atleast_1d(classes.array))
    if len(shape) > 2 and shape[0] != n_labels and shape[-1] == n_labels:
        pictures.refuse(
            "must have the images along its first axis", f"use numpy.moveaxis({names[0]}, -1, 0)"
        )
    pixels = _as_pixels(pictures._replace(array=_channels_last(pictures)))
    return pixels, _as_labels(classes, len(pixels), n_classes)


def _channels_last(images: _Field) -> npt.NDArray[Any]:
    """The images as (n, h, w, c).

    Of (n, a, b, c) the channels are the second or the last axis. Two things speak for a reading:
    that it has at most four channels, and that its images are square. The reading for which more
    speaks is taken; if neither is ahead, as for (n, 3, 3, 3), the array is refused.
    """
    array = images.array
    if array.ndim not in (3, 4) or 0 in array.shape:
        fix = "reshape rows of pixels to images" if array.ndim == 2 else ""
        images.refuse("must be (n, h, w), (n, h, w, c) or (n, c, h, w), none of them zero", fix)
    if array.ndim == 3:
        return array[..., None]
    _, first, middle, last = array.shape
    for_last = (last <= MAX_CHANNELS) + (first == middle)
    for_first = (first <= MAX_CHANNELS) + (middle == last)
    if for_last == for_first:
        images.refuse(
            "must show which axis is the channels: (n, h, w, c) or (n, c, h, w) with c at most "
            f"{MAX_CHANNELS} or square images",
            "crop the images to squares, or save single channels as (n, h, w)",
        )
    return array if for_last > for_first else array.transpose(0, 2, 3, 1)


def _as_pixels(images: _Field) -> Pixels:
    """The pixels as uint8: whole numbers as they are, fractions of 1 times 255, rounded."""
    array, kind = images.array, images.array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    rule = "must be whole numbers in 0..255 or floats in 0..1"
    if kind not in "iuf":
        images.refuse(rule)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        images.refuse("must have finite pixels", "replace NaN and infinity")
    span = f"from {low:.8g} to {high:.8g}"
    if kind == "f" and low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return _by_parts(array, 255.0)
    if low < 0:
        fix = "undo the normalization; (x + 1) / 2 brings -1..1 to 0..1"
        images.refuse(f"{rule}, not {span}", fix)
    if high > 255:
        images.refuse(f"{rule}, not {span}", "scale them; x // 257 brings 16 bits to 8")
    if kind == "f" and not all((part == np.rint(part)).all() for part in _parts(array)):
        images.refuse(f"{rule}, not fractions {span}", "round them to uint8, or divide by 255")
    return _by_parts(array, 1.0)


def _parts(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(array), _AT_ONCE):
        yield array[start : start + _AT_ONCE]


def _by_parts(array: npt.NDArray[Any], factor: float) -> Pixels:
    return np.concatenate(
        [np.rint(part.astype(np.float64) * factor).astype(np.uint8) for part in _parts(array)]
    )


def _as_labels(labels: _Field, n_images: int, n_classes: int | None) -> Labels:
    array = labels.array
    if array.shape == (n_images, 1):  # MATLAB, Keras and MedMNIST write a column
        array = array[:, 0]
    elif array.ndim == 2 and len(array) == n_images and array.dtype.kind in "biuf":
        array = _from_one_hot(labels)
    if array.dtype.kind not in "biu" or array.shape != (n_images,):
        labels.refuse(
            f"must be {n_images} whole numbers, one for each image, or one-hot rows",
            _label_fix(array),
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= (n_classes or np.iinfo(np.int64).max):
        last = "n_classes - 1" if n_classes is None else n_classes - 1
        raise DataError(
            f"{labels.where}: {labels.name} must lie in 0..{last}, got {low if low < 0 else high}; "
            "number the classes from 0"
        )
    return array.astype(np.int64)


def _label_fix(array: npt.NDArray[Any]) -> str:
    if array.dtype.kind in "USO":
        return "number the classes, as numpy.unique(y, return_inverse=True)[1] does"
    if array.dtype.kind == "f":
        return "convert them with .astype(int)"
    return "use .ravel()" if array.ndim > 1 and array.size == max(array.shape) else ""


def _from_one_hot(labels: _Field) -> npt.NDArray[Any]:
    """The column of the 1 in each row, if all else is 0."""
    array = labels.array
    ones = array == 1
    if not ((ones | (array == 0)).all() and (ones.sum(axis=1) == 1).all()):
        labels.refuse(
            "must name one class for each image: rows must have a single 1 and zeros",
            "several classes or shares of an image cannot be learned here",
        )
    columns: Labels = ones.argmax(axis=1).astype(np.int64)
    return columns


def read_npz(path: Path, split: Split) -> tuple[Pixels, Labels]:
    """Returns the checked images and labels of a split of an ``.npz`` file.

    They are called ``x_<split>, y_<split>`` (also ``X_<split>``) or ``<split>_images,
    <split>_labels``. A file without a test split may have one called ``val``.

    Raises:
        MissingDataError: the file has no such split.
        DataError: it cannot be used.
    """
    try:
        # Opened here because NumPy leaves a broken file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            names = _names_of(split, content.files, path)
            images, labels = (content[name] for name in names)
    except (
        *(OSError, ValueError, EOFError, AttributeError, TypeError, NotImplementedError),
        *(KeyError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error, MemoryError),
        tokenize.TokenError,  # NumPy parses an array's header as Python source
    ) as error:
        reason = one_line(error)
        if "allow_pickle" in reason:
            reason = "it holds Python objects; save images of one shape, and labels as numbers"
        raise DataError(f"{path}: not a usable .npz file: {reason}") from error
    return check_arrays(images, labels, path, names)


def _names_of(split: Split, there: Sequence[str], path: Path) -> tuple[str, str]:
    """The names of a split's two arrays in a file."""
    for part in _PARTS[split]:
        pairs = [(x.format(part), y.format(part)) for x, y in _NAMES]
        for pair in pairs:
            if set(pair) <= set(there):
                return pair
        for pair in pairs:
            absent = [name for name in pair if name not in there]
            if len(absent) == 1:
                raise DataError(f"{path}: the array {absent[0]} is missing")
    wanted = " or ".join(f"{x.format(split)}, {y.format(split)}" for x, y in _NAMES[::2])
    raise MissingDataError(
        f"{path}: must hold the arrays {wanted}, it holds {', '.join(there) or 'none'}"
    )


def channel_statistics(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, for pixels in 0..1, of (n, h, w, c)."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in np.moveaxis(images, -1, 0):
        # From the histogram: exact, and no float copy of the dataset.
        share = np.bincount(channel.ravel(), minlength=256) / channel.size
        mean = float(share @ levels)
        deviation = math.sqrt(float(share @ (levels - mean) ** 2))
        means.append(mean)
        deviations.append(deviation or 1.0)  # a constant channel stays constant
    return tuple(means), tuple(deviations)


def arrays_fingerprint(images: Pixels, labels: Labels) -> str:
    """A digest of the shape, the pixels and the labels of images (n, h, w, c)."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for part in _parts(images):
        digest.update(part.tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """Returns the message of an error raised elsewhere, fit to be part of ours."""
    return " ".join(str(error).split()) or type(error).__name__


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
