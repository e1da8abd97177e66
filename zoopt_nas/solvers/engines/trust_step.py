"""The trust-region step: the minimum of a quadratic in a ball, or in an ellipsoid and a box.

Source: Moré and Sorensen, "Computing a Trust Region Step", SIAM J. Scientific and Statistical
Computing 4, 1983 (the ball). The box is treated by an active set.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np

from zoopt_nas.solvers.engines.small_matrices import (
    eigen_symmetric,
    inverse,
    solve_positive,
    solve_transposed,
)

# The relative error of the length of a step that ends on the sphere, and the largest number of
# iterations for it.
LENGTH_ERROR = 1e-3
MAX_ITERATIONS = 50
# A slope below this fraction of the largest one is 0 along an eigenvector.
LEAST_SLOPE = 1e-13
# Points on a circle: cosines and sines, (n, 2).
CIRCLE = np.array([[math.cos(a), math.sin(a)] for a in np.linspace(0, 2 * math.pi, 33)[:-1]])


class Region(NamedTuple):
    """Where a step may go: |d| <= radius and lower <= axes d <= upper.

    Attributes:
        radius: > 0.
        axes: (dim, dim), x = axes y.
        lower: (dim,), at most 0; None without bounds.
        upper: (dim,), at least 0; None without bounds.
    """

    radius: float
    axes: np.ndarray
    lower: np.ndarray | None
    upper: np.ndarray | None

    def contains(self, d: np.ndarray) -> bool:
        """Return whether a step of at most ``radius`` keeps the bounds."""
        if self.lower is None or self.upper is None:
            return True
        s = self.axes @ d
        return bool(((self.lower <= s) & (s <= self.upper)).all())


def ball_step(gradient: np.ndarray, hessian: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """Return the minimum of g·d + d·H d / 2 with |d| <= radius, and its multiplier λ.

    (H + λ) d = -g, where H + λ has no negative eigenvalue.
    """
    solution = solve_positive(hessian, -gradient)
    if solution is not None:
        minimum, factor = solution
        if minimum @ minimum <= radius * radius:
            return minimum, 0.0
        return _sphere_step(gradient, hessian, radius, minimum, factor)
    eigenvalues, vectors = eigen_symmetric(hessian)
    d, multiplier = _diagonal_step(gradient @ vectors, eigenvalues, radius)
    return vectors @ d, multiplier


def _sphere_step(
    gradient: np.ndarray, hessian: np.ndarray, radius: float, d: np.ndarray, factor: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return what `ball_step` does for a convex quadratic with its minimum d outside of the ball.

    Newton's method for 1/|d| as a function of λ: from λ = 0 it approaches the solution from below,
    so H + λ = Uᵀ U stays positive definite.
    """
    multiplier, length = 0.0, math.sqrt(d @ d)
    for _ in range(MAX_ITERATIONS):
        # -|w|² is the relative change of |d| with λ, where Uᵀ w = d / |d|.
        w = solve_transposed(factor, d / length)
        change = float(w @ w)
        if not change > 0:  # numbers overflow
            break
        multiplier += (length / radius - 1) / change
        shifted = hessian.copy()
        shifted.flat[:: len(d) + 1] += multiplier
        solution = solve_positive(shifted, -gradient)
        if solution is None:
            break
        d, factor = solution
        length = math.sqrt(d @ d)
        if not length > (1 + LENGTH_ERROR) * radius:
            break
    return d * min(1.0, radius / length), multiplier


def _diagonal_step(
    slopes: np.ndarray, curvatures: np.ndarray, radius: float
) -> tuple[np.ndarray, float]:
    """Return what `ball_step` does for ascending curvatures that are not all positive."""
    least, largest = float(curvatures[0]), max(abs(float(curvatures[0])), float(curvatures[-1]))
    low = max(0.0, -least)
    size = math.sqrt(slopes @ slopes)
    hidden = max(LEAST_SLOPE * size, 4 * sys.float_info.epsilon * low * radius)
    if abs(slopes[0]) <= hidden:
        # The hard case: g hardly tells which way to go along the least eigenvalue.
        gaps = curvatures + low
        is_least = gaps <= 1e-14 * largest
        d = np.where(is_least, 0.0, -slopes / np.where(is_least, 1.0, gaps))
        square = float(d @ d)
        if square < radius * radius and np.abs(slopes[is_least]).max(initial=0.0) <= hidden:
            if low > 0:
                d[0] = -math.copysign(math.sqrt(radius * radius - square), slopes[0])
            return d, low
    # Newton's method for 1/|d| as a function of λ, kept between the ends of an interval. The first
    # value has an error only of the slopes along other eigenvectors.
    high = low + size / radius
    multiplier = max(low, float((np.abs(slopes) / radius - curvatures).max()))
    for _ in range(MAX_ITERATIONS):
        shifted = curvatures + multiplier
        d = slopes / shifted
        square = float(d @ d)
        length = math.sqrt(square)
        if abs(length - radius) <= LENGTH_ERROR * radius or not high > low:
            break
        if length > radius:
            low = multiplier
        else:
            high = multiplier
        bend = float(d @ (d / shifted))
        newton = multiplier + (length / radius - 1) * square / bend if bend > 0 else high
        multiplier = newton if low < newton < high else 0.5 * (low + high)
    return d * (-min(1.0, radius / length) if length > 0 else 0.0), multiplier


def largest_change(gradient: np.ndarray, hessian: np.ndarray, region: Region) -> np.ndarray:
    """Return a step d, (dim,), in a region with a large |g·d + d·H d / 2|.

    Without bounds it is at least half of the largest one.

    Raises:
        numpy.linalg.LinAlgError: numbers overflow.
    """
    d = _largest_on_circle(gradient, hessian, region.radius)
    if region.contains(d):
        return d
    steps = [region_step(sign * gradient, sign * hessian, region) for sign in (1.0, -1.0)]
    return max(steps, key=lambda d: abs(float(d @ (gradient + 0.5 * (hessian @ d)))))


def _largest_on_circle(gradient: np.ndarray, hessian: np.ndarray, radius: float) -> np.ndarray:
    """Return a step d, (dim,), of this length with a large |g·d + d·H d / 2|.

    It is the best point of a circle in the plane of the gradient and of the eigenvector v of the
    largest eigenvalue λ. The circle contains steps along each of them, with changes of at least
    |g| radius and |λ| radius² / 2. In the ball, no change exceeds the sum of these two.
    """
    eigenvalues, vectors = eigen_symmetric(hessian)
    v = vectors[:, 0 if -eigenvalues[0] > eigenvalues[-1] else -1]
    plane = np.array([v, _unit(gradient - (gradient @ v) * v)])
    slopes, bends = plane @ gradient, plane @ hessian @ plane.T
    changes = CIRCLE @ slopes + 0.5 * radius * np.add.reduce((CIRCLE @ bends) * CIRCLE, 1)
    best = int(np.abs(changes).argmax())
    if not math.isfinite(changes[best]):
        raise np.linalg.LinAlgError("the quadratic overflows")
    # Of length 1 only up to rounding, which is large if the gradient is along v.
    return radius * _unit(CIRCLE[best] @ plane)


def _unit(vector: np.ndarray) -> np.ndarray:
    """Return a vector of length 1 in this direction; 0 for 0."""
    unit: np.ndarray = vector / (math.sqrt(vector @ vector) or 1.0)
    return unit


def region_step(gradient: np.ndarray, hessian: np.ndarray, region: Region) -> np.ndarray:
    """Return a minimum d, (dim,), of g·d + d·H d / 2 in a region, local if H is indefinite."""
    d, _ = ball_step(gradient, hessian, region.radius)
    lower, upper = region.lower, region.upper
    if lower is None or upper is None or region.contains(d):
        return d
    to_y = inverse(region.axes)
    quadratic = _Quadratic(to_y.T @ gradient, to_y.T @ hessian @ to_y, to_y.T @ to_y)
    step: np.ndarray = to_y @ _box_step(quadratic, region.radius, lower, upper)
    return step


class _Quadratic(NamedTuple):
    """g·s + s·H s / 2 in an ellipsoid s·M s <= radius²."""

    gradient: np.ndarray
    hessian: np.ndarray
    metric: np.ndarray

    def value(self, s: np.ndarray) -> float:
        return float(s @ (self.gradient + 0.5 * (self.hessian @ s)))


def _box_step(
    quadratic: _Quadratic, radius: float, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Return the minimum in the ellipsoid and a box around 0, by an active set.

    The coordinates of the set are fixed at their bounds. The others go to the minimum of the rest;
    the first one that meets its bound on the way joins the set. At a minimum, the coordinate whose
    slope points most strongly inwards leaves it.
    """
    dim = len(lower)
    g = quadratic.gradient
    fixed = ((lower >= 0) & (g >= 0)) | ((upper <= 0) & (g <= 0))
    s, best, least = np.zeros(dim), np.zeros(dim), 0.0
    for _ in range(3 * dim + 3):
        target, multiplier = _free_minimum(quadratic, radius, s, fixed)
        way = target - s
        room = np.where(way > 0, upper, lower) - s
        with np.errstate(divide="ignore", invalid="ignore"):
            fractions = np.where(way == 0, np.inf, room / way)
        fraction = float(fractions.min(initial=np.inf))
        s = np.clip(s + min(fraction, 1.0) * way, lower, upper)
        meets = fractions <= min(fraction, 1.0)
        s = np.where(meets, np.where(way > 0, upper, lower), s)
        value = quadratic.value(s)
        if value < least:
            best, least = s, value
        fixed = fixed | meets
        if fraction < 1:
            continue
        slopes = g + quadratic.hessian @ s + multiplier * (quadratic.metric @ s)
        inwards = np.where(fixed & (lower < upper), np.where(s <= lower, -slopes, slopes), 0.0)
        leaving = int(np.argmax(inwards))
        if not inwards[leaving] > 1e-10 * np.abs(g).max():
            break
        fixed = fixed.copy()
        fixed[leaving] = False
    return best


def _free_minimum(
    quadratic: _Quadratic, radius: float, s: np.ndarray, fixed: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the minimum over the coordinates that are not fixed, and its multiplier."""
    free = ~fixed
    if not free.any():
        return s, 0.0
    metric, known = quadratic.metric, s[fixed]
    # The ellipsoid in the free coordinates has another centre and radius.
    lower_factor = np.linalg.cholesky(metric[np.ix_(free, free)])
    to_ball = np.linalg.inv(lower_factor)
    cross = metric[np.ix_(free, fixed)] @ known
    half = to_ball @ cross
    centre = -to_ball.T @ half
    square = radius * radius - float(known @ metric[np.ix_(fixed, fixed)] @ known) + half @ half
    if not square > 0:
        return s, 0.0
    hessian = quadratic.hessian[np.ix_(free, free)]
    slope = quadratic.gradient[free] + quadratic.hessian[np.ix_(free, fixed)] @ known
    slope = slope + hessian @ centre
    d, multiplier = ball_step(to_ball @ slope, to_ball @ hessian @ to_ball.T, math.sqrt(square))
    target = s.copy()
    target[free] = centre + to_ball.T @ d
    return target, multiplier
