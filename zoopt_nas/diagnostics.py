"""Measure whether the assumptions of a solver hold for an objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, as_generator, as_point, to_numpy
from zoopt_nas._checks import check_positive, check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.objective import Objective

_NEAR_ZERO = 1e-6
"""The radius that shows the noise alone, relative to the norm of x: float32 still resolves it."""


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


class ConditionNumber(NamedTuple):
    """The condition number Q at one radius, and how far noise explains it."""

    radius: float
    """||Δ_i||."""
    value: float
    """Q of the mean over the draws."""
    standard_error: float
    """Of the difference with the largest magnitude, over the draws, in units of Q; NaN for one."""
    floor: float
    """Q of the noise alone; see ``condition_numbers``."""

    @property
    def is_above_floor(self) -> bool:
        """Whether Q is at least twice the floor, so that at most half of it can be noise."""
        return self.value >= 2 * self.floor


def condition_numbers(
    fun: Callable[[Any], Any] | Sequence[Callable[[Any], Any]],
    x: Any,
    *,
    radii: Sequence[float],
    n_directions: int = 32,
    rng: Any = None,
    vectorized: bool = False,
) -> list[ConditionNumber]:
    """Estimate Q = max_i |L(x + Δ_i) - L(x)| ||x|| / (||Δ_i|| |L(x)|) (Eq. 11) at each radius.

    A rough L, such as the loss after training, differs by about as much at 1e-3 as at 1e-2: its Q
    grows as 1 / radius and is no property of the slope. Noise is therefore averaged over several
    draws, and the rest is measured as a floor, the larger of two numbers:

    - Q of half the difference of two means, one over each half of the draws. What all draws have
      in common cancels, and the noise has the same variance as in the mean of all.
    - The Q that the differences at a radius of 1e-6 ||x|| would give at this one.

    All radii and draws have the same directions. A direction where an evaluation fails is ignored.

    Args:
        fun: the objective L, as in ``minimize``; or the draws of a noisy one, whose mean is L.
            Each draw must be deterministic, for example by a fixed seed.
        x: the point, (dim,), not 0.
        radii: norms ||Δ_i||; the directions are uniform on the sphere.
        n_directions: K. Each draw is evaluated 1 + K (number of radii + 1) times.
        rng: as in ``minimize``.
        vectorized: as in ``minimize``.

    Raises:
        InvalidValueError: x or L(x) is 0, L(x) is not finite, or every direction failed.
    """
    radii = [check_positive("a radius", radius) for radius in radii]
    x = as_point("x", x)
    n = check_positive_int("n_directions", n_directions)
    norm = float(np.linalg.norm(to_numpy(x)))
    if norm == 0:
        raise InvalidValueError("x must not be 0, where Q is 0 by definition, got a zero vector")
    directions = sampling.sphere(as_generator(rng, x), n, x)
    steps = [radius * directions for radius in (_NEAR_ZERO * norm, *radii)]
    points = array_namespace(x).concat([x[None, :], *(x + step for step in steps)], axis=0)
    draws = [fun] if callable(fun) else list(fun)
    values = np.stack([Objective(one, vectorized=vectorized).evaluate(points) for one in draws])
    base, around = values[:, 0], values[:, 1:].reshape(len(draws), len(steps), n)
    at_x = float(np.mean(base))
    if at_x == 0 or not np.isfinite(at_x):
        raise InvalidValueError(f"the value of fun at x must be finite and not 0, got {at_x}")
    around = around[:, :, np.isfinite(around).all(axis=(0, 1))]
    if around.shape[2] == 0:
        raise InvalidValueError("fun must be finite somewhere around x, got only failures")
    near_zero, *others = np.moveaxis(around - base[:, None, None], 1, 0)
    jump = float(np.max(np.abs(np.mean(near_zero, axis=0))))
    units = [norm / (radius * abs(at_x)) for radius in radii]
    return [
        _condition_number(radius, unit, differences, jump)
        for radius, unit, differences in zip(radii, units, others, strict=True)
    ]


def _condition_number(
    radius: float, unit: float, differences: Array, jump: float
) -> ConditionNumber:
    """Return Q from ``L(x + Δ_i) - L(x)`` (n_draws, K); ``unit`` turns a difference into Q."""
    n = len(differences)
    means = np.abs(np.mean(differences, axis=0))
    largest = int(np.argmax(means))
    standard_error, contrast = math.nan, 0.0
    if n > 1:
        standard_error = float(np.std(differences[:, largest], ddof=1)) / math.sqrt(n)
        halves = np.mean(differences[::2], axis=0) - np.mean(differences[1::2], axis=0)
        # The variance of a mean over m draws is 1 / m of one draw's.
        share = math.sqrt((n // 2) * (n - n // 2)) / n
        contrast = share * float(np.max(np.abs(halves)))
    return ConditionNumber(
        radius, unit * float(means[largest]), unit * standard_error, unit * max(contrast, jump)
    )


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
