"""RS: the estimators against an independent formula and their own expectation."""

import math

import numpy as np
import pytest

from zoopt_nas import RS, InvalidValueError
from zoopt_nas.solvers.rs import DIRECTIONS, ESTIMATORS

DIM = 6
# L(x) = b.x + x'Ax / 2, whose gradient is known, and whose smoothed gradient is the same (Eq. 13).
_rng = np.random.default_rng(5)
B = _rng.standard_normal(DIM)
A = np.diag(np.linspace(0.5, 2.0, DIM)) + 0.1
X0 = _rng.standard_normal(DIM)


def quadratic(points):
    return points @ B + 0.5 * np.einsum("...i,ij,...j->...", points, A, points)


GRADIENT = B + A @ X0


def estimate(solver, fun, seed, x0=X0):
    """The gradient that one step follows, read back from the step."""
    state = solver.init(x0, rng=seed)
    candidates = solver.ask(state)
    state = solver.tell(state, candidates, fun(candidates))
    return (x0 - state.x) / solver.learning_rate


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("orthogonal", [False, True])
def test_estimate_is_unbiased_on_a_quadratic(estimator, direction, orthogonal):
    solver = RS(
        estimator=estimator,
        direction=direction,
        orthogonal=orthogonal,
        smoothing=0.7,
        n_samples=4,
        learning_rate=1.0,
    )
    n_runs = 3000
    state = solver.init(X0, rng=1)
    estimates = np.empty((n_runs, DIM))
    for run in range(n_runs):
        candidates = solver.ask(state)
        solver.tell(state, candidates, quadratic(candidates))
        estimates[run] = X0 - state.x
        state.x = X0
    standard_error = estimates.std(axis=0, ddof=1) / math.sqrt(n_runs)
    assert np.all(np.abs(estimates.mean(axis=0) - GRADIENT) < 5 * standard_error)
    # The tolerance would expose a wrong φ, a wrong pair or a wrong sign.
    assert np.all(5 * standard_error < 0.5 * np.linalg.norm(GRADIENT))


def reference(solver, candidates, values, x):
    """Eq. 4-6, one direction at a time, in plain float64."""
    phi = len(x) if solver.direction == "sphere" else 1
    mu = solver.smoothing
    terms = []
    if solver.estimator == "one_point":
        for point, value in zip(candidates, values, strict=True):
            terms.append(phi / mu * value * (point - x) / mu)
    else:
        for k in range(0, len(values), 2):
            u = (candidates[k] - x) / mu
            terms.append(phi / (2 * mu) * (values[k] - values[k + 1]) * u)
    return np.mean([term for term in terms if np.all(np.isfinite(term))], axis=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_step_is_the_formula(estimator, direction):
    solver = RS(
        estimator=estimator, direction=direction, n_samples=5, learning_rate=0.3, smoothing=0.01
    )
    state = solver.init(X0, rng=3)
    candidates = solver.ask(state)
    values = quadratic(candidates)
    expected = X0 - 0.3 * reference(solver, candidates, values, X0)
    np.testing.assert_allclose(
        solver.tell(state, candidates, values).x, expected, rtol=1e-9, atol=1e-9
    )


def test_batch_sizes():
    x0 = np.zeros(3)
    solvers = {e: RS(learning_rate=0.1, estimator=e, n_samples=7) for e in ESTIMATORS}
    sizes = {e: len(solver.ask(solver.init(x0))) for e, solver in solvers.items()}
    assert sizes == {"one_point": 7, "multi_point": 14}


def test_candidates_are_interleaved_pairs_at_distance_smoothing():
    solver = RS(learning_rate=0.1, smoothing=0.25, n_samples=3)
    candidates = solver.ask(solver.init(X0, rng=0)) - X0
    np.testing.assert_allclose(candidates[::2], -candidates[1::2], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(candidates, axis=1), 0.25, rtol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_orthogonal_directions_are_exact_on_a_linear_objective(direction, n_blocks):
    solver = RS(
        learning_rate=0.1,
        smoothing=0.01,
        orthogonal=True,
        direction=direction,
        n_samples=n_blocks * DIM,
    )
    np.testing.assert_allclose(estimate(solver, lambda x: x @ B, seed=0), B, rtol=1e-9)


@pytest.mark.parametrize("failure", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("member", [2, 3])
def test_a_failed_member_drops_its_pair(failure, member):
    solver = RS(n_samples=3, learning_rate=0.3, smoothing=0.01)
    state = solver.init(X0, rng=3)
    candidates = solver.ask(state)
    values = quadratic(candidates)
    values[member] = failure
    kept = [0, 1, 4, 5]  # rows 2 and 3 are the second pair
    expected = X0 - 0.3 * reference(solver, candidates[kept], values[kept], X0)
    np.testing.assert_allclose(solver.tell(state, candidates, values).x, expected, rtol=1e-9)


def test_only_pairs_are_antithetic():
    assert RS().antithetic
    assert not RS(estimator="one_point").antithetic


def test_a_step_that_overflows_is_no_step():
    solver = RS(estimator="one_point", smoothing=1e-3, n_samples=2)
    state = solver.init(np.zeros(3, dtype=np.float32), rng=0)
    candidates = solver.ask(state)
    np.testing.assert_array_equal(solver.tell(state, candidates, [1e300, 1.0]).x, np.zeros(3))


def test_gradient_norm_is_measured():
    solver = RS(learning_rate=0.1, orthogonal=True, n_samples=DIM)
    state = solver.init(X0, rng=0)
    candidates = solver.ask(state)
    solver.tell(state, candidates, candidates @ B)
    assert float(state.metrics["gradient_norm"]) == pytest.approx(np.linalg.norm(B))


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("learning_rate", 0.0, "a positive finite number"),
        ("smoothing", -1.0, "a positive finite number"),
        ("smoothing", math.nan, "a positive finite number"),
        ("n_samples", 0, "a positive integer"),
        ("n_samples", 2.0, "a positive integer"),
        ("n_samples", True, "a positive integer"),
        ("estimator", "three_point", "one of one_point, multi_point"),
        ("direction", "cube", "one of sphere, gaussian"),
        ("orthogonal", 1, "True or False"),
    ],
)
def test_bad_fields_are_named(field, value, rule):
    with pytest.raises(InvalidValueError) as caught:
        RS(**{field: value})
    assert str(caught.value) == f"{field} must be {rule}, got {value!r}"
