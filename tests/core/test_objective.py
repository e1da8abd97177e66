"""Objective: counts, budget, failures, target, and the arguments of the function."""

import math

import numpy as np
import pytest

from zoopt_nas import InvalidValueError
from zoopt_nas.objective import Objective

POINTS = np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.5, 0.0]])


def first(x):
    return x[..., 0]


@pytest.mark.parametrize("vectorized", [False, True])
def test_counts_and_keeps_the_best(vectorized):
    objective = Objective(first, vectorized=vectorized, history=True)
    np.testing.assert_array_equal(objective.evaluate(POINTS[:3]), [3.0, 1.0, 2.0])
    assert (objective.nfev, objective.n_failed, objective.best_fun) == (3, 0, 1.0)
    np.testing.assert_array_equal(objective.best_x, [1.0, 0.0])
    objective.evaluate(POINTS[3:])
    assert (objective.nfev, objective.best_fun) == (4, 0.5)
    assert objective.history == [3.0, 1.0, 2.0, 0.5]


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize(("maxfev", "reserve", "n"), [(2, 0, 2), (3, 1, 2), (9, 0, 4), (1, 1, 0)])
def test_budget_cuts_the_batch(vectorized, maxfev, reserve, n):
    objective = Objective(first, maxfev=maxfev, vectorized=vectorized)
    values = objective.evaluate(POINTS, reserve=reserve)
    np.testing.assert_array_equal(values[:n], POINTS[:n, 0])
    assert np.all(np.isposinf(values[n:]))
    assert objective.nfev == n
    assert objective.n_failed == 0  # a point without an evaluation has not failed


@pytest.mark.parametrize("vectorized", [False, True])
def test_non_finite_values_are_failures(vectorized):
    returned = np.array([math.nan, -math.inf, 7.0, math.inf])
    lookup = dict(zip(POINTS[:, 0], returned, strict=True))
    objective = Objective(
        (lambda x: returned) if vectorized else (lambda x: lookup[x[0]]),
        vectorized=vectorized,
        history=True,
        target=-1e9,
    )
    np.testing.assert_array_equal(objective.evaluate(POINTS), [np.inf, np.inf, 7.0, np.inf])
    assert (objective.nfev, objective.n_failed, objective.best_fun) == (4, 3, 7.0)
    assert objective.history == [np.inf, np.inf, 7.0, np.inf]
    assert not objective.reached_target  # -inf is a failure, not a success


def test_nothing_finite():
    objective = Objective(lambda x: math.nan)
    objective.evaluate(POINTS)
    assert objective.best_x is None
    assert objective.best_fun == math.inf


def test_target_stops_within_a_batch_of_single_calls():
    objective = Objective(first, target=1.0)
    np.testing.assert_array_equal(objective.evaluate(POINTS), [3.0, 1.0, np.inf, np.inf])
    assert objective.reached_target
    assert objective.nfev == 2
    batch = Objective(first, target=1.0, vectorized=True)
    np.testing.assert_array_equal(batch.evaluate(POINTS), POINTS[:, 0])
    assert batch.reached_target


@pytest.mark.parametrize("vectorized", [False, True])
def test_the_function_cannot_write_into_the_candidates(vectorized):
    def vandal(x):
        x[...] = 0.0
        return np.ones(len(x)) if vectorized else 1.0

    points = POINTS.copy()
    objective = Objective(vandal, vectorized=vectorized)
    objective.evaluate(points)
    np.testing.assert_array_equal(points, POINTS)
    np.testing.assert_array_equal(objective.best_x, POINTS[0])
    points[:] = 9.0
    np.testing.assert_array_equal(objective.best_x, POINTS[0])


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2.0), np.array([2.0]), True])
def test_what_counts_as_a_number(value):
    assert Objective(lambda x: value).evaluate(POINTS[:1])[0] == np.sum(value)


def test_torch_values_are_numbers():
    torch = pytest.importorskip("torch")
    points = torch.tensor(POINTS, dtype=torch.float32)
    weights = torch.ones(2, requires_grad=True)
    single = Objective(lambda x: x @ weights)
    batch = Objective(lambda x: x @ weights, vectorized=True)
    np.testing.assert_array_equal(single.evaluate(points), POINTS[:, 0])
    np.testing.assert_array_equal(batch.evaluate(points), POINTS[:, 0])
    assert isinstance(batch.best_x, torch.Tensor)


@pytest.mark.parametrize("value", [None, "1.0", 1j, [1.0, 2.0], np.ones(2), {}])
def test_what_does_not(value):
    with pytest.raises(InvalidValueError, match="the value of fun must be a real number, got"):
        Objective(lambda x: value).evaluate(POINTS)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.ones(3), r"fun must return shape \(4,\) for a batch of 4 points, got shape \(3,\)"),
        (np.ones((4, 1)), r"got shape \(4, 1\)"),
        (1.0, r"got shape \(\)"),
        (["a"] * 4, "fun must return real numbers, got"),
    ],
)
def test_a_bad_batch_is_refused(returned, message):
    with pytest.raises(InvalidValueError, match=message):
        Objective(lambda x: returned, vectorized=True).evaluate(POINTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fun": 3}, "fun must be callable, got 3"),
        ({"maxfev": 0}, "maxfev must be a positive integer, got 0"),
        ({"maxfev": 1.5}, r"maxfev must be a positive integer, got 1\.5"),
        ({"target": math.nan}, "target must be a number, got nan"),
        ({"target": "low"}, "target must be a real number, got 'low'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Objective(**{"fun": first, **arguments})
