"""The search as the paper has it, and as its released scripts do."""

from __future__ import annotations

import pytest
import torch

from zoopt_nas import nas
from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.zero_order import config_solver
from zoopt_nas.nas.settings.config import SearchConfig

RELEASED_SPACES = {"s1": 0.2, "s2": 0.2, "s3": 0.2, "s4": 0.2, "darts": 0.025}


def preset(name: str, algo: str = "mgs", dataset: str = "cifar10", **more) -> SearchConfig:
    return SearchConfig.for_dataset(dataset, algo, preset=name, **more)


@pytest.mark.parametrize("space", RELEASED_SPACES)
def test_the_search_of_the_paper(space):
    """Algorithm 1 for 50 epochs, N = 4, M = 10 (B.2), weights by Eq. 10."""
    config = preset("paper", space=space)
    assert (config.epochs, config.warmup_epochs, config.update_period) == (50, 0, None)
    assert (config.inner, config.inner_steps) == ("sgd", 10)
    assert (config.inner_lr, config.inner_momentum) == (None, False)
    assert config.sigma_schedule == "constant"
    assert config.solver == {
        **{"n_samples": 4, "weighting": "exact", "temperature": 0.01, "mixing": 1e-3},
        "sigma": RELEASED_SPACES[space],  # the paper gives none
    }


@pytest.mark.parametrize("space", RELEASED_SPACES)
def test_the_search_of_the_released_scripts(space):
    config = preset("released", space=space)
    assert (config.epochs, config.warmup_epochs, config.update_period) == (50, 10, None)
    assert (config.inner, config.inner_steps) == ("sgd", 10)
    assert (config.inner_lr, config.inner_momentum) == (0.001, False)
    assert config.sigma_schedule == "cosine"
    assert config.solver == {
        **{"n_samples": 4, "weighting": "density_free", "temperature": 0.01, "mixing": 1e-3},
        "sigma": RELEASED_SPACES[space],
    }


@pytest.mark.parametrize(
    ("name", "costs"),
    [
        # 1 + N: M steps for each of N candidates every M steps; RS has pairs, GLD alpha itself.
        (None, {"mgs": 5, "rs": 9, "lizo": 6, "gld": 6}),
        ("paper", {"mgs": 5, "rs": 9, "lizo": 6, "gld": 6}),
        ("released", {"mgs": 5, "rs": 17, "lizo": 6, "gld": 17}),
    ],
)
@pytest.mark.parametrize("dataset", ["cifar10", "imagenet", "digits"])
def test_what_a_search_costs_beside_training_the_weights(name, costs, dataset):
    """Passes for each weight step; an update at every step would make MGS cost 41."""
    for algo, cost in costs.items():
        config = SearchConfig.for_dataset(dataset, algo, preset=name, space="darts")
        period = config.update_period or config.inner_steps
        state = config_solver(config).init(torch.zeros(98), rng=0)
        guide = torch.zeros(98) if algo == "mgs" else None
        n_candidates = len(config_solver(config).ask(state, guide=guide))
        assert 1 + n_candidates * config.inner_steps / period == cost, algo


@pytest.mark.parametrize("name", [None, "paper", "released"])
def test_alpha_moves_every_m_steps_with_every_preset(name, search_config, npz):
    """32 images fit weights, in batches of 2: 16 steps an epoch, M = 5."""
    size = {"epochs": 1, "warmup_epochs": 0, "inner_steps": 5, "solver": {"n_samples": 1}}
    shape = {"batch_size": 2, "init_channels": 2, "n_cells": 1, "device": "cpu"}
    config = SearchConfig.for_dataset(
        str(npz), "mgs", preset=name, space="small_s3", **size, **shape
    )
    row = nas.run_search(config).metrics[0]
    assert (row["updates"], row["evaluations"]) == (4, 4)


def test_released_on_imagenet_has_a_longer_warm_up_and_batch():
    config = preset("released", dataset="imagenet", space="darts")
    assert (config.batch_size, config.warmup_epochs) == (256, 20)
    assert preset("released", dataset="imagenet", epochs=5).warmup_epochs == 2


def test_the_other_solvers_as_released():
    rs = config_solver(preset("released", "rs"))
    assert (rs.n_samples, rs.smoothing, rs.learning_rate) == (8, 0.1, 1e-4)
    gld = config_solver(preset("released", "gld"))
    radii = gld.radii(98)
    assert len(radii) == 15
    assert radii[0] == 0.13
    assert radii[14] == pytest.approx(0.13 * 2**-14)


OTHER_TRAINING = ("pc", "fair_darts", "drnas", "snas", "p_darts", "rome")


def test_baselines_are_as_their_own_papers_have_them():
    for name in ("paper", "released"):
        for algo in METHODS:
            if METHODS[algo].inner is not None and algo not in OTHER_TRAINING:
                assert preset(name, algo) == SearchConfig.for_dataset("cifar10", algo)
        pc = preset(name, "pc")
        assert (pc.batch_size, pc.lr, pc.lr_min, pc.alpha_lr) == (256, 0.1, 0.0, 6e-4)
        fair = preset(name, "fair_darts")
        drawn = preset(name, "drnas")
        assert (drawn.lr, drawn.lr_min, drawn.alpha_lr) == (0.1, 0.0, 6e-4)
        of_one_cell = preset(name, "drnas", space="nasbench201")
        assert (of_one_cell.lr, of_one_cell.lr_min, of_one_cell.alpha_lr) == (0.025, 0.001, 3e-4)
        assert preset(name, "snas").drop_path == 0.3
        rome = preset(name, "rome")
        assert (rome.epochs, rome.batch_size, rome.lr, rome.lr_min) == (50, 64, 0.05, 0.001)
        assert (rome.alpha_lr, rome.sampled_paths) == (3e-4, 7)
        assert (fair.batch_size, fair.lr, fair.lr_min, fair.alpha_lr) == (128, 0.005, 0.001, 3e-3)
        assert (pc.warmup_epochs, pc.partial_channels, pc.edge_normalization) == (15, 4, True)


def test_own_settings_win():
    config = preset("paper", warmup_epochs=3, update_period=2, solver={"sigma": 0.5})
    assert (config.warmup_epochs, config.update_period) == (3, 2)
    assert (config.solver["sigma"], config.solver["weighting"]) == (0.5, "exact")
    assert preset("paper", dataset="digits").epochs == 10  # sizes are the data set's


def test_an_unknown_preset():
    with pytest.raises(UnknownNameError, match="unknown preset 'papper'; did you mean 'paper'"):
        preset("papper")


def test_alpha_moves_at_the_period_that_is_asked_for(search_config):
    """32 images fit weights, in batches of 8: 4 steps an epoch."""
    for period, n_updates in ((None, 2), (1, 4), (2, 2), (3, 2), (4, 1)):
        config = search_config("mgs", batch_size=8, epochs=2, warmup_epochs=1, inner_steps=3)
        rows = nas.run_search(config.replace(update_period=period)).metrics
        assert [row["updates"] for row in rows] == [0, n_updates]
    every_second = search_config("darts1", batch_size=8, warmup_epochs=0, update_period=2)
    assert nas.run_search(every_second).metrics[0]["updates"] == 2
    with pytest.raises(InvalidValueError, match="update_period must be a positive integer, got 0"):
        search_config(update_period=0)


def test_the_fast_schedule_of_gld_drops_what_belongs_to_the_other(search_config):
    for preset in (None, "released"):
        config = SearchConfig.for_dataset(algo="gld", solver={"schedule": "fast"}, preset=preset)
        assert "min_radius" not in config.solver
        assert config.solver["schedule"] == "fast"
    assert nas.run_search(
        search_config("gld", solver={"schedule": "fast", "n_samples": None}, epochs=2)
    ).metrics[-1]["evaluations"]


def test_the_robust_search_trains_each_cell_on_its_own(npz):
    config = preset("robust", "gld", space="nasbench201")
    assert (config.paths, config.weights, config.score) == ("fair", "fresh", "loss")
    assert (config.inner_steps, config.extrapolate, config.surrogate) == (2000, True, True)
    assert config.warmup_epochs == 0
    assert config.solver == {}  # its steps follow from the space
    assert (config.lr, config.lr_min, config.inner_average) == (0.1, 0.1, 0.98)
    sizes = {"epochs": 2, "inner_steps": 2, "val_batches": 2}
    shape = {"batch_size": 4, "init_channels": 2, "n_cells": 3, "device": "cpu"}
    small = SearchConfig.for_dataset(
        str(npz), "gld", preset="robust", space="nasbench201", **sizes, **shape
    )
    rows = nas.run_search(small).metrics
    n_new = [row["updates"] for row in rows]
    assert [row["evaluations"] for row in rows] == [10 + n_new[0], 10 + sum(n_new)]


def test_presets_leave_the_steps_along_paths_to_the_space():
    for name in ("paper", "released", "robust"):
        config = preset(name, "gld", paths="uniform")
        assert config.solver == {}
