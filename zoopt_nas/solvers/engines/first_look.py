"""The first look of a descent: slope, curvature and scale along each coordinate.

A batch holds the origin and two points along each coordinate. A coordinate along which they tell
nothing is looked at again: nearer if neither point has a value, farther if all values are the same.
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

# How far a next look goes, where one told nothing, and how many there are.
RESCALING = 8.0
MAX_LOOKS = 4
# How often the origin moves to a better point before the model is made of what there is.
MAX_MOVES = 8
# The first step along a coordinate is at most so many times as long as its probe.
MAX_FIRST_STEP = 10.0
# The least curvature along a coordinate, as a part of the largest.
MIN_CURVATURE = 1e-8
# A value that differs from another one of the same point by less than this part of the values
# around it has been rounded; the function is not noisy.
JITTER = 1e-10


class Outcome(IntEnum):
    """What a look has found."""

    CLEAR = 0
    LOOK_AGAIN = 1
    FLAT = 2


def begin_look(origin: Array, scales: Array) -> Look:
    """Returns a look from ``origin``, with probes ``scales``, (dim,), away."""
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


def ask_look(state: SolverState) -> Array:
    """Returns the origin, a pair of points along each unclear coordinate, and perhaps it again."""
    xp = array_namespace(state.x)
    look: Look = state.inner.look
    origin = look.origin
    # A random sign costs nothing, and a batch cut by a budget is then not always the same half.
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
    # One evaluation spent twice: the only certain sign of noise.
    if asks_twice(state):
        rows.append(origin[None, :])
    return xp.concat(rows, axis=0)


def asks_twice(state: SolverState) -> bool:
    """Whether the origin is the last row of a first look, too."""
    inner: DescentState = state.inner
    return inner.n_restarts == 0 or measures_iterate(state)


def tell_look(state: SolverState, candidates: Array, values: Array) -> Outcome:
    """Learns from a batch of ``ask_look``; ``state.value`` becomes that of the origin."""
    xp = array_namespace(candidates)
    inner: DescentState = state.inner
    look = inner.look
    is_first = look.n_looks == 0
    n_pairs = 2 * int(xp.sum(xp.astype(look.looked, xp.int64)))
    if is_first:
        look.origin = copy(candidates[0])  # which a caller's box may have moved
        _measure_origin(state, values)
    first = int(is_first or n_pairs == 0)
    rows = candidates[first : first + n_pairs]
    changes = values[first : first + n_pairs] - state.value
    # A box repairs each coordinate by itself: every row still differs from the origin in one.
    ways = xp.sum(xp.astype(rows - look.origin, values.dtype), axis=1)
    ahead, behind = ways[::2], ways[1::2]
    slopes, curvatures = parabola(ahead, behind, changes[::2], changes[1::2])
    looked = look.looked
    look.gradient = _replaced(look.gradient, looked, slopes)
    look.curvatures = _replaced(look.curvatures, looked, curvatures)
    error = value_error(state)
    has_ahead, has_behind = xp.isfinite(changes[::2]), xp.isfinite(changes[1::2])
    largest = xp.maximum(xp.abs(changes[::2]), xp.abs(changes[1::2]))  # inf where one failed
    flat, blind = _spread(looked, largest <= error), _spread(looked, ~has_ahead & ~has_behind)
    look.is_bent = _replaced(look.is_bent, looked, has_ahead & has_behind)
    _remember_best(state, candidates, values, is_first)
    is_unclear = flat | blind
    if not bool(xp.any(is_unclear)):
        return Outcome.CLEAR
    gained = state.value - inner.fallback_value
    if gained > error and look.n_moves < MAX_MOVES:
        inner.look = begin_look(inner.fallback, look.scales)
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


def widths(state: SolverState) -> Array:
    """Returns along each coordinate the way on which the model bends by 1/2, (dim,).

    Sets ``state.inner.smoothing``, the distance of the next probes in units of the widths.
    """
    xp = array_namespace(state.x)
    inner: DescentState = state.inner
    look = inner.look
    scales = xp.astype(look.scales, look.gradient.dtype)
    error = value_error(state)
    # All of it in units of the objective: what changes over the scale of a coordinate.
    slopes = xp.abs(look.gradient) * scales
    bends = xp.maximum(xp.abs(look.curvatures) * scales**2, slopes / MAX_FIRST_STEP)
    bends = xp.where(xp.isfinite(bends), bends, 0.0)
    # A neighbour that failed leaves no curvature to see: it is taken for a common one.
    is_bent = look.is_bent
    if bool(xp.any(is_bent)) and not bool(xp.all(is_bent)):
        common = xp.sort(bends[is_bent])[int(xp.sum(xp.astype(is_bent, xp.int64))) // 2]
        bends = xp.where(is_bent, bends, xp.maximum(bends, common))
    told = bends > 0
    top = float(xp.max(bends))
    if not 0 < top < math.inf:
        inner.smoothing = 1.0
        return scales
    # What a coordinate that told nothing hides is not known: it is probed where it was.
    bends = xp.where(told, xp.maximum(bends, MIN_CURVATURE * top) + 2 * error, top)
    inner.smoothing = math.sqrt(top)
    return scales / xp.sqrt(bends)


def _measure_origin(state: SolverState, values: Array) -> None:
    """Takes in the value of the origin, and what two of them say of noise."""
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
    """Returns a copy with other entries in these places."""
    kept = copy(array)
    kept[places] = news
    return kept


def _spread(looked: Array, flags: Array) -> Array:
    """Returns flags of the coordinates looked at as flags of all, (dim,)."""
    spread = array_namespace(looked).zeros_like(looked)
    spread[looked] = flags
    return spread


def _remember_best(state: SolverState, candidates: Array, values: Array, is_first: bool) -> None:
    """Keeps the best point of the look: if no step succeeds, it may still be better."""
    xp = array_namespace(candidates)
    best = int(xp.argmin(values))
    value = float(values[best])
    inner: DescentState = state.inner
    if is_first or value < inner.fallback_value:
        inner.fallback, inner.fallback_value = copy(candidates[best]), value
