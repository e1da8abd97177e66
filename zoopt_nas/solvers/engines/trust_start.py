"""The first points of a trust-region run, and where the next run starts.

The first batch holds the origin and a point along each coordinate. The second holds another point
along each: twice as far if the first was better than the origin, else on the other side. The model
of these 2 k + 1 points has a diagonal Hessian (Powell, "The NEWUOA software for unconstrained
optimization without derivatives", 2006, section 3).
"""

from __future__ import annotations

import math

import numpy as np

from zoopt_nas import sampling
from zoopt_nas._arrays import copy
from zoopt_nas.solvers.engines import first_look, restarts
from zoopt_nas.solvers.engines.interpolation import Model
from zoopt_nas.solvers.engines.trust_state import (
    SAMPLE,
    TrustPhase,
    TrustState,
    as_float64,
    ends_of,
)
from zoopt_nas.solvers.state import SolverState
from zoopt_nas.solvers.widening import natural_size

# The largest number of coordinates in one model, the largest number of coordinates in its first
# batch, and the least number that this may leave.
MAX_BLOCK = 100
MAX_BATCH_SIZE = 5_000_000
MIN_BLOCK = 4
# A block ends when the resolution has shrunk to this fraction of its first length.
BLOCK_SHRINK = 0.05
# Values of one point that differ by less than this, relative to the values around, are rounded and
# not noisy.
JITTER = 1e-10
# A point whose value is higher than the origin by so many times the size of the values there counts
# as failed, because a model of its value would round the others to a few digits.
REMOTE = 1e12
# With noise, the second batch measures the origin so many times again.
N_AGAIN = 2
# A second point shorter than this part of the first one is placed elsewhere.
LEAST_REACH = 0.3


def begin(state: SolverState, radius: float | None) -> None:
    """Plan the first batch of a run from ``state.x``."""
    inner: TrustState = state.inner
    inner.start = copy(state.x)
    inner.scale = radius or (1.0 if state.is_scaled else natural_size(state.x))
    _choose_block(state, inner.scale)
    inner.origin = as_float64(state.x)[inner.block]
    plan_first(state)


def plan_first(state: SolverState) -> None:
    """Plan the origin, twice in the first run, and a point along each coordinate."""
    inner: TrustState = state.inner
    lower, upper = ends_of(state)
    k = len(inner.block)
    signs = as_float64(sampling.rademacher(state.rng, 1, state.x)[0])[:k]
    steps = inner.scales * signs
    if lower is not None and upper is not None:
        down, up = inner.origin - lower, upper - inner.origin
        far = np.minimum(inner.scales, np.maximum(down, up))
        has_room = np.where(signs > 0, up, down) >= inner.scales
        steps = np.where(has_room, steps, np.where(up >= down, far, -far))
    n_origins = _n_origins(inner)
    rows = np.repeat(inner.origin[None, :], n_origins + k, axis=0)
    rows[n_origins:] += np.diag(steps)
    _plan(inner, TrustPhase.FIRST, rows)


def _n_origins(inner: TrustState) -> int:
    """Return how often the first batch measures the origin: a second value shows noise."""
    return 2 if inner.n_restarts == 0 or inner.noise > 0 else 1


def tell_first(state: SolverState, rows: np.ndarray, values: np.ndarray) -> bool:
    """Learn from the first batch, and plan the second; return False if no point has a value."""
    inner: TrustState = state.inner
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return False
    if _n_origins(inner) == 2:
        if np.isfinite(values[:2]).all():
            change = abs(float(values[1] - values[0]))
            size = max(abs(float(values[0])), float(np.ptp(finite)))
            if change > JITTER * size:
                inner.noise = max(change / math.sqrt(2), inner.noise / 2)
        if not inner.noise > 0:  # two equal points would make the model singular
            rows, values = np.delete(rows, 1, axis=0), np.delete(values, 1)
    inner.first_rows, inner.first_values = rows, values
    inner.first_size = abs(float(values[0])) if np.isfinite(values[0]) else 0.0
    k = len(inner.block)
    origin = rows[0]
    steps = np.diagonal(rows[-k:] - origin)
    is_better = values[-k:] < values[0]
    lower, upper = ends_of(state)
    ways = np.where(is_better, 2 * steps, -steps)
    if lower is not None and upper is not None:
        inside = np.clip(origin + ways, lower, upper) - origin
        is_short = np.abs(inside - np.where(is_better, steps, 0.0)) < LEAST_REACH * np.abs(steps)
        ways = np.where(is_short, steps / 2, inside)
    n_again = N_AGAIN if inner.noise > 0 else 0
    rows = np.repeat(origin[None, :], k + n_again, axis=0)
    rows[:k] += np.diag(ways)
    _plan(inner, TrustPhase.SECOND, rows)
    return True


def first_model(inner: TrustState, rows: np.ndarray, values: np.ndarray) -> Model:
    """Return the points of both batches as a model, which is not fitted yet."""
    k = len(inner.block)
    origins = np.concatenate([inner.first_values[:2], values[k:]])
    if inner.noise > 0 and np.isfinite(origins).all():
        inner.noise = float(np.std(origins, ddof=1))
    rows = np.concatenate([inner.first_rows, rows])
    values = np.concatenate([inner.first_values, values])
    inner.first_rows = inner.first_values = None
    if np.isfinite(values[0]):
        changes = first_look.without_remote(values - values[0], float(values[0]), REMOTE)
        values = np.where(np.isfinite(changes), values, math.inf)
    return Model(
        base=inner.origin,
        axes=np.diag(inner.scales),
        rows=rows,
        values=without_failures(values),
        hessian=np.zeros((k, k)),
        centre=int(np.argmin(values)),
    )


def without_failures(values: np.ndarray) -> np.ndarray:
    """Return the values with, for failures, one above all others by their range."""
    finite = values[np.isfinite(values)]
    high = finite.max()
    penalty = high + (float(np.ptp(finite)) or max(1.0, abs(high)))
    return np.where(np.isfinite(values), values, min(penalty, np.finfo(np.float64).max))


def restart(state: SolverState) -> None:
    """Plan the next run: of other coordinates, or from another origin.

    Origins are drawn alternately around the best point and the start.
    """
    inner: TrustState = state.inner
    remember_best(state)
    inner.model = None
    n_restarts = inner.n_restarts = inner.n_restarts + 1
    if inner.n_free > len(inner.block):
        _next_block(state)
        return
    _choose_block(state, inner.scale)
    centre = inner.best if n_restarts % 2 else inner.start
    deviation = restarts.spread(n_restarts) * inner.scale
    origin = as_float64(restarts.points_around(state, centre, deviation, n=1)[0])[inner.block]
    limit = float(np.finfo(np.float32).max)
    inner.origin = np.clip(origin, -limit, limit)
    plan_first(state)


def remember_best(state: SolverState) -> None:
    """Keep the iterate if it is the best end of a run so far."""
    inner: TrustState = state.inner
    value = float(state.value)
    if value < inner.best_value or inner.best is None:
        inner.best, inner.best_value = copy(state.x), value


def _next_block(state: SolverState) -> None:
    """Plan a run of other coordinates from x, with steps that follow those of the last run."""
    inner: TrustState = state.inner
    scale = float(inner.scales.max())
    inner.end_length = inner.end_length or scale
    scale = min(max(inner.end_length, scale / 2), 2 * scale)
    size = float(np.abs(as_float64(state.x)).max())
    if scale <= 100 * inner.eps * max(size, inner.scale):
        scale = inner.scale
    _choose_block(state, scale)
    inner.origin = as_float64(state.x)[inner.block]
    plan_first(state)


def _choose_block(state: SolverState, scale: float) -> None:
    """Choose the coordinates of the model: all free ones, or some at random."""
    inner: TrustState = state.inner
    dim = state.x.shape[0]
    free = np.arange(dim)
    if state.lower is not None and state.upper is not None:
        free = np.flatnonzero(as_float64(state.lower) < as_float64(state.upper))
    inner.n_free = len(free)
    largest = min(MAX_BLOCK, max(MIN_BLOCK, MAX_BATCH_SIZE // dim))
    if len(free) > largest:
        order = np.argsort(as_float64(sampling.uniform(state.rng, dim, state.x))[: len(free)])
        free = np.sort(free[order[:largest]])
        inner.least_length = BLOCK_SHRINK * scale
    inner.block, inner.scales = free, np.full(len(free), scale)


def _plan(inner: TrustState, phase: TrustPhase, rows: np.ndarray) -> None:
    inner.phase, inner.planned = phase, rows
    inner.targets = np.full(len(rows), SAMPLE)
    inner.gains = np.zeros(len(rows))
