"""The test for ruggedness: values along a line, and what `auto` does with the verdict."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoopt_nas import Auto, minimize
from zoopt_nas.problems import rastrigin, rosenbrock, sphere
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.engines import ruggedness
from zoopt_nas.solvers.engines.ruggedness import MIN_TURNS, N_PEAKS, N_SIDE, n_turns, without_peaks


def verdict(fun, seed, dim=4, centre=None, scales=1.0):
    """What the test says of a function of rows, and how many values it took."""
    centre = np.zeros(dim) if centre is None else centre
    state = SolverState(centre, np.random.default_rng(seed))
    line = ruggedness.begin(state, centre, scales * np.ones(dim))
    n, answer = 0, None
    while answer is None:
        rows = ruggedness.side(line)
        n += len(rows)
        answer = ruggedness.tell(line, np.asarray(fun(rows), dtype=float).tolist())
    return answer, n


@pytest.mark.parametrize(
    ("values", "n"),
    [
        ([], 0),
        ([1.0], 0),
        ([1.0, 2.0, 3.0], 0),
        ([3.0, 1.0, 2.0], 1),
        ([1.0, 3.0, 2.0, 4.0], 2),
        ([2.0, 2.0, 1.0, 1.0, 3.0, 3.0], 1),  # equal neighbours are no turn
        ([1.0, math.inf, 2.0, math.nan, 3.0], 0),  # nor are failures
        ([math.inf] * 4, 0),
    ],
)
def test_turns_of_a_sequence(values, n):
    assert n_turns(values) == n


def test_the_points_lie_on_a_diagonal_with_one_in_each_stretch():
    state = SolverState(np.zeros(3), np.random.default_rng(0))
    centre, scales = np.array([1.0, -2.0, 50.0]), np.array([1.0, 1e-3, 8.0])
    line = ruggedness.begin(state, centre, scales)
    places = (line.points - centre) / scales
    np.testing.assert_allclose(np.abs(places), np.abs(places[:, :1]) * np.ones(3), rtol=1e-9)
    along = places[:, 0] * np.sign(places[-1, 0])
    assert np.floor(N_SIDE * along).tolist() == list(range(-N_SIDE, N_SIDE))
    first = ruggedness.side(line)
    np.testing.assert_array_equal(first, line.points[N_SIDE:])
    assert ruggedness.tell(line, [1.0, 3.0, 2.0, 4.0, 3.0, 5.0]) is None
    np.testing.assert_array_equal(ruggedness.side(line), line.points[:N_SIDE])


def test_the_points_keep_the_bounds():
    state = SolverState(np.full(2, 0.9), np.random.default_rng(0))
    state.lower, state.upper = np.zeros(2), np.ones(2)
    points = ruggedness.begin(state, state.x, np.ones(2)).points
    assert points.min() >= 0
    assert points.max() <= 1


@settings(deadline=None)
@given(
    a=hnp.arrays(float, (5, 4), elements=st.floats(-100, 100)),
    b=hnp.arrays(float, 4, elements=st.floats(-100, 100)),
    seed=st.integers(0, 2**32 - 1),
)
def test_convex_objectives_are_smooth(a, b, seed):
    # Values apart by rounding only could turn anywhere, so they are rounded to 1e-6 of the largest.
    def fun(rows):
        values = (np.abs(rows @ a.T - 3) ** 1.5).sum(axis=1) + rows @ b
        unit = 1e-6 * np.abs(values).max()
        return values if unit == 0 else np.round(values / unit)

    answer, _ = verdict(fun, seed)
    assert answer is False


@pytest.mark.parametrize("fun", [rosenbrock(4), sphere(4)], ids=["rosenbrock", "sphere"])
@pytest.mark.parametrize("seed", range(10))
def test_smooth_objectives_of_few_minima_are_smooth(fun, seed):
    centre = np.random.default_rng(seed).uniform(-3, 3, 4)
    assert verdict(fun, seed, centre=centre)[0] is False


def test_independent_values_are_rugged():
    noise = np.random.default_rng(0)
    n = 400
    answers = [verdict(lambda rows: noise.standard_normal(len(rows)), k)[0] for k in range(n)]
    # Missed are 0.3 % by the first side and 6.2 % by both: 4.5 deviations above.
    assert n - sum(answers) <= 0.065 * n + 4.5 * math.sqrt(0.065 * n)


def test_the_probabilities_in_the_comments():
    draws = np.random.default_rng(1).random((20000, 2 * N_SIDE))
    turns = np.array([n_turns(without_peaks(row)) for row in draws.tolist()])
    still = np.array([n_turns(row) == 0 for row in draws[:, N_SIDE:].tolist()])
    # 2 of the 6! orders never turn.
    assert still.mean() == pytest.approx(
        2 / math.factorial(N_SIDE), abs=4 * math.sqrt(0.0028 / 2e4)
    )
    assert (turns < MIN_TURNS).mean() == pytest.approx(0.0618, abs=0.008)


def test_peaks_are_left_out():
    assert N_PEAKS == 2
    assert without_peaks([5.0, 1.0, 9.0, math.inf, 2.0, 7.0, 3.0]) == [5.0, 1.0, 2.0, 3.0]
    assert without_peaks([3.0, 3.0, 3.0]) == [3.0]
    assert without_peaks([2.0, math.nan]) == []


@pytest.mark.parametrize("places", [(2, 9), (4, 5), (7, 8), (6, 11)])
def test_an_objective_with_two_poles_is_smooth(places):
    # Two of the points hit a pole, and the others lie on a parabola.
    values = (np.arange(2 * N_SIDE) - 5.2) ** 2
    values[list(places)] = [1e6, 1e9]
    told = iter([values[N_SIDE:], values[:N_SIDE]])
    assert verdict(lambda rows: next(told), 0)[0] is False


def test_failures_are_no_ruggedness():
    # Every second point fails.
    answer, _ = verdict(lambda rows: [k if k % 2 else math.inf for k in range(len(rows))], 0)
    assert answer is False


def reason(result):
    return re.search(r"\(\d+ dimensions(?:, ([a-z ]+))?\)", result.message)[1]


@pytest.mark.parametrize("dim", [3, 6, 12])
def test_auto_sees_that_an_objective_is_rugged(dim):
    result = minimize(rastrigin(dim), np.full(dim, 1.7), maxfev=60 * dim, rng=0)
    assert "auto chose quasi_newton and adaptive_mgs (" in result.message
    assert reason(result) == "rugged"


@pytest.mark.parametrize("dim", [3, 6, 12])
def test_auto_sees_that_an_objective_is_smooth(dim):
    result = minimize(rosenbrock(dim), rosenbrock(dim).x0, maxfev=60 * dim, rng=0)
    assert reason(result) is None


def run_until(state, solver, fun, is_there, limit=200):
    """Drive a solver; return the rows of each batch until a condition on the state holds."""
    batches = []
    while not is_there(state):
        assert len(batches) < limit
        batches.append(solver.ask(state))
        solver.tell(state, batches[-1], fun(batches[-1]))
    return batches


def test_the_test_follows_the_first_rejected_step_and_counts_for_the_first_solver():
    solver, fun = Auto(), rastrigin(5)
    state = solver.init(np.full(5, 1.7), rng=0)
    run_until(state, solver, fun, lambda s: s.inner and s.inner.arms[0].inner.n_rejected > 0)
    before = state.inner.arms[0].n_spent
    rows = solver.ask(state)
    assert state.inner.has_tested
    assert rows.shape == (N_SIDE, 5)
    x = state.x.copy()
    solver.tell(state, rows, np.array([1.0, 3.0, 2.0, 4.0, 3.0, 5.0]) + 1e6)
    np.testing.assert_array_equal(state.x, x)
    rows = solver.ask(state)
    solver.tell(state, rows, np.array([1.0, 3.0, 2.0, 4.0, 3.0, 5.0]) + 1e6)
    assert state.inner.arms[0].n_spent == before + 2 * N_SIDE
    assert state.inner.is_race
    # The best point of all is where the other solver starts.
    np.testing.assert_array_equal(state.x, state.inner.best)


def test_a_smooth_objective_goes_on_as_without_the_test():
    fun = rosenbrock(5)
    solver = Auto()
    state = solver.init(fun.x0, rng=0)
    batches = run_until(state, solver, fun, lambda s: s.inner and s.inner.has_tested)
    x, value = state.x.copy(), state.inner.best_value
    pending = state.inner.arms[0].inner.length
    run_until(state, solver, fun, lambda s: s.inner.line is None)
    assert len(batches) > 2
    assert state.inner.arms[0].inner.length == pending
    np.testing.assert_array_equal(state.x, x)
    assert not state.inner.is_race
    assert state.inner.best_value <= value


def test_torch_tensors_take_the_test_as_well():
    torch = pytest.importorskip("torch")
    fun = rastrigin(4)

    def of_tensor(x):
        return fun(x.numpy())

    result = minimize(of_tensor, torch.full((4,), 1.7, dtype=torch.float64), maxfev=300, rng=0)
    assert reason(result) == "rugged"


def test_a_rugged_race_gives_the_descent_few_turns():
    solver = Auto()
    state = solver.init(np.full(4, 2.5), rng=0)
    n_told = 0
    while n_told < 6000:
        rows = solver.ask(state)
        values = np.sin(1e3 * rows.sum(axis=1))
        if state.inner.turn == 1:  # it finds a better point at each of its turns
            values = values - 3.0 - 1e-3 * state.n_steps
        solver.tell(state, rows, values)
        n_told += len(rows)
    spent = [arm.n_spent for arm in state.inner.arms]
    # 1/5 against a lead of 3; a turn of the first has 3 (dim + 2) evaluations and a batch.
    assert spent[0] / sum(spent) == pytest.approx(1 / 16, abs=(3 * 6 + 20) / 6000)
