"""The model of measured cells, against independent references."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal, norm, rankdata

from zoopt_nas.nas import SearchConfig
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.cell_model import ERRORS, LENGTHS, CellModel, normal_scores
from zoopt_nas.nas.search.known_cells import Measured
from zoopt_nas.nas.search.zero_order import N_MODELLED, ZeroOrderUpdater


def measured(value: float) -> Measured:
    number = torch.tensor(value)
    return Measured(number, number, 1 - number)


def random_cells(n: int, seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(row) for row in np.unique(rng.integers(0, 5, (n, 6)), axis=0).tolist()]


def weighted_sum(path) -> float:
    return sum((k + 1) * choice for k, choice in enumerate(path))


def test_scores_are_quantiles_of_the_normal_distribution():
    for n in (1, 2, 7, 100):
        expected = norm.ppf(np.arange(1, n + 1) / (n + 1))
        np.testing.assert_allclose(normal_scores(n).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_is_that_of_the_most_likely_gaussian_process(seed):
    """By dense linear algebra, and with the likelihood of ``scipy.stats``."""
    cells = random_cells(30, seed)
    noise = np.random.default_rng(seed + 100).normal(0, 3, len(cells))
    values = [weighted_sum(cell) + e for cell, e in zip(cells, noise, strict=True)]
    model = CellModel({cell: measured(v) for cell, v in zip(cells, values, strict=True)})

    scores = norm.ppf(rankdata(values) / (len(cells) + 1))
    table = np.array(cells)
    distances = (table[:, None] != table[None]).sum(-1)
    mean_distance = distances[np.triu_indices(len(cells), 1)].mean()
    found = []

    def loss(kernel, log_scale):
        cov = math.exp(log_scale) * kernel
        return -multivariate_normal(np.zeros(len(cov)), cov).logpdf(scores)

    for length in LENGTHS:
        for error in ERRORS:
            K = np.exp(-distances / (length * mean_distance)) + error * np.eye(len(cells))

            found.append((minimize_scalar(partial(loss, K), bounds=(-5, 5)).fun, length, error, K))
    _, length, error, K = min(found, key=lambda one: one[0])
    others = random_cells(20, seed + 200)
    apart = (np.array(others)[:, None] != table[None]).sum(-1)
    expected = np.exp(-apart / (length * mean_distance)) @ np.linalg.solve(K, scores)
    assert model.error == error
    np.testing.assert_allclose(model(others).numpy(), expected, rtol=1e-8, atol=1e-10)


def test_only_the_order_of_values_counts():
    cells = random_cells(20, 0)
    values = np.random.default_rng(1).normal(size=len(cells))
    others = random_cells(9, 5)

    def means(transform):
        known = {c: measured(transform(v)) for c, v in zip(cells, values, strict=True)}
        return CellModel(known)(others)

    torch.testing.assert_close(means(math.exp), means(lambda v: 1e3 * v - 7), rtol=0, atol=0)


def test_cells_that_failed_are_worst():
    paths = [(k, k, k) for k in range(5)]
    values = [0.8, math.nan, 0.7, 0.9, math.inf]
    model = CellModel({path: measured(v) for path, v in zip(paths, values, strict=True)})
    # All distances are equal, so that the means have the order of the scores.
    assert model(paths).argsort().tolist()[:3] == [2, 0, 3]
    assert model.best == paths[2]


@pytest.mark.parametrize("seed", range(3))
def test_the_best_cell_is_not_the_luckiest(seed):
    """A poor cell with the least value of all was lucky, as its neighbours say."""
    lucky = (4, 4, 4, 4, 4, 4)
    neighbours = {(*lucky[:e], k, *lucky[e + 1 :]) for e in range(6) for k in range(5)}
    cells = sorted(neighbours | set(random_cells(40, seed)))
    errors = np.random.default_rng(seed + 100).normal(0, 5, len(cells))
    values = {cell: weighted_sum(cell) + e for cell, e in zip(cells, errors, strict=True)}
    values[lucky] = min(values.values()) - 1
    model = CellModel({cell: measured(value) for cell, value in values.items()})
    assert model.best != lucky
    assert weighted_sum(model.best) < np.quantile([weighted_sum(cell) for cell in cells], 0.25)


class NoisyCells:
    """An objective over cells: what it costs to be far from the best cell, and an error."""

    def __init__(self, error: float, seed: int) -> None:
        self.supernet = type("Net", (), {"space": SPACES["nasbench201"]})
        self.single_path, self.known, self._error = True, {}, error
        self._rng = np.random.default_rng(seed)

    def true(self, path) -> float:
        best = (1, 2, 3, 4, 1, 2)
        return sum(w * (c != b) for c, b, w in zip(path, best, W, strict=True))

    def __call__(self, alphas, draw):
        space = self.supernet.space
        paths = [space.canonical(space.path(space.discretize(alpha))) for alpha in alphas]
        for path in paths:
            if path not in self.known:
                error = self._error * self._rng.standard_normal()
                self.known[path] = measured(self.true(path) + error)
        return torch.stack([self.known[path].value for path in paths])


W = (3.0, 2.5, 2.0, 1.5, 1.0, 0.5)


def loss_after(algo: str, n_updates: int, seed: int, *, surrogate: bool) -> float:
    """Return the true value of the cell at which a search of noisy cells ends."""
    config = SearchConfig(
        space="nasbench201", algo=algo, paths="fair", weights="fresh", surrogate=surrogate
    )
    objective = NoisyCells(1.5, seed)
    space = objective.supernet.space
    alpha = space.init_alpha(rng=seed).double()
    updater = ZeroOrderUpdater.build(config, alpha, seed, space)
    for k in range(n_updates):
        n_known = len(objective.known)
        updater.update(objective, None, 0.0)
        assert k == 0 or not surrogate or len(objective.known) == n_known + 1
    return objective.true(space.canonical(space.path(space.discretize(updater.alpha))))


@pytest.mark.parametrize("algo", ["gld", "adaptive_gld"])
def test_the_model_sees_through_errors(algo):
    """Errors as large as the weight of an edge, 40 evaluations, n = 5 searches."""
    with_model = [loss_after(algo, 30, seed, surrogate=True) for seed in range(5)]
    without = [loss_after(algo, 30, seed, surrogate=False) for seed in range(5)]
    assert np.mean(with_model) < np.mean(without) - 0.5


def test_new_cells_are_drawn_at_random_where_the_solver_finds_none():
    """A solver that stays at its cell still evaluates a new cell in each update."""
    options = {"max_radius": 1e-6, "min_radius": 1e-6}
    config = SearchConfig(
        space="nasbench201", algo="gld", paths="fair", weights="fresh", surrogate=True,
        solver=options,
    )  # fmt: skip
    objective = NoisyCells(0.0, 0)
    updater = ZeroOrderUpdater.build(config, torch.zeros(30), 0, objective.supernet.space)
    for k in range(5):
        updater.update(objective, None, 0.0)
        assert len(objective.known) == N_MODELLED + 1 + k
