"""Image files as cameras, scanners and file systems leave them."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoopt_nas.errors import DataError
from zoopt_nas.nas.data.image_files import (
    decode_image,
    files_fingerprint,
    image_mode,
    list_images,
)
from zoopt_nas.nas.data.loading import load_dataset

# Values around the steps of both roundings: by the high byte 255 is 0, to the nearest it is 1.
DEEP = np.array([[0, 128, 129, 255], [385, 386, 256 * 77 + 200, 65535]], np.uint16)
ROUNDED = np.rint(DEEP / 257).astype(np.uint8)


def load(path: Path, **options: Any) -> Any:
    return load_dataset(str(path), data_dir=path.parent, device=torch.device("cpu"), **options)


def write_png16(path: Path, values: np.ndarray, *, interlaced: bool = False) -> None:
    """A PNG of 16 bits: values (h, w, c) with c from grey to colour with alpha."""
    height, width, channels = values.shape
    passes = [values]
    if interlaced:  # Adam7
        starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        starts += [(0, 1, 2, 2), (1, 0, 2, 1)]
        passes = [values[row::down, column::right] for row, column, down, right in starts]
    rows = [b"\0" + row.astype(">u2").tobytes() for part in passes if part.size for row in part]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )


def write_tiff16(path: Path, values: np.ndarray, order: str, *, planar: int = 1) -> None:
    """An uncompressed TIFF of 16-bit colours (h, w, 3), little (<) or big-endian (>)."""
    height, width, _ = values.shape
    data = (values if planar == 1 else np.moveaxis(values, -1, 0)).astype(f"{order}u2").tobytes()
    tags = [(256, width), (257, height), (259, 1), (262, 2), (277, 3), (278, height), (284, planar)]
    entries = {tag: struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags}
    first = 8 + len(data)
    directory = first + 6
    offsets = [8 + i * (len(data) // 3) for i in range(3)]
    after = directory + 2 + 12 * 10 + 4
    entries[258] = struct.pack(f"{order}HHII", 258, 3, 3, first)
    if planar == 1:
        entries[273] = struct.pack(f"{order}HHII", 273, 4, 1, 8)
        entries[279] = struct.pack(f"{order}HHII", 279, 4, 1, len(data))
    else:
        entries[273] = struct.pack(f"{order}HHII", 273, 4, 3, after)
        entries[279] = struct.pack(f"{order}HHII", 279, 4, 3, after + 12)
    mark = b"II" if order == "<" else b"MM"
    path.write_bytes(
        mark
        + struct.pack(f"{order}HI", 42, directory)
        + data
        + struct.pack(f"{order}HHH", 16, 16, 16)
        + struct.pack(f"{order}H", len(entries))
        + b"".join(entries[tag] for tag in sorted(entries))
        + struct.pack(f"{order}I", 0)
        + struct.pack(f"{order}6I", *offsets, *[len(data) // 3] * 3)
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_rounded_and_not_cut(tmp_path, channels, interlaced):
    values = np.stack([DEEP, DEEP[::-1], DEEP.T.reshape(2, 4), DEEP][:channels], axis=-1)
    write_png16(tmp_path / "a.png", values, interlaced=interlaced)
    assert image_mode([tmp_path / "a.png"], any_size=False) == "RGB"
    pixels = decode_image(tmp_path / "a.png", "RGB", None)
    np.testing.assert_array_equal(pixels, np.rint(values[..., :3] / 257))


@pytest.mark.parametrize("form", ["png", "tif", "pgm"])
def test_grey_images_of_16_bits_are_rounded_and_stay_grey(tmp_path, form):
    path = tmp_path / f"a.{form}"
    Image.fromarray(DEEP).save(path)
    assert image_mode([path], any_size=False) == "L"
    np.testing.assert_array_equal(decode_image(path, "L", None)[..., 0], ROUNDED)
    np.testing.assert_array_equal(decode_image(path, "RGB", None), ROUNDED[..., None].repeat(3, 2))


def test_grey_images_of_16_bits_with_alpha_are_rounded(tmp_path):
    write_png16(tmp_path / "a.png", np.stack([DEEP, DEEP[::-1]], axis=-1))
    pixels = decode_image(tmp_path / "a.png", "RGB", None)
    np.testing.assert_array_equal(pixels, ROUNDED[..., None].repeat(3, 2))


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_colours_of_16_bits_are_rounded(tmp_path, order):
    values = np.stack([DEEP, DEEP[::-1], DEEP.T.reshape(2, 4)], axis=-1)
    write_tiff16(tmp_path / "a.tif", values, order)
    pixels = decode_image(tmp_path / "a.tif", "RGB", None)
    np.testing.assert_array_equal(pixels, np.rint(values / 257))


def test_16_bits_that_cannot_be_read_in_full_are_refused(tmp_path):
    write_tiff16(tmp_path / "a.tif", np.stack([DEEP] * 3, axis=-1), "<", planar=2)
    with pytest.raises(DataError, match=r"a\.tif: its 16 bits per channel cannot be read; save it"):
        decode_image(tmp_path / "a.tif", "RGB", None)


def test_a_folder_of_16_bit_images(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 6, 6), dtype=np.uint16)
    for i, name in enumerate(("a", "a", "b", "b")):
        (tmp_path / "deep" / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(deep[i]).save(tmp_path / "deep" / "train" / name / f"{i}.png")
    dataset = load(tmp_path / "deep", splits=("train",))
    assert dataset.in_channels == 1
    np.testing.assert_array_equal(dataset.train.images[:, 0], np.rint(deep / 257))


UPRIGHT = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],  # the rows of the upright image are columns from bottom to top
    7: UPRIGHT[::-1, ::-1].T,
    8: UPRIGHT.T[:, ::-1],
}


def save_with_orientation(path: Path, pixels: np.ndarray, orientation: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["png", "tif", "webp"])
def test_exif_orientation_turns_an_image_upright(tmp_path, orientation, form):
    path = tmp_path / f"a.{form}"
    stored = np.ascontiguousarray(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "webp" else {}
    Image.fromarray(stored).convert("RGB").save(path, exif=exif, **options)
    np.testing.assert_array_equal(decode_image(path, "RGB", None)[..., 0], UPRIGHT)


def test_a_photograph_taken_upright_is_read_upright(tmp_path):
    """As phones store it: a JPEG on its side, and a note of how to turn it."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 200
    save_with_orientation(tmp_path / "a.jpg", pixels, 6)
    decoded = decode_image(tmp_path / "a.jpg", "RGB", None)
    assert decoded.shape == (32, 16, 3)
    assert decoded[:12].max() < 20
    assert decoded[20:].min() > 180


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_means_nothing_changes_nothing(tmp_path, orientation):
    save_with_orientation(tmp_path / "a.png", UPRIGHT, orientation)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", "L", None)[..., 0], UPRIGHT)


def test_damaged_notes_leave_the_pixels_usable(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        pixels = decode_image(tmp_path / "a.png", "L", None)
    np.testing.assert_array_equal(pixels[..., 0], UPRIGHT)


def test_images_of_one_size_on_disk_and_two_when_upright_are_refused(tmp_path):
    root = tmp_path / "mixed"
    for i, name in enumerate(("a", "a", "b", "b")):
        save_with_orientation(root / "train" / name / f"{i}.png", UPRIGHT, 6 if i == 3 else 1)
    with pytest.raises(DataError, match=r"a/0\.png is 4x3, .*b/3\.png is 3x4; .*image_size"):
        load(root, splits=("train",))
    assert load(root, splits=("train",), image_size=8).train.images.shape == (4, 1, 8, 8)


def test_hidden_files_and_folders_are_ignored_everywhere(tmp_path):
    root = tmp_path / "pets"
    for split, n in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(folder / f"{i}.png")
            (folder / "._0.png").write_bytes(b"\0\5\x16\7 of a Mac")
            (folder / ".DS_Store").write_bytes(b"Bud1")
            (folder / ".ipynb_checkpoints").mkdir()
            (folder / "more.png").mkdir()
        for hidden in ("__MACOSX", ".ipynb_checkpoints", ".git"):
            (root / split / hidden).mkdir()
            (root / split / hidden / "0.png").write_bytes(b"none")
    (root / "__MACOSX").mkdir()
    dataset = load(root)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 9, 0, 9]
    assert dataset.test.labels.tolist() == [0, 1]
    flat = tmp_path / "flat"
    (root / "train").rename(flat)
    assert load(flat).class_names == ("cat", "dog")


def test_a_class_with_hidden_files_only_is_empty(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "._0.png").write_bytes(b"x")
    with pytest.raises(DataError, match="a: the class folder holds no image"):
        list_images(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such permission there")
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("zoopt_nas.nas.data.image_files.os.scandir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        list_images(tmp_path)


def test_a_fingerprint_without_content_is_of_names_and_sizes(tmp_path):
    def digest(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return files_fingerprint([path], with_content=False)

    first = digest("cat/0.png", b"abc")
    assert digest("cat/0.png", b"xyz") == first
    assert len({first, digest("cat/0.png", b"abcd"), digest("cat/1.png", b"abc")}) == 3
    assert digest("dog/0.png", b"abc") != first
    with pytest.raises(DataError, match=r"gone\.png: cannot be read: No such file"):
        files_fingerprint([tmp_path / "gone.png"], with_content=True)
