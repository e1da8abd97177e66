"""CMA-ES: the runs of the package cmaes, restarted and resumed."""

import copy
import math

import cmaes
import numpy as np
import pytest

from zoopt_nas import Box, InvalidValueError, SolverState, minimize
from zoopt_nas.problems import rosenbrock, sphere
from zoopt_nas.solvers import cma
from zoopt_nas.solvers.cma import CMA
from zoopt_nas.testing import SolverConformance


class TestConformance(SolverConformance):
    @pytest.fixture
    def solver(self, monkeypatch):
        # Both kinds of matrix, and no second of eigendecompositions in 200 dimensions.
        monkeypatch.setattr(cma, "_LARGEST_FULL_DIM", 25)
        return CMA()


def steps(solver, state, fun, n):
    """Takes ``n`` steps and returns the batches."""
    batches = []
    for _ in range(n):
        candidates = solver.ask(state)
        solver.tell(state, candidates, fun(candidates))
        batches.append(candidates)
    return batches


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_it_is_the_run_of_the_package(covariance, sigma):
    fun = rosenbrock(5)
    x0 = np.linspace(-1, 1, 5)
    solver = CMA(sigma=sigma, covariance=covariance)
    state = solver.init(x0, rng=7)
    kind = cmaes.CMA if covariance == "full" else cmaes.SepCMA
    reference = kind(mean=x0.copy(), sigma=sigma)
    seeds = np.random.default_rng(7)
    for candidates in steps(solver, state, fun, 40):
        reference.reseed_rng(int(seeds.integers(2**32)))
        expected = np.array([reference.ask() for _ in range(reference.population_size)])
        # The package's own run keeps a matrix that is symmetric up to rounding only.
        np.testing.assert_allclose(candidates, expected, rtol=1e-8, atol=1e-10)
        reference.tell([(x, float(fun(x))) for x in expected])
    np.testing.assert_allclose(state.x, reference.mean, rtol=1e-8, atol=1e-10)


def test_the_population():
    def population(solver, dim):
        return len(solver.ask(solver.init(np.zeros(dim), rng=0)))

    assert [population(CMA(), dim) for dim in (1, 2, 10, 300)] == [4, 6, 10, 21]
    assert population(CMA(n_samples=31), 3) == 31
    assert population(CMA().with_n_samples(9), 3) == 9


def test_the_covariance_follows_the_dimension():
    def is_full(solver, dim):
        state = solver.init(np.zeros(dim), rng=0)
        solver.ask(state)
        return "_B" in state.inner.optimizer

    assert is_full(CMA(), 200)
    assert not is_full(CMA(), 201)
    assert is_full(CMA(covariance="full"), 201)
    assert not is_full(CMA(covariance="diagonal"), 2)
    assert is_full(CMA(covariance="diagonal"), 1)  # the same thing there


@pytest.mark.parametrize("kind", [cmaes.CMA, cmaes.SepCMA])
def test_the_state_holds_what_a_copy_by_the_package_holds(kind):
    optimizer = kind(mean=np.ones(7), sigma=1.0, seed=3)
    for _ in range(20):
        rows = [optimizer.ask() for _ in range(optimizer.population_size)]
        optimizer.tell([(x, float(rosenbrock(7)(x))) for x in rows])
    assert not optimizer.should_stop()
    if kind is cmaes.CMA:  # rounding makes the triangles differ
        optimizer._C[0, 1] = np.nextafter(optimizer._C[0, 1], 1.0)
        assert np.any(optimizer._C != optimizer._C.T)
    state = cma.CMAState(np.ones(7))
    cma._save(state, optimizer)
    loaded, expected = vars(cma._loaded(state)), vars(copy.copy(optimizer))
    assert set(loaded) == set(expected) - {"_rng"}
    for name, value in loaded.items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("n_before", [0, 1, 25])
def test_a_loaded_state_goes_on_bitwise_through_a_restart(covariance, n_before):
    solver = CMA(covariance=covariance)
    fun = sphere(4)
    state = solver.init(np.ones(4), rng=5)
    steps(solver, state, fun, n_before)
    loaded = SolverState.from_dict(state.to_dict(), solver.inner_states)
    expected = steps(solver, state, fun, 250)
    assert state.inner.n_restarts > 0
    for one, two in zip(expected, steps(solver, loaded, fun, 250), strict=True):
        np.testing.assert_array_equal(one, two)


def test_restarts_double_the_population_around_the_start():
    x0 = np.array([50.0, -50.0])
    solver = CMA(sigma=2.0)
    means, sizes = [], set()
    for seed in range(30):
        state = solver.init(x0, rng=seed)
        state.has_contrast = True  # or it would be left where it is for points farther away
        # An objective that is flat stops the package by its tolerance in values.
        while state.inner is None or state.inner.n_restarts == 0:
            (candidates,) = steps(solver, state, lambda rows: np.zeros(len(rows)), 1)
            sizes.add(len(candidates))
        means.append(2.0 * state.inner.optimizer["_mean"])
        assert len(solver.ask(state)) == 12
        assert state.metrics["sigma"] == 2.0
    assert sizes == {6}
    # 60 normal numbers: their mean square is chi²_60 / 60, of standard deviation sqrt(2 / 60).
    square = np.mean((np.array(means) - x0) ** 2) / 2.0**2
    assert abs(square - 1) < 4 * math.sqrt(2 / 60)


def test_without_restart_it_stays_where_it_converged():
    solver = CMA(restart=False)
    state = solver.init(np.ones(2), rng=0)
    batches = steps(solver, state, sphere(2), 250)
    assert state.inner.n_restarts == 0
    assert {len(batch) for batch in batches} == {6}
    assert sphere(2)(state.x) < 1e-20


def test_units_of_x_change_nothing():
    # The package's own limit is sigma = 1e4, whatever the unit of x.
    fun = rosenbrock(2)
    near = minimize(fun, [-1.0, 1.0], CMA(1.0), maxfev=600, rng=0)
    assert near.fun < 1e-6
    for solver in (CMA(2.0**20), CMA()):
        far = minimize(lambda x: fun(x / 2**20), [-(2.0**20), 2.0**20], solver, maxfev=600, rng=0)
        np.testing.assert_array_equal(far.x / 2**20, near.x)


def test_only_the_ranks_count():
    fun = sphere(3)
    one, two = (CMA().init(np.ones(3), rng=0) for _ in range(2))
    steps(CMA(), one, fun, 30)
    steps(CMA(), two, lambda rows: np.log(fun(rows)), 30)
    np.testing.assert_array_equal(one.x, two.x)


def test_a_failed_row_is_ranked_last():
    one, two = (CMA().init(np.ones(3), rng=0) for _ in range(2))
    candidates = CMA().ask(one)
    CMA().tell(one, candidates, [math.nan, *range(6)])
    CMA().tell(two, CMA().ask(two), [1e300, *range(6)])
    np.testing.assert_array_equal(one.x, two.x)


def test_a_batch_that_failed_is_drawn_anew_from_the_same_distribution():
    state = CMA().init(np.ones(3), rng=0)
    steps(CMA(), state, sphere(3), 3)
    before = {key: np.array(value) for key, value in state.inner.optimizer.items()}
    (failed,) = steps(CMA(), state, lambda rows: np.full(len(rows), np.inf), 1)
    for key, value in before.items():
        np.testing.assert_array_equal(state.inner.optimizer[key], value)
    assert not np.any(CMA().ask(state) == failed)


def test_the_mean_is_that_of_the_better_half_as_repaired():
    state = CMA().init(np.zeros(2), rng=0)
    asked = CMA().ask(state)
    told = np.clip(asked, -0.2, 0.2)
    CMA().tell(state, told, [5, 0, 3, 2, 1, 4], repaired=True)
    # Eq. 41 and 49 of the tutorial, for the three best of six.
    weights = math.log(3.5) - np.log([1, 2, 3])
    weights /= weights.sum()
    np.testing.assert_allclose(state.x, weights @ told[[1, 4, 3]], rtol=1e-12)
    np.testing.assert_array_equal(state.inner.optimizer["_mean"], state.x)


def test_the_worse_half_counts_as_drawn():
    matrices = []
    for k in (5, 0):  # the row that is moved: the worst and the best
        state = CMA().init(np.zeros(2), rng=0)
        told = CMA().ask(state).copy()
        told[k] /= 100
        CMA().tell(state, told, range(6), repaired=True)
        matrices.append(state.inner.optimizer["_C"])
    as_drawn = CMA().init(np.zeros(2), rng=0)
    CMA().tell(as_drawn, CMA().ask(as_drawn), range(6))
    np.testing.assert_array_equal(matrices[0], as_drawn.inner.optimizer["_C"])
    assert np.max(np.abs(matrices[1] - matrices[0])) > 0.01


@pytest.mark.parametrize("method", ["reflect", "clip", "transform"])
@pytest.mark.parametrize("optimum", [0.9, 3.0])  # beside a bound, and on all of them
def test_the_optimum_in_a_box_is_found(method, optimum):
    result = minimize(
        lambda x: float(((x - optimum) ** 2).sum()),
        np.zeros(3),
        CMA(0.5, restart=False),
        bounds=Box(-1.0, 1.0, method),
        maxfev=1500,
        rng=0,
    )
    np.testing.assert_allclose(result.x, min(optimum, 1.0), atol=1e-6)
    np.testing.assert_allclose(result.x_iterate, min(optimum, 1.0), atol=1e-6)


def test_noise_does_no_harm():
    noise = np.random.default_rng(0)
    fun = sphere(10)

    def noisy(x):
        return float(fun(x)) + noise.standard_normal()

    ends = [minimize(noisy, np.full(10, 2.0), CMA(), maxfev=1000, rng=k) for k in range(5)]
    # From 40, and the noise has deviation 1.
    assert np.median([float(fun(end.x_iterate)) for end in ends]) < 1.0


def test_a_warm_start_moves_the_mean():
    state = CMA(sigma=1e-9).init(np.zeros(2), rng=0)
    CMA(sigma=1e-9).tell(state, [[3.0, 4.0], [5.0, 6.0]], [2.0, 1.0])
    np.testing.assert_allclose(CMA(sigma=1e-9).ask(state), [[5.0, 6.0]] * 6, atol=1e-7)


def test_an_overflow_begins_anew(monkeypatch):
    def overflows(self):
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    solver = CMA(restart=False)
    state = solver.init(np.ones(2), rng=0)
    candidates = solver.ask(state)
    with monkeypatch.context() as patch:
        patch.setattr(cma, "_has_ended", lambda *args: True)
        solver.tell(state, candidates, range(6))
    assert state.inner.n_restarts == 1
    optimizer = cmaes.CMA(mean=np.ones(2), sigma=1.0)
    assert not cma._has_ended(optimizer, True)
    monkeypatch.setattr(cmaes.CMA, "should_stop", overflows)
    assert cma._has_ended(optimizer, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": 0.0}, "sigma must be a positive finite number, got 0.0"),
        ({"n_samples": 3}, "n_samples must be at least 4, got 3"),
        ({"n_samples": 4.0}, "n_samples must be a positive integer, got 4.0"),
        ({"restart": None}, "restart must be True or False, got None"),
        ({"covariance": "sparse"}, "covariance must be one of auto, full, diagonal, got 'sparse'"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(InvalidValueError, match=message):
        CMA(**fields)


def test_a_start_too_far_out_is_refused():
    state = CMA().init(np.full(2, 1e33), rng=0)
    with pytest.raises(InvalidValueError, match="x0 must be below 1e32"):
        CMA().ask(state)
