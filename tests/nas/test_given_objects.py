"""Searches in a space and on images that are given as objects, not by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from stopping import StopAt

from zoopt_nas import nas
from zoopt_nas.errors import DataError, InvalidValueError, RunInterrupted
from zoopt_nas.nas.analyses.snapshot import Snapshot

CELL = (("sep_conv_3x3", "skip_connect"),) * 5
MINE = nas.DartsSpace("mine", normal=CELL, reduce=CELL, n_nodes=2)


def load_bars(data_dir, split, download):
    rng = np.random.default_rng(0 if split == "train" else 1)
    labels = np.arange(32 if split == "train" else 16) % 2
    images = rng.integers(0, 120, (len(labels), 8, 8, 1), dtype=np.uint8)
    images[labels == 1, :, 3] = 250
    return images, labels


BARS = nas.DatasetSpec(
    name="bars",
    n_classes=2,
    in_channels=1,
    image_size=8,
    mean=None,
    std=None,
    augmentation=nas.Augmentation(),
    load=load_bars,
)


@pytest.fixture
def config(search_config):
    return search_config("gld", space="s3", dataset="digits")


def test_a_search_in_a_given_space_on_given_images(config, tmp_path):
    whole = nas.run_search(config, space=MINE, dataset=BARS)
    assert {name for name, _ in whole.genotype.normal} <= {"sep_conv_3x3", "skip_connect"}
    assert whole.alpha.shape == (MINE.dim,)
    run = tmp_path / "run"
    with pytest.raises(RunInterrupted):
        nas.run_search(config, space=MINE, dataset=BARS, run_dir=run, observer=StopAt(2))
    kept = nas.RunFolder.open(run)
    assert kept.space() == MINE
    assert (kept.config(nas.SearchConfig).space, kept.config(nas.SearchConfig).dataset) == (
        "mine",
        "bars",
    )
    with pytest.raises(DataError, match="dataset bars of the run has no loader here"):
        nas.resume_search(run)
    resumed = nas.resume_search(run, dataset=BARS)
    assert torch.equal(resumed.alpha, whole.alpha)
    assert resumed.genotype == whole.genotype


def test_loaded_images_are_the_same_as_what_loads_them(config, train_config):
    device = torch.device("cpu")
    images = nas.load_dataset(BARS, data_dir="unused", device=device)
    by_spec = nas.run_search(config, space=MINE, dataset=BARS)
    by_images = nas.run_search(config, space=MINE, dataset=images)
    assert torch.equal(by_spec.alpha, by_images.alpha)
    training = train_config(genotype=str(by_spec.genotype), dataset="digits", epochs=1)
    accuracies = {
        nas.run_training(training, dataset=given).test_accuracy for given in (BARS, images)
    }
    assert len(accuracies) == 1


def test_a_given_space_brings_its_edge_normalization(config):
    space = dataclasses.replace(MINE, edge_normalization=True)
    found = nas.run_search(config.replace(algo="random", solver={}), space=space)
    assert found.alpha.shape == (space.dim,)
    assert space.dim == MINE.dim + 10


def test_images_that_do_not_suit_the_settings(config):
    images = nas.load_dataset(BARS, data_dir="unused", device=torch.device("cpu"))
    for changes, message in (
        ({"n_train": 16}, "n_train must be left out with loaded images, got 16"),
        ({"image_size": 4}, "image_size must be 8, the size of the loaded images, got 4"),
        ({"device": "meta"}, "device must be auto or a device that this machine has, got meta"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            nas.run_search(config.replace(**changes), space=MINE, dataset=images)


def test_a_snapshot_is_in_the_space_of_its_search(config, npz, tmp_path):
    config = config.replace(dataset=str(npz))
    nas.run_search(config, space=MINE, run_dir=tmp_path / "run")
    snapshot = Snapshot(nas.RunFolder.open(tmp_path / "run"))
    assert snapshot.supernet.space.normal == MINE.normal
