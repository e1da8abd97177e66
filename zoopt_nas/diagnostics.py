"""Measure whether the assumptions of a solver hold for an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zoopt_nas import sampling
from zoopt_nas._arrays import array_namespace, as_generator, as_point, to_numpy
from zoopt_nas._checks import check_positive, check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.objective import Objective


def effective_sample_size(weights: Any) -> float:
    """Return the effective sample size N_e = (Σ c_i)² / Σ c_i², in [1, n] (A.3; Owen 2013).

    Args:
        weights: (n,), non-negative and not all zero; they need not sum to 1.

    Raises:
        InvalidValueError: ``weights`` breaks these rules.
    """
    c = np.asarray(to_numpy(weights), dtype=np.float64)
    if c.ndim != 1 or not np.all(np.isfinite(c)) or np.any(c < 0) or not np.any(c > 0):
        raise InvalidValueError(
            f"weights must be a 1-D array of finite non-negative numbers, not all 0, got {weights}"
        )
    c = c / np.max(c)  # the squares of tiny weights would underflow
    return float(np.sum(c) ** 2 / np.sum(c * c))


def effective_sample_ratio(weights: Any) -> float:
    """Return R_e = N_e / n, in [1 / n, 1] (Eq. 27); see ``effective_sample_size``."""
    return effective_sample_size(weights) / len(weights)


def condition_number(
    fun: Callable[[Any], Any],
    x: Any,
    *,
    radius: float,
    n_directions: int = 32,
    rng: Any = None,
    vectorized: bool = False,
) -> float:
    """Estimate Q = max_i |L(x + Δ_i) - L(x)| ||x|| / (||Δ_i|| |L(x)|) (Eq. 11).

    Failed evaluations at x + Δ_i are ignored.

    Args:
        fun: the objective L, as in ``minimize``.
        x: the point, (dim,).
        radius: ||Δ_i||; the directions are uniform on the sphere.
        n_directions: K; ``fun`` is evaluated K + 1 times.
        rng: as in ``minimize``.
        vectorized: as in ``minimize``.

    Raises:
        InvalidValueError: L(x) is 0 or not finite, or every L(x + Δ_i) failed.
    """
    radius = check_positive("radius", radius)
    x = as_point("x", x)
    xp = array_namespace(x)
    n = check_positive_int("n_directions", n_directions)
    steps = radius * sampling.sphere(as_generator(rng, x), n, x)
    objective = Objective(fun, vectorized=vectorized)
    values = objective.evaluate(xp.concat([x[None, :], x + steps], axis=0))
    at_x, around = values[0], values[1:]
    if at_x == 0 or not np.isfinite(at_x):
        raise InvalidValueError(f"the value of fun at x must be finite and not 0, got {at_x}")
    around = around[np.isfinite(around)]
    if around.size == 0:
        raise InvalidValueError("fun must be finite somewhere around x, got only failures")
    norm = float(np.linalg.norm(to_numpy(x)))
    return float(np.max(np.abs(around - at_x)) * norm / (radius * abs(at_x)))


class EstimatorError(NamedTuple):
    """The error of an estimated gradient."""

    relative_error: float
    """||estimate - gradient|| / ||gradient||: the root of Eq. 15, relative to the gradient."""
    cosine: float
    """The cosine of the angle between the two, in [-1, 1]; 0 if the estimate is 0."""


def estimator_error(estimate: Any, gradient: Any) -> EstimatorError:
    """Compare an estimated gradient, (dim,), with the true one, (dim,).

    Raises:
        InvalidValueError: the shapes differ or the true gradient is 0.
    """
    g_hat = np.asarray(to_numpy(estimate), dtype=np.float64)
    g = np.asarray(to_numpy(gradient), dtype=np.float64)
    if g_hat.shape != g.shape or g.ndim != 1:
        raise InvalidValueError(
            "estimate and gradient must have the same shape (dim,), "
            f"got {g_hat.shape} and {g.shape}"
        )
    norm, norm_hat = float(np.linalg.norm(g)), float(np.linalg.norm(g_hat))
    if norm == 0:
        raise InvalidValueError("gradient must not be 0, got a zero vector")
    cosine = float(g_hat @ g) / (norm * norm_hat) if norm_hat > 0 else 0.0
    return EstimatorError(float(np.linalg.norm(g_hat - g)) / norm, cosine)
