"""A test split that a retraining will refuse stops a search before it begins; a missing one not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoopt_nas.errors import DataError
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.settings.config import SearchConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(8) % 2
GOOD = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:4], "y_test": LABELS[:4]}


def search(dataset: Path, run_dir: Path) -> None:
    config = SearchConfig.for_dataset(
        *(str(dataset), "random"), batch_size=2, n_cells=2, init_channels=2, device="cpu"
    )
    run_search(config, run_dir=run_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": PIXELS[:4, :4, :4]}, r"test images must be \(8, 8, 3\)"),
        ({"x_test": PIXELS[:4, ..., 0]}, r"test images must be \(8, 8, 3\)"),
        ({"y_test": LABELS[:4] + 2}, "labels up to 3"),
        ({"y_test": LABELS[:2]}, "y_test must be 4 whole numbers"),
        ({"x_test": PIXELS[:4] / 127.5 - 1}, "x_test must be whole numbers"),
        ({"y_test": None}, "the array y_test is missing"),
    ],
)
def test_a_wrong_test_split_of_an_npz_stops_the_search(tmp_path, changes, message):
    path = tmp_path / "mine.npz"
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message):
        search(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_test_split_of_an_npz_stops_the_search(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **GOOD)
    content = bytearray(path.read_bytes())
    at = content.index(b"x_test.npy")
    content[at + 300 : at + 310] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a usable \.npz file: Bad CRC"):
        search(path, tmp_path / "run")


def make_folder(root: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(PIXELS[i]).save(root / split / name / f"{i}.png")


def test_a_wrong_test_split_of_a_folder_stops_the_search(tmp_path):
    root = tmp_path / "pets"
    make_folder(root)
    image = root / "test" / "dog" / "1.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"test/dog/1\.png: cannot be read as an image"):
        search(root, tmp_path / "run")
    Image.fromarray(PIXELS[0, :4, :4]).save(image)
    with pytest.raises(DataError, match=r"images differ in size: .*test/dog/1\.png is 4x4"):
        search(root, tmp_path / "run")
    image.write_bytes(whole)
    (root / "test" / "dog").rename(root / "test" / "dogs")
    with pytest.raises(DataError, match="test/dogs: this class has no folder in train"):
        search(root, tmp_path / "run")
    (root / "test" / "dogs").rename(root / "test" / "dog")
    search(root, tmp_path / "run")


def test_a_search_needs_no_test_split(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=PIXELS, y_train=LABELS)
    search(path, tmp_path / "npz")
    make_folder(tmp_path / "pets")
    shutil.rmtree(tmp_path / "pets" / "test")
    search(tmp_path / "pets", tmp_path / "folder")
    for run in ("npz", "folder"):
        assert (tmp_path / run / "genotype.json").is_file()
