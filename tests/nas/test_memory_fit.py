"""Runs that do not fit into memory, and what they are told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zoopt_nas.errors import NotEnoughMemoryError, RunInterrupted
from zoopt_nas.nas.data.loading import load_dataset
from zoopt_nas.nas.retraining import training
from zoopt_nas.nas.retraining.retrain import run_training
from zoopt_nas.nas.runs import setup
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.memory import (
    MemoryEstimate,
    check_free,
    in_words,
)
from zoopt_nas.nas.search import supernets
from zoopt_nas.nas.search.run import estimate_search, resume_search, run_search

CPU = torch.device("cpu")
GB = 10**9

BIG = MemoryEstimate(parameters=GB // 10, activations=12 * GB, evaluation=GB, data=GB // 5)


def test_what_fits_is_not_refused(search_config):
    check_free(BIG, None, search_config(), CPU)
    check_free(BIG, BIG.total, search_config(), CPU)


@pytest.mark.parametrize(
    ("estimate", "fields", "advice"),
    [
        (
            BIG,
            {"batch_size": 64, "init_channels": 16, "n_cells": 8},
            "lower batch_size (64), init_channels (16) or n_cells (8)",
        ),
        # Evaluation has batches of its own size.
        (
            MemoryEstimate(GB // 10, GB, 12 * GB, GB // 5),
            {"batch_size": 64, "init_channels": 16, "n_cells": 1, "image_size": 128},
            "lower init_channels (16) or image_size (128)",
        ),
        (BIG, {"batch_size": 2, "init_channels": 1, "n_cells": 1}, "lower batch_size (2)"),
        (BIG, {"batch_size": 1, "init_channels": 1, "n_cells": 1}, "use a device with more"),
        (
            BIG,
            {"batch_size": 64, "candidates_per_batch": 4, "partial_channels": 1},
            "lower batch_size (64) or candidates_per_batch (4), or raise partial_channels (1)",
        ),
    ],
)
def test_a_refusal_names_what_helps(estimate, fields, advice):
    with pytest.raises(NotEnoughMemoryError) as caught:
        check_free(estimate, 8 * GB, SimpleNamespace(**fields), CPU)
    assert str(caught.value) == (
        f"a step needs about 12.3 GB, and 8.0 GB are free on cpu: {advice}"
    )


@pytest.mark.parametrize("run", ["search", "train"])
def test_weights_that_cannot_fit_are_refused_before_they_are_made(
    run, search_config, train_config, monkeypatch
):
    configs = {"search": (supernets, search_config()), "train": (training, train_config())}
    module, config = configs[run]
    # 2 (copies of a supernet) 4 (weights, gradients, momentum, a sum) 4 (bytes): the widest cell
    # has 1x1 convolutions of 4000 x 4000 and more.
    config = config.replace(init_channels=4000, n_cells=20)
    monkeypatch.setattr(setup, "free_memory", lambda device: 5 * GB)
    made = []
    monkeypatch.setattr(module, "make_sgd", made.append)
    start = run_search if run == "search" else run_training
    with pytest.raises(
        NotEnoughMemoryError,
        match=r"^the weights need more than the 5\.0 GB that are free on cpu: lower ",
    ):
        start(config)
    assert made == []


def test_bytes_in_words():
    assert [in_words(n) for n in (0, 1_600_000, 99_400_000, 10**8, 12_340_000_000)] == [
        *("0.0 MB", "1.6 MB", "99.4 MB", "0.1 GB", "12.3 GB")
    ]


class Starts(Observer):
    def __init__(self, stop: bool = False) -> None:
        self.starts, self.stop = [], stop

    def on_start(self, start):
        self.starts.append(start)

    def should_stop(self):
        return self.stop


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (10**3, r"the weights need more than the 0\.0 MB that are free on cpu: lower "),
        (10**8, r"a step needs about 0\.2 GB, and 0\.1 GB are free on cpu: lower "),
    ],
)
def test_a_run_that_cannot_fit_leaves_nothing_behind(
    search_config, train_config, tmp_path, monkeypatch, free, message
):
    monkeypatch.setattr(setup, "free_memory", lambda device: free)
    watch = Starts()
    for run, config in ((run_search, search_config()), (run_training, train_config())):
        with pytest.raises(NotEnoughMemoryError, match=message):
            run(config, run_dir=tmp_path / "run", observer=watch)
    assert list(tmp_path.iterdir()) == []
    assert watch.starts == []


def test_a_run_that_no_longer_fits_is_not_resumed(search_config, tmp_path, monkeypatch):
    with pytest.raises(RunInterrupted):
        run_search(search_config(), run_dir=tmp_path / "run", observer=Starts(stop=True))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(setup, "free_memory", lambda device: 1000)
        with pytest.raises(NotEnoughMemoryError, match="need more"):
            resume_search(tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert len(resume_search(tmp_path / "run").metrics) == 3


def test_an_observer_is_told_before_the_run(search_config, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "free_memory", lambda device: 21 * GB)
    folder = tmp_path / "run"

    class Looking(Starts):
        def on_start(self, start):
            super().on_start(start)
            assert not (folder / "metrics.jsonl").exists()

    watch, config = Looking(), search_config(epochs=1, warmup_epochs=0)
    run_search(config, run_dir=folder, observer=watch)
    (start,) = watch.starts  # once
    assert (start.device, start.free) == (CPU, 21 * GB)
    assert start.memory == estimate_search(config, load_run_data(config))
    assert str(start) == "about 0.2 GB of memory, 21.0 GB free on cpu"
    assert str(start._replace(free=None)) == "about 0.2 GB of memory, on cpu"


def load_run_data(config):
    return load_dataset(config.dataset, data_dir=Path("unused"), device=CPU, splits=("train",))
