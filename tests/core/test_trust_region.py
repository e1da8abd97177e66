"""Runs of the trust-region method whose outcome is known."""

import math

import numpy as np
import pytest

from zoopt_nas import SOLVERS, InvalidValueError, TrustRegion, minimize
from zoopt_nas.solvers.engines import trust_moves, trust_shape, trust_start
from zoopt_nas.solvers.engines.trust_state import TrustPhase
from zoopt_nas.solvers.engines.trust_step import Region, region_step


def quadratic(dim, condition, seed=0):
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    weights = np.geomspace(1, condition, dim)
    centre = rng.uniform(-1, 1, dim)
    return lambda x: float((weights * (rotation @ (x - centre)) ** 2).sum())


@pytest.mark.parametrize("dim", [1, 2, 5, 8])
def test_a_quadratic_is_solved_once_its_coefficients_are_known(dim):
    # The model is exact once it has as many independent points as coefficients. Some steps are too
    # close together to count, so twice as many are allowed.
    n = 2 * (dim + 1) * (dim + 2) // 2
    for seed in range(3):
        fun = quadratic(dim, 10, seed)
        result = minimize(fun, np.ones(dim), "trust_region", maxfev=n, rng=seed, target=1e-8)
        assert result.fun <= 1e-8


@pytest.mark.parametrize("dim", [2, 5])
def test_the_trust_region_takes_the_shape_of_the_level_sets(dim):
    result = minimize(quadratic(dim, 1e6), np.ones(dim), "trust_region", maxfev=100 * dim, rng=0)
    assert result.fun < 1e-8


@pytest.mark.parametrize("seed", range(3))
def test_an_optimum_on_bounds_is_found_exactly(seed):
    lower, upper = np.array([-1.0, 0.1, -5.0, -2.0]), np.array([0.3, 1.0, 5.0, 3.0])
    seen = []

    def fun(x):
        seen.append(x.copy())
        return float((x[0] - 1) ** 2 + 3 * x[1] ** 2 + (x[2] - 0.25) ** 2 + x[0] * x[3] + x[3] ** 2)

    bounds = list(zip(lower, upper, strict=True))
    x0 = np.random.default_rng(seed).uniform(lower, upper)
    result = minimize(fun, x0, "trust_region", bounds=bounds, maxfev=120, rng=seed)
    assert ((lower <= seen) & (seen <= upper)).all()
    np.testing.assert_array_equal(result.x[:2], [0.3, 0.1])
    np.testing.assert_allclose(result.x[2:], [0.25, -0.15], atol=1e-5)


def test_fixed_coordinates_stay():
    bounds = [(0.5, 0.5), (-1, 1), (2, 2)]
    result = minimize(
        lambda x: float((x**2).sum()), [0.5, 0.7, 2.0], "trust_region", bounds=bounds, maxfev=40
    )
    np.testing.assert_allclose(result.x, [0.5, 0.0, 2.0], atol=1e-6)
    bounds = [(0.5, 0.5)]
    result = minimize(lambda x: 1.0, [0.5], "trust_region", bounds=bounds, maxfev=5)
    assert (result.x, result.nfev) == ([0.5], 5)


def points_of(fun, n_batches, dim=3, seed=0):
    solver = TrustRegion()
    state = solver.init(np.full(dim, 0.7), rng=seed, is_scaled=True)
    asked = []
    for _ in range(n_batches):
        rows = solver.ask(state)
        asked.append(rows.copy())
        solver.tell(state, rows, [fun(x) for x in rows])
    return np.concatenate(asked)


def test_values_may_be_scaled_and_shifted():
    fun = quadratic(3, 100)
    plain = points_of(fun, 12)
    np.testing.assert_allclose(points_of(lambda x: 1024.0 * fun(x), 12), plain, atol=1e-6)
    np.testing.assert_allclose(points_of(lambda x: fun(x) + 64.0, 12), plain, atol=1e-6)


def test_failures_neither_break_the_model_nor_stop_the_run():
    rng, fun = np.random.default_rng(0), quadratic(4, 10)

    def failing(x):
        return math.nan if rng.random() < 0.1 else fun(x)

    result = minimize(failing, np.ones(4), "trust_region", maxfev=250, rng=0)
    assert result.fun < 1e-6
    # Outside of the half space it always fails, and its minimum is on the edge.
    result = minimize(
        lambda x: fun(x) if x[0] < 0.5 else math.inf, np.zeros(4), "trust_region", maxfev=600, rng=0
    )
    inside = minimize(
        fun, np.zeros(4), "trust_region", bounds=[(None, 0.5)] + [(None, None)] * 3, maxfev=200
    )
    assert result.fun < inside.fun + 0.1


def test_noise_is_averaged_and_the_run_does_not_restart():
    sigma, dim, n = 0.1, 3, 400
    rng = np.random.default_rng(0)
    solver = TrustRegion()
    state = solver.init(np.full(dim, 2.0), rng=0, is_scaled=True)
    n_told = 0
    while n_told < n:
        rows = solver.ask(state)
        solver.tell(state, rows, (rows**2).sum(1) + sigma * rng.standard_normal(len(rows)))
        n_told += len(rows)
    assert state.inner.n_restarts == 0
    assert state.inner.noise == pytest.approx(sigma, rel=0.8)
    # One value has the error sigma. The model has 30 points, so its minimum is much better.
    assert len(state.inner.model.values) == 3 * (dim + 1) * (dim + 2) // 2
    best = state.inner.model
    centre = best.points[best.centre]
    d = region_step(best.slope(centre), best.hessian, Region(1e9, best.axes, None, None))
    minimum = best.rows[best.centre] + best.axes @ d
    assert (minimum**2).sum() < sigma
    # The region did not shrink into the noise: values on its surface differ by more than that.
    assert trust_shape.change_within(best, state.inner.radius) > sigma


def test_noise_that_the_start_does_not_show_is_met_later():
    rng = np.random.default_rng(0)
    solver = TrustRegion()
    state = solver.init(np.full(3, 2.0), rng=0, is_scaled=True)
    for k in range(150):
        rows = solver.ask(state)
        noise = 0.01 * rng.standard_normal(len(rows)) * (k > 0)
        solver.tell(state, rows, (rows**2).sum(1) + noise)
    assert state.inner.noise > 0
    assert state.inner.n_restarts == 0


def test_it_restarts_after_convergence_and_leaves_a_local_minimum():
    def wells(x):
        return float(min(((x - 3) ** 2).sum(), 0.5 + ((x + 1) ** 2).sum()))

    result = minimize(wells, [-1.5, -1.2], "trust_region", maxfev=800, rng=0)
    assert result.fun < 1e-8


@pytest.mark.parametrize("n", [2, 6])
def test_a_batch_has_n_samples_different_points(n):
    solver, fun = TrustRegion(n_samples=n), quadratic(4, 10)
    state = solver.init(np.ones(4), rng=0)
    for _ in range(25):
        rows = solver.ask(state)
        if state.inner.phase == TrustPhase.MOVE:
            assert len(np.unique(rows, axis=0)) == len(rows) == n
        solver.tell(state, rows, [fun(x) for x in rows])
    assert state.value < 1e-8 or state.inner.n_restarts > 0


def test_workers_shorten_a_run():
    def batches(n):
        solver = TrustRegion(n_samples=n)
        state = solver.init(np.full(4, -1.0), rng=0)
        for k in range(500):
            rows = solver.ask(state)
            values = [
                float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()) for x in rows
            ]
            if min(values) < 1e-6:
                return k
            solver.tell(state, rows, values)
        return math.inf

    assert batches(8) < batches(1)


def test_many_coordinates_are_modelled_in_blocks(monkeypatch):
    monkeypatch.setattr(trust_start, "MAX_BLOCK", 4)
    solver = TrustRegion()
    state = solver.init(np.ones(10), rng=0)
    blocks = set()
    for _ in range(400):
        rows = solver.ask(state)
        block = set(state.inner.block.tolist())
        assert len(block) == 4
        blocks.add(tuple(sorted(block)))
        others = [i for i in range(10) if i not in block]
        assert (rows[:, others] == state.x[others]).all()
        solver.tell(state, rows, (rows**2).sum(1))
    assert len(blocks) > 5
    assert state.value < 1e-6


def test_a_singular_model_is_rebuilt():
    solver = TrustRegion()
    state = solver.init(np.ones(2), rng=0)
    for _ in range(3):
        rows = solver.ask(state)
        solver.tell(state, rows, (rows**2).sum(1) + rows[:, 0] ** 4)
    model = state.inner.model
    model.rows[:] = model.rows[model.centre]  # all points are equal
    state.inner.is_stale = True
    assert state.inner.phase == TrustPhase.MOVE
    trust_shape.refresh(state.inner)
    trust_moves.plan(state, None, 1)
    assert np.isfinite(state.inner.planned).all()


def moved_state(dim=3, n_batches=5):
    solver, fun = TrustRegion(), quadratic(dim, 10)
    state = solver.init(np.ones(dim), rng=0)
    for _ in range(n_batches):
        rows = solver.ask(state)
        solver.tell(state, rows, [fun(x) for x in rows])
    return state


@pytest.mark.parametrize("radius", [0.1, 30.0])
def test_another_radius_changes_the_unit_and_not_the_model(radius):
    inner = moved_state().inner
    model = inner.model
    inner.radius, inner.resolution = radius, radius / 2
    length, rows = radius * model.longest, model.rows.copy()
    fitted = model.fitted()
    trust_shape.refresh(inner)
    assert 0.7 < inner.radius < 1.5
    assert inner.resolution == inner.radius / 2
    assert inner.radius * model.longest == pytest.approx(length)
    np.testing.assert_array_equal(model.rows, rows)
    np.testing.assert_allclose(model.fitted(), fitted, rtol=1e-9)


def test_points_that_are_far_beside_a_shorter_radius_are_dropped():
    inner = moved_state().inner
    model = inner.model
    n = len(model.values)
    assert n > trust_shape.min_points(inner)
    inner.radius = inner.resolution = 1e-3  # the points are more than 1000 radii away
    trust_shape.refresh(inner)
    assert inner.radius == 1.0
    assert trust_shape.min_points(inner) <= len(model.values) < n


def test_errors_by_rounding_are_corrected_or_the_model_is_rebuilt():
    inner = moved_state().inner
    model = inner.model
    base, exact = model.base.copy(), model.gradient.copy()
    model.gradient = exact + 1e-3
    trust_shape.refresh(inner)
    np.testing.assert_allclose(model.gradient, exact, atol=1e-6)
    np.testing.assert_array_equal(model.base, base)  # with the same inverse
    model.gradient, model.inverse = exact + 1e-3, np.zeros_like(model.inverse)
    trust_shape.refresh(inner)
    np.testing.assert_allclose(model.fitted(), model.values, atol=1e-6 * np.ptp(model.values))
    assert model.inverse.any()


def test_an_astronomic_value_does_not_hide_the_others():
    """In the first model, cosh(300) = 1e130 would round the values of all other points to 0."""

    def fun(x):
        with np.errstate(over="ignore"):
            steep = np.cosh(300 * x[4]) - 1
        return float(np.arange(1, 5) @ (x[:4] - 0.3) ** 2 + steep)

    result = minimize(fun, [2.0, -1.0, 1.0, -2.0, 0.0], "trust_region", maxfev=300, rng=0)
    assert result.fun < 1e-8  # with that value: 5


def test_values_near_overflow_do_not_break_the_run():
    solver = TrustRegion()
    state = solver.init(np.ones(3), rng=0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = solver.ask(state)
        assert np.isfinite(rows).all()
        solver.tell(state, rows, 10 ** rng.uniform(150, 308, len(rows)))
    assert np.isfinite(state.x).all()


def test_options():
    assert TrustRegion().compares_batches
    assert SOLVERS["trust_region"] is TrustRegion
    assert TrustRegion(radius=2.0).stretched(0.5).radius == 1.0
    for options in ({"radius": 0.0}, {"radius": math.inf}, {"n_samples": 0}):
        with pytest.raises(InvalidValueError):
            TrustRegion(**options)
    state = TrustRegion(radius=0.25).init(np.zeros(3), rng=0)
    rows = TrustRegion(radius=0.25).ask(state)
    np.testing.assert_array_equal(np.abs(rows[2:]), 0.25 * np.eye(3))
