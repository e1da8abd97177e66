"""The model of a trust region against dense linear algebra."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas.solvers.engines.interpolation import Model

seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, derandomize=True, max_examples=25)


def random_model(rng, dim, m, damping=0.0):
    """A model of m random points in random axes, and its last Hessian."""
    last = rng.standard_normal((dim, dim))
    last = last + last.T
    model = Model(
        base=np.zeros(dim),
        axes=np.eye(dim),
        rows=rng.standard_normal((m, dim)),
        values=rng.standard_normal(m),
        hessian=np.zeros((dim, dim)),
        damping=damping,
        centre=int(rng.integers(m)),
    )
    model.rebuild(np.eye(dim) + 0.1 * rng.standard_normal((dim, dim)), last, m, math.inf)
    return model, last


def monomials(points):
    """The values (m, 1 + dim + dim²) of 1, y_i and y_i y_j / 2 at points, one row for each."""
    m, dim = points.shape
    products = 0.5 * points[:, :, None] * points[:, None, :]
    return np.hstack([np.ones((m, 1)), points, products.reshape(m, dim * dim)])


def coefficients(model):
    return np.concatenate([[model.constant], model.gradient, model.hessian.ravel()])


def least_change(points, values, last):
    """The interpolating quadratic whose Hessian is nearest to ``last``, by a dense KKT system."""
    dim = points.shape[1]
    rows = monomials(points)
    m, n = rows.shape
    weights = np.r_[np.zeros(1 + dim), np.ones(dim * dim)]
    kkt = np.block([[np.diag(weights), rows.T], [rows, np.zeros((m, m))]])
    target = np.r_[np.zeros(1 + dim), last.ravel()]
    return np.linalg.lstsq(kkt, np.r_[target, values], rcond=None)[0][:n]


def ridge(points, values, damping):
    """The minimum of |f - q|²/μ + |H|²/2, by the normal equations."""
    rows = monomials(points)
    dim = points.shape[1]
    weights = np.r_[np.zeros(1 + dim), np.full(dim * dim, damping / 2)]
    return np.linalg.solve(rows.T @ rows + np.diag(weights), rows.T @ values)


@quick
@given(seed=seeds, dim=st.integers(1, 4), data=st.data())
def test_the_model_interpolates_with_the_least_change_of_the_hessian(seed, dim, data):
    most = (dim + 1) * (dim + 2) // 2
    m = data.draw(st.integers(dim + 2, most))
    model, last = random_model(np.random.default_rng(seed), dim, m)
    np.testing.assert_allclose(model.fitted(), model.values, atol=1e-6)
    expected = least_change(model.points, model.values - model.level, last)
    np.testing.assert_allclose(coefficients(model), expected, atol=1e-5)


@quick
@given(seed=seeds, dim=st.integers(1, 4))
def test_an_added_and_a_replaced_point_change_the_model_as_a_new_one_would(seed, dim):
    rng = np.random.default_rng(seed)
    model, _ = random_model(rng, dim, dim + 2)
    for k in range(6):
        last, y = model.hessian.copy(), rng.standard_normal(dim)
        place = model.place(y)
        row = model.base + model.axes @ y
        if k < 3 and len(model.values) < (dim + 1) * (dim + 2) // 2:
            assert model.append(row, float(k), place)
        else:
            t = int(np.argmax(np.abs(model.pivots(place))))
            assert model.replace(t, row, float(k), place)
        expected = least_change(model.points, model.values - model.level, last)
        np.testing.assert_allclose(model.fitted(), model.values, atol=1e-5)
        np.testing.assert_allclose(coefficients(model), expected, atol=1e-4)
        np.testing.assert_allclose(model.rows, model.base + model.points @ model.axes.T, atol=1e-12)


@quick
@given(seed=seeds, dim=st.integers(1, 4), n_more=st.integers(-1, 5))
def test_with_noise_the_model_is_a_ridge_regression(seed, dim, n_more):
    rng = np.random.default_rng(seed)
    m = (dim + 1) * (dim + 2) // 2 + n_more
    model, _ = random_model(rng, dim, m, damping=0.3)
    expected = ridge(model.points, model.values - model.level, 0.3)
    np.testing.assert_allclose(coefficients(model), expected, atol=1e-8)
    y = rng.standard_normal(dim)
    assert model.append(model.base + model.axes @ y, 1.0, model.place(y))
    expected = ridge(model.points, model.values - model.level, 0.3)
    np.testing.assert_allclose(coefficients(model), expected, atol=1e-8)


@quick
@given(seed=seeds, dim=st.integers(1, 5))
def test_lagrange_functions_are_1_at_their_point_and_0_at_the_others(seed, dim):
    model, _ = random_model(np.random.default_rng(seed), dim, 2 * dim + 1)
    for t in range(2 * dim + 1):
        constant, gradient, hessian = model.lagrange(t)
        y = model.points
        values = constant + y @ gradient + 0.5 * np.einsum("ij,jk,ik->i", y, hessian, y)
        np.testing.assert_allclose(values, np.arange(2 * dim + 1) == t, atol=1e-6)
        place = model.place(y[t])
        np.testing.assert_allclose(place.column[1 + dim :], np.arange(2 * dim + 1) == t, atol=1e-6)


def test_a_pivot_is_the_factor_of_the_determinant():
    rng = np.random.default_rng(0)
    model, _ = random_model(rng, 3, 7)
    y = rng.standard_normal(3)
    sigmas = model.pivots(model.place(y))
    before = np.linalg.slogdet(model.inverse)[1]
    other, _ = random_model(np.random.default_rng(0), 3, 7)
    other.rows[4] = other.base + other.axes @ y
    base, axes, centre = other.base, other.axes, other.centre
    assert centre != 4
    other.rebuild(axes, np.zeros((3, 3)), 7, math.inf)
    np.testing.assert_array_equal(other.base, base)
    after = np.linalg.slogdet(other.inverse)[1]
    assert math.log(abs(sigmas[4])) == pytest.approx(before - after, abs=1e-8)


def test_a_point_that_depends_on_the_others_is_not_added():
    model, _ = random_model(np.random.default_rng(0), 2, 6)  # as many as coefficients
    y = np.array([0.3, 0.4])
    assert not model.append(model.base + model.axes @ y, 1.0, model.place(y))
    assert len(model.values) == 6


def test_a_point_of_a_singular_model_is_not_replaced():
    model, _ = random_model(np.random.default_rng(0), 2, 5)
    model.inverse[:] = 0.0
    y = np.zeros(2)
    before = model.rows.copy()
    place = model.place(y)._replace(beta=0.0)
    assert not model.replace(1, model.base, 1.0, place)
    np.testing.assert_array_equal(model.rows, before)


def test_a_rebuilt_model_drops_far_points_and_keeps_the_best():
    rng = np.random.default_rng(1)
    model, _ = random_model(rng, 2, 6)
    best = model.rows[model.centre].copy()
    far = (model.centre + 1) % 6
    model.rows[far] += 1000.0
    model.rebuild(model.axes, model.hessian, 5, 100.0)
    assert len(model.values) == 5
    np.testing.assert_array_equal(model.rows[model.centre], best)
    np.testing.assert_allclose(model.fitted(), model.values, atol=1e-8)


@quick
@given(seed=seeds, dim=st.integers(1, 4), exponent=st.integers(-3, 3))
def test_a_rescaled_model_is_the_same_in_another_unit(seed, dim, exponent):
    rng = np.random.default_rng(seed)
    model, _ = random_model(rng, dim, dim + 2)
    x = rng.standard_normal((5, dim))
    before = [model.predict(y) for y in model.to_points(x)]
    axes, inverse, unit = model.axes.copy(), model.inverse.copy(), 2.0**exponent
    model.rescale(unit)
    np.testing.assert_array_equal(model.axes, unit * axes)
    assert model.longest == np.abs(model.axes).max()
    np.testing.assert_allclose(model.base + model.points @ model.axes.T, model.rows, atol=1e-9)
    np.testing.assert_allclose([model.predict(y) for y in model.to_points(x)], before, rtol=1e-9)
    # The inverse is the one of the matrix of the new points.
    m, y = len(model.points), model.points
    p = np.hstack([np.ones((m, 1)), y])
    matrix = np.block([[np.zeros((1 + dim, 1 + dim)), p.T], [p, 0.5 * (y @ y.T) ** 2]])
    error, size = model.inverse @ matrix - np.eye(len(matrix)), np.abs(inverse).max()
    assert np.abs(error).max() <= 1e-9 * size * unit**4 + 1e-9 * size / unit**4
    # Nothing is rounded.
    model.rescale(1 / unit)
    np.testing.assert_array_equal(model.inverse, inverse)


def test_an_inexact_inverse_corrects_errors_of_the_model():
    rng = np.random.default_rng(0)
    model, _ = random_model(rng, 3, 8)
    model.gradient += 0.01 * rng.standard_normal(3)
    model.inverse *= 1 + 1e-4 * rng.standard_normal(model.inverse.shape)
    assert not model.correct(1e-6, 0)
    assert model.correct(1e-6, 3)
    spread = np.ptp(model.values)
    assert np.abs(model.fitted() - model.values).max() <= 1e-6 * spread


def test_a_useless_inverse_does_not_correct_the_model():
    model, _ = random_model(np.random.default_rng(0), 3, 8)
    model.gradient += 0.01
    model.inverse[:] = 0.0
    assert not model.correct(1e-6, 3)
