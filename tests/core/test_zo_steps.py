"""ZO-signSGD and ZO-AdaMM against plain float64 rewrites of the published algorithms."""

import math

import numpy as np
import pytest

from zoopt_nas import InvalidValueError, ZOAdaMM, ZOSignSGD, load_state, minimize, save_state
from zoopt_nas.solvers.rs import DIRECTIONS, ESTIMATORS

DIM = 5
B = np.array([1.0, -2.0, 0.5, 3.0, -1.0])
X0 = np.array([0.5, -1.0, 2.0, 0.0, 1.5])
SOLVERS = [
    ZOSignSGD(learning_rate=0.1, smoothing=0.2, n_samples=3),
    ZOAdaMM(learning_rate=0.1, smoothing=0.2, n_samples=3),
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


def quadratic(points):
    return points @ B + (np.arange(1.0, DIM + 1) * points**2).sum(-1)


def estimated(solver, candidates, values, x):
    """The gradient of Eq. 4 or 6 of ZARTS, one direction at a time."""
    phi = len(x) if solver.direction == "sphere" else 1
    mu, terms = solver.smoothing, []
    if solver.estimator == "one_point":
        for point, value in zip(candidates, values, strict=True):
            terms.append(phi / mu * value * (point - x) / mu)
    else:
        for k in range(0, len(values), 2):
            u = (candidates[k] - candidates[k + 1]) / (2 * mu)
            terms.append(phi / (2 * mu) * (values[k] - values[k + 1]) * u)
    return [math.fsum(column) / len(terms) for column in zip(*terms, strict=True)]


def steps(solver, n_steps, fun=lambda points, _: quadratic(points)):
    """The iterates of a run, and the gradient that each step estimated."""
    state = solver.init(X0, rng=3)
    iterates, gradients = [X0], []
    for step in range(n_steps):
        candidates = solver.ask(state)
        values = fun(candidates, step)
        gradients.append(estimated(solver, candidates, values, iterates[-1]))
        iterates.append(solver.tell(state, candidates, values).x.copy())
    return iterates, gradients


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sign_steps_are_the_algorithm(estimator, direction):
    solver = ZOSignSGD(0.125, 0.3, 4, estimator, direction)
    iterates, gradients = steps(solver, 5)
    for before, after, gradient in zip(iterates, iterates[1:], gradients, strict=False):
        assert min(map(abs, gradient)) > 1e-6  # rounding does not decide a sign
        for x, moved, slope in zip(before, after, gradient, strict=True):
            assert moved == pytest.approx(x - math.copysign(0.125, slope), abs=1e-12)


def adamm(gradients, learning_rate, beta1, beta2):
    """Algorithm 1 of Chen et al. (2019) without constraints, one coordinate at a time."""
    iterates = [X0]
    m, v, v_hat = [0.0] * DIM, [0.0] * DIM, [0.0] * DIM
    for gradient in gradients:
        x = list(iterates[-1])
        for i, g in enumerate(gradient):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            v_hat[i] = max(v_hat[i], v[i])
            x[i] -= learning_rate * m[i] / math.sqrt(v_hat[i])
        iterates.append(x)
    return iterates


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.3), (0.0, 0.99), (0.5, 0.0)])
def test_adamm_steps_are_the_algorithm(estimator, direction, beta1, beta2):
    solver = ZOAdaMM(0.1, 0.3, 4, estimator, direction, beta1=beta1, beta2=beta2)
    iterates, gradients = steps(solver, 8)
    np.testing.assert_allclose(iterates, adamm(gradients, 0.1, beta1, beta2), rtol=1e-9, atol=1e-9)


def test_the_largest_square_never_shrinks():
    state = SOLVERS[1].init(X0, rng=0)
    largest = np.zeros(DIM)
    for size in (1.0, 100.0, 1e-3, 1.0):
        candidates = SOLVERS[1].ask(state)
        SOLVERS[1].tell(state, candidates, size * quadratic(candidates))
        largest = np.maximum(largest, state.inner.square)
        np.testing.assert_array_equal(state.inner.max_square, largest)
    assert np.all(state.inner.square < largest)  # of the second batch


@each_solver
def test_neither_scale_nor_level_of_the_objective_matters(solver):
    usual, _ = steps(solver, 6)
    scaled, _ = steps(solver, 6, lambda points, _: 2.0**20 * quadratic(points))
    drifting, _ = steps(solver, 6, lambda points, step: quadratic(points) + 64.0 * step)
    np.testing.assert_allclose(scaled, usual, rtol=1e-9)
    np.testing.assert_allclose(drifting, usual, rtol=1e-6, atol=1e-6)


@each_solver
@pytest.mark.parametrize("values", [[math.nan] * 6, [math.inf] * 6, [1.0, math.nan] * 3])
def test_a_batch_of_failures_leaves_the_iterate_and_the_moments(solver, values):
    state = solver.init(X0, rng=0)
    for _ in range(2):
        candidates = solver.ask(state)
        solver.tell(state, candidates, quadratic(candidates))
    before = state.to_dict()["arrays"]
    solver.tell(state, solver.ask(state), values)
    after = state.to_dict()["arrays"]
    kept = [name for name in before if name == "x" or name.startswith("inner")]
    assert len(kept) == (4 if isinstance(solver, ZOAdaMM) else 1)
    for name in kept:
        np.testing.assert_array_equal(after[name], before[name])
    candidates = solver.ask(state)
    solver.tell(state, candidates, quadratic(candidates))
    assert np.all(np.isfinite(state.x))
    assert np.all(state.x != before["x"])


@each_solver
def test_a_flat_objective_moves_nothing(solver):
    iterates, _ = steps(solver, 3, lambda points, _: np.ones(len(points)))
    np.testing.assert_array_equal(iterates, [X0] * 4)


def test_momentum_goes_on_where_the_objective_becomes_flat():
    iterates, _ = steps(
        SOLVERS[1], 3, lambda points, step: quadratic(points) * (1.0 if step == 0 else 0.0)
    )
    moves = np.diff(iterates, axis=0)
    np.testing.assert_allclose(moves[1], 0.9 * moves[0], rtol=1e-9)
    np.testing.assert_allclose(moves[2], 0.81 * moves[0], rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_squares_do_not_overflow_in_a_short_dtype(dtype):
    state = SOLVERS[1].init(X0.astype(dtype), rng=0)
    candidates = SOLVERS[1].ask(state)
    # Its gradient is of the order of 1e4: the squares exceed the largest float16.
    SOLVERS[1].tell(state, candidates, 1e3 * quadratic(candidates.astype("f8")))
    assert state.x.dtype == dtype
    assert np.max(state.inner.square) > 70_000
    steps_taken = np.abs(state.x.astype("f8") - X0)
    # The first step is α (1 - β1) / √(1 - β2) for each coordinate.
    np.testing.assert_allclose(steps_taken, 0.1 * 0.1 / math.sqrt(0.7), rtol=0.2)


def test_a_gradient_that_overflows_changes_no_moments():
    solver = ZOAdaMM(estimator="one_point", smoothing=1e-3, n_samples=2)
    state = solver.init(X0, rng=0)
    solver.tell(state, solver.ask(state), [1e300, -1e300])
    np.testing.assert_array_equal(state.x, X0)
    np.testing.assert_array_equal(state.inner.max_square, np.zeros(DIM))


@each_solver
def test_a_saved_run_continues_bit_for_bit(solver, tmp_path):
    state = solver.init(X0, rng=0)
    for step in range(6):
        if step == 3:
            save_state(tmp_path / "run", solver, state)
        candidates = solver.ask(state)
        solver.tell(state, candidates, quadratic(candidates))
    loaded_solver, loaded = load_state(tmp_path / "run")
    assert loaded_solver == solver
    for _ in range(3):
        candidates = solver.ask(loaded)
        solver.tell(loaded, candidates, quadratic(candidates))
    np.testing.assert_array_equal(loaded.x, state.x)


@each_solver
def test_a_box_is_kept_and_its_corner_is_found(solver):
    bounds = [(0.0, 1.0)] * DIM
    result = minimize(
        lambda x: float(((x - 2.0) ** 2).sum()), np.full(DIM, 0.5), solver, bounds=bounds,
        maxfev=1000, rng=0,
    )  # fmt: skip
    np.testing.assert_array_equal(result.x, np.ones(DIM))
    assert np.all((result.x_iterate >= 0) & (result.x_iterate <= 1))


@pytest.mark.parametrize(
    ("kind", "field", "value", "rule"),
    [
        (ZOSignSGD, "learning_rate", 0.0, "a positive finite number"),
        (ZOSignSGD, "estimator", "two_point", "one of one_point, multi_point"),
        (ZOAdaMM, "smoothing", -1.0, "a positive finite number"),
        (ZOAdaMM, "beta1", 1.0, "a number in [0, 1)"),
        (ZOAdaMM, "beta1", -0.1, "a number in [0, 1)"),
        (ZOAdaMM, "beta2", 1, "a number in [0, 1)"),
        (ZOAdaMM, "beta2", math.nan, "a number in [0, 1)"),
        (ZOAdaMM, "beta2", True, "a number in [0, 1)"),
    ],
)
def test_bad_fields_are_named(kind, field, value, rule):
    with pytest.raises(InvalidValueError) as caught:
        kind(**{field: value})
    assert str(caught.value) == f"{field} must be {rule}, got {value!r}"
