"""The parts of a descent, each against an independent formula."""

import numpy as np
import pytest

from zoopt_nas import QuasiNewton
from zoopt_nas.solvers.engines import descent, differences, restarts
from zoopt_nas.solvers.engines.descent_state import DescentPhase
from zoopt_nas.solvers.engines.differences import interpolated_gradient, orthogonal_to, parabola

rng = np.random.default_rng(3)


@pytest.mark.parametrize("n_rows", [2, 5, 9])
def test_interpolation_is_the_weighted_least_squares_solution(n_rows):
    rows = rng.standard_normal((n_rows, 5))
    differences = rng.standard_normal(n_rows)
    weights = 1 / np.linalg.norm(rows, axis=1)
    expected = np.linalg.lstsq(rows * weights[:, None], differences * weights, rcond=None)[0]
    np.testing.assert_allclose(interpolated_gradient(rows, differences), expected, rtol=1e-9)


def test_interpolation_leaves_out_zero_rows():
    rows = rng.standard_normal((5, 5))
    rows[2] = 0
    gradient = interpolated_gradient(rows, rows @ np.arange(5.0))
    kept = rows[[0, 1, 3, 4]]
    expected = np.linalg.lstsq(kept, kept @ np.arange(5.0), rcond=None)[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_bfgs_update_is_the_bfgs_formula():
    basis = rng.standard_normal((4, 4))
    hessian = np.diag([1.0, 2.0, 5.0, 9.0]) + 0.3
    step = rng.standard_normal(4)
    s = basis @ step
    y = hessian @ s
    updated, u = descent.bfgs_update(basis, step, basis.T @ y)
    rho = 1 / (s @ y)
    left = np.eye(4) - rho * np.outer(s, y)
    expected = left @ basis @ basis.T @ left.T + rho * np.outer(s, s)
    np.testing.assert_allclose(updated @ updated.T, expected, rtol=1e-9, atol=1e-9)
    # The slopes along the new columns are those that u says.
    gradient = rng.standard_normal(4)
    slopes = basis.T @ gradient
    np.testing.assert_allclose(updated.T @ gradient, slopes - u * (step @ slopes), atol=1e-9)


@pytest.mark.parametrize("change", [[-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
def test_no_update_without_positive_curvature(change):
    assert descent.bfgs_update(np.eye(2), np.array([1.0, 0.0]), np.array(change)) is None


def test_parabola_has_the_slope_and_the_curvature():
    a, b = np.array([0.5, 0.1, 2.0]), np.array([-0.25, -0.1, 1.0])
    slope, curvature = parabola(a, b, 3 * a + 2 * a**2, 3 * b + 2 * b**2)
    np.testing.assert_allclose(slope, 3.0, rtol=1e-12)
    np.testing.assert_allclose(curvature, 4.0, rtol=1e-9)


def test_parabola_of_one_point_is_a_line():
    slope, curvature = parabola(
        np.array([0.5, 0.5]),
        np.array([-0.5, -0.5]),
        np.array([1.0, np.inf]),
        np.array([np.inf] * 2),
    )
    np.testing.assert_array_equal(slope, [2.0, 0.0])
    np.testing.assert_array_equal(curvature, [0.0, 0.0])


def test_orthogonal_to_spans_the_rest():
    state = QuasiNewton().init(np.zeros(5), rng=0)
    known = rng.standard_normal((2, 5))
    rows = orthogonal_to(known, 3, state)
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rows @ known.T, 0, atol=1e-12)


def test_the_noise_is_estimated_from_repeats():
    noise, deviation = 0.0, 2.5
    seen = []
    for change in np.random.default_rng(0).normal(0, deviation * np.sqrt(2), 4000):
        noise = differences.averaged_noise(noise, change)
        seen.append(noise)
    # By simulation, the mean of 4000 is 1.02 of the deviation, with a standard deviation of 0.014.
    assert np.mean(seen) == pytest.approx(1.02 * deviation, rel=0.07)


def test_the_noise_follows_values_that_fall():
    """Noise that is proportional to them falls with them, here by 0.6 in each step."""
    rng = np.random.default_rng(0)
    noise, ratios = 1.0, []
    for k in range(200):
        noise = differences.averaged_noise(noise, 0.6**k * rng.normal(0, np.sqrt(2)))
        ratios.append(np.log(noise / 0.6**k))
    # By simulation, the mean is 0.94, with a standard deviation of 0.07. A mean square with the
    # same weight would fall by sqrt(0.6) only, and end far above.
    assert np.mean(ratios) == pytest.approx(0.94, abs=0.35)


def test_a_descent_to_a_known_minimum_ends_early():
    centre, widths = np.array([0.3, -0.2, 0.5, 0.1]), np.array([1.0, 2.0, 4.0, 8.0])

    def bowl(x):
        return float(3 + np.sqrt(1 + (widths * (x - centre)) ** 2).sum())

    solver = QuasiNewton()
    state = solver.init(np.full(4, 2.0), rng=0)
    gaps, costs, cost = [], [], 0
    while len(gaps) < 12:
        rows = solver.ask(state)
        solver.tell(state, rows, np.array([bowl(row) for row in rows]))
        cost += len(rows)
        if state.inner.n_restarts > len(gaps):
            gaps.append(state.value - state.inner.best_value)
            costs.append(cost)
            cost = 0
    # Convergence to rounding ends within 1e-13; the others end where the model knows the way.
    assert gaps[0] == 0
    assert sum(gap > 1e-10 for gap in gaps[1:]) >= 8
    assert np.median(costs[1:]) < costs[0]


def test_restarts_spread_less_and_more_than_the_first_scales():
    spreads = [restarts.spread(n) for n in range(1, 16)]
    assert spreads[::2] == [1, 0.5, 2, 0.25, 4, 0.125, 8, 1]
    assert spreads[1::2] == spreads[:-1:2]


def state_after_an_end(fun, x0, bounds=None):
    """Return a state of quasi_newton whose next batch holds origins, and the solver."""
    solver = QuasiNewton()
    state = solver.init(np.asarray(x0, dtype=float), bounds=bounds, rng=0)
    while state.inner is None or state.inner.phase != DescentPhase.ORIGINS:
        rows = solver.ask(state)
        solver.tell(state, rows, np.array([fun(row) for row in rows]))
    return solver, state


def test_a_restart_begins_at_the_best_of_as_many_points_as_dimensions():
    def bowl(x):
        return float((x**2).sum())

    solver, state = state_after_an_end(bowl, np.full(6, 2.0))
    rows = solver.ask(state)
    assert rows.shape == (6, 6)
    values = np.array([np.nan, 5.0, 4.0, 3.0, -np.inf, 7.0])
    solver.tell(state, rows, values)
    assert state.inner.phase == DescentPhase.START
    np.testing.assert_array_equal(solver.ask(state)[0], rows[3])


def test_a_restart_whose_points_all_fail_goes_on():
    solver, state = state_after_an_end(lambda x: float((x**2).sum()), np.full(4, 2.0))
    rows = solver.ask(state)
    solver.tell(state, rows, np.full(4, np.nan))
    np.testing.assert_array_equal(solver.ask(state)[0], rows[0])


def test_origins_are_inside_the_bounds_and_not_in_the_corners():
    width = np.array([0.5, 1.0, np.inf])
    lower = np.array([0.0, -1.0, 2.0])
    _, state = state_after_an_end(
        lambda x: float(((x - lower) ** 2).sum()),
        [0.3, -0.5, 4.0],
        bounds=(lower, lower + width),
    )
    rows = []
    for _ in range(40):
        state.inner.n_restarts += 1
        rows.append(restarts.origins(state))
    rows = np.concatenate(rows)
    assert np.all((rows >= lower) & (rows <= lower + width))
    on_bounds = (rows == lower) | (rows == lower + width)
    assert not on_bounds[:, :2].any()
    assert on_bounds[:, 2].any()  # a coordinate without an upper bound is clipped


def test_spreads_that_led_back_are_left_out_for_the_rest_of_the_cycle():
    solver = QuasiNewton()
    state = solver.init(np.zeros(4), rng=0)
    solver.ask(state)
    inner, drawn = state.inner, []
    state.value = 0.0
    restarts.remember_end(state, np.zeros(4))
    for _ in range(12):
        inner.n_restarts += 2 if inner.n_restarts else 1
        restarts.origins(state)
        drawn.append(inner.spread)
        # The mean distance of its origins is 2 spreads; those up to 2 lead back.
        restarts.remember_end(state, np.full(4, 0.49 if drawn[-1] <= 2 else 40.0))
    assert drawn == [1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8]
    # A better end elsewhere: nothing is known about the spreads around it.
    inner.returned, state.value = 4.0, -1.0
    restarts.remember_end(state, np.full(4, 9.0))
    assert inner.returned == 0
    assert inner.best_value == -1


def test_an_end_around_the_start_says_nothing_about_the_spreads():
    solver = QuasiNewton()
    state = solver.init(np.zeros(4), rng=0)
    solver.ask(state)
    state.value = 0.0
    restarts.remember_end(state, np.zeros(4))
    state.inner.n_restarts = 2
    restarts.origins(state)
    restarts.remember_end(state, np.zeros(4))
    assert state.inner.returned == 0


def test_after_a_first_step_far_above_the_origin_the_next_look_is_closer():
    """Inside 1e-3 the slope is 1; outside is a bowl higher by 50, whose slope is 20."""

    def fun(x):
        is_inside = np.linalg.norm(x) <= 1e-3
        return 1 - x[0] if is_inside else 51 - 20 * x[0] + x @ x

    solver = QuasiNewton()
    state = solver.init(np.zeros(2), rng=0, is_scaled=True)
    batches = []
    while len(batches) < 6:
        batches.append(solver.ask(state))
        solver.tell(state, batches[-1], np.array([fun(x) for x in batches[-1]]))
    assert [len(rows) for rows in batches] == [6, 1, 1, 1, 1, 6]
    # The parabola along x0 has the values 32 and 72 at ±1, and so its minimum at 20 / 102. Three
    # tenfold shorter steps later the value is similar, but does not fall as expected.
    trials = np.concatenate(batches[1:5])
    np.testing.assert_allclose(trials[:, 0], 20 / 102 * 10.0 ** -np.arange(4), rtol=1e-9)
    assert np.all(trials[:, 1] == 0)
    # The next probes are as far away as the last step, with the same distance along both axes.
    distances = np.abs(batches[5]).max(axis=0)
    np.testing.assert_allclose(distances, trials[3, 0] / np.sqrt(2), rtol=1e-9)
