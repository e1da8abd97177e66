"""Probes and steps of a descent inside bounds, against independent solutions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas import QuasiNewton, minimize
from zoopt_nas.solvers.engines import box_steps

seeds = st.integers(0, 10**6)


def a_state(rng, dim, basis=None):
    """A run in a box, with a basis of its own."""
    lower = rng.uniform(-2, 0, dim)
    upper = lower + rng.uniform(0.1, 3, dim)
    x = lower + rng.choice([0.0, 0.3, 1.0], dim) * (upper - lower)
    state = QuasiNewton().init(np.clip(x, lower, upper), rng=0, bounds=(lower, upper))
    state.inner.basis = rng.standard_normal((dim, dim)) if basis is None else basis
    return state


def best_in_the_box(x, gradient, hessian, lower, upper):
    """The least value of the model in the box: the best over all sets of fixed coordinates."""
    best = 0.0
    for fixed in itertools.product((None, "lower", "upper"), repeat=len(x)):
        step = np.zeros(len(x))
        free = np.array([side is None for side in fixed])
        for k, side in enumerate(fixed):
            if side is not None:
                step[k] = (lower if side == "lower" else upper)[k] - x[k]
        if free.any():
            pull = gradient + hessian @ step
            step[free] = np.linalg.solve(hessian[np.ix_(free, free)], -pull[free])
        if np.all(x + step >= lower - 1e-12) and np.all(x + step <= upper + 1e-12):
            best = min(best, gradient @ step + step @ hessian @ step / 2)
    return best


@settings(deadline=None, derandomize=True, max_examples=100)
@given(seed=seeds, dim=st.integers(1, 4))
def test_a_separable_model_is_minimized_exactly(seed, dim):
    rng = np.random.default_rng(seed)
    state = a_state(rng, dim, np.diag(10 ** rng.uniform(-2, 2, dim)))
    slopes = rng.standard_normal(dim) * 3
    step = box_steps.box_step(state, slopes)
    widths = np.diag(state.inner.basis)
    expected = np.clip(state.x - widths * slopes, state.lower, state.upper) - state.x
    np.testing.assert_allclose(step.direction, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.inner.basis @ step.in_basis, step.direction, atol=1e-9)
    np.testing.assert_allclose(step.promised, -(slopes / widths) @ expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(seed=seeds, dim=st.integers(1, 4))
def test_a_step_goes_to_the_minimum_of_the_model_in_the_box(seed, dim):
    rng = np.random.default_rng(seed)
    state = a_state(rng, dim)
    slopes = rng.standard_normal(dim) * 3
    inverse = np.linalg.inv(state.inner.basis)
    gradient, hessian = inverse.T @ slopes, inverse.T @ inverse
    best = best_in_the_box(state.x, gradient, hessian, state.lower, state.upper)
    d, in_basis, promised = box_steps.box_step(state, slopes)
    end = state.x + d
    assert np.all((state.lower - 1e-12 <= end) & (end <= state.upper + 1e-12))
    rounding = 1e-9 * (1 + np.linalg.cond(hessian))
    assert gradient @ d + d @ hessian @ d / 2 <= best + rounding * (1 + abs(best))
    np.testing.assert_allclose(promised, -gradient @ d, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.inner.basis @ in_basis, d, atol=rounding)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(seed=seeds, dim=st.integers(1, 5), central=st.booleans())
def test_slopes_of_a_quadratic_are_exact_near_bounds(seed, dim, central):
    """Whatever is near: the probes stay inside, and the gradient comes out of the model."""
    from zoopt_nas.solvers.engines.differences import basis_slopes, probe_basis

    rng = np.random.default_rng(seed)
    state = a_state(rng, dim)
    basis = np.array(state.inner.basis)
    inverse = np.linalg.inv(basis)
    hessian, gradient = inverse.T @ inverse, rng.standard_normal(dim)

    def fun(points):
        ways = points - state.x
        return ways @ gradient + np.einsum("ij,jk,ik->i", ways, hessian, ways) / 2

    state.inner.is_central, state.inner.smoothing, state.value = central, 0.05, 0.0
    rows = probe_basis(state, None)
    assert np.all((state.lower <= rows) & (rows <= state.upper))
    state.pending = rows
    slopes = basis_slopes(state, rows, fun(rows))
    scale = np.abs(basis).max() * (1 + np.linalg.cond(basis))
    turned = state.inner.basis
    np.testing.assert_allclose(turned @ turned.T, basis @ basis.T, atol=1e-9 * scale**2)
    np.testing.assert_allclose(slopes, turned.T @ gradient, atol=1e-6 * scale)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(seed=seeds, dim=st.integers(1, 5))
def test_paired_offsets_stay_inside_and_differ(seed, dim):
    rng = np.random.default_rng(seed)
    state = a_state(rng, dim)
    steps = rng.choice([-1, 1], dim) * 10 ** rng.uniform(-2, 1, dim)
    ahead, behind = box_steps.paired_offsets(state, state.x, steps)
    for way in (ahead, behind):
        end = state.x + way
        assert np.all((state.lower - 1e-12 <= end) & (end <= state.upper + 1e-12))
        assert np.all(way != 0)
    assert np.all(np.abs(ahead - behind) >= 0.49 * np.abs(ahead))


@pytest.mark.parametrize("start", [0.5, 0.0, 1.0, 0.25])
@pytest.mark.parametrize("width", [1e-6, 1.0, 1e6])
def test_a_quadratic_in_a_box_takes_two_steps(start, width):
    """Whether the box is as wide as a first step or not: 2 n + 2 evaluations, and one or two."""
    dim = 6
    optimum = np.array([0.2, 0.9, 0.5, -0.3, 1.2, 0.7])  # two of them outside
    weights = np.arange(1.0, dim + 1)

    def fun(x):
        return float((weights * (x / width - optimum) ** 2).sum())

    best = fun(np.clip(optimum, 0, 1) * width)
    result = minimize(
        fun,
        np.full(dim, start * width),
        "quasi_newton",
        bounds=[(0, width)] * dim,
        maxfev=2 * dim + 4,
        rng=0,
    )
    assert result.fun - best < 1e-12


def test_a_coordinate_that_cannot_move_costs_nothing():
    seen = []
    bounds = [(0.0, 1.0), (0.5, 0.5), (0.0, 1.0)]
    minimize(
        lambda x: seen.append(x) or float(((x - 0.3) ** 2).sum()),
        [0.9, 0.5, 0.1],
        "quasi_newton",
        bounds=bounds,
        maxfev=7,
        rng=0,
    )
    # The start, two pairs and the start again, then the step to the minimum.
    np.testing.assert_allclose(seen[6], [0.3, 0.5, 0.3], atol=1e-12)


def test_where_no_coordinate_can_move_the_start_is_the_answer():
    for method in ("quasi_newton", "auto"):
        result = minimize(
            lambda x: float(x @ x), [1.0, 2.0], method, bounds=[(1, 1), (2, 2)], maxfev=30, rng=0
        )
        assert result.fun == 5.0
        assert result.nfev == 30
