"""The coordinates of a trust region: its axes, its radius and its resolution.

The resolution ρ is the least length of a step. When nothing more is to be gained at it, it shrinks,
but only along the axes on which the model bends most. Along the others the trust region keeps up to
ten times more of its length, so that the model bends alike on all axes: the ellipsoid takes the
shape of the level sets.

With noise, the resolution shrinks only while the values in the trust region differ by more than the
noise.

Source: Powell, "The NEWUOA software for unconstrained optimization without derivatives", 2006 (the
resolution; his region is a ball).
"""

from __future__ import annotations

import math

import numpy as np

from zoopt_nas.solvers.engines.interpolation import Model
from zoopt_nas.solvers.engines.small_matrices import eigen_symmetric, singular_values
from zoopt_nas.solvers.engines.trust_state import TrustState, value_error
from zoopt_nas.solvers.state import SolverState

# The factors by which the resolution shrinks, without and with noise.
SHRINK, NOISY_SHRINK = 0.1, 0.5
# The longest first step along a coordinate, in units of its radius: where the model bends less, its
# curvature does not set the length of the axis.
MAX_FIRST_STEP = 10.0
# The largest condition number of the axes, and the least curvature relative to the largest.
MAX_CONDITION = 1e8
LEAST_BEND = 1e-8
# The model keeps up to MAX_POINTS points, but not more than a quadratic has coefficients; with
# noise, NOISY_POINTS times as many.
MAX_POINTS = 250
NOISY_POINTS = 3
# The model gets new coordinates when the radius has changed by the factor MAX_DRIFT, and is rebuilt
# when the best point is MAX_DRIFT radii away from the base, or its error by rounding is still too
# large after MAX_CORRECTIONS. Then points farther away than REACH radii are dropped.
MAX_DRIFT = 4.0
MAX_ERROR = 1e-6
MAX_CORRECTIONS = 2
REACH = 100.0
# A run restarts if a decrease by this multiple of what the model expects leaves it above the best.
GIVE_UP_RATIO = 10.0
# With noise, values in the trust region differ at least by this multiple of the noise.
SIGNAL = 3.0


def max_points(inner: TrustState) -> int:
    """Return the largest number of points of the model."""
    k = len(inner.block)
    n_coefficients = (k + 1) * (k + 2) // 2
    if inner.noise > 0:
        return max(min(NOISY_POINTS * n_coefficients, MAX_POINTS), 3 * k)
    return max(min(n_coefficients, MAX_POINTS), min_points(inner))


def min_points(inner: TrustState) -> int:
    """Return the number of points of the first model, which a rebuilt one keeps at least."""
    return 2 * len(inner.block) + 1


def start(inner: TrustState, model: Model) -> None:
    """Begin with the first model of a run, on axes on which it bends alike."""
    inner.model = model
    inner.radius = inner.resolution = 1.0
    inner.is_proven, inner.n_averaged, inner.n_fruitless = False, 0, 0
    inner.has_converged = False
    model.damping = _damping(inner, float(np.ptp(model.values)))
    model.rebuild(model.axes, model.hessian, min_points(inner), REACH)
    bends = np.maximum(np.abs(np.diagonal(model.hessian)), np.abs(model.gradient) / MAX_FIRST_STEP)
    top = float(bends.max(initial=0.0))
    if inner.noise == 0 and 0 < top < math.inf:
        bends = np.maximum(bends, LEAST_BEND * top)
        middle = math.exp(float(np.mean(np.log(bends))))
        rebuild(inner, np.diag(np.clip(np.sqrt(middle / bends), SHRINK, 1 / SHRINK)))


def rebuild(inner: TrustState, directions: np.ndarray | None = None) -> None:
    """Rebuild the model; the columns of ``directions`` times the radius become the unit vectors."""
    model: Model = inner.model
    change = np.eye(len(inner.block)) if directions is None else directions
    change = inner.radius * change
    hessian = change.T @ model.hessian @ change
    inner.resolution /= inner.radius
    inner.radius, inner.is_stale = 1.0, False
    model.damping = _damping(inner, float(np.abs(hessian).max()))
    hessian = 0.5 * (hessian + hessian.T)
    model.rebuild(model.axes @ change, hessian, min_points(inner), REACH)


def refresh(inner: TrustState) -> None:
    """Rebuild the model if its coordinates do not fit any more, or rounding has added up."""
    model: Model = inner.model
    centre = model.points[model.centre]
    is_far = float(centre @ centre) > (MAX_DRIFT * max(inner.radius, 1.0)) ** 2
    has_changed = not 1 / MAX_DRIFT <= inner.radius <= MAX_DRIFT
    is_unfit = inner.is_stale or is_far or (has_changed and not _rescale(inner))
    if is_unfit or not model.correct(MAX_ERROR, MAX_CORRECTIONS):
        rebuild(inner)


def _rescale(inner: TrustState) -> bool:
    """Make the radius about 1 by another unit of y; return False if the model has to be rebuilt.

    That is if it has noise, because its damping depends on the unit, or points to be dropped.
    """
    model: Model = inner.model
    unit = 2.0 ** round(math.log2(inner.radius))
    squares = np.add.reduce(model.points * model.points, 1)
    is_wide = len(squares) > min_points(inner) and float(squares.max()) > (REACH * unit) ** 2
    if inner.noise > 0 or is_wide:
        return False
    model.rescale(unit)
    inner.radius /= unit
    inner.resolution /= unit
    return True


def change_within(model: Model, radius: float, top: float | None = None) -> float:
    """Return a bound on the changes of the model within a radius around the best point.

    ``top`` is the largest absolute curvature, if it is known.
    """
    slope = model.slope(model.points[model.centre])
    if top is None:
        top = float(np.abs(eigen_symmetric(model.hessian)[0]).max())
    return (math.sqrt(float(slope @ slope)) + 0.5 * top * radius) * radius


def refine(state: SolverState) -> bool:
    """Shrink the resolution; return False if the run has converged, or would only see noise."""
    inner: TrustState = state.inner
    model: Model = inner.model
    rho, value = inner.resolution, float(model.values[model.centre])
    shrink = NOISY_SHRINK if inner.noise > 0 else SHRINK
    eigenvalues, vectors = eigen_symmetric(model.hessian)
    bends = np.abs(eigenvalues)
    top = float(bends.max())
    if inner.noise > 0 and not change_within(model, shrink * rho, top) > SIGNAL * inner.noise:
        return False
    change = change_within(model, rho, top)
    if not (math.isfinite(change) and change > value_error(state, value)):
        return False
    if value - GIVE_UP_RATIO * change > inner.best_value:
        return False
    size = float(np.abs(model.rows[model.centre]).max())
    if rho * model.longest <= max(4 * inner.eps * size, inner.least_length):
        return False
    inner.is_proven = False
    inner.resolution = shrink * rho
    inner.radius = max(0.5 * rho, inner.resolution)
    directions = None
    if top > 0:  # the eigenvectors, longer by up to 1 / shrink where the model bends less
        directions = vectors * np.sqrt(top / np.maximum(bends, top * shrink**2))
        lengths = singular_values(model.axes @ directions)
        if not lengths[0] <= MAX_CONDITION * lengths[-1]:
            directions = None
    rebuild(inner, directions)
    return True


def _damping(inner: TrustState, bend: float) -> float:
    """Return μ for the noise and second derivatives of the size ``bend``."""
    if not inner.noise > 0:
        return 0.0
    return (inner.noise / max(4 * inner.noise, bend)) ** 2
