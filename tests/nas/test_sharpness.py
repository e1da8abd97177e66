"""The measures of a landscape, on functions whose gradient and curvature are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.analyses.landscape.sharpness import measure_sharpness

AXIS = 0.1 * np.arange(-6, 7)
HESSIAN = np.array([[3.0, 1.0], [1.0, 2.0]])
MINIMUM = np.array([0.3, -0.2])


def grid(function, axis=AXIS):
    """``values[i, j] = function(axis[i], axis[j])``, written out."""
    return np.array([[function(x, y) for y in axis] for x in axis])


def quadratic(x, y):
    d = np.array([x, y]) - MINIMUM
    return 0.7 + d @ HESSIAN @ d / 2


def test_a_quadratic_is_measured_exactly():
    measure = measure_sharpness(AXIS, grid(quadratic))
    assert measure.minimum == pytest.approx(MINIMUM, abs=1e-12)
    assert measure.minimum_value == pytest.approx(0.7, abs=1e-12)
    assert measure.centre_value == pytest.approx(quadratic(0, 0), abs=1e-12)
    assert not measure.is_on_border
    # (5 -+ sqrt(5)) / 2 are the eigenvalues of [[3, 1], [1, 2]].
    assert measure.eigenvalues == pytest.approx(
        [(5 - math.sqrt(5)) / 2, (5 + math.sqrt(5)) / 2], abs=1e-9
    )
    # Central differences of a quadratic are its gradient.
    norms = [
        np.linalg.norm(HESSIAN @ (np.array([x, y]) - MINIMUM))
        for x in AXIS[1:-1]
        for y in AXIS[1:-1]
    ]
    assert measure.mean_gradient_norm == pytest.approx(np.mean(norms), rel=1e-12)


def test_the_first_index_is_x():
    measure = measure_sharpness(AXIS, grid(lambda x, y: 5 * (x - 0.4) ** 2 + (y + 0.1) ** 2))
    assert measure.minimum == pytest.approx([0.4, -0.1], abs=1e-12)


def test_a_slope_has_its_minimum_on_the_border_and_no_curvature():
    measure = measure_sharpness(AXIS, grid(lambda x, y: 3 * x + 4 * y))
    assert measure.is_on_border
    assert measure.minimum == pytest.approx([-0.6, -0.6])
    assert measure.mean_gradient_norm == pytest.approx(5.0, rel=1e-12)
    assert measure.eigenvalues == pytest.approx([0.0, 0.0], abs=1e-9)


def test_twice_the_loss_is_twice_as_sharp():
    one, two = (measure_sharpness(AXIS, k * grid(quadratic)) for k in (1, 2))
    assert two.mean_gradient_norm == pytest.approx(2 * one.mean_gradient_norm)
    assert two.eigenvalues == pytest.approx([2 * value for value in one.eigenvalues])


def test_the_distance_of_two_minima():
    here = measure_sharpness(AXIS, grid(lambda x, y: (x - 0.3) ** 2 + y**2))
    there = measure_sharpness(AXIS, grid(lambda x, y: x**2 + (y - 0.4) ** 2))
    assert here.distance_to(there) == pytest.approx(0.5)
    assert here.distance_to(here) == 0.0


def test_points_that_are_not_finite_are_left_out():
    values = grid(quadratic)
    values[0, 0], values[9, 5], values[5, 5] = -np.inf, np.nan, np.inf
    measure = measure_sharpness(AXIS, values)
    assert measure.minimum == pytest.approx(MINIMUM, abs=1e-12)
    assert measure.eigenvalues == pytest.approx(
        [(5 - math.sqrt(5)) / 2, (5 + math.sqrt(5)) / 2], abs=1e-9
    )
    assert math.isfinite(measure.mean_gradient_norm)


def test_too_few_points_give_nan_and_no_error():
    values = np.full((3, 3), np.nan)
    values[2, 1] = 1.0
    measure = measure_sharpness(0.1 * np.arange(-1, 2), values)
    assert measure.minimum == pytest.approx([0.1, 0.0])
    assert math.isnan(measure.mean_gradient_norm)
    assert all(math.isnan(value) for value in measure.eigenvalues)
    assert math.isnan(measure.centre_value)


@pytest.mark.parametrize(
    ("n", "values", "text"),
    [
        (3, np.zeros((3, 2)), r"got \(3, 2\) and 3"),
        (1, np.zeros((1, 1)), r"got \(1, 1\) and 1"),
        (4, np.zeros((4, 4)), r"got \(4, 4\) and 4"),
        (3, np.full((3, 3), np.inf), "values must hold a finite loss, got none"),
    ],
)
def test_wrong_grids(n, values, text):
    with pytest.raises(InvalidValueError, match=text):
        measure_sharpness(np.arange(n) - (n - 1) / 2, values)
