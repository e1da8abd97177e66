"""The first look of a descent, and the search for two values that differ, batch by batch."""

import numpy as np
import pytest

from zoopt_nas import AdaptiveGLD, QuasiNewton, load_state, minimize, save_state
from zoopt_nas.solvers.widening import N_WIDENED

SOLVER = QuasiNewton()


def told(state, fun):
    """Asks once, tells the values, and returns the batch."""
    rows = SOLVER.ask(state).copy()
    SOLVER.tell(state, rows, np.array([fun(row) for row in rows]))
    return rows


def test_the_widths_of_a_separable_quadratic_are_exact():
    weights = np.array([0.5, 8.0, 1e4])
    state = SOLVER.init(np.array([1.0, -2.0, 3.0]), rng=0, is_scaled=True)
    told(state, lambda x: float(weights @ x**2))
    np.testing.assert_allclose(state.inner.basis, np.diag(1 / np.sqrt(2 * weights)), rtol=1e-6)


def test_a_coordinate_that_tells_nothing_is_looked_at_farther_away():
    state = SOLVER.init(np.zeros(2), rng=0, is_scaled=True)
    fun = lambda x: float((x[0] + 9) ** 2 + max(abs(x[1]) - 5, 0) ** 2)  # noqa: E731
    first = told(state, fun)
    assert first.shape == (6, 2)  # x0, two pairs, x0 again
    # One of the points was better: the next look is from there.
    second = told(state, fun)
    np.testing.assert_array_equal(second[0], first[np.argmin([fun(x) for x in first])])


def test_the_scale_of_a_flat_coordinate_grows_and_of_a_blind_one_shrinks():
    def fun(x):
        if abs(x[2]) > 0.5:
            return np.nan
        return float(x[0] ** 2 + max(abs(x[1]) - 5, 0) ** 2 + x[2] ** 2)

    state = SOLVER.init(np.zeros(3), rng=0, is_scaled=True)
    told(state, fun)
    again = told(state, fun)
    assert again.shape == (4, 3)  # the pairs of the two that told nothing, and no other
    np.testing.assert_array_equal(np.abs(again).max(axis=0), [0.0, 8.0, 1 / 8])


def test_a_coordinate_with_astronomic_values_is_looked_at_closer():
    def fun(x):
        return float(x[0] ** 2 + np.cosh(40 * x[1]))  # 1 at the start, 1e17 and 74 at 1 and 1/8

    state = SOLVER.init(np.zeros(2), rng=0, is_scaled=True)
    told(state, fun)
    again = told(state, fun)
    np.testing.assert_array_equal(np.abs(again), [[0.0, 1 / 8], [0.0, 1 / 8]])


def test_an_astronomic_value_does_not_hide_the_other_coordinates():
    """Without the look that is closer, the run is at 8 after 150 evaluations."""

    def fun(x):
        with np.errstate(over="ignore"):
            steep = np.cosh(60 * x[4]) - 1
        return float(np.arange(1, 5) @ (x[:4] - 0.3) ** 2 + steep)

    result = minimize(fun, [2.0, -1.0, 1.0, -2.0, 0.0], "quasi_newton", maxfev=150, rng=0)
    assert result.fun < 1e-8


def test_repeated_values_that_differ_by_rounding_are_no_noise():
    for difference, is_noisy in ((1e-12, False), (1e-3, True)):
        state = SOLVER.init(np.ones(3), rng=0, is_scaled=True)
        rows = SOLVER.ask(state)
        values = (rows**2).sum(1)
        values[-1] += difference
        SOLVER.tell(state, rows, values)
        assert (state.inner.noise > 0) == is_noisy
        assert state.inner.jitter == pytest.approx(0 if is_noisy else difference, rel=1e-3)


@pytest.mark.parametrize("solver", [QuasiNewton(), AdaptiveGLD()])
@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_without_two_values_points_go_farther_until_there_are(solver, value, tmp_path):
    """And a run that is saved on the way goes on bit for bit."""
    state = solver.init(np.array([3.0, -4.0]), rng=0, is_scaled=True)
    while state.n_widenings == 0:
        rows = solver.ask(state)
        solver.tell(state, rows, np.full(len(rows), value))
    reach = []
    for _ in range(12):
        rows = solver.ask(state)
        assert rows.shape == (N_WIDENED, 2)
        reach.append(np.abs(rows - state.x).max())
        solver.tell(state, rows, np.full(len(rows), value))
    assert max(reach[6:]) > 8 * max(reach[:6])
    np.testing.assert_array_equal(state.x, [3.0, -4.0])
    save_state(tmp_path / "state.npz", solver, state)
    loaded = load_state(tmp_path / "state.npz")[1]
    for run in (state, loaded):
        rows = solver.ask(run)
        values = np.full(len(rows), value)
        values[5] = 2.0
        best = rows[5].copy()
        solver.tell(run, rows, values)
        np.testing.assert_array_equal(run.x, best)
        assert run.has_contrast
    np.testing.assert_array_equal(solver.ask(state), solver.ask(loaded))


def test_where_all_others_are_higher_the_start_is_kept():
    state = SOLVER.init(np.array([3.0, -4.0]), rng=0, is_scaled=True)
    rows = SOLVER.ask(state)
    SOLVER.tell(state, rows, np.full(len(rows), 7.0))
    rows = SOLVER.ask(state)
    SOLVER.tell(state, rows, np.linspace(7.0, 9.0, len(rows)))
    assert state.has_contrast
    np.testing.assert_array_equal(state.x, [3.0, -4.0])


def test_an_origin_that_a_box_has_moved_is_where_the_look_is_from():
    """As where a caller repairs points without having told of bounds."""
    state = SOLVER.init(np.array([1.5, 0.5]), rng=0, is_scaled=True)
    rows = np.clip(SOLVER.ask(state), -3.0, 1.0)
    values = ((rows - [-0.5, 0.25]) ** 2).sum(1)
    SOLVER.tell(state, rows, values, repaired=True)
    np.testing.assert_array_equal(state.x, [1.0, 0.5])
    # From (1, 0.5): one point at 0.5 along the first, (1 - 2.25) / -0.5, a pair along the second.
    np.testing.assert_allclose(state.inner.look.gradient, [2.5, 0.5])
