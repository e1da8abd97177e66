"""A start that rounding put outside of its box, in `minimize` and in SciPy's, and one that is."""

import math

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas import Box, InvalidValueError, minimize, scipy_method

torch = pytest.importorskip("torch")


def first_point(x0, bounds, **keywords):
    seen = []

    def fun(x):
        seen.append(x)
        return float((x**2).sum())

    minimize(fun, x0, "adaptive_gld", bounds=bounds, maxfev=1, rng=0, **keywords)
    return seen[0]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    low=st.floats(-1e6, 1e6),
    width=st.floats(1e-3, 1e6),
    side=st.sampled_from([-1, 1]),
    n=st.integers(1, 3),
)
def test_a_few_roundings_outside_is_at_the_bound(low, width, side, n):
    high = low + width
    end = low if side < 0 else high
    x0 = end
    for _ in range(n):
        x0 = math.nextafter(x0, side * math.inf)
    if max(abs(low), abs(high)) < 1e-3:
        return
    ours = first_point([x0], [(low, high)])
    assert ours[0] == end
    theirs = []
    scipy.optimize.minimize(
        lambda x: theirs.append(x) or 0.0, [x0], bounds=[(low, high)],
        method=scipy_method("adaptive_gld"), options={"maxfev": 1, "rng": 0},
    )  # fmt: skip
    assert theirs[0][0] == end


@pytest.mark.parametrize(
    ("x0", "bounds", "start"),
    [
        ([0.1 + 0.2], [(0.0, 0.3)], 0.3),
        ([0.3 - 0.1 - 0.2], [(0.0, 1.0)], 0.0),  # -2.8e-17, of a box of width 1
        ([-(0.1 + 0.2)], [(-0.3, None)], -0.3),
        ([1e22 * (1 + 2**-52)], [(None, 1e22)], 1e22),
        ([math.nextafter(5.0, 6.0)], [(5.0, 5.0)], 5.0),
    ],
)
def test_roundings_of_arithmetic(x0, bounds, start):
    assert first_point(x0, bounds)[0] == start


def test_each_dtype_has_its_own_roundings():
    x0 = np.array([np.nextafter(np.float32(1), np.float32(2))])
    assert first_point(x0, [(0.0, 1.0)])[0] == 1.0
    tensor = torch.tensor([1.0 + 2**-23], dtype=torch.float32)
    point = first_point(tensor, [(0.0, 1.0)])
    assert (point.dtype, float(point[0])) == (torch.float32, 1.0)
    with pytest.raises(InvalidValueError, match=r"x0\[0\] must be at most its upper bound 1.0"):
        first_point(np.array([1.0 + 2.0**-23]), [(0.0, 1.0)])


@pytest.mark.parametrize("method", ["reflect", "clip", "transform"])
def test_the_other_coordinates_stay(method):
    box = Box([0.0, 0.0, 0.0], [0.3, 1.0, None], method)
    point = first_point([0.1 + 0.2, 0.25, 7.0], box)
    np.testing.assert_allclose(point, [0.3, 0.25, 7.0], rtol=0.01)
    assert 0 <= point[0] <= 0.3


@pytest.mark.parametrize("x0", [-1e-9, 1.0 + 1e-12, 1.1, -5.0])
def test_a_start_that_is_outside_is_refused(x0):
    with pytest.raises(InvalidValueError, match=r"x0\[0\] must be at (least|most) its"):
        minimize(lambda x: 0.0, [x0], bounds=[(0.0, 1.0)], maxfev=1)


def test_the_best_known_point_may_be_rounded_too():
    result = minimize(
        lambda x: float(x[0]), [0.2], "adaptive_gld", bounds=[(0.0, 0.3)], maxfev=1, rng=0,
        warm_start=([[0.1 + 0.2]], [-9.0]),
    )  # fmt: skip
    assert result.x_iterate[0] <= 0.3
