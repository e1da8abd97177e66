"""Runs in a series and retrainings of a search: on which data they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoopt_nas.errors import DataError
from zoopt_nas.nas.analyses.run_once import retraining_of, search_once, settings_from, train_once
from zoopt_nas.nas.analyses.sweep import Sweep, run_sweep
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig

OF_DATA = {"seed": 7, "data_dir": "here", "download": True, "image_size": 16}
EXECUTION = {
    **{"device": "cpu", "threads": 2, "amp": "off"},
    **{"compile": "off", "channels_last": "off", "cpu_kernels": "off"},
}


def change(path: Path) -> None:
    arrays = dict(np.load(path))
    arrays["x_train"][0] ^= 1
    np.savez(path, **arrays)


@pytest.fixture
def data(npz, tmp_path):
    path = tmp_path / "mine.npz"
    path.write_bytes(npz.read_bytes())
    return path


def test_a_retraining_on_other_data_takes_the_execution_only(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    search = SearchConfig(dataset="mine.npz", **OF_DATA, **EXECUTION)
    everything = {"dataset": "mine.npz", **OF_DATA, **EXECUTION}
    assert settings_from(search) == everything
    for same in ("mine.npz", "./mine.npz", str(tmp_path / "mine.npz")):
        assert settings_from(search, same) == everything
    for other in ("other.npz", "digits", "elsewhere/mine.npz"):
        assert settings_from(search, other) == EXECUTION
    digits = SearchConfig(dataset="digits", **OF_DATA, **EXECUTION)
    assert settings_from(digits, "digits") == {"dataset": "digits", **OF_DATA, **EXECUTION}
    assert settings_from(digits, "./digits") == EXECUTION  # a name is no path
    assert settings_from(TrainConfig(**OF_DATA), "other.npz")["device"] == "auto"


def test_a_retraining_in_a_series_keeps_the_seed_of_its_search():
    search = SearchConfig(dataset="mine.npz", **OF_DATA)
    config = retraining_of(search, GENOTYPES["DARTS_V2"], dataset="digits")
    assert (config.dataset, config.seed, config.image_size, config.data_dir) == (
        *("digits", 7, None, "data"),
    )
    assert config.epochs == TrainConfig.for_dataset("digits", "DARTS_V2").epochs
    assert retraining_of(search, GENOTYPES["DARTS_V2"]).image_size == 16


def test_finished_runs_with_other_data_are_not_counted(search_config, train_config, data, tmp_path):
    search = search_config("random", dataset=str(data))
    train = train_config(dataset=str(data), epochs=1)
    folder = search_once(search, tmp_path / "search")
    result = train_once(train, tmp_path / "train")
    assert search_once(search, tmp_path / "search") == folder
    assert train_once(train, tmp_path / "train") == result
    change(data)
    with pytest.raises(DataError, match="the train images or labels have changed since"):
        search_once(search, tmp_path / "search")
    with pytest.raises(DataError, match="the train images or labels have changed since"):
        train_once(train, tmp_path / "train")
    data.unlink()  # what is gone cannot be others
    assert search_once(search, tmp_path / "search") == folder
    assert train_once(train, tmp_path / "train") == result


def test_a_sweep_does_not_go_on_with_other_data(small_spaces, data, tmp_path):
    search = {"dataset": str(data), "space": "small_s3", "algo": "random", "device": "cpu"}
    small = {"batch_size": 16, "init_channels": 2, "n_cells": 1}
    sweep = Sweep(vary={"cutout": (0, 2)}, seeds=(0,), search={**search, **small})
    first = run_sweep(sweep, tmp_path / "sweep")
    assert next(first).point == {"cutout": 0}
    first.close()
    change(data)
    with pytest.raises(DataError, match="the train images or labels have changed since"):
        next(run_sweep(sweep, tmp_path / "sweep"))
