"""What tests of all folders share: one thread, a tiny data set, a tiny search and retraining."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig

try:
    import torch
except ModuleNotFoundError:  # CI tests the core without torch, too
    pass
else:
    torch.set_num_threads(1)  # results are compared bit for bit, and tests share two cores

SEARCH = {
    "epochs": 3,
    "warmup_epochs": 1,
    "batch_size": 16,
    "init_channels": 2,
    "n_cells": 1,
    "inner_steps": 1,
    "device": "cpu",
}
TRAIN = {"epochs": 3, "batch_size": 16, "init_channels": 2, "n_cells": 2, "device": "cpu"}


@pytest.fixture
def no_kernels(monkeypatch):
    """PyTorch's operators only, as on a GPU and without a compiler."""
    from zoopt_nas.nas.kernels import library as kernel_library

    monkeypatch.setattr(kernel_library, "library", lambda dtype: None)


SMALL_SPACES = Path(__file__).parent / "small_spaces"
"""Where an installed package of the tests brings ``small_s3`` and ``small_s4``."""


@pytest.fixture
def small_spaces(monkeypatch):
    """S3 and S4 with two nodes instead of four: a third of the time, the same code."""
    monkeypatch.syspath_prepend(SMALL_SPACES)


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """``third_party("zoopt_nas.solvers", walk="module:Class")`` installs a package with entries."""

    def install(group: str, **entries: str) -> None:
        site = tmp_path / f"site-{group}"
        info = site / f"{group}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {group}\nVersion: 1.0\n")
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(site)

    return install


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one's own: 64 + 24 images of 8x8 pixels, three classes told apart by a bar."""
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 3
        images = rng.integers(0, 120, (n, 8, 8, 1), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 1 + 2 * label] = 250
        return images, labels

    x_train, y_train = split(64)
    x_test, y_test = split(24)
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def search_config(npz, small_spaces):
    """``search_config(algo="gld", ...)``: a search of 3 epochs with 2 weight steps each."""

    def make(algo: str = "gld", **overrides: Any) -> SearchConfig:
        fields: dict[str, Any] = {"dataset": str(npz), "space": "small_s3", **SEARCH, **overrides}
        if algo in ("rs", "mgs", "gld"):
            fields["solver"] = {"n_samples": 2, **fields.get("solver", {})}
        return SearchConfig.for_dataset(algo=algo, **fields)

    return make


@pytest.fixture
def train_config(npz):
    """``train_config(...)``: a retraining of 3 epochs with 4 steps each."""

    def make(**overrides: Any) -> TrainConfig:
        fields: dict[str, Any] = {
            "dataset": str(npz),
            "genotype": "DARTS_V2",
            "auxiliary": False,
            "drop_path": 0.0,
            "cutout": 0,
            **TRAIN,
            **overrides,
        }
        return TrainConfig.for_dataset(**fields)

    return make


@pytest.fixture
def without_seconds():
    """Rows of metrics.jsonl with the one column that two equal runs may differ in left out."""
    return lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
