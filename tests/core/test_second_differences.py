"""The Hessian of a descent: against the true one, near bounds, and with failures."""

import numpy as np
import pytest

from zoopt_nas import QuasiNewton, minimize
from zoopt_nas.solvers.engines import second_differences
from zoopt_nas.solvers.engines.descent_state import DescentPhase


def quadratic(dim, condition=1e4, seed=0):
    """A rotated quadratic with its minimum at 1, and its Hessian."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    hessian = (turn * np.geomspace(1, condition, dim)) @ turn.T

    def fun(points):
        away = points - 1.0
        return 0.5 * np.sum((away @ hessian) * away, axis=-1)

    return fun, hessian


def until_hessian(fun, x0, *, bounds=None, solver=None):
    """Run up to the batch of second differences; return the solver, the state and the batch."""
    solver = QuasiNewton() if solver is None else solver
    state = solver.init(x0, rng=0, bounds=bounds)
    for _ in range(60):
        rows = solver.ask(state)
        if state.inner.phase == DescentPhase.HESSIAN:
            return solver, state, rows
        solver.tell(state, rows, fun(rows))
    raise AssertionError("no second differences")


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_the_basis_whitens_the_hessian(dim):
    fun, hessian = quadratic(dim, condition=1e2)
    solver, state, rows = until_hessian(fun, np.full(dim, -2.0))
    assert rows.shape == (second_differences.n_rows(dim), dim)
    spent = state.inner.n_spent
    assert spent >= second_differences.n_rows(dim)
    solver.tell(state, rows, fun(rows))
    basis = state.inner.basis
    # Rounding changes the curvatures by some 1e-16 f / h^2 = 1e-7 of the largest, which is 100
    # times the least one.
    np.testing.assert_allclose(basis.T @ hessian @ basis, np.eye(dim), atol=1e-3)
    np.testing.assert_allclose(
        state.inner.slopes, basis.T @ hessian @ (state.x - 1.0), rtol=1e-3, atol=1e-3
    )
    assert state.inner.phase == DescentPhase.SEARCH
    step = solver.ask(state)[0]
    assert fun(step) < 1e-5 * fun(state.x)  # Newton's step


def test_a_negative_curvature_leads_away_from_the_saddle():
    turn = second_differences._whitening(np.diag([4.0, -0.25]), 0.0)
    np.testing.assert_allclose(turn @ turn.T, np.diag([1 / 4, 4.0]), atol=1e-12)


def test_small_curvatures_count_as_their_error():
    turn = second_differences._whitening(np.diag([4.0, 1e-9]), 0.01)
    np.testing.assert_allclose(turn @ turn.T, np.diag([1 / 4, 100.0]), atol=1e-12)
    turn = second_differences._whitening(np.diag([4.0, 0.0]), 0.0)
    least = 4.0 * second_differences.MIN_CURVATURE
    np.testing.assert_allclose(turn @ turn.T, np.diag([1 / 4, 1 / least]), rtol=1e-9)


@pytest.mark.parametrize("hessian", [np.zeros((2, 2)), np.full((2, 2), np.nan)])
def test_no_curvature_changes_nothing(hessian):
    np.testing.assert_array_equal(second_differences._whitening(hessian, 0.0), np.eye(2))


@pytest.mark.parametrize("failure", [np.nan, np.inf])
def test_a_failure_changes_nothing(failure):
    fun, _ = quadratic(4)
    solver, state, rows = until_hessian(fun, np.full(4, -2.0))
    basis, slopes = state.inner.basis.copy(), state.inner.slopes.copy()
    values = fun(rows)
    values[3] = failure
    solver.tell(state, rows, values)
    np.testing.assert_array_equal(state.inner.basis, basis)
    np.testing.assert_array_equal(state.inner.slopes, slopes)
    assert state.inner.phase == DescentPhase.SEARCH


def test_coordinates_at_a_bound_are_left_out():
    rest, hessian = quadratic(3, condition=1e2, seed=1)

    def fun(points):
        return rest(points[:, [0, 2, 3]]) - 50 * points[:, 1]

    bounds = (np.full(4, -10.0), np.array([np.inf, 0.5, np.inf, np.inf]))
    solver, state, rows = until_hessian(fun, np.array([-2.0, 0.4, -2.0, -2.0]), bounds=bounds)
    np.testing.assert_array_equal(rows[:, 1], 0.5)
    assert rows.shape == (second_differences.n_rows(3), 4)
    slope = state.inner.slopes[0]
    solver.tell(state, rows, fun(rows))
    free = state.inner.basis[[0, 2, 3], 1:]
    np.testing.assert_allclose(free.T @ hessian @ free, np.eye(3), atol=1e-3)
    np.testing.assert_array_equal(state.inner.basis[1, 1:], 0)
    assert state.inner.slopes[0] == slope


@pytest.mark.parametrize("dim", [1, 2])
def test_nothing_is_measured_if_every_coordinate_is_at_a_bound(dim):
    def fun(points):  # slopes stay large at the corner
        return np.sum(np.exp(points), axis=-1)

    result = minimize(
        fun, np.full(dim, 0.5), "quasi_newton", bounds=[(0.0, 1.0)] * dim, maxfev=300, rng=0,
        vectorized=True,
    )  # fmt: skip
    np.testing.assert_array_equal(result.x, np.zeros(dim))


def test_steady_distances_stay():
    fun, _ = quadratic(3)
    with pytest.raises(AssertionError, match="no second differences"):
        until_hessian(fun, np.full(3, -2.0), solver=QuasiNewton(smoothing=1e-3))


def test_noise_stays_with_gradients():
    noise = np.random.default_rng(0)
    fun, _ = quadratic(3)

    def noisy(points):
        return fun(points) + 0.1 * noise.standard_normal(len(points))

    with pytest.raises(AssertionError, match="no second differences"):
        until_hessian(noisy, np.full(3, -2.0))


def test_a_rotated_ellipsoid_takes_one_hessian():
    # 2 n + 2 evaluations of the start, as many for gradients as the Hessian costs, and that.
    for dim in (5, 10, 20):
        fun, _ = quadratic(dim, condition=1e5)
        n_rows = second_differences.n_rows(dim)
        result = minimize(
            fun,
            np.full(dim, -2.0),
            "quasi_newton",
            maxfev=4 * n_rows,
            target=1e-8,
            rng=0,
            vectorized=True,
        )
        assert result.success, dim


@pytest.mark.parametrize("bits", [32, 64])
def test_torch_tensors_and_single_precision(bits):
    torch = pytest.importorskip("torch")
    _, hessian = quadratic(5, condition=1e2)
    hessian = torch.tensor(hessian)

    def fun(points):
        away = points.double() - 1.0
        return 0.5 * ((away @ hessian) * away).sum(dim=1)

    x0 = torch.full((5,), -2.0, dtype=getattr(torch, f"float{bits}"))
    solver, state, rows = until_hessian(fun, x0)
    solver.tell(state, rows, fun(rows))
    assert state.inner.basis.dtype == x0.dtype
    basis = state.inner.basis.double()
    # In float32 the distance is some 0.05, and the rounding of points changes the curvatures by
    # some 1e-4 of the largest one, which is 100 times the least: 0.04 in the worst of six seeds.
    atol = 1e-3 if bits == 64 else 0.2
    assert float((basis.T @ hessian @ basis - torch.eye(5)).abs().max()) < atol
