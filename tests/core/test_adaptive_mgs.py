"""adaptive_mgs: the weights, the guide, the adaptation, restarts and noise."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from zoopt_nas import AdaptiveMGS, minimize
from zoopt_nas.diagnostics import effective_sample_size
from zoopt_nas.solvers.engines.cma_rates import mean_norm, tempered_weights
from zoopt_nas.solvers.engines.quadratic_model import _shift, model_step
from zoopt_nas.testing import SolverConformance

ILL = 10.0 ** np.linspace(0, 4, 6)


class TestAdaptive(SolverConformance):
    @pytest.fixture(params=[AdaptiveMGS(), AdaptiveMGS(sigma=0.3, n_samples=2, ess_target=0.6)])
    def solver(self, request):
        return request.param


def ellipsoid(x):
    return (ILL * x * x).sum(-1)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.8])
def test_the_temperature_keeps_the_effective_sample_size(scale, share):
    values = scale * np.random.default_rng(3).lognormal(size=10)
    weights, temperature = tempered_weights(values.tolist(), share)
    assert effective_sample_size(np.array(weights)) == pytest.approx(10 * share, rel=0.03)
    # The definition, anew: softmax of -L / τ.
    expected = np.exp(-(values - values.min()) / temperature)
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-9)


def test_the_weights_of_ties_failures_and_extreme_values():
    inf = math.inf
    assert tempered_weights([inf, inf], 0.3) == ([0.0, 0.0], 0.0)
    assert tempered_weights([2.0, inf, 2.0, 2.0], 0.3)[0] == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert tempered_weights([1.0, 5.0, 1.0, 7.0], 0.4)[0] == [0.5, 0.0, 0.5, 0.0]
    for values in ([1e308, -1e308, 0.0], [0.0, 5e-324, 1e308], [1.0, 1.0 + 2**-52, 3.0, inf]):
        weights, _ = tempered_weights(values, 0.5)
        assert sum(weights) == pytest.approx(1.0)
        assert np.argmax(weights) == np.argmin(values)


def test_only_differences_and_no_scale_of_values_matter():
    ends = []
    for transform in (lambda v: v, lambda v: 1024 * v, lambda v: v / 1024):
        solver = AdaptiveMGS()
        state = solver.init(np.arange(1.0, 5.0), rng=0)
        for _ in range(20):
            candidates = solver.ask(state)
            solver.tell(state, candidates, transform((candidates**2).sum(1)))
        ends.append(state.x)
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-6)
    np.testing.assert_allclose(ends[2], ends[0], rtol=1e-6)


def test_the_model_finds_the_minimum_of_a_quadratic():
    rng = np.random.default_rng(0)
    centre = np.array([0.4, -0.3, 0.2])
    steps = rng.standard_normal((40, 3))
    values = ((steps - centre) ** 2 * [1.0, 2.0, 4.0]).sum(1)
    step = model_step(steps, values)
    np.testing.assert_allclose(step, centre, atol=0.02)


def test_the_model_step_is_as_long_as_the_ball_and_no_longer():
    rng = np.random.default_rng(1)
    steps = rng.standard_normal((12, 4))
    slope = np.array([1.0, 0, 0, 2.0])
    step = model_step(steps, steps @ slope)
    assert np.linalg.norm(step) == pytest.approx(2)  # sqrt(dim)
    assert step @ slope < -0.8 * 2 * np.linalg.norm(slope)  # downhill


def test_the_model_declines_what_it_cannot_fit():
    steps = np.random.default_rng(2).standard_normal((8, 3))
    assert model_step(steps[:2], np.arange(2.0)) is None
    assert model_step(steps, np.ones(8)) is None
    assert model_step(np.zeros((8, 3)), np.arange(8.0)) is None


def test_a_failed_row_does_not_bend_the_model():
    rng = np.random.default_rng(3)
    steps = rng.standard_normal((30, 3))
    values = ((steps - 0.3) ** 2).sum(1)
    expected = model_step(steps, values)
    values = np.append(values, [np.inf, np.inf])
    step = model_step(np.concatenate([steps, [[0.3, 0.3, 0.3], [0.1, 0.2, 0.0]]]), values)
    np.testing.assert_allclose(step, expected, atol=0.01)


@pytest.mark.parametrize("curvature", [[1.0, 2.0, 50.0], [-3.0, 0.5, 2.0], [-2.0, -1.0, -0.5]])
@pytest.mark.parametrize("radius", [1e-3, 0.3, 1e3])
def test_the_shift_is_that_of_the_secular_equation(curvature, radius):
    gradient = np.array([0.7, -1.0, 2.0])
    norm_at = lambda s: np.linalg.norm(gradient / (np.array(curvature) + s))  # noqa: E731
    shift, norm = _shift(curvature, gradient.tolist(), radius)
    assert norm == pytest.approx(norm_at(shift))
    assert np.all(np.array(curvature) + shift > 0)
    least = max(0.0, 1e-3 * np.abs(curvature).max() - curvature[0])
    if norm_at(least) <= radius:
        assert shift == pytest.approx(least)
        return
    root = brentq(lambda s: norm_at(s) - radius, least, least + 1e6)
    assert shift <= root * (1 + 1e-9)  # from the side of the longer steps
    assert norm <= 1.1 * radius


def test_a_model_without_slope_or_curvature_raises_nothing():
    assert _shift([1.0, 2.0], [0.0, 0.0], 1.0)[1] == 0.0
    assert not 0 < _shift([0.0, 0.0], [1e200, 1.0], 1.0)[1] < math.inf
    # Symmetric samples of x²: the gradient at 0 vanishes, but for rounding.
    step = model_step(np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([4.0, 1.0, 1.0, 4.0]))
    assert step is None or abs(step[0]) < 1e-9


def test_the_model_forgets_the_oldest_samples_first():
    solver = AdaptiveMGS(n_samples=5)
    state = solver.init(np.zeros(2), rng=0)  # 2 * 2 + 16 = 20 samples, four batches
    batches = []
    for k in range(7):
        candidates = solver.ask(state)
        batches.append(candidates.copy())
        values = (candidates**2).sum(1)
        values[2] = np.inf if k == 5 else values[2]
        solver.tell(state, candidates, values)
    kept = np.concatenate(batches[-4:])
    points, values = state.inner.points, state.inner.values
    assert {tuple(row) for row in points.tolist()} == {tuple(row) for row in kept.tolist()}
    assert np.isinf(values).sum() == 1
    finite = np.isfinite(values)
    np.testing.assert_array_equal(values[finite], (points[finite] ** 2).sum(1))


def test_the_first_row_is_the_start_and_the_last_one_the_guide():
    solver = AdaptiveMGS()
    x0 = np.array([1.0, 2.0, 3.0])
    state = solver.init(x0, rng=0)
    guide = np.array([0.5, -0.5, 0.0])
    candidates = solver.ask(state, guide=guide)
    np.testing.assert_array_equal(candidates[0], x0)
    np.testing.assert_array_equal(candidates[-1], x0 + guide)
    solver.tell(state, candidates, (candidates**2).sum(1))
    assert not np.any(np.all(solver.ask(state) == state.x, axis=1))  # only in the first batch


def test_half_of_the_guide_is_tried_too_from_eight_rows_on():
    guide = np.array([0.5, -0.5, 0.0])
    for n, is_tried in ((7, False), (8, True)):
        solver = AdaptiveMGS(n_samples=n)
        candidates = solver.ask(solver.init(np.ones(3), rng=0), guide=guide)
        np.testing.assert_array_equal(candidates[-1], 1 + guide)
        assert np.array_equal(candidates[-2], 1 + guide / 2) == is_tried


def test_a_good_guide_pulls_the_iterate_without_blowing_up_sigma():
    solver = AdaptiveMGS(sigma=0.01)
    state = solver.init(np.full(10, 5.0), rng=0)
    for _ in range(10):
        candidates = solver.ask(state, guide=-state.x / 2)
        solver.tell(state, candidates, (candidates**2).sum(1))
    # Noise of σ = 0.01 alone moves x by some 0.01 * sqrt(10) a step.
    assert np.linalg.norm(state.x) < 0.5 * np.linalg.norm(np.full(10, 5.0))
    assert state.inner.sigma < 1.0


def test_the_covariance_learns_the_scales_of_an_ellipsoid():
    solver = AdaptiveMGS()
    state = solver.init(np.ones(6), rng=0)
    for _ in range(120):
        candidates = solver.ask(state)
        solver.tell(state, candidates, ellipsoid(candidates))
    diagonal = np.diag(state.inner.covariance)
    # C tends to the inverse Hessian, up to a factor: from 1e4 to 1.
    assert diagonal[0] / diagonal[-1] > 100
    assert ellipsoid(state.x) < 1e-3


def test_x_moves_by_the_weighted_mean_of_the_displacements():
    for dim in (7, 80):  # a full covariance, and none
        solver = AdaptiveMGS(n_samples=8)
        x0 = np.linspace(-1.0, 1.0, dim)
        state = solver.init(x0, rng=1)
        candidates = solver.ask(state)
        values = (candidates**2).sum(1)
        weights, _ = tempered_weights(values.tolist(), 0.35)
        solver.tell(state, candidates, values)
        np.testing.assert_allclose(state.x, x0 + np.array(weights) @ (candidates - x0), rtol=1e-9)
        assert float(state.metrics["n_effective"]) == pytest.approx(8 * 0.35, rel=0.03)


@pytest.mark.parametrize(("fun", "dim", "maxfev", "most"), [
    (lambda x: (x**2).sum(-1), 10, 800, 1e-6),
    (ellipsoid, 6, 1500, 1e-8),
    (lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(), 5, 2500, 1e-6),
    (lambda x: (x**2).sum(-1), 200, 12000, 10.0),
])  # fmt: skip
def test_ordinary_problems(fun, dim, maxfev, most):
    result = minimize(fun, np.full(dim, -1.5), "adaptive_mgs", maxfev=maxfev, rng=0)
    assert result.fun < most


def test_a_converged_run_starts_again_and_finds_another_basin():
    def two_basins(x):
        return min(1 + (x - 2) @ (x - 2), (x + 1.5) @ (x + 1.5))

    result = minimize(two_basins, np.full(2, 2.0), AdaptiveMGS(sigma=0.5), maxfev=4000, rng=0)
    assert result.fun < 1e-6


def test_noise_does_not_stop_the_run_and_leaves_the_iterate_near():
    rng = np.random.default_rng(5)
    fun = lambda x: float(x @ x) + 0.1 * rng.standard_normal()  # noqa: E731
    result = minimize(fun, np.full(5, 3.0), "adaptive_mgs", maxfev=1500, rng=0)
    # 45 at the start; the standard deviation of a value is 0.1.
    assert float(result.x_iterate @ result.x_iterate) < 1.0


def test_with_n_samples_sets_the_batch():
    solver = AdaptiveMGS().with_n_samples(11)
    assert solver.ask(solver.init(np.zeros(3), rng=0)).shape == (11, 3)
    for dim, n in ((1, 4), (2, 6), (5, 8), (10, 10), (64, 16), (65, 10)):
        assert AdaptiveMGS().ask(AdaptiveMGS().init(np.zeros(dim), rng=0)).shape == (n, dim)


def test_a_schedule_leaves_what_adapts():
    assert AdaptiveMGS().scaled(0.5) == AdaptiveMGS()


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_the_mean_norm_is_that_of_a_normal_vector(dim):
    exact = math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    assert mean_norm(dim) == pytest.approx(exact, rel=0.01)


def test_bfloat16_runs():
    torch = pytest.importorskip("torch")
    for dim in (4, 80):
        state = AdaptiveMGS().init(torch.ones(dim, dtype=torch.bfloat16), rng=0)
        solver = AdaptiveMGS()
        for _ in range(5):
            candidates = solver.ask(state)
            solver.tell(state, candidates, (candidates * candidates).sum(1))
        assert state.x.dtype == torch.bfloat16
        assert bool(torch.isfinite(state.x).all())


def test_a_plateau_above_the_best_point_brings_the_samples_closer():
    state = AdaptiveMGS().init(np.zeros(3), rng=0)
    solver = AdaptiveMGS()
    rows = solver.ask(state)
    values = np.full(len(rows), 10.0)
    values[2] = 1.0
    best = rows[2].copy()
    solver.tell(state, rows, values)
    sigma = state.inner.sigma
    rows = solver.ask(state)
    solver.tell(state, rows, np.full(len(rows), 10.0))
    np.testing.assert_array_equal(state.x, best)
    assert state.inner.sigma == sigma / 2
