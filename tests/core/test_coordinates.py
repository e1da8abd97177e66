"""The units of coordinates, and the invariance of runs under scaling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas import (
    CMA,
    SOLVERS,
    AdaptiveGLD,
    AdaptiveMGS,
    Box,
    InvalidValueError,
    QuasiNewton,
    minimize,
)
from zoopt_nas.bounds import as_box
from zoopt_nas.coordinates import Coordinates, units


def units_of(x0, bounds=None, x_scale=None, method="clip"):
    x0 = np.asarray(x0, dtype=float)
    box = None if bounds is None else Box(*np.transpose(bounds), method).at(x0)
    return units(x0, box, x_scale)


def test_ordinary_starts_have_no_units():
    for x0 in ([1.0, -0.5], [0.0, 0.0], [0.2, 1.0, -0.9], []):
        assert units_of(x0) is None


@pytest.mark.parametrize(
    ("x0", "expected"),
    [
        ([200.0, 0.1], [128, 1]),  # rms 141; 0.1 is much smaller, and its unit is 1
        ([300.0, 100.0], [256, 256]),  # of similar size: rms 224
        ([1e6, 1e-6], [2**19, 2.0**-17]),  # rms 7.1e5; 10 * 1e-6, nearest powers
        ([0.0, 1e-8], [2.0**-24, 2.0**-24]),  # zero takes the unit of the others, 10 * 7e-9
    ],
)
def test_the_size_of_x0_suggests_units(x0, expected):
    np.testing.assert_array_equal(units_of(x0), expected)


def test_two_bounds_are_the_unit_but_not_if_they_stand_for_none():
    bounds = [(0.0, 4e-6), (-2e6, 2e6), (0.0, None), (0.0, 4e12)]
    lower, upper = zip(*bounds, strict=True)
    x0 = np.array([1e-6, 0.0, 0.5, 0.5])
    scale = units(x0, Box(lower, upper).at(x0))
    # A quarter of the width, rounded to a power of two; 1 for the others, as for x0.
    np.testing.assert_array_equal(scale, [2.0**-20, 2.0**20, 1.0, 1.0])


@pytest.mark.parametrize(
    ("x0", "bounds", "expected"),
    [
        ([1.0, -2.0], [(-1e3, 1e3)] * 2, [2, 2]),  # the size of the start, rms 1.6
        ([0.0, 2.5], [(-1e3, 1e3)] * 2, [2, 2]),  # also where it is 0, rms 1.8
        ([0.01, 0.02], [(0.0, 20.0)] * 2, [2.0**-3, 2.0**-3]),  # 10 * 0.016, as without bounds
        ([0.1, 0.1], [(0.0, 20.0)] * 2, [4, 4]),  # a quarter is 5 steps: not loose
        ([0.0, 0.0], [(-1e3, 1e3)] * 2, [512, 512]),  # a start at 0 tells nothing
        ([0.0, 1.0], [(-1e3, 1e3), (0.0, 2.0)], [512, 0.5]),  # the second has other units
        ([2.0, 900.0], [(-1e3, 1e3)] * 2, [512, 512]),  # near 0 by chance
        ([0.1, 900.0], [(-1e3, 1e3)] * 2, [1, 512]),  # smaller by more than 1000
        ([5.0, 1.0], [(5.0, 5.0), (0.0, 2.0)], [4, 0.5]),  # a fixed one has no width
        ([900.0, 0.5], [(-1e3, 1e3), (None, 1.0)], [512, 1]),
        ([0.0, 0.0], [(-1e20, 1e20), (0.0, 8.0)], [1, 2]),  # the first stands for no bounds
        ([0.0, 1.0], [(-1e20, 1e20), (0.0, 2.0)], [1, 0.5]),
        ([1e9, 3.0], [(1e9 - 1e-3, 1e9 + 1e-3), (-1e3, 1e3)], [2.0**-11, 512]),  # beside 0
        ([1e10, 0.0], [(1e10, 1e10 + 4e-3), (0.0, 4e7)], [2.0**-10, 2.0**23]),
    ],
)
def test_loose_bounds_are_no_unit(x0, bounds, expected):
    bounds = [(-np.inf if a is None else a, np.inf if b is None else b) for a, b in bounds]
    np.testing.assert_array_equal(units_of(x0, bounds), expected)
    np.testing.assert_array_equal(units_of(x0, bounds, method="reflect"), expected)


def test_units_that_are_given_are_taken():
    np.testing.assert_array_equal(units_of([1.0, 1.0], x_scale=[8.0, 2**-10]), [8.0, 2**-10])
    np.testing.assert_array_equal(units_of([1.0, 1.0], [(0, 1), (0, 1)], 100.0), [128.0, 128.0])


@pytest.mark.parametrize("bad", [0.0, -1.0, [1.0, np.nan], [1.0, np.inf], [1.0] * 3, "a", [[1.0]]])
def test_bad_units_are_named(bad):
    with pytest.raises(InvalidValueError, match="x_scale must be positive finite numbers"):
        minimize(lambda x: float(x @ x), [1.0, 1.0], x_scale=bad)


@settings(deadline=None, derandomize=True)
@given(
    exponents=st.lists(st.integers(-60, 60), min_size=2, max_size=2),
    method=st.sampled_from([name for name in SOLVERS if SOLVERS[name].adapts_steps]),
    seed=st.integers(0, 1000),
)
def test_a_run_in_other_units_is_the_same_run(exponents, method, seed):
    """Units are powers of two, so that points and values agree exactly."""
    scale = 2.0 ** np.array(exponents)
    start = np.array([0.75, -1.0])

    def fun(x):
        return float(((x - 0.3) ** 2).sum() + x[0] * x[1])

    plain = minimize(fun, start, method, maxfev=60, rng=seed, history=True, x_scale=1.0)
    scaled = minimize(
        lambda x: fun(x / scale),
        start * scale,
        method,
        maxfev=60,
        rng=seed,
        history=True,
        x_scale=scale,
    )
    np.testing.assert_array_equal(scaled.history, plain.history)
    np.testing.assert_array_equal(scaled.x / scale, plain.x)


def test_points_and_bounds_of_the_solver():
    x0 = np.array([1.0, 100.0])
    box = as_box([(0.0, 2.0), (None, 200.0)]).at(x0)
    coordinates = Coordinates(x0, box, np.array([0.5, 64.0]))
    np.testing.assert_array_equal(coordinates.start, [2.0, 100 / 64])
    np.testing.assert_array_equal(coordinates.bounds[0], [0.0, -np.inf])
    np.testing.assert_array_equal(coordinates.bounds[1], [4.0, 200 / 64])
    points = coordinates.points(np.array([[1.0, 1.0], [5.0, 4.0]]))
    np.testing.assert_array_equal(points, [[0.5, 64.0], [2.0, 200.0]])
    np.testing.assert_array_equal(coordinates.told(points), [[1.0, 1.0], [4.0, 200 / 64]])


def test_a_length_that_is_given_is_in_units_of_x():
    """Then nothing is scaled, although x0 is far larger than any step."""
    seen = []
    x0 = np.array([4096.0, -4096.0])
    solver = AdaptiveGLD(max_radius=0.25)
    minimize(lambda x: seen.append(x - x0) or float(x @ x), x0, solver, maxfev=3, rng=0)
    np.testing.assert_allclose(np.linalg.norm(seen[1:], axis=1), 0.25, rtol=1e-9)
    for given_length in (
        solver,
        AdaptiveMGS(sigma=0.1),
        CMA(sigma=2.0),
        QuasiNewton(smoothing=0.1),
    ):
        assert given_length.has_lengths
    for not_given in (
        AdaptiveGLD(),
        AdaptiveMGS(),
        CMA(),
        QuasiNewton(),
        AdaptiveGLD(n_directions=3),
    ):
        assert not not_given.has_lengths


def test_cma_without_a_sigma_takes_the_unit():
    spreads = {}
    for x0 in (1.0, 1024.0):
        seen = []
        start = np.full(4, x0)
        minimize(lambda x, s=seen: s.append(x) or float(x @ x), start, CMA(), maxfev=9, rng=0)
        spreads[x0] = np.std(np.array(seen[1:]) - start)
    assert spreads[1024.0] == pytest.approx(1024 * spreads[1.0])


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    lower=st.floats(-1e12, 1e12),
    log_width=st.floats(-3, 21),
    share=st.floats(1e-9, 1 - 1e-9),
    log_distance=st.floats(-6, 6),
)
def test_transform_starts_at_x0_however_wide_the_box(lower, log_width, share, log_distance):
    upper = lower + 10.0**log_width
    for x0 in (lower + share * (upper - lower), lower + 10.0**log_distance):
        if not lower < x0 < upper:
            continue
        box = Box([lower], [upper], "transform").at(np.array([x0]))
        nearest = min(x0 - lower, upper - x0)
        # Relative to the distance from the nearer bound, up to the rounding of x0.
        rounding = 16 * np.finfo(float).eps * max(abs(x0), abs(lower), nearest)
        assert abs(box.inside(box.start)[0] - x0) <= rounding
