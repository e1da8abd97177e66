"""Diagnostics against hand-computed values."""

import math

import numpy as np
import pytest

from zoopt_nas import InvalidValueError
from zoopt_nas.diagnostics import (
    condition_number,
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


def test_condition_number_of_a_linear_function():
    # |b.Δ| ||x|| / (||Δ|| |b.x|) <= ||b|| ||x|| / |b.x|, nearly reached by many directions.
    b, x = np.array([3.0, 4.0]), np.array([1.0, 1.0])
    bound = 5 * math.sqrt(2) / 7
    Q = condition_number(lambda p: float(b @ p), x, radius=0.1, n_directions=400, rng=0)
    assert 0.99 * bound < Q <= bound * (1 + 1e-9)
    few = condition_number(lambda p: float(b @ p), x, radius=0.1, n_directions=1, rng=0)
    assert few < Q


def test_condition_number_vectorized_in_torch_is_the_same():
    torch = pytest.importorskip("torch")
    Q = condition_number(
        lambda x: x.sum(-1), torch.ones(3), radius=0.5, n_directions=500, rng=0, vectorized=True
    )
    assert pytest.approx(1.0, rel=0.02) == Q  # sqrt(3) sqrt(3) / 3


def test_condition_number_skips_failures_and_refuses_the_undefined():
    def half_fails(p):
        return 1.0 + p[0] if p[0] >= 1.0 else math.nan

    assert condition_number(half_fails, [1.0], radius=0.5, rng=0) == pytest.approx(0.5)
    with pytest.raises(InvalidValueError, match=r"fun at x must be finite and not 0, got 0\.0"):
        condition_number(lambda p: 0.0, [1.0], radius=0.5)
    with pytest.raises(InvalidValueError, match="finite somewhere around x"):
        condition_number(lambda p: 1.0 if p[0] == 1.0 else math.inf, [1.0], radius=0.5)


def test_estimator_error():
    error = estimator_error([2.0, 0.0], [1.0, 0.0])
    assert error == (1.0, 1.0)
    assert estimator_error([0.0, 3.0], [4.0, 0.0]) == (pytest.approx(5 / 4), 0.0)
    assert estimator_error([0.0, 0.0], [4.0, 0.0]) == (1.0, 0.0)
    with pytest.raises(InvalidValueError, match="gradient must not be 0"):
        estimator_error([1.0], [0.0])
    with pytest.raises(InvalidValueError, match=r"same shape \(dim,\), got \(1,\) and \(2,\)"):
        estimator_error([1.0], [0.0, 1.0])
