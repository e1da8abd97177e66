"""Nelder-Mead: step by step that of scipy.optimize; restarted and resumed."""

import copy
import math
import threading

import numpy as np
import pytest
from scipy import optimize

from zoopt_nas import Box, InvalidValueError, SolverState, minimize
from zoopt_nas.problems import rosenbrock, sphere
from zoopt_nas.solvers.nelder_mead import NelderMead
from zoopt_nas.testing import SolverConformance

SOLVERS = [NelderMead()]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)


class TestConformance(SolverConformance):
    @pytest.fixture(params=SOLVERS, ids=lambda s: s.name)
    def solver(self, request):
        return request.param


def steps(solver, state, fun, n):
    """Takes ``n`` steps and returns the batches."""
    batches = []
    for _ in range(n):
        candidates = solver.ask(state)
        solver.tell(state, candidates, fun(candidates))
        batches.append(candidates)
    return batches


def until_restart(solver, state, fun):
    """Returns every candidate before the first restart, and the batches' first rows."""
    rows, firsts = [], []
    while True:
        candidates = solver.ask(state)
        if state.inner.n_restarts > 0:
            return np.concatenate(rows), np.array(firsts)
        rows.append(candidates)
        firsts.append(candidates[0])
        solver.tell(state, candidates, fun(candidates))


@pytest.mark.parametrize("adaptive", [True, False])
def test_nelder_mead_evaluates_what_scipy_does(adaptive):
    fun = rosenbrock(3)
    x0 = np.array([-1.0, 1.5, 0.5])
    solver = NelderMead(step=0.5, adaptive=adaptive, tolerance=1e-6)
    state = solver.init(x0, rng=3)
    simplex = solver.ask(state)
    edges = simplex[1:] - simplex[0]
    np.testing.assert_array_equal(np.abs(edges), 0.5 * np.eye(3))
    rows, _ = until_restart(solver, state, fun)

    expected = []

    def recorded(x):
        expected.append(x.copy())
        return float(fun(x))

    result = optimize.minimize(
        recorded,
        x0,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "adaptive": adaptive, "xatol": 1e-6, "fatol": 1e-6},
    )
    assert result.success
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(state.x, result.x)
    assert state.value == result.fun


@each_solver
def test_x_is_the_best_point_told(solver):
    fun = rosenbrock(2)
    state = solver.init(np.array([-1.0, 1.0]), rng=1)
    told = np.concatenate(steps(solver, state, fun, 300))
    values = fun(told)
    assert state.value == values.min()
    np.testing.assert_array_equal(state.x, told[np.argmin(values)])
    assert int(state.metrics["n_restarts"]) > 0  # of all restarts


@each_solver
def test_asking_twice_gives_the_same_batch(solver):
    state = solver.init(np.ones(3), rng=0)
    for _ in range(5):
        first = solver.ask(state).copy()
        np.testing.assert_array_equal(solver.ask(state), first)
        solver.tell(state, first, sphere(3)(first))


@each_solver
def test_restarts_begin_around_the_start_at_growing_scales(solver):
    x0 = np.array([100.0, -100.0])
    starts = []
    for seed in range(40):
        state = solver.init(x0, rng=seed)
        while state.inner.n_restarts < 4:
            candidates = solver.ask(state)
            if len(starts) < 4 * seed + state.inner.n_restarts:
                starts.append(state.inner.start)
            solver.tell(state, candidates, np.zeros(len(candidates)))
    # 40 restarts of two coordinates each: 80 normal numbers, whose mean square is chi²_80 / 80, of
    # standard deviation sqrt(2 / 80) = 0.16.
    squares = ((np.array(starts).reshape(40, 4, 2) - x0) ** 2).mean(axis=(0, 2))
    np.testing.assert_allclose(squares / 4.0 ** np.arange(4), 1.0, atol=4 * math.sqrt(2 / 80))


@each_solver
@pytest.mark.parametrize("n_before", [0, 1, 40, 90])
def test_a_loaded_state_goes_on_bitwise_through_restarts(solver, n_before):
    fun = sphere(3)
    state = solver.init(np.array([1.0, -2.0, 3.0]), rng=5)
    steps(solver, state, fun, n_before)
    loaded = SolverState.from_dict(state.to_dict(), solver.inner_states)
    deep = copy.deepcopy(state)
    expected = steps(solver, state, fun, 400)
    assert state.inner.n_restarts > 0
    for other in (loaded, deep):
        for one, two in zip(expected, steps(solver, other, fun, 400), strict=True):
            np.testing.assert_array_equal(one, two)


@each_solver
def test_a_killed_run_is_resumed_bitwise(tmp_path, solver):
    def killed(x):
        if next(calls) > 60:
            raise RuntimeError("killed")
        return float(rosenbrock(3)(x))

    calls = iter(range(100))
    run = {"x0": [1.0, -2.0, 0.5], "method": solver, "maxfev": 300, "rng": 1, "history": True}
    with pytest.raises(RuntimeError, match="killed"):
        minimize(killed, **run, checkpoint=tmp_path / "run", checkpoint_every=0)
    resumed = minimize(rosenbrock(3), **run, checkpoint=tmp_path / "run")
    whole = minimize(rosenbrock(3), **run)
    np.testing.assert_array_equal(resumed.history, whole.history)
    np.testing.assert_array_equal(resumed.x, whole.x)


@each_solver
def test_a_warm_start_moves_the_start(solver):
    state = solver.init(np.zeros(2), rng=0)
    solver.tell(state, [[3.0, 4.0], [5.0, 6.0]], [2.0, 1.0])
    np.testing.assert_array_equal(solver.ask(state)[0], [5.0, 6.0])


@each_solver
def test_the_bound_is_found_in_a_mirrored_box(solver):
    result = minimize(
        lambda x: float(((x - 3) ** 2).sum()),
        [0.5, -0.5],
        solver,
        bounds=Box(-1.0, 1.0, "reflect"),
        maxfev=400,
        rng=0,
    )
    np.testing.assert_allclose(result.x, 1.0, atol=1e-3)
    assert result.fun == result.fun_iterate


@each_solver
def test_where_half_of_the_space_fails(solver):
    def fun(x):
        return float(((x - 1) ** 2).sum()) if x[0] < 1.5 else math.nan

    result = minimize(fun, [1.3, -2.0], solver, maxfev=400, rng=0)
    assert result.fun < 1e-6


@each_solver
def test_where_everything_fails_it_looks_farther_and_stays(solver):
    x0 = np.array([1.0, 2.0])
    state = solver.init(x0, rng=0)
    batches = steps(solver, state, lambda rows: np.full(len(rows), np.nan), 30)
    np.testing.assert_array_equal(state.x, x0)
    far = [np.abs(batch - x0).max() for batch in batches]
    assert max(far[-5:]) > 1e4 * max(far[:5])
    assert minimize(lambda x: math.nan, x0, solver, maxfev=9, rng=0).fun_iterate == math.inf


@each_solver
def test_where_everything_fails_later_it_restarts_and_stays(solver):
    x0 = np.array([1.0, 2.0])
    state = solver.init(x0, rng=0)
    state.has_contrast = True  # two values of earlier batches differed
    steps(solver, state, lambda rows: np.full(len(rows), np.nan), 300)
    np.testing.assert_array_equal(state.x, x0)
    assert state.metrics["n_restarts"] > 0


@each_solver
def test_a_run_starts_no_thread(solver):
    before = threading.enumerate()
    states = [solver.init(np.ones(3), rng=seed) for seed in range(3)]
    for state in states:
        steps(solver, state, sphere(3), 3)
    assert threading.enumerate() == before


def test_the_iterate_is_finite_far_out_in_float32():
    solver = NelderMead(step=1e38)
    state = solver.init(np.full(2, 2e38, dtype=np.float32), rng=0)
    for candidates in steps(solver, state, lambda rows: -rows.astype(float).sum(1), 30):
        assert np.isfinite(candidates).all()
    assert (state.x == np.finfo(np.float32).max).any()


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (NelderMead, {"step": 0}, "step must be a positive finite number, got 0"),
        (NelderMead, {"adaptive": 1}, "adaptive must be True or False, got 1"),
        (NelderMead, {"tolerance": -1.0}, "tolerance must be a positive finite number"),
    ],
)
def test_fields_out_of_range(kind, fields, message):
    with pytest.raises(InvalidValueError, match=message):
        kind(**fields)
