"""Every baseline on every space at its real size, every method on NAS-Bench-201: one epoch."""

from __future__ import annotations

import pytest
import torch

from zoopt_nas import nas
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.methods import METHODS, random_search
from zoopt_nas.nas.search.zero_order import config_solver
from zoopt_nas.nas.settings.methods import BASELINES

# FairDARTS cannot tell whether `none` is good, SGAS chooses edges (tests/nas/test_sgas.py).
UNDEFINED = {(algo, "nasbench201") for algo in ("fair_darts", "sgas", "sgas2")}
# There is one convolution on each edge.
UNDEFINED |= {("merge_nas", space) for space in ("s2", "s3", "s4")}
# DARTS-PT continues another search (tests/nas/test_perturbation.py), and P-DARTS has three stages
# (tests/nas/test_progressive_runs.py).
DEFINED = [
    (algo, space)
    for algo in BASELINES
    for space in SPACES
    if (algo, space) not in UNDEFINED and algo not in ("darts_pt", "p_darts")
]


@pytest.mark.parametrize(("algo", "space"), DEFINED)
def test_a_search_ends_with_a_genotype_of_the_space(algo, space, npz, monkeypatch):
    monkeypatch.setattr(random_search, "N_SAMPLES", 20)  # 1000 take a while
    config = nas.SearchConfig.for_dataset(
        str(npz),
        algo,
        **{"space": space, "epochs": 1, "warmup_epochs": 0, "n_train": 32, "batch_size": 16},
        **{"init_channels": 4, "n_cells": 3 if space == "nasbench201" else 1},
        **{"cutout": 0, "device": "cpu"},
    )
    found = nas.run_search(config)
    kind = SPACES[space].kinds[0]
    there = {name for names in SPACES[space].candidates(kind) for name in names}
    operations = [name for name, _, _ in found.genotype.cells[kind].edges]
    if space == "nasbench201":
        assert len(operations) == 6
    else:
        assert len(operations) == 8
        there -= {"none"}
    assert set(operations) <= there
    if algo != "random":
        (row,) = found.metrics
        assert 0 < row["val_loss"] < 10
        assert (row["updates"], row["evaluations"]) == (1, 0)


ALL = [name for name in METHODS if name not in BASELINES]
SHARED = [
    name
    for name in ALL
    if name == "auto" or not config_solver(nas.SearchConfig(algo=name)).compares_batches
]


@pytest.mark.parametrize(
    ("algo", "more"),
    [(name, {}) for name in SHARED]
    + [(name, {"paths": "uniform"}) for name in SHARED]
    + [(name, {"paths": "fair", "weights": "fresh"}) for name in ALL if name != "auto"],
)
def test_a_zero_order_search_ends_with_a_cell_of_nasbench201(algo, more, npz):
    config = nas.SearchConfig.for_dataset(
        str(npz),
        algo,
        **{"space": "nasbench201", "epochs": 1, "warmup_epochs": 0, "n_train": 32},
        **{"batch_size": 16, "init_channels": 4, "n_cells": 3, "inner_steps": 1, "device": "cpu"},
        **more,
    )
    found = nas.run_search(config)
    assert isinstance(found.genotype, nas.NasBench201Genotype)
    assert found.alpha.shape == (30,)
    assert not torch.equal(found.alpha, SPACES["nasbench201"].init_alpha(rng=config.seed))
    (row,) = found.metrics
    assert 0 < row["val_loss"] < 10
    assert row["updates"] > 0
    assert row["evaluations"] >= row["updates"]
