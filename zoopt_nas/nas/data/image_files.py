"""Find image files, decode them, resize them and compute their fingerprints.

Pixels have 8 bits. Images with 16 bits are scaled from 0..65535 to 0..255 and rounded. Every image
is rotated as its EXIF orientation says. Hidden files and folders are ignored.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps
from torch.nn import functional

from zoopt_nas.errors import DataError
from zoopt_nas.nas.data.array_files import Labels, Pixels, one_line

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# PIL raises these for a broken file; its UnidentifiedImageError is an OSError.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE = 258  # the TIFF tag
# PIL reads the high bytes of 16-bit colours. The swapped byte order yields the low bytes.
_FOREIGN = "16B" if sys.byteorder == "little" else "16L"
_SWAPPED = {
    f"{mode};{order}": f"{mode};{swapped}"
    for mode in ("RGB", "RGBA")
    for order, swapped in (("16B", "16L"), ("16L", "16B"), ("16N", _FOREIGN))
}


def resize_pixels(images: Pixels, size: int) -> Pixels:
    """Return the central square of each image, resized to (n, size, size, c) with antialiasing."""
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
    """Return the pixels (h, w, c) of an image file, upright as its EXIF orientation says.

    ``mode`` is "L" (c = 1) or "RGB" (c = 3). With ``size``, the shorter side is resized to it and
    the image cropped to the central square.

    Raises:
        DataError: The file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            pixels = _eight_bits(image, path)
            turn = _TURNS.get(_orientation(image))
            pixels = pixels if turn is None else pixels.transpose(turn)
            pixels = pixels.convert(mode)
            if size is not None:
                pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BILINEAR)
            array = np.asarray(pixels, dtype=np.uint8)
    except DECODE_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image: {one_line(error)}") from error
    return array[..., None] if array.ndim == 2 else array


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (*DECODE_ERRORS, LookupError, TypeError, ArithmeticError):
        return None  # damaged metadata does not affect the pixels


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Convert an image that is not loaded yet to 8 bits per channel."""
    raw = _raw_mode(image)  # PIL discards it on loading
    bits = np.ravel(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 8))
    image.load()
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image)))
    if not (raw.endswith(("16L", "16B", "16N")) or 16 in bits):
        return image
    with Image.open(path) as again:
        if raw == "LA;16B" and image.mode == "RGBA":
            # Grey and alpha with 16 bits occupy the four bytes of an RGBA pixel.
            pair = _with_raw_mode(again, "RGBA")
            return Image.fromarray(_scaled(pair[..., 0] * 256 + pair[..., 1]))
        if raw not in _SWAPPED:
            raise DataError(f"{path}: its 16 bits per channel cannot be read; save it with 8")
        high = np.asarray(image, dtype=np.uint16)
        return Image.fromarray(_scaled(high * 256 + _with_raw_mode(again, _SWAPPED[raw])))


def _raw_mode(image: Image.Image) -> str:
    """Return PIL's name of the stored pixel format; empty if it has none."""
    tiles: Sequence[Any] = getattr(image, "tile", ())
    if not tiles:
        return ""
    args = tiles[0][3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _with_raw_mode(image: Image.Image, raw: str) -> npt.NDArray[np.uint16]:
    """Read the pixels of an image that is not loaded yet as if stored in the format ``raw``."""
    tiles: Any = image.tile  # type: ignore[attr-defined]
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in tiles
    ]
    return np.asarray(image, dtype=np.uint16)


def _scaled(values: npt.NDArray[Any]) -> Pixels:
    """Scale 0..65535 to 0..255 and round; 255 / 65535 = 1 / 257 has no ties."""
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def image_mode(paths: Sequence[Path], *, any_size: bool) -> str:
    """Return "L" if every file is grey, else "RGB", without reading pixels.

    Unless ``any_size``, every size must equal the first one, as it is or rotated.

    Raises:
        DataError: A file is not an image, has an unknown range of values, or differs in size.
    """
    grey = True
    first: tuple[int, int] | None = None
    for path in paths:
        try:
            with Image.open(path) as image:
                size, mode, form = image.size, image.mode, image.format
        except DECODE_ERRORS as error:
            raise DataError(f"{path}: cannot be read as an image: {one_line(error)}") from error
        # PIL's mode I has 32 bits; PNG and PPM use 16 of them.
        if mode == "F" or (mode == "I" and form not in ("PNG", "PPM")):
            raise DataError(f"{path}: must have 8 or 16 bits per channel, its PIL mode is {mode}")
        grey = grey and (mode in ("1", "L") or mode.startswith("I"))
        first = first or size
        if not any_size and size != first[::-1]:
            check_same_size(paths[0], first, path, size)
    return "L" if grey else "RGB"


def check_same_size(
    first: Path, first_size: tuple[int, ...], other: Path, other_size: tuple[int, ...]
) -> None:
    """Raise DataError if two images differ in size (width, height)."""
    if other_size != first_size:
        raise DataError(
            f"images differ in size: {first} is {first_size[0]}x{first_size[1]}, {other} is "
            f"{other_size[0]}x{other_size[1]}; give them one size with image_size"
        )


def stratified_split(labels: Labels) -> tuple[Labels, Labels]:
    """Split the images into 80 % and 20 % of every class, at random with seed 0; return indices.

    It takes every fifth of the shuffled images sorted by class. Hence a class of two keeps one.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    is_test = np.arange(len(order)) % 5 == 0
    return np.sort(order[~is_test]), np.sort(order[is_test])


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, such as ``.DS_Store`` or ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def list_images(root: Path) -> tuple[tuple[Path, ...], Labels, list[str]]:
    """Return the image files of ``root/<class>/``, their labels and the ordered class names."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it should hold one folder of images per class")
    folders = [root / name for name, is_folder in _entries(root) if is_folder]
    if not folders:
        raise DataError(f"{root}: must hold one folder of images per class, it holds no folder")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = [
            folder / name
            for name, is_folder in _entries(folder)
            if not is_folder and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
        if not found:
            raise DataError(f"{folder}: the class folder holds no image file (png, jpg, ...)")
        paths += found
        labels += [label] * len(found)
    return tuple(paths), np.array(labels, dtype=np.int64), [folder.name for folder in folders]


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """List the names in a folder, sorted, without hidden ones, and whether each is a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name)
            )
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


def files_fingerprint(paths: Sequence[Path], *, with_content: bool) -> str:
    """Return a digest of the names ``<class>/<file>``, the sizes and optionally the bytes of files.

    Raises:
        DataError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = path.stat().st_size
            digest.update(
                f"{path.parent.name}/{path.name}\0{size}\0".encode(errors="surrogateescape")
            )
            if with_content:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
