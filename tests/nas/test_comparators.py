"""FairDARTS, Beta-DARTS, DrNAS and SNAS against references in float64 that use no autograd."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import betainc, digamma, gammaln
from scipy.stats import beta as beta_distribution
from tiny_supernets import TINY, OneBatch, slopes_of_weights, supernet_of
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.methods import METHODS, drnas, snas
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.weight_step import weight_step

SIZES = [3, 3, 2, 2]  # candidates of the edges of TINY
PLACES = [(edge, k) for edge, size in enumerate(SIZES) for k in range(size)]


def built(algo: str, **fields):
    torch.manual_seed(0)
    config = SearchConfig(algo=algo, **fields)
    meaning = {"relaxation": config.relaxation}
    space = TINY.__class__(TINY.name, TINY.normal, TINY.reduce, TINY.n_nodes, **meaning)
    net = supernet_of(space, 3, 2, 3, in_channels=3).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    objective = BilevelObjective(net, optimizer, OneBatch(), OneBatch(), seed=0, inner="first")
    alpha = torch.randn(space.dim, generator=torch.Generator().manual_seed(1)).double()
    return objective, METHODS[algo].build(config, alpha, 3, space), config


def by_edge(alpha: np.ndarray) -> list[np.ndarray]:
    return np.split(alpha, np.cumsum(SIZES)[:-1])


def padded(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.pad(row, (0, 3 - len(row))) for row in rows])


def softmax(row: np.ndarray) -> np.ndarray:
    parts = np.exp(row - row.max())
    return parts / parts.sum()


def down_the_softmax(weights: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return weights * (slope - weights @ slope)


def assert_gradient(updater, objective, expected: np.ndarray) -> None:
    got = updater.gradient(objective)
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-7)


def adam(alpha: np.ndarray, gradients: list[np.ndarray], config: SearchConfig) -> np.ndarray:
    """Kingma and Ba (2015) with weight decay as part of the gradient."""
    first, second = np.zeros_like(alpha), np.zeros_like(alpha)
    b1, b2 = config.alpha_betas
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + config.alpha_weight_decay * alpha
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
        alpha = alpha - config.alpha_lr * (first / (1 - b1**t)) / (
            np.sqrt(second / (1 - b2**t)) + 1e-8
        )
    return alpha


# --- FairDARTS -----------------------------------------------------------------------------------


def fair_gradient(net, alpha: np.ndarray, penalty: float) -> np.ndarray:
    on = 1 / (1 + np.exp(-alpha))
    slope = slopes_of_weights(net, padded(by_edge(on)))
    flat = np.array([slope[place] for place in PLACES])
    # -mean((s - 1/2)^2) has the derivative -2 (s - 1/2) s (1 - s) / n.
    return flat * on * (1 - on) - penalty * 2 * (on - 0.5) * on * (1 - on) / len(alpha)


def test_fair_darts_switches_each_candidate():
    objective, updater, config = built("fair_darts")
    assert config.alpha_penalty == 10
    alpha = updater.alpha.numpy().copy()
    assert_gradient(updater, objective, fair_gradient(objective.supernet, alpha, 10.0))


def test_two_steps_of_fair_darts_are_adam_on_the_gradient():
    objective, updater, config = built("fair_darts", alpha_penalty=3.0)
    assert (config.alpha_lr, config.alpha_betas) == (3e-3, (0.9, 0.999))
    start = updater.alpha.numpy().copy()
    gradients = [fair_gradient(objective.supernet, start, 3.0)]
    updater.step(objective, 0.0)
    once = adam(start, gradients, config)
    torch.testing.assert_close(updater.alpha, torch.tensor(once), rtol=1e-6, atol=1e-8)
    gradients.append(fair_gradient(objective.supernet, once, 3.0))
    updater.step(objective, 0.1)
    twice = torch.tensor(adam(start, gradients, config))
    torch.testing.assert_close(updater.alpha, twice, rtol=1e-6, atol=1e-8)


def test_the_zero_one_loss_pushes_a_switch_away_from_a_half():
    objective, updater, _ = built("fair_darts", alpha_penalty=1e6)
    before = updater.alpha.clone()
    updater.step(objective, 0.0)
    assert ((updater.alpha - before).sign() == before.sign()).all()


def test_fair_darts_needs_a_space_where_none_is_no_result(search_config):
    with pytest.raises(InvalidValueError, match=r"choose none with fair_darts.*got nasbench201"):
        run_search(search_config("fair_darts", space="nasbench201", n_cells=3))


# --- Beta-DARTS ----------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [0.0, 0.4])
def test_beta_decay_adds_the_softmax_of_alpha(progress: float):
    objective, updater, config = built("beta_darts")
    assert config.alpha_penalty == 50
    updater.begin_epoch(progress)
    rows = [softmax(row) for row in by_edge(updater.alpha.numpy())]
    slope = slopes_of_weights(objective.supernet, padded(rows))
    expected = [
        down_the_softmax(row, slope[edge, : len(row)]) + 50 * progress * row / len(SIZES)
        for edge, row in enumerate(rows)
    ]
    assert_gradient(updater, objective, np.concatenate(expected))


# --- DrNAS ---------------------------------------------------------------------------------------


def concentrations(alpha: np.ndarray) -> np.ndarray:
    return np.where(alpha > 0, alpha + 1, np.exp(alpha))


def test_samples_have_the_moments_of_a_dirichlet_distribution():
    objective, updater, _ = built("drnas")
    net, alpha = objective.supernet, updater.alpha
    generator = torch.Generator().manual_seed(0)
    n = 4000
    draws = torch.stack([drnas.sample_weights(net, alpha, generator) for _ in range(n)])
    torch.testing.assert_close(draws.sum(dim=2), torch.ones(n, 4, dtype=torch.float64))
    for edge, row in enumerate(by_edge(concentrations(alpha.numpy()))):
        total = row.sum()
        mean = row / total
        variance = mean * (1 - mean) / (total + 1)
        got = draws[:, edge, : len(row)].mean(dim=0).numpy()
        # 10 means, two-sided, at 1e-6 in all.
        assert (np.abs(got - mean) < 5.4 * np.sqrt(variance / n)).all()
        assert not draws[:, edge, len(row) :].any()


def quantile_slope(x: float, a: float, b: float) -> float:
    """The derivative in a of the quantile of Beta(a, b) at x: -dF/da over the density."""
    step = 1e-6 * a
    change = (betainc(a + step, b, x) - betainc(a - step, b, x)) / (2 * step)
    return -change / beta_distribution.pdf(x, a, b)


def test_the_pathwise_derivative_is_that_of_the_quantile():
    """A larger beta_k moves x_k as the quantile of its marginal and scales down the others."""
    beta = torch.tensor([[0.7, 1.9, 1.2], [1.0, 3.0, 0.4]], dtype=torch.float64)
    beta.requires_grad_()
    x = drnas._Sample.apply(beta, torch.Generator().manual_seed(4))
    for row, out in ((0, 2), (1, 1), (1, 0)):
        (got,) = torch.autograd.grad(x[row, out], beta, retain_graph=True)
        values, parameters = x[row].tolist(), beta[row].tolist()
        for k in range(3):
            rest = sum(parameters) - parameters[k]
            moved = quantile_slope(values[k], parameters[k], rest)
            share = 1.0 if k == out else -values[out] / (1 - values[k])
            assert float(got[row, k]) == pytest.approx(moved * share, rel=1e-3)
        assert not got[1 - row].any()


def test_the_gradient_of_drnas_flows_through_the_sample():
    objective, updater, _ = built("drnas")
    twin = torch.Generator()
    twin.set_state(updater._generator.get_state())
    net, alpha = objective.supernet, updater.alpha.clone().requires_grad_()
    drawn = drnas.sample_weights(net, alpha, twin)
    slope = torch.tensor(slopes_of_weights(net, drawn.detach().numpy()))
    (expected,) = torch.autograd.grad((drawn * slope).sum(), alpha)
    got = updater.gradient(objective)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(updater.gradient(objective), got)  # another sample


def test_the_mean_of_pathwise_derivatives_is_the_derivative_of_the_mean():
    """d E[x_1] / d beta_1 for an edge with padding, where samples are cut and rescaled."""
    objective, updater, _ = built("drnas")
    net, alpha = objective.supernet, updater.alpha.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    start, n = 6, 3000  # alpha of the third edge, which has two candidates
    found = []
    for _ in range(n):
        drawn = drnas.sample_weights(net, alpha, generator)[2, 0]
        found.append(torch.autograd.grad(drawn, alpha)[0][start : start + 2].numpy())
    a, b = concentrations(alpha.detach().numpy()[start : start + 2])
    chain = np.where(alpha.detach().numpy()[start : start + 2] > 0, 1.0, [a, b])
    expected = np.array([b, -a]) / (a + b) ** 2 * chain
    error = np.std(found, axis=0) / math.sqrt(n)
    assert (np.abs(np.mean(found, axis=0) - expected) < 5 * error).all()
    assert (5 * error < 0.2 * np.abs(expected)).all()  # a wrong factor would show


def test_the_divergence_is_that_of_dirichlet_distributions():
    objective, updater, _ = built("drnas")
    rows = by_edge(concentrations(updater.alpha.numpy()))
    by_formula = sum(
        gammaln(row.sum())
        - gammaln(row).sum()
        - gammaln(len(row))
        + (row - 1) @ (digamma(row) - digamma(row.sum()))
        for row in rows
    )
    by_torch = sum(
        float(kl_divergence(Dirichlet(torch.tensor(row)), Dirichlet(torch.ones(len(row)).double())))
        for row in rows
    )
    got = float(drnas.divergence(objective.supernet, updater.alpha))
    assert got == pytest.approx(by_formula, rel=1e-10)
    assert got == pytest.approx(by_torch, rel=1e-10)


def test_the_penalty_of_drnas_is_the_divergence():
    plain_objective, plain, _ = built("drnas")
    objective, updater, _ = built("drnas", alpha_penalty=0.5)
    alpha = updater.alpha.numpy()
    expected = np.zeros_like(alpha)
    for k in range(len(alpha)):
        sides = []
        for sign in (1, -1):
            moved = updater.alpha.clone()
            moved[k] += sign * 1e-5
            sides.append(float(drnas.divergence(objective.supernet, moved)))
        expected[k] = 0.5 * (sides[0] - sides[1]) / 2e-5
    got = updater.gradient(objective) - plain.gradient(plain_objective)
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-7)


# --- SNAS ----------------------------------------------------------------------------------------


def test_the_temperature_of_snas_falls_linearly():
    assert [snas.temperature(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.515, 0.03])


def test_samples_choose_as_the_softmax_does():
    """The largest entry of a concrete sample is a sample of the softmax (Maddison et al., 2017)."""
    objective, updater, _ = built("snas")
    net, alpha = objective.supernet, updater.alpha
    generator, n = torch.Generator().manual_seed(0), 4000
    draws = torch.stack([snas.sample_weights(net, alpha, 0.3, generator) for _ in range(n)])
    torch.testing.assert_close(draws.sum(dim=2), torch.ones(n, 4, dtype=torch.float64))
    for edge, row in enumerate(by_edge(alpha.numpy())):
        counts = torch.bincount(draws[:, edge].argmax(dim=1), minlength=3)[: len(row)].numpy()
        p = softmax(row)
        # 10 binomial counts, two-sided, at 1e-6 in all.
        assert (np.abs(counts - n * p) < 5.4 * np.sqrt(n * p * (1 - p))).all()


@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_weights_and_alpha_descend_the_same_loss(progress: float):
    objective, updater, config = built("snas")
    updater.begin_epoch(progress)
    tau = 1.0 - 0.97 * progress
    net = objective.supernet.train()
    twin = torch.Generator()
    twin.set_state(updater._generator.get_state())
    gumbel = -torch.empty(4, 3, dtype=torch.float64).exponential_(generator=twin).log().numpy()
    start = updater.alpha.numpy().copy()
    rows = [softmax((row + gumbel[e, : len(row)]) / tau) for e, row in enumerate(by_edge(start))]
    slope = slopes_of_weights(net, padded(rows))
    gradient = np.concatenate(
        [down_the_softmax(row, slope[e, : len(row)]) / tau for e, row in enumerate(rows)]
    )
    images, labels = OneBatch().batch
    reference = copy.deepcopy(net)
    loss = F.cross_entropy(reference.mix(images, torch.tensor(padded(rows))), labels)
    weight_step(loss, torch.optim.SGD(reference.parameters(), lr=0.05), 5.0)

    weights = updater.training_weights(net, images, labels, progress)
    torch.testing.assert_close(weights.detach(), torch.tensor(padded(rows)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    weight_step(F.cross_entropy(net.mix(images, weights), labels), optimizer, 5.0)
    row = updater.step(objective, progress)
    assert row["temperature"] == pytest.approx(tau)
    expected = torch.tensor(adam(start, [gradient], config))
    torch.testing.assert_close(updater.alpha, expected, rtol=1e-6, atol=1e-7)
    for got, wanted in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)


def test_snas_does_not_look_at_the_images_that_score_alpha(search_config, monkeypatch):
    def draw(self, n_val=None):
        raise AssertionError("a draw of L_val")

    monkeypatch.setattr(BilevelObjective, "draw", draw)
    result = run_search(search_config("snas", warmup_epochs=1))
    assert [row["updates"] for row in result.metrics] == [0, 2, 2]
    assert [row["temperature"] for row in result.metrics[1:]] == pytest.approx(
        [1 - 0.97 / 3, 1 - 2 * 0.97 / 3]
    )
    assert not torch.equal(result.alpha, SPACES["small_s3"].init_alpha(rng=0))


# --- Settings ------------------------------------------------------------------------------------


def test_what_the_comparators_are_defined_with():
    fair = SearchConfig(dataset="cifar10", algo="fair_darts")
    assert (fair.relaxation, fair.batch_size, fair.lr) == ("sigmoid", 64, 0.025)
    published = SearchConfig.for_dataset("cifar10", "fair_darts", preset="released")
    assert (published.batch_size, published.lr, published.lr_min) == (128, 0.005, 0.001)
    assert SearchConfig(algo="darts_minus").auxiliary_skip == 1
    drawn = SearchConfig(algo="drnas")
    assert (drawn.relaxation, drawn.alpha_penalty, drawn.alpha_weight_decay) == (
        "dirichlet",
        0,
        1e-3,
    )
    for algo in ("fair_darts", "darts_minus", "beta_darts", "drnas", "snas"):
        assert SearchConfig(algo=algo).warmup_epochs == 0
