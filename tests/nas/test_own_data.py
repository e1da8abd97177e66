"""A person's own data: an ``.npz`` file or a folder of images; broken ones are a one-line error."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoopt_nas.errors import DataError, UnknownNameError
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.loading import load_dataset

CPU = torch.device("cpu")


def load(name: str | Path, tmp_path: Path, **options: Any) -> Dataset:
    return load_dataset(str(name), data_dir=tmp_path, device=CPU, **options)


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def own_arrays(**changes: Any) -> dict[str, Any]:
    arrays = {
        "x_train": random_pixels(6, 16, 16, 3),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": random_pixels(3, 16, 16, 3, seed=1),
        "y_test": np.array([2, 1, 0], dtype=np.uint8),
        "classes": np.array(["a", "b", "c"]),
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def test_own_npz(tmp_path):
    arrays = own_arrays()
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = load(tmp_path / "mine.npz", tmp_path)
    assert (dataset.name, dataset.n_classes, dataset.in_channels) == ("mine", 3, 3)
    expected = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2)
    assert torch.equal(dataset.train.images, expected)
    assert dataset.test.labels.tolist() == [2, 1, 0]
    assert (dataset.augmentation.crop_padding, dataset.augmentation.flip) == (2, True)
    reference = arrays["x_train"].reshape(-1, 3) / 255
    assert dataset.mean == pytest.approx(tuple(reference.mean(0)), rel=1e-12)
    assert dataset.std == pytest.approx(tuple(reference.std(0)), rel=1e-12)


def test_own_npz_of_grey_images_resized(tmp_path):
    flat = np.full((6, 20, 30), 7, np.uint8)
    arrays = own_arrays(x_train=flat, x_test=flat[:3])
    np.savez(tmp_path / "grey.npz", **arrays)
    with pytest.raises(DataError, match=r"must be square, got 30x20.*image_size"):
        load(tmp_path / "grey.npz", tmp_path)
    dataset = load(tmp_path / "grey.npz", tmp_path, image_size=8)
    assert dataset.train.images.shape == (6, 1, 8, 8)
    assert (dataset.test.images == 7).all()
    assert dataset.std == (1.0,)  # a constant channel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "the array y_test is missing"),
        ({"x_train": np.full((6, 16, 16, 3), 0.5 + 1j)}, "x_train must be whole .*got complex128"),
        ({"x_train": np.zeros((6, 16), np.uint8)}, r"x_train must be \(n, h, w\).*; reshape rows"),
        ({"x_train": np.zeros((0, 16, 16), np.uint8)}, "x_train must be .*none of them zero"),
        ({"y_train": np.zeros(5, int)}, "y_train must be 6 whole numbers"),
        ({"y_train": np.zeros(6)}, "y_train must be 6 whole numbers.*float64"),
        ({"y_train": np.array([0, 1, -2, 0, 1, 2])}, "y_train must lie in .*got -2"),
        ({"y_train": np.array([0, 1, 3, 0, 1, 3])}, "class 2 has none"),
        ({"y_train": np.zeros(6, int)}, "there is one class"),
        ({"y_test": np.array([0, 1, 3])}, "labels up to 3"),
        ({"x_test": random_pixels(3, 8, 8, 3)}, r"test images must be \(16, 16, 3\)"),
        ({"x_train": np.array([{}] * 6, dtype=object)}, "not a usable .npz"),
    ],
)
def test_wrong_npz(tmp_path, changes, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **own_arrays(**changes))
    with pytest.raises(DataError, match=message) as caught:
        load(path, tmp_path)
    assert str(path) in str(caught.value)


def test_npz_cut_short(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **own_arrays())
    whole = bytearray(path.read_bytes())
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"not a usable \.npz"):
            load(path, tmp_path)
    whole[300:400] = bytes(100)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"not a usable \.npz"):
        load(path, tmp_path)


def test_npz_with_a_broken_array_header(tmp_path):
    path = tmp_path / "mine.npz"
    header = b"{'descr': (\n"  # NumPy reads it as Python source, which does not end
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train"):
            content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(DataError, match=r"not a usable \.npz"):
        load(path, tmp_path)


def save_png(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


def test_own_folder_with_a_test_set(tmp_path):
    root = tmp_path / "pets"
    for i, name in enumerate(("dog", "cat", "ant")):
        save_png(root / "train" / name / "a.png", i)
        save_png(root / "train" / name / "b.png", i + 10)
    save_png(root / "val" / "dog" / "x.PNG", 99)
    (root / "train" / "dog" / "notes.txt").write_text("not an image")
    (root / "train" / ".cache").mkdir()
    dataset = load(root, tmp_path)
    assert dataset.name == "pets"
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2]  # ant, cat, dog
    assert dataset.train.images[:, 0, 0, 0].tolist() == [2, 12, 1, 11, 0, 10]
    assert dataset.train.images[:, 2].unique().tolist() == [255]
    assert dataset.test.labels.tolist() == [2]
    assert dataset.test.images[0, 0, 0, 0] == 99
    save_png(root / "test" / "bee" / "x.png", 1)
    with pytest.raises(DataError, match=r"test/bee: this class has no folder in train"):
        load(root, tmp_path)


def test_own_folder_without_a_test_set_gives_a_fifth(tmp_path):
    root = tmp_path / "shapes"
    for label, name in enumerate(("disc", "ring")):
        for i in range(10):
            save_png(root / name / f"{i}.png", 100 * label + i, mode="L")
    dataset = load(root, tmp_path)
    assert dataset.in_channels == 1
    assert torch.bincount(dataset.test.labels).tolist() == [2, 2]
    values = torch.cat((dataset.train.images, dataset.test.images))[:, 0, 0, 0]
    assert sorted(values.tolist()) == [*range(10), *range(100, 110)]
    assert (dataset.train.images[:, 0, 0, 0] // 100 == dataset.train.labels).all()
    assert torch.equal(load(root, tmp_path).test.images, dataset.test.images)


def test_own_folder_resizes_the_middle_square(tmp_path):
    root = tmp_path / "wide"
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for i, width in enumerate((32, 64)):
            pixels = np.zeros((16, width), np.uint8)
            pixels[:, width // 2 - 8 : width // 2 + 8] = 50
            Image.fromarray(pixels).save(root / "train" / name / f"{i}.png")
    with pytest.raises(DataError, match=r"a/0\.png is 32x16, .*a/1\.png is 64x16.*image_size"):
        load(root, tmp_path, splits=("train",))
    with pytest.raises(DataError, match="no folder test or val beside train"):
        load(root, tmp_path, image_size=8)
    dataset = load(root, tmp_path, image_size=8, splits=("train",))
    assert dataset.image_size == 8
    # The outermost columns blend with the sides that are cut off.
    assert (dataset.train.images[..., 1:-1] == 50).all()
    assert dataset.train.images.min() > 40
    assert dataset.augmentation.crop_padding == 1


def test_broken_own_folders(tmp_path):
    root = tmp_path / "broken"
    root.mkdir()
    with pytest.raises(DataError, match="must hold one folder of images per class"):
        load(root, tmp_path)
    save_png(root / "a" / "0.png", 1)
    with pytest.raises(DataError, match=r"broken/a: a class needs two images.*it has 1"):
        load(root, tmp_path)
    save_png(root / "a" / "1.png", 1)
    (root / "b").mkdir()
    with pytest.raises(DataError, match="broken/b: the class folder holds no image"):
        load(root, tmp_path)
    save_png(root / "b" / "0.png", 1)
    save_png(root / "b" / "1.png", 1)
    Image.fromarray(random_pixels(8, 8, 3)).save(root / "b" / "1.png")
    whole = (root / "b" / "1.png").read_bytes()
    for content in (b"", b"hello", whole[:40], whole[: len(whole) // 2]):
        (root / "b" / "1.png").write_bytes(content)
        with pytest.raises(DataError, match=r"b/1\.png: cannot be read as an image"):
            load(root, tmp_path)
    (root / "b" / "1.png").unlink()
    for values, mode in ((np.zeros((8, 8), np.float32), "F"), (np.zeros((8, 8), np.int32), "I")):
        Image.fromarray(values).save(root / "b" / "1.tif")
        with pytest.raises(DataError, match=f"must have 8 or 16 bits .* PIL mode is {mode}"):
            load(root, tmp_path)


def test_names_that_are_nothing(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        load("cifar1O", tmp_path)
    for path in ("mine.npz", "./mine", str(tmp_path / "none")):
        with pytest.raises(DataError, match="no such file or folder"):
            load(path, tmp_path)
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"must be an \.npz file or a folder"):
        load(tmp_path / "table.csv", tmp_path)
