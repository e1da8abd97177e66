"""Auto: which solvers run, for which task, and that they run as they would alone."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest

from zoopt_nas import CMA, Auto, InvalidValueError, QuasiNewton, load_state, minimize, save_state
from zoopt_nas.problems import rastrigin, rosenbrock, sphere
from zoopt_nas.solvers.base import Task


def shares(message):
    """The evaluations of each solver, as the message has them."""
    found = re.search(r"auto chose ([\w ]+) \(.*\): ([\d and]+) evaluations", message)
    return dict(zip(found[1].split(" and "), map(int, found[2].split(" and ")), strict=True))


def test_auto_is_the_default_and_says_what_it_chose():
    result = minimize(rastrigin(3), [2.5, -3.5, 1.5], maxfev=900, rng=0)
    assert "auto chose quasi_newton and adaptive_mgs (3 dimensions, rugged): " in result.message
    assert list(shares(result.message)) == ["quasi_newton", "adaptive_mgs"]
    assert sum(shares(result.message).values()) + 1 == result.nfev  # and one for the iterate


def test_until_it_converges_the_first_solver_runs_as_it_would_alone():
    fun = rosenbrock(6)
    solver, alone = Auto(), QuasiNewton()
    state, other = solver.init(fun.x0, rng=0), alone.init(fun.x0, rng=0)
    n_lines = 0
    for _ in range(60):
        rows = solver.ask(state)
        if state.inner.line is not None:  # a test for ruggedness comes between, and draws numbers
            n_lines += 1
            other.rng.bit_generator.state = state.rng.bit_generator.state
        else:
            np.testing.assert_array_equal(rows, alone.ask(other))
            alone.tell(other, rows, fun(rows))
        solver.tell(state, rows, fun(rows))
    assert 1 <= n_lines <= 2
    assert not state.inner.is_race


def test_the_second_begins_at_the_best_point_of_the_first():
    fun = rosenbrock(3)
    state = Auto().init(fun.x0, rng=0)
    solver = Auto()
    best = (math.inf, None)
    while state.inner is None or state.inner.turn == 0:
        rows = solver.ask(state)
        values = fun(rows)
        k = int(np.argmin(values))
        best = min(best, (float(values[k]), rows[k].tolist()))
        solver.tell(state, rows, values)
    np.testing.assert_array_equal(state.x, best[1])
    rows = solver.ask(state)
    # sigma is 1: the mean of the population is near its centre.
    assert np.abs(rows.mean(axis=0) - best[1]).max() < 5 / math.sqrt(len(rows))


def test_the_two_share_the_evaluations_of_a_long_run():
    result = minimize(rosenbrock(4), np.full(4, -2.0), maxfev=6000, rng=1)
    counts = shares(result.message)
    # Each gets from a quarter to three quarters of the evaluations, except for the last turn of
    # 15 (dim + 2) evaluations and its last batch.
    slack = (15 * 6 + 50) / 6000
    assert 0.25 - slack < counts["cma"] / 6000 < 0.75 + slack


@pytest.mark.parametrize("leader", [0, 1])
def test_the_leader_gets_three_quarters(leader):
    solver = Auto()
    state = solver.init(np.full(4, 2.5), rng=0)
    spent = None
    for _ in range(2000):
        rows = solver.ask(state)
        # When the descent has converged, one of the two finds better values at each of its turns.
        values = (rows**2).sum(axis=1)
        if state.inner.is_race and state.inner.turn == leader:
            values = values - 3.0 - 1e-3 * state.n_steps
        solver.tell(state, rows, values)
        if spent is None and state.inner.is_race and state.inner.leader == leader:
            spent = [arm.n_spent for arm in state.inner.arms]
    told = [arm.n_spent - n for arm, n in zip(state.inner.arms, spent, strict=True)]
    share = told[leader] / sum(told)
    # Until the shares of the past are made up for, the leader gets more.
    assert 0.7 < share < 1.0
    n = [arm.n_spent for arm in state.inner.arms]
    assert n[leader] / sum(n) == pytest.approx(0.75, abs=(15 * 6 + 50) / sum(n))


def test_rules():
    def plan(dim, **task):
        result = minimize(sphere(dim), np.ones(dim), rng=0, **task)
        reason = re.search(r"\(\d+ dimensions(?:, ([a-z ]+))?\)", result.message)[1]
        return reason, list(shares(result.message))

    assert plan(5, maxfev=12) == ("small budget", ["adaptive_gld"])
    assert plan(5, maxfev=13) == (None, ["quasi_newton"])
    assert plan(29, maxfev=72) == ("small budget", ["adaptive_gld"])
    assert plan(30, maxfev=74) == ("small budget", ["quasi_newton"])
    assert plan(100, maxfev=250) == (None, ["quasi_newton"])
    assert plan(101, maxfev=152) == (None, ["quasi_newton"])
    assert plan(101, maxfev=151) == ("small budget", ["quasi_newton"])
    assert plan(5, maxiter=2) == (None, ["quasi_newton"])


def test_noise_is_told_or_found():
    noise = np.random.default_rng(0)

    def noisy(x):
        return float((x**2).sum() + 0.1 * noise.standard_normal())

    told = minimize(noisy, np.ones(4), maxfev=500, rng=0, noisy=True)
    assert "auto chose adaptive_mgs (4 dimensions, noisy): " in told.message
    found = minimize(noisy, np.ones(4), maxfev=500, rng=0)
    n_before = int(re.search(r"after (\d+) to detect the noise", found.message)[1])
    assert n_before == 2 * 4 + 2  # the first batch of quasi_newton
    denied = minimize(noisy, np.ones(4), Auto(noisy=False), maxfev=500, rng=0)
    assert "noisy" not in denied.message
    for result in (told, found):
        # The noise is a hundredth of what there is to gain.
        assert float((result.x_iterate**2).sum()) < 0.2


@pytest.mark.parametrize("is_told", [False, True])
def test_little_noise_leaves_the_descent_its_turns(is_told):
    noise = np.random.default_rng(0)

    def noisy(x):
        return float((x**2).sum() + 1e-3 * noise.standard_normal())

    result = minimize(noisy, np.full(4, 3.0), maxfev=600, rng=0, noisy=is_told)
    assert "(4 dimensions, slightly noisy)" in result.message
    assert list(shares(result.message)) == ["quasi_newton", "adaptive_mgs"]
    assert float((result.x**2).sum()) < 4 * 4 * 1e-3


def test_noise_that_is_told_of_decides_where_gradients_are_dear():
    for dim, maxfev in ((5, 12), (101, 400)):
        result = minimize(sphere(dim), np.ones(dim), maxfev=maxfev, rng=0, noisy=True)
        assert f"auto chose adaptive_mgs ({dim} dimensions, noisy): " in result.message


def test_an_objective_without_a_minimum_is_no_error():
    result = minimize(lambda x: x[0], np.ones(10), maxfev=3000, rng=0)
    assert result.nfev == 3000
    assert result.fun < -1e30


def test_fields_win_over_the_task():
    assert Auto().prepared(Task(dim=3, maxfev=7, noisy=True)) == Auto(maxfev=7, noisy=True)
    assert Auto(maxfev=5, noisy=False).prepared(Task(dim=3, maxfev=7, noisy=True)) == Auto(
        maxfev=5, noisy=False
    )
    assert Auto().prepared(Task(dim=3)) == Auto()


def test_a_saved_race_continues_bitwise(tmp_path):
    fun = rastrigin(3)
    solver = Auto()
    state = solver.init(fun.x0 + 0.5, rng=0)
    arms, tests = [], []
    for _ in range(260):
        arms.append(0 if state.inner is None else state.inner.turn)
        tests.append(state.inner is not None and state.inner.line is not None)
        save_state(tmp_path / "state.npz", solver, state)
        loaded_solver, loaded = load_state(tmp_path / "state.npz")
        for run in (state, loaded):
            rows = loaded_solver.ask(run)
            loaded_solver.tell(run, rows, fun(rows))
        np.testing.assert_array_equal(loaded.x, state.x)
        state = loaded
    # It was also saved between the two sides of the test for ruggedness, and has gone from the
    # first solver to the second and back.
    assert any(tests)
    assert arms.count(0) > 10
    assert arms.count(1) > 10
    assert any(a == 1 and b == 0 for a, b in pairwise(arms))


def test_a_warm_start_moves_where_it_begins():
    known = ([[1.0, 2.0, 3.0]], [14.0])
    result = minimize(sphere(3), np.full(3, 50.0), warm_start=known, maxfev=20, rng=0)
    assert result.fun < 14.0


@pytest.mark.parametrize("bad", [{"maxfev": 0}, {"maxfev": 1.5}, {"noisy": 1}])
def test_bad_fields(bad):
    with pytest.raises(InvalidValueError, match="must be"):
        Auto(**bad)


def test_the_second_solver_is_what_the_docs_say():
    from zoopt_nas.solvers.auto import FEW, PLANS

    assert PLANS[FEW].solvers == (QuasiNewton(), CMA())


@pytest.mark.parametrize("dim", [1, 2])
def test_in_one_or_two_dimensions_a_quadratic_model_runs(dim):
    result = minimize(rosenbrock(2) if dim == 2 else sphere(1), np.full(dim, -1.5), rng=0)
    assert list(shares(result.message)) == ["trust_region"]
    assert result.fun < 1e-12


@pytest.mark.parametrize(("strength", "plan"), [(1.0, "noisy"), (1e-3, "slightly noisy")])
@pytest.mark.parametrize("is_told", [False, True])
def test_noise_in_two_dimensions(strength, plan, is_told):
    noise = np.random.default_rng(0)

    def noisy(x):
        return float((x**2).sum() + strength * noise.standard_normal())

    result = minimize(noisy, np.full(2, 2.0), maxfev=400, rng=0, noisy=is_told)
    assert f"(2 dimensions, {plan})" in result.message
    if plan == "noisy":  # one of the first batches of trust_region
        assert int(re.search(r"after (\d+) to detect the noise", result.message)[1]) <= 9
    # The noise hides a fall of the value by its deviation; the rest of the start is gained.
    assert float((result.x**2).sum()) < 3 * strength


def test_noise_that_shows_late_in_two_dimensions_is_met():
    noise, n_calls = np.random.default_rng(0), 0

    def noisy(x):
        nonlocal n_calls
        n_calls += 1
        change = 1e-4 * noise.standard_normal() if n_calls > 6 else 0.0
        return float((x**2).sum() + change)

    result = minimize(noisy, np.full(2, 2.0), maxfev=400, rng=0)
    assert "(2 dimensions, slightly noisy)" in result.message
    assert float((result.x**2).sum()) < 1e-3


@pytest.mark.parametrize("dim", [2, 4])
def test_after_noise_the_next_solver_begins_at_the_best_point(dim):
    solver = Auto()
    state = solver.init(np.full(dim, 2.0), rng=0)
    rows = solver.ask(state)
    values = (rows**2).sum(axis=1)
    again = np.flatnonzero((rows == rows[0]).all(axis=1))[1]
    values[again] += 3.0
    solver.tell(state, rows, values)
    assert "adaptive_mgs" in solver.describe(state)
    np.testing.assert_array_equal(state.x, rows[np.argmin(values)])
