"""The first look of a descent: slope, curvature and scale along each coordinate.

A batch holds the origin and two points along each coordinate. A coordinate is probed again at a
smaller distance if neither point has a value or both values are astronomic, and at a larger one if
all values are equal.
"""

from __future__ import annotations

import math
from enum import IntEnum

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy, device, value_dtype
from zoopt_nas.solvers.engines.box_steps import paired_offsets
from zoopt_nas.solvers.engines.descent_state import DescentState, Look
from zoopt_nas.solvers.engines.differences import measures_iterate, parabola, value_error
from zoopt_nas.solvers.state import SolverState

# The factor by which distances change from look to look, and the largest number of looks.
RESCALING = 8.0
MAX_LOOKS = 4
# How often the origin may move to a better point.
MAX_MOVES = 8
# The longest first step along a coordinate, in units of its probe.
MAX_FIRST_STEP = 10.0
# The least curvature along a coordinate, relative to the largest.
MIN_CURVATURE = 1e-8
# A probe whose value is higher than the origin by REMOTE times the size of the values there is too
# far away and counts as failed: its curvature would hide all others, as they are compared down to
# MIN_CURVATURE.
REMOTE = 1 / MIN_CURVATURE
# Values of one point that differ by less than this, relative to the values around, are rounded and
# not noisy.
JITTER = 1e-10


class Outcome(IntEnum):
    """The result of a look."""

    CLEAR = 0
    LOOK_AGAIN = 1
    FLAT = 2


def begin(origin: Array, scales: Array) -> Look:
    """Return a look from ``origin``, with probes at the distances ``scales``, (dim,)."""
    xp = array_namespace(origin)
    numbers = xp.zeros(origin.shape, dtype=value_dtype(origin), device=device(origin))
    return Look(
        origin=copy(origin),
        scales=copy(scales),
        unclear=xp.ones(origin.shape, dtype=xp.bool, device=device(origin)),
        is_bent=xp.zeros(origin.shape, dtype=xp.bool, device=device(origin)),
        gradient=numbers,
        curvatures=numbers,
    )


def ask(state: SolverState) -> Array:
    """Return the origin, a pair along each unclear coordinate, and the origin again if needed."""
    xp = array_namespace(state.x)
    look: Look = state.inner.look
    origin = look.origin
    # Random signs, so that a budget that cuts the batch does not always cut the same side.
    signs = sampling.rademacher(state.rng, 1, origin)[0]
    ahead, behind = paired_offsets(state, origin, look.scales * signs)
    looked = look.unclear & (ahead != 0)
    look.ahead, look.looked = ahead, looked
    columns = xp.eye(origin.shape[0], dtype=origin.dtype, device=device(origin))[looked]
    pairs = xp.stack(
        [origin + columns * ahead[looked][:, None], origin + columns * behind[looked][:, None]],
        axis=1,
    )
    pairs = xp.reshape(pairs, (-1, origin.shape[0]))
    if look.n_looks > 0 and pairs.shape[0] > 0:
        return pairs
    rows = [origin[None, :], pairs]
    if asks_twice(state):  # the only certain sign of noise
        rows.append(origin[None, :])
    return xp.concat(rows, axis=0)


def asks_twice(state: SolverState) -> bool:
    """Return whether the origin is also the last row of a first look."""
    inner: DescentState = state.inner
    return inner.n_restarts == 0 or measures_iterate(state)


def tell(state: SolverState, candidates: Array, values: Array) -> Outcome:
    """Learn from a batch of ``ask``; set ``state.value`` to the value of the origin."""
    xp = array_namespace(candidates)
    inner: DescentState = state.inner
    look = inner.look
    is_first = look.n_looks == 0
    n_pairs = 2 * int(xp.sum(xp.astype(look.looked, xp.int64)))
    if is_first:
        look.origin = copy(candidates[0])  # a repair may have moved it
        _measure_origin(state, values)
    first = int(is_first or n_pairs == 0)
    rows = candidates[first : first + n_pairs]
    changes = values[first : first + n_pairs] - state.value
    changes = without_remote(changes, state.value, REMOTE)
    # A box moves each coordinate separately, so rows still differ from the origin in one.
    ways = xp.sum(xp.astype(rows - look.origin, values.dtype), axis=1)
    ahead, behind = ways[::2], ways[1::2]
    slopes, curvatures = parabola(ahead, behind, changes[::2], changes[1::2])
    looked = look.looked
    look.gradient = _replaced(look.gradient, looked, slopes)
    look.curvatures = _replaced(look.curvatures, looked, curvatures)
    error = value_error(state)
    has_ahead, has_behind = xp.isfinite(changes[::2]), xp.isfinite(changes[1::2])
    largest = xp.maximum(xp.abs(changes[::2]), xp.abs(changes[1::2]))  # inf where one failed
    no = xp.zeros_like(looked)
    flat = _replaced(no, looked, largest <= error)
    blind = _replaced(no, looked, ~has_ahead & ~has_behind)
    look.is_bent = _replaced(look.is_bent, looked, has_ahead & has_behind)
    remember_best(state, candidates, values, is_first)
    is_unclear = flat | blind
    if not bool(xp.any(is_unclear)):
        return Outcome.CLEAR
    gained = state.value - inner.fallback_value
    if gained > error and look.n_moves < MAX_MOVES:
        inner.look = begin(inner.fallback, look.scales)
        inner.look.n_moves = look.n_moves + 1
        state.value = inner.fallback_value
        return Outcome.LOOK_AGAIN
    look.n_looks += 1
    if bool(xp.all(flat | (look.ahead == 0))):
        return Outcome.FLAT
    if look.n_looks >= MAX_LOOKS:
        return Outcome.CLEAR
    factors = xp.where(flat, RESCALING, xp.where(blind, 1 / RESCALING, 1.0))
    look.scales = look.scales * xp.astype(factors, look.scales.dtype)
    look.unclear = is_unclear
    return Outcome.LOOK_AGAIN


def without_remote(changes: Array, value: float, limit: float) -> Array:
    """Return changes from ``value``, (n,), with +inf for those that are too large.

    They are if they exceed ``limit`` times the size of the values at hand, which is the larger one
    of |value| and the greatest decrease. If that is 0, none is.
    """
    xp = array_namespace(changes)
    if changes.shape[0] == 0:
        return changes
    size = max(abs(value), -float(xp.min(changes)))
    return xp.where(changes > limit * size, math.inf, changes) if size > 0 else changes


def widths(state: SolverState) -> Array:
    """Return the distance along each coordinate over which the model bends by 1/2, (dim,).

    Set ``state.inner.smoothing``, the distance of the next probes in units of the widths.
    """
    xp = array_namespace(state.x)
    inner: DescentState = state.inner
    look = inner.look
    scales = xp.astype(look.scales, look.gradient.dtype)
    error = value_error(state)
    # Changes of the objective over the scale of each coordinate.
    slopes = xp.abs(look.gradient) * scales
    bends = xp.maximum(xp.abs(look.curvatures) * scales**2, slopes / MAX_FIRST_STEP)
    bends = xp.where(xp.isfinite(bends), bends, 0.0)
    # A coordinate with a failed neighbour gets the median curvature.
    is_bent = look.is_bent
    if bool(xp.any(is_bent)) and not bool(xp.all(is_bent)):
        common = xp.sort(bends[is_bent])[int(xp.sum(xp.astype(is_bent, xp.int64))) // 2]
        bends = xp.where(is_bent, bends, xp.maximum(bends, common))
    told = bends > 0
    top = float(xp.max(bends))
    if not 0 < top < math.inf:
        inner.smoothing = 1.0
        return scales
    # A coordinate without information keeps its scale.
    bends = xp.where(told, xp.maximum(bends, MIN_CURVATURE * top) + 2 * error, top)
    inner.smoothing = math.sqrt(top)
    return scales / xp.sqrt(bends)


def _measure_origin(state: SolverState, values: Array) -> None:
    """Take in the value of the origin, and the noise if it was evaluated twice."""
    inner: DescentState = state.inner
    xp = array_namespace(values)
    value = float(values[0])
    if asks_twice(state) and values.shape[0] > 1 and math.isfinite(again := float(values[-1])):
        change = again - value
        finite = values[xp.isfinite(values)]
        spread = float(xp.max(finite)) - float(xp.min(finite))
        if abs(change) > JITTER * max(abs(value), spread):
            inner.noise = max(abs(change) / math.sqrt(2), inner.noise / 2)
            value += change / 2
        else:
            inner.jitter = max(abs(change), inner.jitter)
    state.value, inner.origin_value = value, abs(value)


def _replaced(array: Array, places: Array, news: Array) -> Array:
    """Return a copy with other entries in these places."""
    kept = copy(array)
    kept[places] = news
    return kept


def remember_best(state: SolverState, candidates: Array, values: Array, is_first: bool) -> None:
    """Keep the best probe as the fallback for a search that fails."""
    xp = array_namespace(candidates)
    best = int(xp.argmin(values))
    value = float(values[best])
    inner: DescentState = state.inner
    if is_first or value < inner.fallback_value:
        inner.fallback, inner.fallback_value = copy(candidates[best]), value
