"""The moves of a trust-region method: steps, points for the geometry, radius and resolution.

A step minimizes the model in the trust region, an ellipsoid around the best point within the
bounds. If it fails and some point is far away, that point is replaced by one where its Lagrange
function is large, which makes the model reliable. If all points are near, the resolution shrinks.

The resolution shrinks along the axes on which the model bends most. Along the others the trust
region keeps up to ten times more of its length, so that all axes bend alike: the ellipsoid takes
the shape of the level sets.

Source: Powell, "The NEWUOA software for unconstrained optimization without derivatives", 2006
(radius, resolution and geometry; the ellipsoid is not from there).
"""

from __future__ import annotations

import math
import os

import numpy as np

from zoopt_nas.solvers.engines.interpolation import Model
from zoopt_nas.solvers.engines.trust_start import without_failures
from zoopt_nas.solvers.engines.trust_state import (
    AGAIN,
    STEP,
    Phase,
    TrustState,
    as_float64,
    ends_of,
    value_error,
)
from zoopt_nas.solvers.engines.trust_step import Region, largest_change, region_step
from zoopt_nas.solvers.state import SolverState

# A step is successful if it achieves this fraction of the predicted decrease, and very successful
# with the second one.
SUCCESS, GREAT_SUCCESS = 0.1, 0.7
# The factor by which the resolution shrinks.
SHRINK = 0.1
# The largest condition number of the axes.
MAX_CONDITION = 1e8
# The model keeps up to MAX_POINTS points, and with noise NOISY_POINTS times as many as a quadratic
# has coefficients.
MAX_POINTS = 250
NOISY_POINTS = 3
# The model is rebuilt in new coordinates when the radius has changed by this factor, when the best
# point is so many radii away from the base, or after so many updates.
MAX_DRIFT = 4.0
MAX_ERROR = 1e-6
REACH = float(os.environ.get("REACH", "50"))
# A model is proven if the ratio of a step differs from 1 by at most this number.
ACCURACY = float(os.environ.get('ACC','0.1'))
# A run restarts if a decrease by this multiple of what the model expects leaves it above the best.
GIVE_UP_RATIO = 10.0


import os
L2=float(os.environ.get('L2','2')); L10=float(os.environ.get('L10','10'))
def max_points(inner: TrustState) -> int:
    """Return the largest number of points of the model."""
    k = len(inner.block)
    full = (k + 1) * (k + 2) // 2
    if inner.noise > 0:
        return max(min(NOISY_POINTS * full, MAX_POINTS), 3 * k)
    return max(min(full, MAX_POINTS), 2 * k + 1)


def min_points(inner: TrustState) -> int:
    k = len(inner.block)
    return 2 * k + 1


def learn(state: SolverState, rows: np.ndarray, values: np.ndarray) -> float | None:
    """Take in a batch; return the ratio of measured to predicted decrease of its best step.

    None if no row was a step.
    """
    inner: TrustState = state.inner
    model = inner.model
    assert model is not None
    centre, before = model.points[model.centre].copy(), float(model.values[model.centre])
    ratio, tried = None, math.inf
    for k in np.argsort(inner.targets == STEP, kind="stable").tolist():
        row, value, target = rows[k], float(values[k]), int(inner.targets[k])
        y = model.to_points(row)
        if target != STEP:
            if math.isfinite(value) or target >= 0:
                _take(inner, row, y, value, target)
            continue
        if ratio is None or value < tried:
            tried = value
            length = math.sqrt(float((y - centre) @ (y - centre)))
            ratio = _ratio(inner, before - value, float(inner.gains[k]))
        if math.isfinite(value):
            _take(inner, row, y, value, STEP)
    if ratio is not None:
        inner.is_proven = abs(ratio - 1) <= ACCURACY
        _adapt_radius(inner, ratio, length)
    return ratio


def _ratio(inner: TrustState, decrease: float, gain: float) -> float:
    """Return the ratio of decreases; noise can hide one (Sun and Nocedal, arXiv 2201.00973)."""
    slack = 2 * inner.noise
    ratio = (decrease + slack) / (gain + slack)
    return ratio if math.isfinite(ratio) else -math.inf


def _adapt_radius(inner: TrustState, ratio: float, length: float) -> None:
    radius = inner.radius
    if ratio <= SUCCESS:
        radius = 0.5 * length
    elif ratio <= GREAT_SUCCESS:
        radius = max(0.5 * radius, length)
    else:
        radius = max(0.5 * radius, 2 * length)
    inner.radius = inner.resolution if radius <= 1.5 * inner.resolution else radius


def _take(inner: TrustState, row: np.ndarray, y: np.ndarray, value: float, target: int) -> None:
    """Add a point to the model, or let it replace another."""
    model = inner.model
    assert model is not None
    if not math.isfinite(value):
        value = float(without_failures(np.append(model.values, math.inf))[-1])
    place = model.place(y)
    is_better = value < model.values[model.centre]
    if target < 0 and len(model.values) < max_points(inner) and model.append(row, value, place):
        t = len(model.values) - 1
    else:
        t = target
        if t < 0:
            around = y if is_better else model.points[model.centre]
            offsets = (model.points - around) / inner.radius
            weights = np.maximum(1.0, np.add.reduce(offsets * offsets, 1)) ** 2
            losses = np.abs(model.pivots(place)) * weights
            if not is_better:
                losses[model.centre] = -1.0
            t = int(np.argmax(losses))
        if not model.replace(t, row, value, place):
            if target < 0:
                return
            model.rows[t], model.values[t] = row, value
            inner.is_stale = True
    if inner.noise > 0:
        model.centre = int(np.argmin(model.fitted()))
    elif is_better:
        model.centre = t


def plan(state: SolverState, ratio: float | None, n_samples: int) -> bool:
    """Plan the next batch; return False if the run has converged."""
    inner: TrustState = state.inner
    model = inner.model
    assert model is not None
    inner.phase = Phase.MOVE
    _keep_model_fresh(inner)
    if not model.is_finite:
        return False
    lower, upper = ends_of(state)
    did_step = ratio is not None
    ratio = 1.0 if ratio is None else ratio
    for _ in range(1000):
        centre = model.points[model.centre]
        offsets = model.points - centre
        distances = np.sqrt(np.add.reduce(offsets * offsets, 1))
        if not did_step or ratio > SUCCESS:
            d, gain = _step(inner, inner.radius, lower, upper)
            floor = value_error(state, float(model.values[model.centre]))
            is_long = math.sqrt(float(d @ d)) >= 0.5 * inner.resolution
            if is_long and gain > max(floor, 0.0):
                rows, targets, gains = [_row(inner, d, lower, upper)], [STEP], [gain]
                _set_batch(inner, rows, targets, gains)
                return True
            did_step = False
            if inner.is_proven:
                if not _refine(state):
                    return False
                continue
        limit = max(L2 * inner.radius, (L10 if did_step else L2) * inner.resolution)
        far = int(np.argmax(distances))
        if distances[far] > limit:
            d = _geometry_step(inner, far, float(distances[far]), lower, upper)
            _set_batch(inner, [_row(inner, d, lower, upper)], [far], [0.0])
            return True
        if did_step and (inner.radius > inner.resolution or ratio > 0):
            did_step = False
            continue
        if not _refine(state):
            return False
        did_step = False
    return False


def _set_batch(
    inner: TrustState, rows: list[np.ndarray], targets: list[int], gains: list[float]
) -> None:
    inner.planned, inner.targets = np.stack(rows), np.array(targets)
    inner.gains = np.array(gains)


def _region(
    inner: TrustState, radius: float, lower: np.ndarray | None, upper: np.ndarray | None
) -> Region:
    model = inner.model
    assert model is not None
    if lower is None or upper is None:
        return Region(radius, model.axes, None, None)
    x = model.rows[model.centre]
    return Region(radius, model.axes, lower - x, upper - x)


def _step(
    inner: TrustState, radius: float, lower: np.ndarray | None, upper: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """Return the step from the best point, (k,), and the decrease that the model predicts."""
    model = inner.model
    assert model is not None
    slope = model.slope(model.points[model.centre])
    d = region_step(slope, model.hessian, _region(inner, radius, lower, upper))
    return d, -float(d @ (slope + 0.5 * (model.hessian @ d)))


def _geometry_step(
    inner: TrustState,
    far: int,
    distance: float,
    lower: np.ndarray | None,
    upper: np.ndarray | None,
) -> np.ndarray:
    """Return a step from the best point to where the Lagrange function of a far point is large."""
    model = inner.model
    assert model is not None
    radius = max(min(0.1 * distance, 0.5 * inner.radius), inner.resolution)
    region = _region(inner, radius, lower, upper)
    constant, gradient, hessian = model.lagrange(far)
    centre = model.points[model.centre]
    slope = gradient + hessian @ centre
    return largest_change(slope, hessian, region)


def _row(
    inner: TrustState, d: np.ndarray, lower: np.ndarray | None, upper: np.ndarray | None
) -> np.ndarray:
    """Return the point at a step from the best one, exactly on a bound if it is near by rounding."""
    model = inner.model
    assert model is not None
    row: np.ndarray = model.rows[model.centre] + model.axes @ d
    if lower is None or upper is None:
        return row
    reach = 1e-9 * inner.radius * np.sqrt(np.add.reduce(model.axes * model.axes, 1))
    row = np.where(row - lower <= reach, lower, row)
    return np.where(upper - row <= reach, upper, row)


def _keep_model_fresh(inner: TrustState) -> None:
    """Rebuild the model if its coordinates do not fit any more, or rounding has added up."""
    model = inner.model
    assert model is not None
    centre = model.points[model.centre]
    is_far = float(centre @ centre) > (MAX_DRIFT * max(inner.radius, 1.0)) ** 2
    has_changed = not 1 / MAX_DRIFT <= inner.radius <= MAX_DRIFT
    if inner.is_stale or is_far or has_changed or model.n_updates > 0 and model.error > MAX_ERROR:
        _rebuild(inner, np.eye(len(centre)))


def _rebuild(inner: TrustState, directions: np.ndarray) -> None:
    """Rebuild the model; the columns of ``directions`` times the radius become the unit vectors."""
    model = inner.model
    assert model is not None
    change = inner.radius * directions
    hessian = change.T @ model.hessian @ change
    inner.resolution /= inner.radius
    inner.radius, inner.is_stale = 1.0, False
    model.damping = _damping(inner, float(np.abs(hessian).max()))
    hessian = 0.5 * (hessian + hessian.T)
    model.rebuild(model.axes @ change, hessian, min_points(inner), REACH)


def _damping(inner: TrustState, bend: float) -> float:
    """Return μ for the noise and second derivatives of the size ``bend``."""
    if not inner.noise > 0:
        return 0.0
    return (inner.noise / max(4 * inner.noise, bend)) ** 2


def _refine(state: SolverState) -> bool:
    """Shrink the resolution; return False if the run has converged."""
    inner: TrustState = state.inner
    model = inner.model
    assert model is not None
    eigenvalues, vectors = np.linalg.eigh(model.hessian)
    bends = np.abs(eigenvalues)
    top = float(bends.max())
    slope = model.slope(model.points[model.centre])
    rho = inner.resolution
    change = math.sqrt(float(slope @ slope)) * rho + 0.5 * top * rho * rho
    value = float(model.values[model.centre])
    if not (math.isfinite(change) and change > value_error(state, value)):
        return False
    if value - GIVE_UP_RATIO * change > inner.best_value:
        return False
    longest = float(np.abs(model.axes).max()) * rho
    if longest <= 4 * inner.eps * float(np.abs(model.rows[model.centre]).max()):
        return False
    stretches = np.ones(len(bends))
    if top > 0:
        stretches = np.sqrt(top / np.maximum(bends, top * SHRINK**2))
        if np.linalg.cond(model.axes @ (vectors * stretches)) > MAX_CONDITION:
            stretches = np.ones(len(bends))
    inner.is_proven = False
    inner.resolution = SHRINK * rho
    inner.radius = max(0.5 * rho, inner.resolution)
    _rebuild(inner, vectors * stretches)
    return True


def start_moves(inner: TrustState, model: Model) -> None:
    """Begin with the first model of a run."""
    inner.model = model
    inner.radius = inner.resolution = 1.0
    inner.is_proven = False
    model.damping = _damping(inner, float(np.ptp(model.values)))
    model.rebuild(model.axes, model.hessian, min_points(inner), REACH)


def float_rows(state: SolverState, candidates: np.ndarray) -> np.ndarray:
    """Return the coordinates of the block of whole points, (n, k)."""
    return as_float64(candidates)[:, state.inner.block]


__all__ = ["AGAIN"]
