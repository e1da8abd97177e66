"""adaptive_gld: the metric, what is learnt, noise, restarts, and progress."""

import math

import numpy as np
import pytest

from zoopt_nas import AdaptiveGLD, InvalidValueError, minimize
from zoopt_nas.problems import ellipsoid, rosenbrock, sphere
from zoopt_nas.solvers import adaptive_gld
from zoopt_nas.solvers.adaptive_gld import (
    MIN_MOVE,
    MIN_PATIENCE,
    MOVE_GROWTH,
    MOVE_SHRINKAGE,
)
from zoopt_nas.solvers.engines.comparison_metric import MAX_METRIC_DIM, rank_one_update
from zoopt_nas.testing import SolverConformance, run_steps

VARIANTS = {
    "default": AdaptiveGLD(),
    "one-direction": AdaptiveGLD(n_directions=1, max_radius=0.5, deterministic=True),
    "seven": AdaptiveGLD(n_directions=7, restart=False, min_radius=1e-3),
}
# After 20 steps from (1, ..., 5) on the sphere function, at seed 0: a change is one of behaviour.
X_AFTER_20_STEPS = {
    "default": [0.16074730738, -0.0321546257809, 1.21519988262, 0.83640797981, -0.289050874357],
    "one-direction": [
        -0.289213053861,
        0.351594283047,
        -0.242998191513,
        -0.547099651418,
        0.758189266634,
    ],
    "seven": [0.287152773931, 0.0444903126195, 0.00468037265391, -0.126877812204, 0.111200403969],
}


@pytest.fixture
def no_wide_candidate(monkeypatch):
    """Leaves out the candidate at the wide radius."""
    monkeypatch.setattr(adaptive_gld, "WIDE_PERIOD", 10**9)


class TestConformance(SolverConformance):
    # The default and the paper's forms are in test_conformance.py.
    @pytest.fixture(params=list(VARIANTS)[1:])
    def solver(self, request):
        return VARIANTS[request.param]


def drive(solver, fun, x0, n_steps, seed=0):
    """Yields the state and the batch of each step, after tell."""
    state = solver.init(x0, rng=seed)
    for _ in range(n_steps):
        candidates = solver.ask(state)
        solver.tell(state, candidates, [fun(c) for c in candidates])
        yield state, candidates


@pytest.mark.parametrize("name", X_AFTER_20_STEPS)
def test_x_after_20_steps(name):
    solver = VARIANTS[name]
    x = run_steps(solver, solver.init(np.arange(1.0, 6.0), rng=0), 20)
    np.testing.assert_allclose(x, X_AFTER_20_STEPS[name], rtol=1e-9)


@pytest.mark.parametrize("rate", [0.3, 0.01, -0.01, -0.1])
def test_the_rank_one_update_is_that_of_the_covariance(rate):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 6))
    w = rng.standard_normal(6)  # |w|² = 3.2, so that C stays positive definite
    factor, inverse = rank_one_update(A, np.linalg.inv(A), w, rate)
    expected = (1 - rate) * A @ A.T + rate * np.outer(A @ w, A @ w)
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(inverse, np.linalg.inv(factor), rtol=1e-8, atol=1e-10)


def test_a_direction_of_length_0_only_scales():
    factor, inverse = rank_one_update(np.eye(3), np.eye(3), np.zeros(3), 0.19)
    np.testing.assert_allclose(factor, 0.9 * np.eye(3), rtol=1e-15)
    np.testing.assert_allclose(inverse, np.eye(3) / 0.9, rtol=1e-15)


def test_the_inverse_stays_one_over_a_long_run():
    *_, (state, _) = drive(AdaptiveGLD(restart=False), ellipsoid(6), np.ones(6), 1500)
    product = state.inner.factor @ state.inner.inverse
    np.testing.assert_allclose(product, np.eye(6), atol=1e-8)


def test_the_metric_learns_the_curvature():
    # On a quadratic C tends to the inverse Hessian up to scale: the condition of A' H A, 1e4 at
    # first, comes down to that of a random walk around the identity.
    dim = 4
    curvatures = np.logspace(0, 4, dim)
    Q, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((dim, dim)))
    hessian = Q.T @ np.diag(curvatures) @ Q
    solver = AdaptiveGLD(min_radius=1e-200)
    *_, (state, _) = drive(solver, lambda x: x @ hessian @ x, np.ones(dim), 500)
    factor = state.inner.factor
    assert np.linalg.cond(factor.T @ hessian @ factor) < 30


@pytest.mark.parametrize("dim", [20, MAX_METRIC_DIM + 30])
def test_the_descent_direction_of_a_linear_objective(dim):
    # The signed sum of an orthonormal basis has, with the gradient, the cosine
    # E sum |z_i . u| / sqrt(dim) -> sqrt(2 / pi) = 0.80; forgetting costs some of it.
    gradient = np.random.default_rng(1).standard_normal(dim)
    gradient /= np.linalg.norm(gradient)
    *_, (state, _) = drive(AdaptiveGLD(), lambda x: gradient @ x, np.zeros(dim), dim)
    descent = state.inner.descent
    factor = np.eye(dim) if state.inner.factor is None else state.inner.factor
    # In the coordinates of the metric, the gradient is A' g.
    local = factor.T @ gradient
    cosine = -descent @ local / np.linalg.norm(descent) / np.linalg.norm(local)
    assert 0.6 < cosine < 0.95


def test_only_comparisons_count():
    # Over hundreds of steps, so that restarts, metric and radii have all been at work.
    fun = rosenbrock(3)
    solver = AdaptiveGLD(min_radius=1e-4)
    plain = [s.x for s, _ in drive(solver, lambda x: float(fun(x)), np.zeros(3), 400)]
    # Multiplication by a power of two is exact: no tie appears or disappears.
    scaled = [s.x for s, _ in drive(solver, lambda x: 8 * float(fun(x)), np.zeros(3), 400)]
    np.testing.assert_array_equal(plain, scaled)


def test_rows_of_a_batch_are_orthonormal_at_first():
    solver = AdaptiveGLD(n_directions=4, max_radius=0.5, deterministic=True)
    x0 = np.arange(5.0)
    candidates = solver.ask(solver.init(x0, rng=0))
    np.testing.assert_array_equal(candidates[0], x0)
    steps = candidates[1:] - x0
    np.testing.assert_allclose(steps @ steps.T, 0.25 * np.eye(4), atol=1e-14)


def test_the_extrapolation_doubles_while_it_wins_and_halves_when_not():
    lengths = []
    for state, _ in drive(AdaptiveGLD(), lambda x: -float(x[0]), np.zeros(300), 60):
        lengths.append(state.inner.log_lead_radius)
    changes = np.diff(lengths)
    assert np.max(changes) == pytest.approx(0.7)
    # Downhill without end: the radius of the extrapolation has left that of the directions.
    assert lengths[-1] > state.inner.log_radius + 3


ONCE = AdaptiveGLD(deterministic=True)


@pytest.mark.usefixtures("no_wide_candidate")
def test_x_is_evaluated_once_if_deterministic():
    steps = drive(ONCE, sphere(2), np.ones(2), 200)
    n_rows, is_restart = zip(*[(len(c), s.inner.is_restart) for s, c in steps], strict=True)
    # x and two directions, then the extrapolation and two directions; a restart has three points
    # around x, and the batch behind it no extrapolation yet.
    expected = [2 if before else 3 for before in (False, False, *is_restart[:-2])]
    assert sum(is_restart) == 1
    assert list(n_rows) == expected
    assert np.array_equal(ONCE.ask(ONCE.init(np.ones(2), rng=0))[0], np.ones(2))


@pytest.mark.usefixtures("no_wide_candidate")
def test_x_is_evaluated_anew_after_failures_and_less_often_if_it_holds():
    solver = AdaptiveGLD(restart=False)
    n_rows = [len(c) for _, c in drive(solver, lambda x: float(x.any()), np.zeros(3), 80)]
    again = [step for step, n in enumerate(n_rows) if n == 4]
    gaps = np.diff([0, *again])
    # The gap is the patience, doubled each time, and the batch with x counts as a failure too.
    np.testing.assert_array_equal(gaps, [1, 2, 4, 8, 16, 32])


def test_a_lucky_value_does_not_hold():
    solver = AdaptiveGLD()
    state = solver.init(np.zeros(3), rng=0)
    solver.tell(state, solver.ask(state), [5.0, -100.0, 6.0])
    lucky = state.x
    solver.tell(state, solver.ask(state), [1.0, 2.0, 3.0])
    candidates = solver.ask(state)
    np.testing.assert_array_equal(candidates[0], lucky)
    solver.tell(state, candidates, [2.5, 3.0, 2.0, 4.0])
    np.testing.assert_array_equal(state.x, candidates[2])
    # Values change: that of x is not known until it is measured where it is now.
    assert math.isnan(state.value)
    assert state.inner.measured == 2.5
    np.testing.assert_array_equal(solver.ask(state)[0], state.x)
    assert state.inner.patience == MIN_PATIENCE


def test_a_failed_batch_says_nothing_about_x():
    solver = AdaptiveGLD()
    state = solver.init(np.zeros(3), rng=0)
    solver.tell(state, solver.ask(state), [5.0, 6.0, 7.0])
    candidates = solver.ask(state)  # with x, after one batch of failures
    solver.tell(state, candidates, [math.nan] * len(candidates))
    assert state.value == 5.0
    np.testing.assert_array_equal(state.x, np.zeros(3))


@pytest.mark.parametrize(("dim", "lag"), [(3, 0.1), (20, 0.3)])
def test_a_drifting_objective_is_followed(dim, lag):
    # The optimum moves by 0.01 a step; a value that was kept for ever would hold x where it is.
    solver = AdaptiveGLD(min_radius=1e-3, restart=False)
    state = solver.init(np.zeros(dim), rng=0)
    distances = []
    for step in range(1000):
        optimum = np.zeros(dim)
        optimum[0] = 0.01 * step
        candidates = solver.ask(state)
        solver.tell(state, candidates, ((candidates - optimum) ** 2).sum(axis=1))
        distances.append(np.linalg.norm(state.x - optimum))
    assert np.mean(distances[500:]) < lag


def test_restarts_leave_x_to_the_best_of_the_new_points():
    solver = AdaptiveGLD(min_radius=1e-2)
    jumps = []
    before = np.full(2, 5.0)
    for state, candidates in drive(solver, sphere(2), before, 300):
        is_jump = state.n_steps > 50 and np.linalg.norm(state.x - before) > 1.0
        if is_jump and sphere(2)(state.x) > 1.0:
            jumps.append((state.x, candidates))
            assert sphere(2)(state.x) == min(sphere(2)(candidates))
            assert state.value == sphere(2)(state.x)
        before = state.x
    assert len(jumps) > 2


def test_without_restart_x_never_leaves_the_optimum():
    run = list(drive(AdaptiveGLD(min_radius=1e-5, restart=False), sphere(2), np.ones(2), 400))
    state, _ = run[-1]
    assert sphere(2)(state.x) < 1e-9
    assert state.inner.log_radius >= math.log(1e-5)


def test_the_radii_of_an_unbounded_objective_have_a_limit():
    *_, (state, _) = drive(AdaptiveGLD(), lambda x: -float(np.sum(x)), np.zeros(2), 1500)
    assert np.all(np.isfinite(state.x))
    assert state.inner.log_lead_radius <= state.inner.log_limit
    assert state.inner.log_limit == math.log(np.finfo(float).max) / 2
    assert state.value < -1e150


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_scale_of_max_radius_hardly_matters(factor):
    result = minimize(
        sphere(5), np.ones(5), AdaptiveGLD(max_radius=factor), maxfev=600, rng=0, target=1e-6
    )
    assert result.success


@pytest.mark.parametrize(
    ("fun", "maxfev", "target"),
    [
        (sphere(10), 1000, 1e-4),
        (ellipsoid(5), 2000, 1e-6),
        (rosenbrock(5), 2500, 1e-3),
        (sphere(150), 15000, 1e-4),
    ],
    ids=["sphere-10", "ellipsoid-5", "rosenbrock-5", "sphere-150"],
)
def test_it_reaches_the_optimum_of_ordinary_functions(fun, maxfev, target):
    x0 = np.full(fun.x0.shape, -1.0)
    result = minimize(fun, x0, "adaptive_gld", maxfev=maxfev, rng=0, target=target)
    assert result.success


def test_noise_does_not_stop_it():
    # 20 runs on the sphere function, sd of the noise 0.1: the true value of the last iterate falls
    # from 20 to below 1 in each, where a rule that locks lucky values stops at several units.
    ends = []
    for seed in range(20):
        noise = np.random.default_rng(seed)
        result = minimize(
            lambda x, noise=noise: float(x @ x) + 0.1 * noise.standard_normal(),
            np.full(5, 2.0),
            "adaptive_gld",
            maxfev=1000,
            rng=seed,
        )
        ends.append(float(result.x_iterate @ result.x_iterate))
    assert max(ends) < 1.0


def test_noise_proportional_to_the_value_is_no_obstacle():
    # |x0| = 9. Where x moves all the way to each lucky row it ends beyond 50 in each of these runs.
    for seed in range(4):
        noise = np.random.default_rng(seed)
        result = minimize(
            lambda x, noise=noise: float(x @ x) * math.exp(0.5 * noise.standard_normal()),
            np.full(20, 2.0),
            "adaptive_gld",
            maxfev=6000,
            rng=seed,
        )
        assert np.linalg.norm(result.x_iterate) < 5


def noisy_state(solver, values):
    """A run whose x was found to change: three batches, with these values in the last one."""
    state = solver.init(np.zeros(3), rng=0)
    solver.tell(state, solver.ask(state), [5.0, 6.0, 7.0])
    candidates = solver.ask(state)
    solver.tell(state, candidates, [5.5, 7.0, 7.0, 7.0])  # x, due after a failure, has changed
    assert state.inner.is_noisy
    candidates = solver.ask(state)
    x = state.x
    solver.tell(state, candidates, values)
    return state, candidates, x


def test_noise_found_lets_x_move_only_a_share_of_the_way():
    solver = AdaptiveGLD()
    state, _, _ = noisy_state(solver, [5.6, 4.0, 7.0, 7.0])
    # The first move is whole; then x turns out no better than it was.
    candidates = solver.ask(state)
    x = state.x
    np.testing.assert_array_equal(candidates[0], x)
    solver.tell(state, candidates, [6.0, 7.0, 3.0, 7.0])
    assert math.exp(state.inner.log_move) == pytest.approx(math.exp(-MOVE_SHRINKAGE))
    expected = x + math.exp(-MOVE_SHRINKAGE) * (candidates[2] - x)
    np.testing.assert_allclose(state.x, expected, rtol=1e-12)
    # And now it is better than the 6.0 that it had: the share grows.
    solver.tell(state, solver.ask(state), [5.9, 7.0, 7.0, 7.0])
    assert state.inner.log_move == pytest.approx(MOVE_GROWTH - MOVE_SHRINKAGE)


def test_the_share_stays_between_its_limits():
    rng = np.random.default_rng(0)
    shares = [
        math.exp(state.inner.log_move)
        for state, _ in drive(AdaptiveGLD(), lambda x: rng.standard_normal(), np.zeros(3), 600)
    ]
    assert min(shares) == pytest.approx(MIN_MOVE)
    assert max(shares) == 1.0
    # Noise alone is found out for most of the time.
    assert np.mean(np.array(shares[300:]) < 0.3) > 0.5


def test_from_an_x_that_failed_the_move_is_whole():
    solver = AdaptiveGLD()
    state, candidates, _ = noisy_state(solver, [math.inf, 8.0, 9.0, 9.0])
    np.testing.assert_array_equal(state.x, candidates[1])
    assert state.value == 8.0


def test_a_deterministic_objective_has_no_share():
    *_, (state, _) = drive(AdaptiveGLD(), ellipsoid(4), np.ones(4), 300)
    assert state.inner.log_move == 0.0
    assert not state.inner.is_noisy


def test_bfloat16_has_no_linear_algebra_and_runs_without():
    torch = pytest.importorskip("torch")
    x0 = torch.ones(8, dtype=torch.bfloat16)
    result = minimize(lambda x: float((x * x).sum()), x0, "adaptive_gld", maxfev=400, rng=0)
    assert result.x.dtype == torch.bfloat16
    assert result.fun < 0.1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_radius", 0, "max_radius must be a positive finite number, got 0"),
        ("min_radius", 2.0, "min_radius must be at most max_radius (1.0), got 2.0"),
        ("n_directions", 0, "n_directions must be a positive integer, got 0"),
        ("restart", 1, "restart must be True or False, got 1"),
        ("deterministic", "yes", "deterministic must be True or False, got 'yes'"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(InvalidValueError) as caught:
        AdaptiveGLD(**{field: value})
    assert str(caught.value) == message


def test_with_n_samples_sets_the_new_directions():
    assert AdaptiveGLD().with_n_samples(5) == AdaptiveGLD(n_directions=5)
    with pytest.raises(InvalidValueError, match=r"n_samples must be a positive integer, got 0"):
        AdaptiveGLD().with_n_samples(0)
