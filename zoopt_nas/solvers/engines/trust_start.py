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
from zoopt_nas._arrays import Array, copy
from zoopt_nas.solvers.engines.interpolation import Model
from zoopt_nas.solvers.engines.trust_state import (
    STEP,
    Phase,
    TrustState,
    as_float64,
    ends_of,
)
from zoopt_nas.solvers.state import SolverState
from zoopt_nas.solvers.widening import natural_size

# The largest number of coordinates in one model.
MAX_BLOCK = 50
# Values of one point that differ by less than this, relative to the values around, are rounded and
# not noisy.
JITTER = 1e-10
# A second point shorter than this part of the first one is placed elsewhere.
LEAST_REACH = 0.3
# The growth of the spread of restarts at every second restart, and the spreads of one cycle.
RESTART_GROWTH = 1.5
N_SPREADS = 8


def begin(state: SolverState, radius: float | None) -> None:
    """Plan the first batch of a run from ``state.x``."""
    inner: TrustState = state.inner
    inner.start = copy(state.x)
    scale = radius or (1.0 if state.is_scaled else natural_size(state.x))
    _choose_block(state)
    inner.scales = np.full(len(inner.block), scale)
    inner.origin = as_float64(state.x)[inner.block]
    plan_first(state)


def plan_first(state: SolverState) -> None:
    """Plan the origin, twice in the first run, and a point along each coordinate."""
    inner: TrustState = state.inner
    lower, upper = ends_of(state)
    k = len(inner.block)
    signs = as_float64(sampling.rademacher(state.rng, 1, state.x[: max(k, 1)])[0])[:k]
    steps = inner.scales * signs
    if lower is not None and upper is not None:
        down, up = inner.origin - lower, upper - inner.origin
        far = np.minimum(inner.scales, np.maximum(down, up))
        has_room = np.where(signs > 0, up, down) >= inner.scales
        steps = np.where(has_room, steps, np.where(up >= down, far, -far))
    again = int(inner.n_restarts == 0)
    rows = np.repeat(inner.origin[None, :], 1 + again + k, axis=0)
    rows[1 + again :] += np.diag(steps)
    _plan(inner, Phase.FIRST, rows)


def tell_first(state: SolverState, rows: np.ndarray, values: np.ndarray) -> bool:
    """Learn from the first batch, and plan the second; return False if no point has a value."""
    inner: TrustState = state.inner
    again = int(inner.n_restarts == 0)
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return False
    if again and np.isfinite(values[:2]).all():
        change = abs(float(values[1] - values[0]))
        size = max(abs(float(values[0])), float(np.ptp(finite)))
        inner.noise = change / math.sqrt(2) if change > JITTER * size else 0.0
    if again and not inner.noise > 0:  # two equal points would make the model singular
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
    _plan(inner, Phase.SECOND, origin + np.diag(ways))
    return True


def first_model(inner: TrustState, rows: np.ndarray, values: np.ndarray) -> Model:
    """Return the points of both batches as a model, which is not fitted yet."""
    rows = np.concatenate([inner.first_rows, rows])
    values = np.concatenate([inner.first_values, values])
    inner.first_rows = inner.first_values = None
    k = len(inner.block)
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
    """Draw the origin of the next run, alternately around the best point and the start."""
    inner: TrustState = state.inner
    remember_best(state)
    inner.n_restarts += 1
    inner.model = None
    n_restarts = inner.n_restarts
    _choose_block(state)
    block, scales = inner.block, inner.scales
    centre = as_float64(inner.best if n_restarts % 2 else inner.start)[block]
    spread = RESTART_GROWTH ** ((n_restarts - 1) // 2 % N_SPREADS)
    k = len(block)
    origin = centre + spread * scales * as_float64(sampling.gaussian(state.rng, 1, state.x)[0])[:k]
    lower, upper = ends_of(state)
    if lower is not None and upper is not None:
        # Coordinates outside are drawn uniformly, because clipping would favour corners.
        width = upper - lower
        leaves = ((origin < lower) | (origin > upper)) & np.isfinite(width)
        if leaves.any():
            fractions = as_float64(sampling.uniform(state.rng, k, state.x))
            origin = np.where(leaves, lower + np.where(leaves, width, 0.0) * fractions, origin)
        origin = np.clip(origin, lower, upper)
    limit = float(np.finfo(np.float32).max)
    inner.origin = np.clip(origin, -limit, limit)
    plan_first(state)


def remember_best(state: SolverState) -> None:
    """Keep the iterate if it is the best end of a run so far."""
    inner: TrustState = state.inner
    value = float(state.value)
    if value < inner.best_value or inner.best is None:
        inner.best, inner.best_value = copy(state.x), value


def _choose_block(state: SolverState) -> None:
    """Choose the coordinates of the model: all free ones, or some at random."""
    inner: TrustState = state.inner
    free = np.arange(state.x.shape[0])
    if state.lower is not None and state.upper is not None:
        free = np.flatnonzero(as_float64(state.lower) < as_float64(state.upper))
    if len(free) > MAX_BLOCK:
        order = np.argsort(as_float64(sampling.uniform(state.rng, len(free), state.x)))
        free = np.sort(free[order[:MAX_BLOCK]])
    inner.block = free


def _plan(inner: TrustState, phase: Phase, rows: np.ndarray) -> None:
    inner.phase, inner.planned = phase, rows
    inner.targets = np.full(len(rows), STEP)
    inner.gains = np.zeros(len(rows))
