"""Bounds: every point inside, whatever the solver, method, dtype and namespace; clear errors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds

from zoopt_nas import RS, AdaptiveGLD, AdaptiveMGS, Box, InvalidValueError, minimize
from zoopt_nas.bounds import BOUND_METHODS, as_box
from zoopt_nas.problems import sphere

SOLVERS = [
    RS(learning_rate=3.0),
    RS(estimator="one_point", smoothing=2.0),
    RS(smoothing=50.0, direction="gaussian", n_samples=2),
    AdaptiveMGS(sigma=5.0),
    AdaptiveGLD(max_radius=100.0),
    AdaptiveGLD(deterministic=True),
]
DTYPES = ["float64", "float32", "float16", "torch.float64", "torch.float32", "torch.bfloat16"]


def array(values, dtype):
    name, is_torch = dtype.removeprefix("torch."), dtype.startswith("torch.")
    if is_torch:
        torch = pytest.importorskip("torch")
        return torch.tensor(values, dtype=getattr(torch, name))
    return np.array(values, dtype=name)


def exact(x):
    return np.asarray(x if isinstance(x, np.ndarray) else x.double(), dtype=np.float64)


ends = st.one_of(
    st.tuples(st.floats(-10, -0.1), st.floats(0.1, 10)),
    st.tuples(st.none(), st.floats(0.1, 10)),
    st.tuples(st.floats(-10, -0.1), st.none()),
    st.sampled_from([(None, None), (0.0, 0.0), (0.0, None), (None, 0.0), (-1e-3, 1e-3)]),
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    bounds=st.lists(ends, min_size=1, max_size=4),
    solver=st.sampled_from(SOLVERS),
    method=st.sampled_from(BOUND_METHODS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_every_point_is_inside(bounds, solver, method, dtype, seed):
    low = np.array([-np.inf if lo is None else lo for lo, _ in bounds])
    high = np.array([np.inf if hi is None else hi for _, hi in bounds])
    seen = []

    def fun(x):
        seen.append(exact(x))
        return float(np.sin(3 * seen[-1]).sum() + seen[-1].sum())

    def callback(intermediate_result):
        seen.append(exact(intermediate_result.x_iterate))

    x0 = array([0.0] * len(bounds), dtype)
    box = Box(low, high, method)
    result = minimize(fun, x0, solver, bounds=box, maxfev=60, rng=seed, callback=callback)
    assert result.x.dtype == x0.dtype
    assert result.nfev == 60
    for x in (*seen, exact(result.x), exact(result.x_iterate)):
        assert np.all((low <= x) & (x <= high))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_are_rounded_inwards(dtype):
    x0 = array([0.15], dtype)
    far = array([[-1e4], [1e4]], dtype)
    for lower in (0.1, 0.11, 0.123):  # no dtype represents all of them
        points = exact(Box(lower, 0.3, "clip").at(x0).inside(far))
        assert lower <= points[0, 0] < lower + 0.002
        assert 0.298 < points[1, 0] <= 0.3
    # A start or a fixed coordinate may differ from its bound by rounding.
    x0 = array([0.1, 0.3, 0.7], dtype)
    points = exact(Box([0.1, 0.0, 0.7], [1.0, 0.3, 0.7]).at(x0).start)
    assert points[0] >= 0.1
    assert points[1] <= 0.3
    assert points[2] == exact(x0)[2]


def test_reflection_is_the_mirror_image_at_any_distance():
    box = Box([0.0, 0.0, None, None], [1.0, None, 1.0, None], "reflect").at(np.full(4, 0.5))
    points = np.array([[-0.25] * 4, [1.25] * 4, [7.25] * 4, [-8.75] * 4, [0.75] * 4])
    expected = [
        [0.25, 0.25, -0.25, -0.25],
        [0.75, 1.25, 0.75, 1.25],
        [0.75, 7.25, -5.25, 7.25],
        [0.75, 8.75, -8.75, -8.75],
        [0.75, 0.75, 0.75, 0.75],
    ]
    np.testing.assert_array_equal(box.inside(points), expected)
    far = 2.0**70 + np.array([[0.0] * 4])  # a multiple of the period, without rounding
    assert box.inside(far)[0, 0] == 0.0
    assert np.all(np.isfinite(box.inside(np.full((1, 4), np.nan))))


def test_wide_bounds_do_not_overflow():
    huge = Box(-1.7e308, 1.7e308, "reflect").at(np.zeros(1))
    points = huge.inside(np.array([[5.0], [-1.75e308]]))
    np.testing.assert_allclose(points[:, 0], [5, -1.65e308], rtol=1e-15)


def test_clip_moves_to_the_bound():
    box = Box(0.0, [1.0, np.inf], "clip").at(np.array([0.5, 0.5]))
    np.testing.assert_array_equal(
        box.inside(np.array([[-3.0, -3.0], [3.0, 3.0]])), [[0, 0], [1, 3]]
    )


@pytest.mark.parametrize("pair", [(-1.0, 3.0), (-1.0, None), (None, 3.0), (None, None)])
def test_transform_is_one_to_one_smooth_and_starts_at_x0(pair):
    box = Box([pair[0]], [pair[1]], "transform").at(np.array([0.7]))
    np.testing.assert_allclose(box.inside(box.start), [0.7], rtol=1e-14)
    u = np.linspace(-20, 20, 2001)[:, None]
    x = box.inside(u)[:, 0]
    slope = np.diff(x) / np.diff(u[:, 0])
    assert np.all(slope > 0)
    assert np.max(slope) <= 1 + 1e-9  # never steeper than the identity
    assert np.max(np.abs(np.diff(slope))) < 0.02  # no kink
    assert np.all(x > -np.inf if pair[0] is None else x > pair[0])
    assert np.all(x < np.inf if pair[1] is None else x < pair[1])


def test_transform_moves_a_start_on_a_bound_inside():
    box = Box([0.0, 0.0, None], [2.0, None, 0.0], "transform").at(np.zeros(3))
    np.testing.assert_allclose(box.inside(box.start), [0.01, 0.1, -0.1], rtol=1e-12)


def test_pairs_are_shifted_as_a_whole():
    box = Box([0.0, 0.0, 0.0], [1.0, 1.0, 0.1], "reflect").at(np.zeros(3))
    pair = np.array([[0.5, 0.25, 0.25], [0.25, -0.25, -0.25]])
    expected = [[0.5, 0.5, 0.1], [0.25, 0.0, 0.0]]
    np.testing.assert_allclose(box.inside(pair, antithetic=True), expected, atol=1e-15)


CORNER = np.array([0.0, 1.0, -2.0])


@pytest.mark.parametrize("dtype", ["float64", "torch.float32"])
@pytest.mark.parametrize("x0", [(0.5, 0.5, -0.5), (0.0, 0.0, -2.0), (1.0, 0.0, 1.0)])
@pytest.mark.parametrize(
    ("solver", "method", "gap"),
    [
        (RS(learning_rate=0.1), "reflect", 0.2),  # its estimate is noisy
        (RS(learning_rate=0.1), "clip", 0.2),
        # Exact on a linear function, since the budget cuts no batch: x0, 250 batches of 6, and 1.
        (RS(learning_rate=0.1, orthogonal=True, n_samples=3), "reflect", 0.0),
        (RS(learning_rate=0.1, direction="gaussian", n_samples=1), "reflect", 1.0),
        (RS(learning_rate=0.1, orthogonal=True, n_samples=3), "clip", 0.2),
        # The budget of one descent: after a restart, the iterate may be anywhere.
        (AdaptiveGLD(restart=False), "reflect", 0.1),
        (AdaptiveGLD(restart=False), "clip", 0.0),
        (AdaptiveGLD(max_radius=10.0), "transform", 0.1),
        (AdaptiveMGS(sigma=0.1), "reflect", 0.6),
        (AdaptiveMGS(sigma=0.1), "clip", 0.1),
    ],
)
def test_a_linear_function_ends_in_the_corner(solver, method, gap, x0, dtype):
    slopes = np.array([1.0, -2.0, 1.5])
    box = Box([0.0, 0.0, -2.0], [None, 1.0, None], method)
    x0 = array(x0, dtype)
    result = minimize(lambda x: exact(x) @ slopes, x0, solver, bounds=box, maxfev=1502, rng=0)
    assert np.max(np.abs(exact(result.x_iterate) - CORNER)) <= gap
    assert result.fun - CORNER @ slopes <= min(3 * gap, 0.3)


@pytest.mark.parametrize("method", ["reflect", "clip"])
def test_gld_with_restarts_has_been_in_the_corner(method):
    """The largest error of 900 runs with other seeds and starts is 0.0045."""
    slopes = np.array([1.0, -2.0, 1.5])
    box = Box([0.0, 0.0, -2.0], [None, 1.0, None], method)
    for seed in range(5):
        result = minimize(
            lambda x: x @ slopes, [0.0, 0.0, -2.0], AdaptiveGLD(), bounds=box, maxfev=1501, rng=seed
        )
        assert np.max(np.abs(result.x - CORNER)) <= 0.1


def test_rs_by_transform_descends_towards_the_corner():
    box = Box([0.0, 0.0], [1.0, None], "transform")
    solver = RS(learning_rate=0.2)
    result = minimize(lambda x: float(x.sum()), [0.5, 0.5], solver, bounds=box, maxfev=4000, rng=0)
    assert 0 < result.fun < 0.1


@pytest.mark.parametrize("method", BOUND_METHODS)
@pytest.mark.parametrize("solver", ["adaptive_gld", RS(learning_rate=0.1), "adaptive_mgs"])
def test_an_optimum_inside_is_found_and_fixed_coordinates_stay(solver, method):
    target = np.array([0.3, 0.5, -0.2])
    result = minimize(
        lambda x: float(((x - target) ** 2).sum()),
        [0.9, 0.5, -0.9],
        solver,
        bounds=Box([0.0, 0.5, None], [1.0, 0.5, 0.0], method),
        maxfev=3000,
        rng=0,
    )
    assert result.fun < 1e-2
    assert result.x[1] == result.x_iterate[1] == 0.5


def test_wide_open_bounds_change_nothing():
    plain = minimize(sphere(2), [1.0, -2.0], "quasi_newton", maxfev=200, rng=0)
    for box in ([(None, None)] * 2, [(-100, None), (None, 50)], Box(method="transform")):
        bounded = minimize(sphere(2), [1.0, -2.0], "quasi_newton", maxfev=200, rng=0, bounds=box)
        np.testing.assert_array_equal(bounded.x_iterate, plain.x_iterate)


def test_scipy_bounds_pairs_arrays_and_boxes_are_one():
    torch = pytest.importorskip("torch")
    written = [
        [(0, None), (-1, 1)],
        ((0.0, math.inf), (-1.0, 1.0)),
        np.array([[0, np.inf], [-1, 1]]),
        torch.tensor([[0, np.inf], [-1, 1]]),
        Bounds([0, -1], [np.inf, 1]),
        Box([0, -1], [None, 1]),
    ]
    for bounds in written:
        box = as_box(bounds)
        np.testing.assert_array_equal(box.lower, [0, -1])
        np.testing.assert_array_equal(box.upper, [np.inf, 1])
        assert box.method == "clip"
    np.testing.assert_array_equal(as_box(Bounds(0, 1)).at(np.full(3, 0.5)).start, [0.5] * 3)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([(0, 1), (3, 2)], "bounds[1] must have its lower end first, got (3.0, 2.0)"),
        ([(0, 1), (math.nan, 2)], "bounds[1] must not be NaN, got (nan, 2.0)"),
        ([(math.inf, None), (0, 1)], "bounds[0] must contain a finite number, got (inf, inf)"),
        ([(0, 1)], "bounds must have one pair for each of the 2 coordinates of x0, got 1"),
        ([(0, 1), 3], "bounds[1] must be a pair (lower, upper), got 3"),
        ([(0, 1), (0, 1, 2)], "bounds[1] must be a pair (lower, upper), got (0, 1, 2)"),
        ([(0, 1), ("a", 1)], "lower must be real numbers or None, got [0, 'a']"),
        (3, "bounds must be a Box, a scipy Bounds or a sequence of (lower, upper) pairs, got 3"),
        ([(0, 1), (0.5, 1)], "x0[1] must be at least its lower bound 0.5, got 0.25"),
        ([(0, 0.5), (0, 0.2)], "x0[1] must be at most its upper bound 0.2, got 0.25"),
    ],
)
def test_bad_bounds_are_named(bounds, message):
    with pytest.raises(InvalidValueError) as caught:
        minimize(sphere(2), [0.25, 0.25], bounds=bounds)
    assert str(caught.value) == message


def test_bad_boxes_are_named():
    with pytest.raises(InvalidValueError, match="method must be one of reflect, clip, transform"):
        Box(0, 1, "bounce")
    with pytest.raises(
        InvalidValueError, match=r"lower and upper must have the same shape, got \(2,\)"
    ):
        Box([0, 0], [1, 1, 1])
    with pytest.raises(InvalidValueError, match="lower must be one-dimensional"):
        Box([[0, 0]], 1)
    with pytest.raises(InvalidValueError, match=r"bounds\[0\] must contain a number of float32"):
        Box(0.1 + 1e-12, 0.1 + 2e-12).at(np.array([0.1], dtype=np.float32))
