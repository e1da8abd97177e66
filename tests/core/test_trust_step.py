"""The step of a trust region against dense linear algebra and SciPy."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, NonlinearConstraint, brentq
from scipy.optimize import minimize as scipy_minimize

from zoopt_nas.solvers.engines.trust_step import Region, ball_step, largest_change, region_step

seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, derandomize=True, max_examples=25)


def random_quadratic(rng, dim, is_convex):
    hessian = rng.standard_normal((dim, dim)) * 10 ** rng.uniform(-2, 2)
    hessian = hessian @ hessian.T if is_convex else hessian + hessian.T
    return rng.standard_normal(dim) * 10 ** rng.uniform(-3, 2), hessian


@quick
@given(seed=seeds, dim=st.integers(1, 8), is_convex=st.booleans(), is_hard=st.booleans())
def test_a_step_in_a_ball_satisfies_the_conditions_of_a_global_minimum(
    seed, dim, is_convex, is_hard
):
    rng = np.random.default_rng(seed)
    gradient, hessian = random_quadratic(rng, dim, is_convex)
    if is_hard:  # no slope along the least eigenvalue
        least = np.linalg.eigh(hessian)[1][:, 0]
        gradient = gradient - (least @ gradient) * least
    radius = 10 ** rng.uniform(-2, 2)
    d, multiplier = ball_step(gradient, hessian, radius)
    size = np.linalg.norm(d)
    scale = np.abs(hessian).max() * radius + np.abs(gradient).max()
    assert size <= radius * (1 + 1e-9)
    assert multiplier >= 0
    # Moré and Sorensen: these conditions are sufficient. The length has an error of 1e-3.
    assert multiplier == 0 or size >= radius * (1 - 2e-3)
    residual = (hessian + multiplier * np.eye(dim)) @ d + gradient
    assert np.abs(residual).max() <= 3e-3 * scale
    assert np.linalg.eigvalsh(hessian)[0] + multiplier >= -1e-9 * scale / radius


def sphere_step(gradient, hessian, radius):
    """The minimum on the sphere by bisection, if no eigenvector of H is orthogonal to g."""
    curvatures, vectors = np.linalg.eigh(hessian)
    slopes = vectors.T @ gradient
    low, size = max(0.0, -curvatures[0]), np.linalg.norm(gradient)

    def excess(shift):
        return 1 / radius - 1 / np.linalg.norm(slopes / (curvatures + low + shift))

    # At the first end the step is longer than the radius, because of its first component alone or,
    # for a shift of 0, because the minimum is outside.
    first = max(0.5 * abs(slopes[0]) / radius - (curvatures[0] + low), 0.0)
    shift = brentq(excess, first, size / radius * (1 + 1e-9), xtol=1e-300, rtol=1e-14)
    return -vectors @ (slopes / (curvatures + low + shift)), low + shift


@quick
@given(seed=seeds, dim=st.integers(1, 8), is_convex=st.booleans())
def test_a_step_to_the_sphere_is_that_of_bisection(seed, dim, is_convex):
    rng = np.random.default_rng(seed)
    gradient, hessian = random_quadratic(rng, dim, is_convex)
    radius = 10 ** rng.uniform(-2, 0)
    if is_convex:  # shorter than the step to the minimum
        radius *= np.linalg.norm(np.linalg.solve(hessian, gradient))
    d, multiplier = ball_step(gradient, hessian, radius)
    if multiplier == 0:
        np.testing.assert_allclose(hessian @ d, -gradient, atol=1e-9 * np.abs(gradient).max())
        return
    expected, expected_multiplier = sphere_step(gradient, hessian, radius)
    value, least = (v @ (gradient + 0.5 * (hessian @ v)) for v in (d, expected))
    # The length of a step has a relative error of 1e-3.
    assert value <= least + 4e-3 * abs(least)
    scale = np.abs(hessian).max() + np.abs(gradient).max() / radius
    assert abs(multiplier - expected_multiplier) <= 1e-2 * scale


def test_a_step_along_a_flat_direction():
    hessian = np.diag([2.0, 0.0, 1.0])
    # Without a slope along it, the minimum is inside of a large ball.
    d, multiplier = ball_step(np.array([-2.0, 0.0, 3.0]), hessian, radius=10.0)
    np.testing.assert_allclose(d, [1, 0, -3], atol=1e-12)
    assert multiplier == 0
    # With one, the step goes to the surface; it solves (2 + λ, λ, 1 + λ) d = (0, 1, 0).
    d, multiplier = ball_step(np.array([0.0, -1.0, 0.0]), hessian, radius=10.0)
    np.testing.assert_allclose(d, [0, 10, 0], rtol=2e-3, atol=1e-12)
    assert multiplier == pytest.approx(0.1, rel=2e-3)


def test_a_step_without_a_slope():
    d, multiplier = ball_step(np.zeros(2), np.diag([1.0, 2.0]), radius=1.0)
    np.testing.assert_array_equal(d, [0, 0])
    assert multiplier == 0
    d, multiplier = ball_step(np.zeros(2), np.diag([1.0, -2.0]), radius=3.0)
    np.testing.assert_allclose(np.abs(d), [0, 3])
    assert multiplier == pytest.approx(2)
    d, _ = ball_step(np.zeros(2), np.zeros((2, 2)), radius=1.0)
    np.testing.assert_array_equal(d, [0, 0])


@pytest.mark.parametrize("slope", [1e-17, 1e-30, 1e-300])
def test_a_slope_lost_in_the_rounding_of_the_curvature_still_gives_the_way(slope):
    d, multiplier = ball_step(np.array([slope, 0.0]), np.diag([-1.0, 1.0]), radius=1.0)
    np.testing.assert_allclose(d, [-1, 0], atol=1e-12)
    assert multiplier == pytest.approx(1)


@quick
@given(
    exponents=st.lists(st.integers(-280, 280), min_size=4, max_size=4),
    signs=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=4, max_size=4),
    radius=st.sampled_from([1e-12, 1.0, 1e6]),
)
def test_a_step_in_a_ball_is_finite_and_descends_at_any_scale(exponents, signs, radius):
    gradient, curvatures = (
        np.array([s * 10.0 ** (e / 4) for s, e in zip(signs[k::2], exponents[k::2], strict=True)])
        for k in (0, 1)
    )
    d, _ = ball_step(gradient, np.diag(curvatures), radius)
    assert np.linalg.norm(d) <= radius * (1 + 1e-9)
    assert gradient @ d + 0.5 * d @ (curvatures * d) <= 0


@quick
@given(seed=seeds, dim=st.integers(1, 5))
def test_a_step_in_a_ball_and_a_box_is_as_good_as_that_of_scipy(seed, dim):
    rng = np.random.default_rng(seed)
    gradient, hessian = random_quadratic(rng, dim, is_convex=True)
    axes = np.eye(dim) + 0.3 * rng.standard_normal((dim, dim))
    radius = 1.0
    lower = -rng.uniform(0, 1, dim) * rng.integers(0, 2, dim)
    upper = rng.uniform(0, 1, dim)
    d = region_step(gradient, hessian, Region(radius, axes, lower, upper))
    s = axes @ d
    assert np.linalg.norm(d) <= radius * (1 + 1e-9)
    assert ((lower - 1e-9 <= s) & (s <= upper + 1e-9)).all()

    def value(d):
        return gradient @ d + 0.5 * d @ hessian @ d

    inverse = np.linalg.inv(axes)
    with warnings.catch_warnings():  # old versions of SLSQP step out of the bounds, and say so
        warnings.simplefilter("ignore", RuntimeWarning)
        found = scipy_minimize(
            lambda s: value(inverse @ s),
            (lower + upper) / 4,
            jac=lambda s: inverse.T @ (gradient + hessian @ inverse @ s),
            method="SLSQP",
            bounds=Bounds(lower, upper),
            constraints=[
                NonlinearConstraint(lambda s: radius**2 - np.sum((inverse @ s) ** 2), 0, 1)
            ],
            options={"ftol": 1e-12, "maxiter": 500},
        )
    inside = np.linalg.norm(inverse @ found.x) <= radius * (1 + 1e-6)
    if inside:  # SLSQP may end outside
        # The length of a step has a relative error of 1e-3.
        assert value(d) <= found.fun + 4e-3 * abs(found.fun) + 1e-12


@quick
@given(seed=seeds, dim=st.integers(1, 3))
def test_a_step_in_a_box_with_an_indefinite_model_beats_the_axes(seed, dim):
    rng = np.random.default_rng(seed)
    gradient, hessian = random_quadratic(rng, dim, is_convex=False)
    lower, upper = -rng.uniform(0, 1, dim), rng.uniform(0, 1, dim)
    region = Region(1.0, np.eye(dim), lower, upper)
    d = region_step(gradient, hessian, region)
    assert ((lower <= d) & (d <= upper)).all()
    assert gradient @ d + 0.5 * d @ hessian @ d <= 0
    change = largest_change(gradient, hessian, region)
    assert ((lower <= change) & (change <= upper)).all()
    assert np.linalg.norm(change) <= 1 + 1e-9


@quick
@given(seed=seeds, dim=st.integers(1, 8), exponent=st.integers(-3, 3))
def test_a_large_change_is_at_least_half_of_the_largest(seed, dim, exponent):
    rng = np.random.default_rng(seed)
    gradient, hessian = random_quadratic(rng, dim, is_convex=False)
    radius = 10.0**exponent
    d = largest_change(gradient, hessian, Region(radius, np.eye(dim), None, None))
    assert np.linalg.norm(d) == pytest.approx(radius)
    change = abs(gradient @ d + 0.5 * d @ hessian @ d)
    # No change in the ball exceeds the sum of these two.
    linear = np.linalg.norm(gradient) * radius
    quadratic = 0.5 * np.abs(np.linalg.eigvalsh(hessian)).max() * radius**2
    # The points on the circle are 2 π / 32 apart, so one is near the gradient.
    assert change >= max(math.cos(math.pi / 32) * linear, quadratic) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("gradient", "curvatures"), [([0.0, 0.0], [0.0, 0.0]), ([1.0, 0.0], [0.0, 0.0])]
)
def test_the_largest_change_of_a_quadratic_without_curvature(gradient, curvatures):
    d = largest_change(np.array(gradient), np.diag(curvatures), Region(2.0, np.eye(2), None, None))
    assert np.linalg.norm(d) == pytest.approx(2)
    assert abs(d @ gradient) == pytest.approx(2 * gradient[0], rel=0.01)


def test_the_largest_change_of_an_overflow_is_an_error():
    region = Region(1.0, np.eye(2), None, None)
    with pytest.raises(np.linalg.LinAlgError), np.errstate(invalid="ignore"):
        largest_change(np.array([math.inf, 1.0]), np.eye(2), region)


def test_the_largest_change_in_a_ball_is_the_larger_of_both_extremes():
    gradient, hessian = np.array([0.1, 0.0]), np.diag([1.0, -4.0])
    d = largest_change(gradient, hessian, Region(2.0, np.eye(2), None, None))
    assert gradient @ d + 0.5 * d @ hessian @ d < -7.9  # the maximum is 2.2
