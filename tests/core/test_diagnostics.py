"""Diagnostics against hand-computed values."""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoopt_nas import InvalidValueError, sampling
from zoopt_nas.diagnostics import (
    condition_numbers,
    effective_sample_ratio,
    effective_sample_size,
    estimator_error,
)


@pytest.mark.parametrize(
    ("weights", "size"),
    [([0.25] * 4, 4.0), ([1.0, 0.0, 0.0], 1.0), ([0.5, 0.5, 0.0], 2.0), ([3.0, 1.0], 1.6)],
)
def test_effective_sample_size(weights, size):
    assert effective_sample_size(weights) == pytest.approx(size)
    assert effective_sample_ratio(weights) == pytest.approx(size / len(weights))
    assert effective_sample_size(1e-200 * np.array(weights)) == pytest.approx(size)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -0.5], [math.nan, 1.0], [[1.0]]])
def test_effective_sample_size_refuses(weights):
    with pytest.raises(InvalidValueError, match="weights must be"):
        effective_sample_size(weights)


def condition_number(fun, x, *, radius=0.5, **options):
    (found,) = condition_numbers(fun, x, radii=[radius], **options)
    return found


def test_condition_number_of_a_linear_function():
    # |b.Δ| ||x|| / (||Δ|| |b.x|) <= ||b|| ||x|| / |b.x|, nearly reached by many directions.
    b, x = np.array([3.0, 4.0]), np.array([1.0, 1.0])
    bound = 5 * math.sqrt(2) / 7
    found = condition_number(lambda p: float(b @ p), x, radius=0.1, n_directions=400, rng=0)
    assert 0.99 * bound < found.value <= bound * (1 + 1e-9)
    few = condition_number(lambda p: float(b @ p), x, radius=0.1, n_directions=1, rng=0)
    assert few.value < found.value


@given(
    st.lists(st.floats(0.1, 10), min_size=2, max_size=6),
    st.floats(0.1, 10),
    st.floats(1e-3, 10),
)
def test_condition_number_of_a_quadratic_at_any_radius(x, constant, radius):
    # L = c + ||p||²/2 has L(x + rΔ) - L(x) = r x.Δ + r²/2, in one dimension of x.Δ.
    x = np.array(x)
    directions = sampling.sphere(np.random.default_rng(1), 5, x)
    found = condition_number(
        lambda p: constant + p @ p / 2, x, radius=radius, n_directions=5, rng=1
    )
    norm, at_x = np.linalg.norm(x), constant + x @ x / 2
    rises = directions @ x + radius / 2
    assert found.value == pytest.approx(np.abs(rises).max() * norm / at_x, rel=1e-6)
    # At 1e-6 ||x|| the difference is |x.Δ| times the radius, which the radius here divides.
    near_zero = np.abs(directions @ x + 1e-6 * norm / 2).max()
    assert found.floor == pytest.approx(1e-6 * norm**2 * near_zero / (radius * at_x), rel=1e-3)
    assert math.isnan(found.standard_error)


def test_radii_share_their_directions_and_evaluations():
    points = []

    def fun(p):
        points.append(p)
        return 1.0 + p[0] ** 2

    x, radii = np.array([2.0, 1.0]), [0.01, 1.0, 0.1]
    found = condition_numbers([fun, fun], x, radii=radii, n_directions=3, rng=0)
    assert [one.radius for one in found] == radii
    draws = np.reshape(points, (2, 1 + 4 * 3, 2))
    np.testing.assert_array_equal(*draws)  # both draws see the same points
    np.testing.assert_array_equal(draws[0, 0], x)
    steps = (draws[0, 1:] - x).reshape(4, 3, 2) / np.array([1, *radii]).reshape(4, 1, 1)
    np.testing.assert_allclose(steps[2:], np.stack([steps[1]] * 2), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(steps[0], axis=1), 1e-6 * math.sqrt(5), rtol=1e-6)


def rough(seed, scale=1.0):
    """A function around 1000 that differs by up to ±``scale`` between any two points."""

    def fun(p):
        bits = zlib.crc32(np.ascontiguousarray(p).tobytes())
        return 1000.0 + scale * np.random.default_rng([seed, bits]).choice([-1.0, 1.0])

    return fun


def test_the_floor_of_a_rough_function_is_its_condition_number():
    # Among 40 directions, some differ from x by 2 (probability of none: 2^-40), at every radius.
    x, radii = np.ones(4), [1e-3, 1e-2, 1e-1]
    found = condition_numbers(rough(0), x, radii=radii, n_directions=40, rng=0)
    at_x = rough(0)(x)
    for radius, one in zip(radii, found, strict=True):
        assert one.value == one.floor == pytest.approx(2.0 * 2.0 / (radius * at_x))
        assert not one.is_above_floor


def test_a_slope_is_above_the_floor_only_where_it_exceeds_the_noise():
    # The slope moves L by 1000 r along the first coordinate, the noise by 1 at every radius.
    def draw(seed):
        noise = rough(seed, scale=0.5)
        return lambda p: noise(p) + 1000.0 * p[0]

    x, radii = np.array([1.0, 0.0]), [1e-5, 1e-4, 1e-2, 1e-1]
    for draws in ([draw(0)], [draw(seed) for seed in range(4)]):
        found = condition_numbers(draws, x, radii=radii, n_directions=64, rng=0)
        assert [one.is_above_floor for one in found] == [False, False, True, True]
        # Q of the slope is 1000 / 2000; at a radius of 0.1 the noise adds at most 1 / 100 of it.
        assert found[-1].value == pytest.approx(0.5, rel=0.02)
        assert found[0].value > 10  # the noise


def test_the_floor_finds_noise_that_vanishes_near_x():
    # Draws with opposite slopes: their mean is flat, which no draw alone can show.
    slopes = (1.0, -1.0, 1.0, -1.0)
    draws = [lambda p, slope=slope: 10.0 + slope * (p[0] - 2.0) for slope in slopes]
    found = condition_number(draws, [2.0], radius=0.5, n_directions=2, rng=0)
    assert found.value == 0.0
    # Half the difference of the halves is 1 per unit of p; its Q is 2 / 10.
    assert found.floor == pytest.approx(0.2)
    # The deviation of 1, -1, 1, -1 with n - 1 is sqrt(4 / 3); the error of their mean, a half.
    assert found.standard_error == pytest.approx(0.2 * math.sqrt(4 / 3) / 2)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_averaging_over_draws_lowers_error_and_floor_as_the_root_of_n(n):
    # One direction in one dimension; each draw has a slope 1 + a normal deviate. The error of a
    # mean of n is 1 / sqrt(n), and so is the deviation of the contrast of the halves.
    repeats, unit = 400, 2.0 / 10.0
    rng = np.random.default_rng(n)
    squares, errors, floors = [], [], []
    for _ in range(repeats):
        draws = [
            lambda p, slope=slope: 10.0 + slope * (p[0] - 2.0)
            for slope in 1.0 + rng.standard_normal(n)
        ]
        found = condition_number(draws, [2.0], n_directions=1, rng=0)
        slope = np.mean([draw([3.0]) - 10.0 for draw in draws])
        assert found.value == pytest.approx(unit * abs(slope))
        squares.append((slope - 1.0) ** 2)
        errors.append(found.standard_error**2)
        floors.append(found.floor**2)
    for found in (unit**2 * np.array(squares), errors, floors):
        expected = unit**2 / n
        # A square of one normal deviate has the widest spread of the three: 2 expected².
        assert np.mean(found) == pytest.approx(expected, rel=5 * math.sqrt(2 / repeats))


def test_condition_number_vectorized_in_torch_is_the_same():
    torch = pytest.importorskip("torch")
    found = condition_number(
        lambda x: x.sum(-1), torch.ones(3), n_directions=500, rng=0, vectorized=True
    )
    assert pytest.approx(1.0, rel=0.02) == found.value  # sqrt(3) sqrt(3) / 3


def test_condition_number_skips_failures_and_refuses_the_undefined():
    def half_fails(p):
        return 1.0 + p[0] if p[0] >= 1.0 else math.nan

    assert condition_number(half_fails, [1.0], rng=0).value == pytest.approx(0.5)
    # A direction counts only if no draw fails there.
    draws = [half_fails, lambda p: 1.0 + p[0] if p[0] <= 1.0 else 50.0]
    assert condition_number(draws, [1.0], rng=0).value > 10
    with pytest.raises(InvalidValueError, match=r"fun at x must be finite and not 0, got 0\.0"):
        condition_number(lambda p: 0.0, [1.0])
    with pytest.raises(InvalidValueError, match="finite somewhere around x"):
        condition_number(lambda p: 1.0 if p[0] == 1.0 else math.inf, [1.0])
    with pytest.raises(InvalidValueError, match="x must not be 0"):
        condition_number(lambda p: 1.0, [0.0])
    with pytest.raises(InvalidValueError, match="a radius must be a positive finite number, got 0"):
        condition_number(lambda p: 1.0, [1.0], radius=0.0)


def test_estimator_error():
    error = estimator_error([2.0, 0.0], [1.0, 0.0])
    assert error == (1.0, 1.0)
    assert estimator_error([0.0, 3.0], [4.0, 0.0]) == (pytest.approx(5 / 4), 0.0)
    assert estimator_error([0.0, 0.0], [4.0, 0.0]) == (1.0, 0.0)
    with pytest.raises(InvalidValueError, match="gradient must not be 0"):
        estimator_error([1.0], [0.0])
    with pytest.raises(InvalidValueError, match=r"same shape \(dim,\), got \(1,\) and \(2,\)"):
        estimator_error([1.0], [0.0, 1.0])
