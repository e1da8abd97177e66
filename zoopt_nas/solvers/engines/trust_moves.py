"""The moves of a trust-region method: steps, and points that improve the model.

A step minimizes the model in the trust region, an ellipsoid around the best point within the
bounds. If it fails and some point is far away, the next point is where the Lagrange function of
that one is large, which makes the model reliable. It is added, or replaces the far point if the
model is full. If enough points are near, the resolution shrinks. It also shrinks, without a look at
the points, if steps have become short and the model predicted the last one well.

Source: Powell, "The NEWUOA software for unconstrained optimization without derivatives", 2006.
"""

from __future__ import annotations

import math

import numpy as np

from zoopt_nas import sampling
from zoopt_nas.solvers.engines import trust_shape
from zoopt_nas.solvers.engines.interpolation import Model, Place
from zoopt_nas.solvers.engines.trust_start import JITTER, without_failures
from zoopt_nas.solvers.engines.trust_state import (
    SAMPLE,
    STEP,
    TrustPhase,
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
# The model has proven itself if the ratio of the last step differs from 1 by at most this number.
ACCURACY = 0.1
# A point is far away beyond this multiple of the radius or of the resolution; after a step that
# failed, beyond the second multiple of the resolution.
FAR, VERY_FAR = 4.0, 10.0
# With noise, a step is tried if it promises more than this multiple of it.
LEAST_GAIN = 0.5
# The growth of the radius while its values differ by less than the noise, and its largest length in
# units of the first one.
NOISY_GROWTH, MAX_NOISY_LENGTH = 1.5, 10.0
# After so many steps in a row without a better point, the best one is measured again.
MAX_FRUITLESS = 5
# A plan shrinks the resolution at most so many times.
MAX_TRIALS = 200


def learn(state: SolverState, rows: np.ndarray, values: np.ndarray) -> float | None:
    """Take in a batch; return the ratio of measured to predicted decrease of its best step.

    None if no row was a step.
    """
    inner: TrustState = state.inner
    model: Model = inner.model
    centre, before = model.points[model.centre].copy(), float(model.values[model.centre])
    if inner.noise > 0:
        before = model.level + model.predict(centre)
    ratio, tried, length = None, math.inf, 0.0
    targets: list[int] = inner.targets.tolist()
    for k in sorted(range(len(targets)), key=lambda k: targets[k] == STEP):  # steps come last
        row, value, target = rows[k], float(values[k]), targets[k]
        y = model.to_points(row)
        if target == STEP and (ratio is None or value < tried):
            tried = value
            d = y - centre
            length = math.sqrt(float(d @ d))
            ratio = _ratio(inner, before - value, float(inner.gains[k]))
        if math.isfinite(value) or target >= 0:
            _take(inner, row, y, value, target)
    if ratio is not None:
        is_better = model.values[model.centre] < before
        inner.n_fruitless = 0 if is_better else inner.n_fruitless + 1
        inner.is_proven = abs(ratio - 1) <= ACCURACY
        _adapt_radius(inner, ratio, length)
    return ratio


def plan(state: SolverState, ratio: float | None, n_samples: int) -> None:
    """Plan the next batch, after `learn` has returned ``ratio``.

    If the run has converged, or many steps have failed, the best point is measured again, which
    may show noise.
    """
    inner: TrustState = state.inner
    try:
        goes_on = _plan_move(state, ratio, n_samples)
    except np.linalg.LinAlgError:  # numbers near overflow have no eigenvalues
        goes_on = False
    inner.has_converged = not goes_on
    if not goes_on or (inner.noise == 0 and inner.n_fruitless >= MAX_FRUITLESS):
        _plan_check(inner)


def _plan_move(state: SolverState, ratio: float | None, n_samples: int) -> bool:
    """Plan a step or a point for the geometry; return False if the run has converged."""
    inner: TrustState = state.inner
    model: Model = inner.model
    inner.phase = TrustPhase.MOVE
    if not model.is_finite:
        return False
    trust_shape.refresh(inner)
    lower, upper = ends_of(state)
    tries_step = ratio is None or ratio > SUCCESS
    has_failed = not tries_step
    for _ in range(MAX_TRIALS):
        region = _region(inner, inner.radius, lower, upper)
        if tries_step:
            d, gain = _step(model, region)
            if _is_worth_trying(state, d, gain):
                _set_batch(state, [d], [STEP], [gain], n_samples)
                return True
            has_failed = False
        is_done = tries_step and inner.is_proven
        far = -1 if is_done else _far_point(inner, has_failed=has_failed)
        if far >= 0:
            d = _geometry_step(inner, far, region)
            _set_batch(state, [d], [far], [0.0], n_samples)
            return True
        may_retry = has_failed and (inner.radius > inner.resolution or (ratio or 0.0) > 0)
        if not may_retry and not trust_shape.refine(state):
            if inner.noise > 0 and model.is_finite:
                _plan_average(state, region, n_samples)
                return True
            return False
        tries_step = True
    return False


def _plan_check(inner: TrustState) -> None:
    """Plan to measure the best point again, before a restart."""
    model: Model = inner.model
    inner.phase, inner.planned = TrustPhase.CHECK, model.rows[model.centre][None, :].copy()
    inner.targets, inner.gains = np.array([SAMPLE]), np.zeros(1)


def check(state: SolverState, again: float) -> bool:
    """Take in another value of the best point; return whether the run goes on."""
    inner: TrustState = state.inner
    model: Model = inner.model
    change = abs(again - float(model.values[model.centre]))
    size = max(abs(again), float(np.ptp(model.values)))
    inner.n_fruitless = 0
    if not (math.isfinite(change) and model.is_finite and change > JITTER * size):
        return not inner.has_converged
    inner.noise = change / math.sqrt(2)
    model.values[model.centre] = again
    trust_shape.rebuild(inner)
    return True


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
    model: Model = inner.model
    if not math.isfinite(value):
        value = float(without_failures(np.append(model.values, math.inf))[-1])
    place = model.place(y)
    is_better = value < model.values[model.centre]
    is_full = len(model.values) >= trust_shape.max_points(inner)
    if not is_full and model.append(row, value, place):
        t = len(model.values) - 1
    else:
        t = target if target >= 0 else _dispensable_point(inner, place, is_better)
        if not model.replace(t, row, value, place):
            if target < 0:
                return
            model.rows[t], model.values[t] = row, value
            inner.is_stale = True
    if inner.noise > 0:
        model.centre = int(np.argmin(model.fitted()))
    elif is_better:
        model.centre = t


def _dispensable_point(inner: TrustState, place: Place, is_better: bool) -> int:
    """Return the index of the point that a place replaces: a far one that it can stand in for."""
    model: Model = inner.model
    centre = place.y if is_better else model.points[model.centre]
    offsets = model.points - centre
    weights = np.maximum(inner.radius**2, np.add.reduce(offsets * offsets, 1)) ** 2
    scores = np.abs(model.pivots(place)) * weights
    if not is_better:
        scores[model.centre] = -1.0
    return int(scores.argmax())


def _region(
    inner: TrustState, radius: float, lower: np.ndarray | None, upper: np.ndarray | None
) -> Region:
    model: Model = inner.model
    if lower is None or upper is None:
        return Region(radius, model.axes, None, None)
    x = model.rows[model.centre]
    return Region(radius, model.axes, lower - x, upper - x)


def _step(model: Model, region: Region) -> tuple[np.ndarray, float]:
    """Return the step from the best point, (k,), and the decrease that the model predicts."""
    slope = model.slope(model.points[model.centre])
    d = region_step(slope, model.hessian, region)
    return d, -float(d @ (slope + 0.5 * (model.hessian @ d)))


def _is_worth_trying(state: SolverState, d: np.ndarray, gain: float) -> bool:
    inner: TrustState = state.inner
    value = float(inner.model.values[inner.model.centre])
    least = max(value_error(state, value), LEAST_GAIN * inner.noise)
    return gain > least and float(d @ d) >= (0.5 * inner.resolution) ** 2


def _far_point(inner: TrustState, *, has_failed: bool) -> int:
    """Return the index of the farthest point, or -1 if it is not far away.

    Unless a step has failed, the model counts as reliable if enough points are near.
    """
    limit = VERY_FAR if has_failed else FAR
    model: Model = inner.model
    offsets = model.points - model.points[model.centre]
    squares = np.add.reduce(offsets * offsets, 1)
    far = int(squares.argmax())
    reach = max(FAR * inner.radius, limit * inner.resolution)
    n_near = int(np.add.reduce(squares <= reach * reach))
    if not has_failed and n_near >= trust_shape.min_points(inner):
        return -1
    return far if squares[far] > reach * reach else -1


def _geometry_step(inner: TrustState, t: int, region: Region) -> np.ndarray:
    """Return a step from the best point to where the Lagrange function of point t is large."""
    model: Model = inner.model
    centre = model.points[model.centre]
    offset = model.points[t] - centre
    distance = math.sqrt(float(offset @ offset))
    radius = max(min(0.1 * distance, 0.5 * inner.radius), inner.resolution)
    _, gradient, hessian = model.lagrange(t)
    return largest_change(gradient + hessian @ centre, hessian, region._replace(radius=radius))


def _plan_average(state: SolverState, region: Region, n_samples: int) -> None:
    """Plan points that reduce the error of the model by noise.

    Every second one is at the minimum of the model, and the others are on the surface of the
    region. If the values in it hardly differ, it grows.
    """
    inner: TrustState = state.inner
    model: Model = inner.model
    inner.n_averaged += 1
    signal = trust_shape.change_within(model, inner.radius)
    length = inner.radius * model.longest
    if signal < trust_shape.SIGNAL * inner.noise and length < MAX_NOISY_LENGTH * inner.scales.max():
        inner.radius *= NOISY_GROWTH
    d = _step(model, region)[0] if inner.n_averaged % 2 else _random_step(state, inner.radius)
    _set_batch(state, [d], [SAMPLE], [0.0], n_samples)


def _random_step(state: SolverState, radius: float) -> np.ndarray:
    d = as_float64(sampling.gaussian(state.rng, 1, state.x)[0])[: len(state.inner.block)]
    step: np.ndarray = radius / (math.sqrt(float(d @ d)) or 1.0) * d
    return step


def _set_batch(
    state: SolverState,
    steps: list[np.ndarray],
    targets: list[int],
    gains: list[float],
    n_samples: int,
) -> None:
    """Plan a batch of steps, (k,) each, and fill it up to ``n_samples``."""
    inner: TrustState = state.inner
    if n_samples > 1:
        _fill_batch(state, steps, targets, gains, n_samples)
    inner.planned = _rows(inner, np.array(steps), *ends_of(state))
    inner.targets, inner.gains = np.array(targets), np.array(gains)


def _fill_batch(
    state: SolverState,
    steps: list[np.ndarray],
    targets: list[int],
    gains: list[float],
    n_samples: int,
) -> None:
    """Append to the lists of a batch until it has ``n_samples`` steps.

    Beside the first step come the steps in a region of twice and half the radius, then points that
    replace far ones, then random points on the surface of the region.
    """
    inner: TrustState = state.inner
    model: Model = inner.model
    lower, upper = ends_of(state)

    def add(d: np.ndarray, target: int, gain: float = 0.0) -> None:
        steps.append(d)
        targets.append(target)
        gains.append(gain)

    for factor in (2.0, 0.5) if targets[0] == STEP else ():
        if len(steps) < n_samples:
            d, gain = _step(model, _region(inner, factor * inner.radius, lower, upper))
            if _is_worth_trying(state, d, gain) and not np.array_equal(d, steps[0]):
                add(d, STEP, gain)
    if len(steps) < n_samples:
        offsets = model.points - model.points[model.centre]
        squares = np.add.reduce(offsets * offsets, 1)
        for t in np.argsort(-squares, kind="stable").tolist():
            if len(steps) == n_samples or squares[t] <= (FAR * inner.radius) ** 2:
                break
            if t not in targets:
                region = _region(inner, inner.radius, lower, upper)
                add(_geometry_step(inner, t, region), t)
    while len(steps) < n_samples:
        add(_random_step(state, inner.radius), SAMPLE)


def _rows(
    inner: TrustState, steps: np.ndarray, lower: np.ndarray | None, upper: np.ndarray | None
) -> np.ndarray:
    """Return the points at steps from the best one, exactly on a bound if near it by rounding."""
    model: Model = inner.model
    rows: np.ndarray = model.rows[model.centre] + steps @ model.axes.T
    if lower is None or upper is None:
        return rows
    slack = 1e-9 * inner.radius * np.sqrt(np.add.reduce(model.axes * model.axes, 1))
    rows = np.where(rows - lower <= slack, lower, rows)
    return np.where(upper - rows <= slack, upper, rows)
