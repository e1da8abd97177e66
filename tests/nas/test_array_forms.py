"""The forms in which people save images and labels: read alike, or refused with what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas.errors import DataError
from zoopt_nas.nas.data.array_files import check_arrays
from zoopt_nas.nas.data.loading import load_dataset

NAMES = ("x_train", "y_train")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
LABELS = np.array([0, 1, 2, 0, 1, 2])


def read(images: Any, labels: Any = LABELS) -> tuple[np.ndarray, np.ndarray]:
    return check_arrays(images, labels, "mine.npz", NAMES)


def refused(images: Any, labels: Any = LABELS) -> str:
    with pytest.raises(DataError) as caught:
        read(images, labels)
    message = str(caught.value)
    assert message.startswith("mine.npz: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS.transpose(0, 3, 1, 2),
        PIXELS.astype(np.int64),
        PIXELS.astype(">u2"),
        PIXELS.astype(np.float32),
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32).transpose(0, 3, 1, 2),
        (PIXELS / 255).astype(np.float16),
        (PIXELS / 255).astype(">f4"),
    ],
    ids=lambda images: f"{images.dtype}-{images.shape}",
)
def test_colour_images_in_every_form_are_the_same_pixels(images):
    pixels, labels = read(images)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, PIXELS)
    assert labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("images", [GREY, GREY[..., None], GREY[:, None], GREY / 255.0])
def test_grey_images_in_every_form_have_one_channel(images):
    np.testing.assert_array_equal(read(images)[0], GREY[..., None])


def test_black_and_white_images_are_0_and_255():
    expected = np.where(GREY > 99, 255, 0)[..., None]
    for dtype in (bool, np.float32, np.float64):
        np.testing.assert_array_equal(read((GREY > 99).astype(dtype))[0], expected)


def test_fractions_are_rounded_to_the_nearest_level():
    images = np.zeros((6, 5, 5))
    images[0, 0] = (0.2, 0.4999 / 255, 0.5001 / 255, 0.9979, 1.0)
    assert read(images)[0][0, 0, :, 0].tolist() == [51, 0, 1, 254, 255]
    images[0, 0, :2] = (-1e-7, 1 + 1e-7)  # as float32 rounds
    assert read(images)[0][0, 0, :2, 0].tolist() == [0, 255]


def test_many_floats_are_converted_in_parts_to_the_same_values():
    images = np.random.default_rng(1).integers(0, 256, (2500, 2, 2), dtype=np.uint8)
    pixels, _ = read(images / 255, np.arange(2500) % 2)
    np.testing.assert_array_equal(pixels[..., 0], images)


# The channels are the axis of at most 4, and images are square: the reading with more of it wins.
@pytest.mark.parametrize(
    ("shape", "read_as"),
    [
        ((6, 32, 32, 3), (6, 32, 32, 3)),
        ((6, 3, 32, 32), (6, 32, 32, 3)),
        ((6, 4, 32, 32), (6, 32, 32, 4)),
        ((6, 32, 32, 2), (6, 32, 32, 2)),
        ((6, 3, 20, 30), (6, 20, 30, 3)),
        ((6, 20, 30, 3), (6, 20, 30, 3)),
        ((6, 13, 64, 64), (6, 64, 64, 13)),
        ((6, 64, 64, 13), (6, 64, 64, 13)),
        ((6, 1, 3, 3), (6, 3, 3, 1)),
        ((6, 3, 3, 1), (6, 3, 3, 1)),
        ((6, 3, 4, 4), (6, 4, 4, 3)),
        ((6, 4, 4, 3), (6, 4, 4, 3)),
        ((6, 1, 1, 3), (6, 1, 1, 3)),
        ((6, 3, 3, 3), None),
        ((6, 4, 4, 4), None),
        ((6, 3, 32, 3), None),
        ((6, 3, 3, 8), None),
        ((6, 16, 16, 16), None),
        ((6, 20, 30, 10), None),
    ],
)
def test_which_axis_is_the_channels(shape, read_as):
    images = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    if read_as is None:
        assert "must show which axis is the channels" in refused(images)
        return
    pixels, _ = read(images)
    assert pixels.shape == read_as
    moved = images if shape == read_as else np.moveaxis(images, 1, -1)
    np.testing.assert_array_equal(pixels, moved)


@settings(deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(5, 12),
    st.booleans(),
    st.sampled_from(["u1", "i8", ">i4", "f4", "f8"]),
    st.booleans(),
)
def test_images_larger_than_their_channels_are_read_in_every_form(c, side, first, dtype, unit):
    levels = np.random.default_rng(side).integers(0, 256, (4, side, side, c), dtype=np.uint8)
    images = levels / 255 if unit and "f" in dtype else levels
    images = images.astype(dtype)
    pixels, _ = read(np.moveaxis(images, -1, 1) if first else images, [0, 1, 1, 0])
    np.testing.assert_array_equal(pixels, levels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS / 127.5 - 1, r"not from -1 to 1.*; undo the normalization; \(x \+ 1\) / 2"),
        (PIXELS / 255 * 1.01, "not fractions from 0 to 1.01"),
        (PIXELS / 255 - 0.01, "not from -0.01 to 0.99.*; undo the normalization"),
        (PIXELS / 2.0, "not fractions from 0 to 127.*round them to uint8, or divide by 255"),
        (PIXELS.astype(np.uint16) * 257, r"not from 0 to 65.*; scale them; x // 257"),
        (PIXELS.astype(np.int16) - 9, "not from -9"),
        (np.where(PIXELS == 0, np.nan, PIXELS / 255), "finite pixels.*; replace NaN"),
        (np.where(PIXELS == 0, np.inf, PIXELS / 255), "finite pixels"),
        (PIXELS.astype(str), "must be whole numbers in 0..255 or floats in 0..1, got <U"),
        (PIXELS[:0], "none of them zero, got uint8 \\(0, 5, 5, 3\\)"),
        (PIXELS.reshape(6, -1), "reshape rows of pixels to images"),
        (PIXELS[None], "must be \\(n, h, w\\)"),
        (np.moveaxis(PIXELS, 0, -1), r"along its first axis.*numpy.moveaxis\(x_train, -1, 0\)"),
    ],
)
def test_images_that_are_refused_say_what_to_do(images, message):
    with pytest.raises(DataError, match=f"x_train .*{message}"):
        read(images)
    refused(images)


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "u2", ">i2", "i4", ">u4", "i8", ">i8", "u8", ">u8", "?"]
)
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_labels_of_every_integer_type(dtype, shape):
    labels = np.array([0, 1, 1, 0, 1, 0]).astype(dtype).reshape(shape)
    read_labels = read(PIXELS, labels)[1]
    assert read_labels.dtype == np.int64
    assert read_labels.tolist() == [0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", ">f8", "?"])
def test_one_hot_labels(dtype):
    assert read(PIXELS, np.eye(4)[[0, 3, 2, 0, 1, 2]].astype(dtype))[1].tolist() == [
        *(0, 3, 2, 0, 1, 2)
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], r"must be 6 whole numbers, one for each image.*\(5,\)"),
        (LABELS.astype(float), r"float64.*; convert them with .astype\(int\)"),
        (LABELS.astype(str), "; number the classes, as numpy.unique"),
        (LABELS - 1, "must lie in 0..n_classes - 1, got -1; number the classes from 0"),
        (np.array([0, 2**63, 1, 0, 1, 1], np.uint64), "must lie in 0..n_classes - 1, got 9223372"),
        (LABELS[:, None] == [0, 0], "must name one class for each image"),
        (np.full((6, 2), 0.5), "must name one class for each image: rows must have a single 1"),
        (np.full((6, 2), np.nan), "must name one class"),
        (np.eye(3)[[0, 1, 2, 0, 1]], "must be 6 whole numbers"),
        (np.array(1), "must be 6 whole numbers"),
        (np.array([]), "must be 6 whole numbers"),
        (LABELS.reshape(6, 1, 1), r"must be 6 whole numbers.*; use \.ravel\(\)"),
        (LABELS[None], r"must be 6 whole numbers.*\(1, 6\); use \.ravel\(\)"),
    ],
)
def test_labels_that_are_refused_say_what_to_do(labels, message):
    with pytest.raises(DataError, match=f"y_train .*{message}"):
        read(PIXELS, labels)
    refused(PIXELS, labels)


def load(path: Path, **options: Any) -> Any:
    return load_dataset(str(path), data_dir=path.parent, device=torch.device("cpu"), **options)


def test_medmnist(tmp_path):
    """Its files have three splits and labels in a column."""
    path = tmp_path / "pathmnist.npz"
    np.savez(
        path,
        train_images=PIXELS,
        train_labels=LABELS.astype(np.uint8)[:, None],
        val_images=PIXELS[:2],
        val_labels=LABELS.astype(np.uint8)[:2, None],
        test_images=PIXELS[3:],
        test_labels=LABELS.astype(np.uint8)[3:, None],
    )
    dataset = load(path)
    assert (dataset.n_classes, dataset.in_channels, dataset.image_size) == (3, 3, 5)
    np.testing.assert_array_equal(dataset.train.images.permute(0, 2, 3, 1), PIXELS)
    np.testing.assert_array_equal(dataset.test.images.permute(0, 2, 3, 1), PIXELS[3:])
    assert dataset.test.labels.tolist() == [0, 1, 2]


def test_a_split_called_val_is_the_test_set_if_there_is_no_other(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, X_train=PIXELS, y_train=LABELS, x_val=PIXELS[:3], y_val=LABELS[:3])
    np.testing.assert_array_equal(load(path).test.images.permute(0, 2, 3, 1), PIXELS[:3])


def test_channels_first_arrays_are_colour_images_and_not_images_of_32_channels(tmp_path):
    path = tmp_path / "first.npz"
    pixels = np.random.default_rng(3).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.savez(path, x_train=pixels, y_train=LABELS, x_test=pixels[:3], y_test=LABELS[:3])
    for options in ({}, {"image_size": 32}):
        dataset = load(path, **options)
        assert (dataset.in_channels, dataset.image_size) == (3, 32)
        np.testing.assert_array_equal(dataset.train.images, pixels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GREY, "labels": LABELS}, "x_train, y_train or train_images, .* holds images,"),
        ({}, "it holds none"),
        ({"x_train": GREY}, "the array y_train is missing"),
        ({"x_train": GREY, "y_train": LABELS}, "x_test, y_test or .* it holds x_train, y_train"),
        (
            {"x_train": GREY, "y_train": LABELS, "y_test": LABELS, "x_val": GREY, "y_val": LABELS},
            "the array x_test is missing",
        ),
        (
            {"x_train": np.array([GREY[0], GREY[1]] * 3, dtype=object), "y_train": LABELS},
            "it holds Python objects; save images of one shape",
        ),
        ({"x_train": GREY, "y_train": LABELS + 1}, "numbered from 0 without .*; class 0 has none"),
        ({"x_train": GREY, "y_train": LABELS * 2**61}, "without gaps, .*; class 1 has none"),
    ],
)
def test_a_file_that_is_refused_says_what_it_lacks(tmp_path, arrays, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
