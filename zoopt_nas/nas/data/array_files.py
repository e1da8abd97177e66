"""Read images and labels from array files, and check them.

Arrays with an unambiguous form are accepted; any other raises a one-line `DataError` that says what
to change. No file can run code: NumPy reads ``.npz`` files without pickles, and an unpickler that
can only build arrays reads the CIFAR files.
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

MAX_CHANNELS = 4  # grey or colour, with or without alpha
_ROUNDING = 1e-6  # resizing in float32 may leave 0..1 by this much
_CHUNK = 1024  # images converted at a time, to avoid a float copy of all
# Names of images and labels in Keras, scikit-learn and MedMNIST.
_NAMES = (("x_{}", "y_{}"), ("X_{}", "y_{}"), ("{}_images", "{}_labels"))
_PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


class _Field(NamedTuple):
    """An array of a file, and its names in an error."""

    array: npt.NDArray[Any]
    where: object
    name: str

    def refuse(self, rule: str, fix: str = "") -> NoReturn:
        """Raise a DataError with the rule, the array's type and shape, and a fix."""
        got = f"got {self.array.dtype} {self.array.shape}"
        raise DataError(f"{self.where}: {self.name} {rule}, {got}" + (f"; {fix}" if fix else ""))


def check_arrays(
    images: Any, labels: Any, where: object, names: tuple[str, str], n_classes: int | None = None
) -> tuple[Pixels, Labels]:
    """Return images (n, h, w, c) and labels (n,).

    Args:
        images: (n, h, w), (n, h, w, c) or (n, c, h, w), see `_channels_last`; whole numbers in
            0..255 of any type, floats in 0..1, or bool.
        labels: Whole numbers of any type or bool, (n,) or (n, 1); or one-hot rows (n, n_classes).
        where: The file, for errors.
        names: Names of the two arrays, for errors.
        n_classes: Upper bound of the labels, exclusive; None: no bound.

    Raises:
        DataError: The arrays have another form or an ambiguous one.
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
    """Return the images as (n, h, w, c).

    The channels are the second or the last axis, whichever has more evidence: at most four
    channels, and square images. With equal evidence, as for (n, 3, 3, 3), the array is refused.
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
    """Convert pixels to uint8: whole numbers as they are, fractions times 255, rounded."""
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
        return _rounded(array, 255.0)
    if low < 0:
        fix = "undo the normalization; (x + 1) / 2 brings -1..1 to 0..1"
        images.refuse(f"{rule}, not {span}", fix)
    if high > 255:
        images.refuse(f"{rule}, not {span}", "scale them; x // 257 brings 16 bits to 8")
    if kind == "f" and not all((x == np.rint(x)).all() for x in _chunks(array)):
        images.refuse(f"{rule}, not fractions {span}", "round them to uint8, or divide by 255")
    return _rounded(array, 1.0)


def _chunks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(array), _CHUNK):
        yield array[start : start + _CHUNK]


def _rounded(array: npt.NDArray[Any], factor: float) -> Pixels:
    return np.concatenate(
        [np.rint(chunk.astype(np.float64) * factor).astype(np.uint8) for chunk in _chunks(array)]
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
    """Return the column of the only 1 in each row."""
    array = labels.array
    ones = array == 1
    if not ((ones | (array == 0)).all() and (ones.sum(axis=1) == 1).all()):
        labels.refuse(
            "must name one class for each image: rows must have a single 1 and zeros",
            "labels with several classes or with fractions are not supported",
        )
    columns: Labels = ones.argmax(axis=1).astype(np.int64)
    return columns


def read_npz(path: Path, split: Split) -> tuple[Pixels, Labels]:
    """Return the checked images and labels of a split of an ``.npz`` file.

    The arrays are called ``x_<split>, y_<split>`` (also ``X_<split>``) or ``<split>_images,
    <split>_labels``. In a file without a test split, ``val`` is the test split.

    Raises:
        MissingDataError: The file has no such split.
        DataError: The file cannot be used.
    """
    try:
        # Opened here because NumPy leaves a broken file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            names = _names_of(split, content.files, path)
            images, labels = (content[name] for name in names)
    except (
        OSError, ValueError, EOFError, AttributeError, TypeError, NotImplementedError, KeyError,
        SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error, MemoryError,
        tokenize.TokenError,  # NumPy parses an array's header as Python source
    ) as error:  # fmt: skip
        reason = one_line(error)
        if "allow_pickle" in reason:
            reason = "it holds Python objects; save images of one shape, and labels as numbers"
        raise DataError(f"{path}: not a usable .npz file: {reason}") from error
    return check_arrays(images, labels, path, names)


def _names_of(split: Split, there: Sequence[str], path: Path) -> tuple[str, str]:
    """Return the names of a split's two arrays among the names ``there``."""
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
    """Return mean and standard deviation per channel of images (n, h, w, c), scaled to 0..1."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in np.moveaxis(images, -1, 0):
        # The histogram avoids a float copy of the dataset.
        frequencies = np.bincount(channel.ravel(), minlength=256) / channel.size
        mean = float(frequencies @ levels)
        deviation = math.sqrt(float(frequencies @ (levels - mean) ** 2))
        means.append(mean)
        deviations.append(deviation or 1.0)  # a constant channel stays constant
    return tuple(means), tuple(deviations)


def arrays_fingerprint(images: Pixels, labels: Labels) -> str:
    """Return a digest of the shape, the pixels and the labels of images (n, h, w, c)."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for chunk in _chunks(images):
        digest.update(chunk.tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, to be part of another message."""
    return " ".join(str(error).split()) or type(error).__name__


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Replace `codecs.encode`, which would look up any codec that a file names."""
    return text.encode("latin1")


# The only functions that pickled NumPy arrays need.
_ARRAY_PARTS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,  # bytes of Python 3 in Python 2's protocol
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
    """Reads pickled lists, dicts and NumPy arrays, and refuses everything else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")  # the files were written by Python 2

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the named object if it is part of an array."""
        try:
            return _ARRAY_PARTS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which no array needs"
            ) from None


def read_pickle(path: Path) -> dict[Any, Any]:
    """Return the dict in a pickle file; refuse a file that asks for more than data."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file).load()
    except (
        pickle.UnpicklingError, EOFError, OSError, MemoryError, ImportError, ValueError, TypeError,
        KeyError, IndexError, AttributeError, OverflowError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: not a usable pickle file: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a dict, got {type(content).__name__}")
    return content
