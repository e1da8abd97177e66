"""Every loader reads small files in the real format; every broken file is a one-line DataError."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from zoopt_nas.errors import DataError, MissingDependencyError
from zoopt_nas.nas.data.datasets import DATASETS
from zoopt_nas.nas.data.image_sets import Dataset, LazyImageSet
from zoopt_nas.nas.data.loading import load_dataset

CPU = torch.device("cpu")


def load(name: str | Path, tmp_path: Path, **options: Any) -> Dataset:
    return load_dataset(str(name), data_dir=tmp_path, device=CPU, **options)


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Python2Pickler(pickle._Pickler):
    """Writes str and bytes as Python 2 did, and NumPy under its old module name."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_text(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    def save_function(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text
    dispatch[type(pickle.dumps)] = dispatch[type(np.empty(0).__reduce__()[0])] = save_function


def write_python2(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)


def write_cifar10(root: Path) -> tuple[np.ndarray, list[int]]:
    rows = random_pixels(24, 3072)
    labels = [i % 10 for i in range(24)]
    folder = root / "cifar-10-batches-py"
    for i in range(6):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        part = slice(4 * i, 4 * i + 4)
        write_python2(folder / name, {"data": rows[part], "labels": labels[part]})
    return rows, labels


def test_cifar10(tmp_path):
    rows, labels = write_cifar10(tmp_path)
    # The file holds the red plane, then green, then blue, each by rows: that is (3, 32, 32).
    dataset = load("cifar10", tmp_path)
    assert dataset.train.images.shape == (20, 3, 32, 32)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.images[7, 2, 5, 9] == rows[7, 2 * 1024 + 5 * 32 + 9]
    assert torch.equal(dataset.test.images, torch.from_numpy(rows[20:].reshape(4, 3, 32, 32)))
    assert dataset.train.labels.tolist() == labels[:20]
    assert dataset.test.labels.tolist() == labels[20:]
    assert dataset.train.labels.dtype == torch.int64
    assert dataset.mean == (0.49139968, 0.48215827, 0.44653124)


def test_cifar_written_by_python_3_reads_the_same(tmp_path):
    rows, labels = write_cifar10(tmp_path)
    for protocol in (2, 4, 5):
        path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
        path.write_bytes(pickle.dumps({"data": rows[:4], "labels": labels[:4]}, protocol))
        dataset = load("cifar10", tmp_path, splits=("train",))
        assert torch.equal(dataset.train.images[:4].flatten(1), torch.from_numpy(rows[:4]))
        assert dataset.test is None


def test_cifar100_takes_the_fine_labels(tmp_path):
    rows = random_pixels(6, 3072)
    fine, coarse = [99, 0, 5, 7, 50, 98], [1, 2, 3, 4, 5, 6]
    for name, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        content = {"data": rows[part], "fine_labels": fine[part], "coarse_labels": coarse[part]}
        write_python2(tmp_path / "cifar-100-python" / name, content)
    dataset = load("cifar100", tmp_path)
    assert dataset.train.labels.tolist() == fine[:4]
    assert dataset.test.labels.tolist() == fine[4:]
    assert dataset.n_classes == 100
    assert torch.equal(dataset.test.images.flatten(1), torch.from_numpy(rows[4:]))


class RunsACommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    write_cifar10(tmp_path)
    mark = tmp_path / "it_ran"
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": RunsACommand(f"touch {mark}")}, protocol))
    with pytest.raises(DataError, match=r"data_batch_3: not a usable pickle.*system"):
        load("cifar10", tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("numpy", "load"), ("numpy.core.multiarray", "fromfile")],
)
def test_no_other_function_can_be_named(tmp_path, module, name):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(b"\x80\x02c" + f"{module}\n{name}\n.".encode())
    with pytest.raises(DataError, match=rf"asks for {module}\.{name}"):
        load("cifar10", tmp_path)


def test_a_file_cut_short_anywhere_is_a_data_error(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    for length in (0, 1, 5, 30, 60, 100, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="test_batch") as caught:
            load("cifar10", tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": [1]}, "key 'data' is missing"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "key 'labels' is missing"),
        ({"data": np.zeros((1, 3072)), "labels": [1]}, r"must be uint8 .*got float64"),
        ({"data": np.zeros((1, 3071), np.uint8), "labels": [1]}, r"\(n, 3072\), got .*3071"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 whole numbers"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, r"0\.\.9, got 10"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, r"0\.\.9, got -1"),
        ([1, 2], "must hold a dict, got list"),
    ],
)
def test_wrong_content_of_a_cifar_file(tmp_path, content, message):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        load("cifar10", tmp_path)


def test_a_damaged_test_file_is_found_when_asked_for_and_a_missing_one_is_none(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:99])
    load("cifar10", tmp_path, splits=("train",))
    with pytest.raises(DataError, match="test_batch: not a usable pickle"):
        load("cifar10", tmp_path, splits=("train",), check_test=True)
    path.unlink()
    assert load("cifar10", tmp_path, splits=("train",), check_test=True).test is None


def test_a_missing_file_says_where_and_what_to_do(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path)
    message = str(caught.value)
    assert message == (
        f"cifar10: no file data_batch_4 in {tmp_path / 'cifar-10-batches-py'}; "
        "set data_dir to the folder of the data, or download to fetch it"
    )


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    import torchvision.datasets

    calls = []

    def fetch(root: Path, download: bool) -> None:
        calls.append((root, download))
        write_cifar10(root)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fetch)
    assert len(load("cifar10", tmp_path, download=True).train) == 20
    assert calls == [(tmp_path, True)]
    load("cifar10", tmp_path, download=True)
    assert len(calls) == 1  # nothing was missing


def test_a_failed_download_is_a_data_error(tmp_path, monkeypatch):
    import torchvision.datasets

    def fetch(root: Path, split: str, download: bool) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets, "SVHN", fetch)
    with pytest.raises(DataError, match="svhn: the download failed: no network"):
        load("svhn", tmp_path, download=True)


def test_svhn(tmp_path):
    pixels = random_pixels(32, 32, 3, 5)
    labels = np.array([[1], [10], [9], [2], [10]], dtype=np.uint8)
    for split in ("train", "test"):
        content = {"X": pixels, "y": labels}
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", content, do_compression=True)
    dataset = load("svhn", tmp_path)
    assert dataset.train.labels.tolist() == [1, 0, 9, 2, 0]
    assert dataset.train.images[3, 1, 4, 20] == pixels[4, 20, 1, 3]
    assert dataset.test.images.shape == (5, 3, 32, 32)
    path = tmp_path / "test_32x32.mat"
    whole = path.read_bytes()
    for length in (0, 50, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="test_32x32"):
            load("svhn", tmp_path)
    scipy.io.savemat(path, {"X": pixels})
    with pytest.raises(DataError, match="variable 'y' is missing"):
        load("svhn", tmp_path)
    scipy.io.savemat(path, {"X": pixels, "y": labels + 1})
    with pytest.raises(DataError, match=r"y must lie in 0\.\.9, got 11"):
        load("svhn", tmp_path)


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    dataset = load("digits", tmp_path)
    assert dataset.train.images.shape == (1437, 1, 8, 8)
    assert dataset.test.images.shape == (360, 1, 8, 8)
    assert dataset.train.images.max() == 255
    share = torch.bincount(dataset.test.labels) / torch.bincount(
        torch.cat((dataset.train.labels, dataset.test.labels))
    )
    assert (share - 0.2).abs().max() < 1 / 174  # to within one image of the smallest class
    # Train and test together are the published set.
    ours = torch.cat((dataset.train.images, dataset.test.images)).flatten(1).numpy()
    published = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, published))
    assert torch.equal(dataset.test.images, load("digits", tmp_path).test.images)
    pixels = dataset.train.images.double() / 255
    assert dataset.mean == pytest.approx((pixels.mean().item(),), rel=1e-12)
    assert dataset.std == pytest.approx((pixels.std(correction=0).item(),), rel=1e-12)
    assert not dataset.augmentation.flip
    assert dataset.augmentation.crop_padding == 1


def test_digits_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'zoopt-nas\[nas\]'"):
        load("digits", tmp_path)


def test_imagenet_is_decoded_when_fetched(tmp_path):
    # A picture of 40 x 20: its middle square is grey 200, the sides are black.
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 200
    for split in ("train", "val"):
        for i in range(1000):
            folder = tmp_path / "imagenet" / split / f"n{i:08d}"
            folder.mkdir(parents=True)
            if i == 0:
                Image.fromarray(pixels).save(folder / "0.JPEG", quality=95)
                data = (folder / "0.JPEG").read_bytes()
            (folder / "0.JPEG").write_bytes(data)
    dataset = load("imagenet", tmp_path, image_size=14)
    assert isinstance(dataset.train, LazyImageSet)
    images, labels = dataset.train.fetch(torch.tensor([999, 3]))
    assert images.shape == (2, 3, 16, 16)  # 14 * 256 / 224
    assert labels.tolist() == [999, 3]
    assert (images[..., 2:-2].float() - 200).abs().max() < 12  # JPEG is not exact
    augmented = dataset.transform()(images, torch.Generator().manual_seed(0))
    assert augmented.shape == (2, 3, 14, 14)
    assert dataset.transform(augment=False)(images).shape == (2, 3, 14, 14)
    first = tmp_path / "imagenet" / "train" / "n00000000" / "0.JPEG"
    first.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=str(first)):
        dataset.train.fetch(torch.tensor([0]))
    first.unlink()
    with pytest.raises(DataError, match="n00000000: the class folder holds no image"):
        load("imagenet", tmp_path)
    first.parent.rmdir()
    with pytest.raises(DataError, match="must hold 1000 class folders, it holds 999"):
        load("imagenet", tmp_path)
    with pytest.raises(DataError, match="set data_dir to the folder"):
        load("imagenet", tmp_path / "elsewhere")


def test_constants_of_the_table():
    assert DATASETS["cifar100"].mean == (0.5071, 0.4865, 0.4409)
    assert DATASETS["cifar100"].std == (0.2673, 0.2564, 0.2762)
    assert DATASETS["svhn"].mean == (0.4377, 0.4438, 0.4728)
    assert DATASETS["svhn"].std == (0.1980, 0.2010, 0.1970)
    assert DATASETS["imagenet"].mean == (0.485, 0.456, 0.406)
    for name, spec in DATASETS.items():
        assert spec.name == name
        assert spec.mean is None or len(spec.mean) == len(spec.std) == spec.in_channels
        assert spec.augmentation.crop_padding in (0, spec.image_size // 8)
        assert spec.augmentation.cutout == 0
