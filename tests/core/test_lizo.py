"""LIZO: the interpolation, what is reused, and an objective that drifts."""

import numpy as np
import pytest

from zoopt_nas import LIZO, InvalidValueError
from zoopt_nas.solvers.lizo import LIZOState

B = np.array([1.0, -2.0, 0.5, 3.0, -1.0])


def quadratic(points):
    return points @ B + (np.arange(1.0, 6.0) * points**2).sum(-1)


def steps(solver, fun, n_steps, x0=None):
    state = solver.init(np.zeros(5) if x0 is None else x0, rng=0)
    for step in range(n_steps):
        candidates = solver.ask(state)
        solver.tell(state, candidates, fun(candidates, step))
    return state


def test_a_linear_objective_gives_its_gradient_exactly():
    state = steps(LIZO(learning_rate=0.1, n_samples=5), lambda points, _: points @ B, 1)
    np.testing.assert_allclose(state.x, -0.1 * B, rtol=1e-9)


def test_fewer_points_than_dim_give_the_shortest_solution():
    solver = LIZO(learning_rate=1.0, n_samples=3)
    state = solver.init(np.zeros(5), rng=0)
    candidates = solver.ask(state)
    solver.tell(state, candidates, candidates @ B)
    rows = candidates[1:] - candidates[0]
    expected = np.linalg.lstsq(rows, rows @ B, rcond=None)[0]
    np.testing.assert_allclose(state.x, -expected, rtol=1e-9)


def test_reused_queries_take_the_place_of_new_ones():
    solver = LIZO(learning_rate=0.1, n_samples=5, reuse_radius=1e3, max_queries=10)
    state = solver.init(np.zeros(5), rng=0)
    sizes = []
    for _ in range(3):
        before = state.x
        candidates = solver.ask(state)
        sizes.append(len(candidates))
        solver.tell(state, candidates, candidates @ B)
        np.testing.assert_allclose(state.x - before, -0.1 * B, rtol=1e-8)  # still exact
    assert sizes == [6, 4, 4]  # x, and at least half of the points new


def test_new_points_are_orthogonal_to_reused_ones():
    solver = LIZO(learning_rate=1e-6, n_samples=4, reuse_radius=1.0, max_queries=2)
    state = solver.init(np.zeros(5), rng=0)
    for _ in range(2):
        candidates = solver.ask(state)
        if len(state.inner.displacements) == 0:
            solver.tell(state, candidates, quadratic(candidates))
    assert len(candidates) == 3
    rows = candidates[1:] - candidates[0]
    np.testing.assert_allclose(rows @ state.inner.reused.T, 0, atol=1e-12)


def test_radius_zero_reuses_nothing():
    state = steps(LIZO(learning_rate=0.1, n_samples=4, reuse_radius=0), drifting, 3)
    assert len(state.inner.displacements) == 0


def test_a_batch_of_failures_moves_nothing_and_is_not_reused():
    solver = LIZO(learning_rate=0.01, n_samples=4, reuse_radius=50.0)
    state = steps(solver, drifting, 3)
    x = state.x.copy()
    for values in (np.full(9, np.nan), [np.inf, *np.arange(8.0)], [0.0, *[np.nan] * 8]):
        candidates = solver.ask(state)
        solver.tell(state, candidates, values[: len(candidates)])
        np.testing.assert_array_equal(state.x, x)
        assert float(state.metrics["gradient_norm"]) == 0
    candidates = solver.ask(state)
    assert np.all(np.linalg.norm(state.inner.reused, axis=1) > 0)
    solver.tell(state, candidates, drifting(candidates, 9))
    assert np.all(np.isfinite(state.x))
    assert np.any(state.x != x)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_queries_are_reused_alike_in_numpy_and_torch(dtype):
    torch = pytest.importorskip("torch")
    solver = LIZO(smoothing=0.06, n_samples=5, reuse_radius=50.0)
    points = np.random.default_rng(0).standard_normal((6, 5)).astype(dtype)
    travelled = np.arange(6, dtype=np.promote_types(dtype, "f4"))
    expected = solver._reusable(LIZOState(points, np.zeros(6), travelled), 2)
    assert expected == [3, 2]  # the youngest that have gone at most 50 * 0.06
    held = LIZOState(*map(torch.from_numpy, (points, np.zeros(6), travelled)))
    assert solver._reusable(held, 2) == expected


def drifting(points, step):
    """Each batch at its own level."""
    return quadratic(points) + 1000.0 * step


def test_a_drifting_level_changes_nothing():
    solver = LIZO(learning_rate=0.01, n_samples=4, reuse_radius=50.0)
    drifted = steps(solver, drifting, 20)
    still = steps(solver, lambda points, _: quadratic(points), 20)
    np.testing.assert_allclose(drifted.x, still.x, atol=1e-6)
    assert drifted.metrics["n_reused"] > 0


def test_the_queries_kept_are_bounded():
    solver = LIZO(max_queries=7)
    state = solver.init(np.full(4, 2.0), rng=0)
    for _ in range(20):
        candidates = solver.ask(state)
        solver.tell(state, candidates, (candidates**2).sum(-1))
        assert len(state.inner.displacements) <= 7
    assert solver.capacity(10**6) == 0
    assert LIZO().capacity(10) == 20


@pytest.mark.parametrize(
    ("field", "value"), [("learning_rate", 0), ("reuse_radius", -1), ("max_queries", 0)]
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(InvalidValueError, match=f"^{field} must be"):
        LIZO(**{field: value})
