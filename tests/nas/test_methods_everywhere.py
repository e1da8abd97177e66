"""Every baseline on every space at its real size: one epoch of a narrow supernet."""

from __future__ import annotations

import pytest

from zoopt_nas import nas
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.methods import random_search
from zoopt_nas.nas.settings.methods import BASELINES


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("algo", BASELINES)
def test_a_search_ends_with_a_genotype_of_the_space(algo, space, npz, monkeypatch):
    monkeypatch.setattr(random_search, "N_SAMPLES", 20)  # 1000 take a while
    config = nas.SearchConfig.for_dataset(
        str(npz),
        algo,
        **{"space": space, "epochs": 1, "warmup_epochs": 0, "n_train": 32, "batch_size": 16},
        **{"init_channels": 4, "n_cells": 1, "cutout": 0, "device": "cpu"},
    )
    found = nas.run_search(config)
    there = {name for names in SPACES[space].normal for name in names} - {"none"}
    operations = [name for name, _ in found.genotype.edges("normal")]
    assert len(operations) == 8
    assert set(operations) <= there
    if algo != "random":
        (row,) = found.metrics
        assert 0 < row["val_loss"] < 10
        assert (row["updates"], row["evaluations"]) == (1, 0)
