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


def begin_look(state: SolverState, origin: Array, scales: Array) -> None:
    """Makes the next look one from ``origin``, with probes ``scales``, (dim,), away."""
    xp = array_namespace(origin)
    numbers = xp.zeros(origin.shape, dtype=value_dtype(origin), device=device(origin))
    state.memory.update(
        origin=copy(origin),
        scales=copy(scales),
        n_looks=0,
        n_moves=0,
        unclear=xp.ones(origin.shape, dtype=xp.bool, device=device(origin)),
        is_bent=xp.zeros(origin.shape, dtype=xp.bool, device=device(origin)),
        gradient=numbers,
        curvatures=numbers,
    )


def ask_look(state: SolverState) -> Array:
    """Returns the origin, a pair of points along each unclear coordinate, and perhaps it again."""
    xp = array_namespace(state.x)
    memory = state.memory
    origin = memory["origin"]
    # A random sign costs nothing, and a batch cut by a budget is then not always the same half.
    signs = sampling.rademacher(state.rng, 1, origin)[0]
    ahead, behind = paired_offsets(state, origin, memory["scales"] * signs)
    memory.update(ahead=ahead, behind=behind, looked=memory["unclear"] & (ahead != 0))
    columns = xp.eye(origin.shape[0], dtype=origin.dtype, device=device(origin))[memory["looked"]]
    pairs = xp.stack(
        [
            origin + columns * ahead[memory["looked"]][:, None],
            origin + columns * behind[memory["looked"]][:, None],
        ],
        axis=1,
    )
    pairs = xp.reshape(pairs, (-1, origin.shape[0]))
    if int(memory["n_looks"]) > 0 and pairs.shape[0] > 0:
        return pairs
    rows = [origin[None, :], pairs]
    # One evaluation spent twice: the only certain sign of noise.
    if asks_twice(state):
        rows.append(origin[None, :])
    return xp.concat(rows, axis=0)


def asks_twice(state: SolverState) -> bool:
    """Whether the origin is the last row of a first look, too."""
    return int(state.memory["n_restarts"]) == 0 or measures_iterate(state)


def tell_look(state: SolverState, candidates: Array, values: Array) -> Outcome:
    """Learns from a batch of ``ask_look``; the value of the origin is in the memory."""
    xp = array_namespace(candidates)
    memory = state.memory
    is_first = int(memory["n_looks"]) == 0
    n_pairs = 2 * int(xp.sum(xp.astype(memory["looked"], xp.int64)))
    if is_first:
        memory["origin"] = copy(candidates[0])  # which a caller's box may have moved
        _measure_origin(state, values)
    first = int(is_first or n_pairs == 0)
    rows = candidates[first : first + n_pairs]
    changes = values[first : first + n_pairs] - float(memory["value"])
    # A box repairs each coordinate by itself: every row still differs from the origin in one.
    ways = xp.sum(xp.astype(rows - memory["origin"], values.dtype), axis=1)
    ahead, behind = ways[::2], ways[1::2]
    slopes, curvatures = parabola(ahead, behind, changes[::2], changes[1::2])
    looked = memory["looked"]
    for name, news in (("gradient", slopes), ("curvatures", curvatures)):
        kept = copy(memory[name])
        kept[looked] = news
        memory[name] = kept
    error = value_error(memory, candidates.dtype, xp)
    has_ahead, has_behind = xp.isfinite(changes[::2]), xp.isfinite(changes[1::2])
    largest = xp.maximum(xp.abs(changes[::2]), xp.abs(changes[1::2]))  # inf where one failed
    flat, blind = _spread(looked, largest <= error), _spread(looked, ~has_ahead & ~has_behind)
    memory["is_bent"] = copy(memory["is_bent"])
    memory["is_bent"][looked] = has_ahead & has_behind
    _remember_best(state, candidates, values, is_first)
    is_unclear = flat | blind
    if not bool(xp.any(is_unclear)):
        return Outcome.CLEAR
    gained = float(memory["value"]) - float(memory["fallback_value"])
    if gained > error and int(memory["n_moves"]) < MAX_MOVES:
        n_moves = int(memory["n_moves"]) + 1
        value = float(memory["fallback_value"])
        begin_look(state, memory["fallback"], memory["scales"])
        memory.update(n_moves=n_moves, value=value)
        return Outcome.LOOK_AGAIN
    memory["n_looks"] = int(memory["n_looks"]) + 1
    if bool(xp.all(flat | (memory["ahead"] == 0))):
        return Outcome.FLAT
    if int(memory["n_looks"]) >= MAX_LOOKS:
        return Outcome.CLEAR
    factors = xp.where(flat, RESCALING, xp.where(blind, 1 / RESCALING, 1.0))
    memory["scales"] = memory["scales"] * xp.astype(factors, memory["scales"].dtype)
    memory["unclear"] = is_unclear
    return Outcome.LOOK_AGAIN


def widths(state: SolverState) -> Array:
    """Returns along each coordinate the way on which the model bends by 1/2, (dim,).

    Sets ``state.memory["smoothing"]``, the distance of the next probes in units of the widths.
    """
    xp = array_namespace(state.x)
    memory = state.memory
    scales = xp.astype(memory["scales"], memory["gradient"].dtype)
    error = value_error(memory, state.x.dtype, xp)
    # All of it in units of the objective: what changes over the scale of a coordinate.
    slopes = xp.abs(memory["gradient"]) * scales
    bends = xp.maximum(xp.abs(memory["curvatures"]) * scales**2, slopes / MAX_FIRST_STEP)
    bends = xp.where(xp.isfinite(bends), bends, 0.0)
    # A neighbour that failed leaves no curvature to see: it is taken for a common one.
    is_bent = memory["is_bent"]
    if bool(xp.any(is_bent)) and not bool(xp.all(is_bent)):
        common = xp.sort(bends[is_bent])[int(xp.sum(xp.astype(is_bent, xp.int64))) // 2]
        bends = xp.where(is_bent, bends, xp.maximum(bends, common))
    told = bends > 0
    top = float(xp.max(bends))
    if not 0 < top < math.inf:
        memory["smoothing"] = 1.0
        return scales
    # What a coordinate that told nothing hides is not known: it is probed where it was.
    bends = xp.where(told, xp.maximum(bends, MIN_CURVATURE * top) + 2 * error, top)
    memory["smoothing"] = math.sqrt(top)
    return scales / xp.sqrt(bends)


def _measure_origin(state: SolverState, values: Array) -> None:
    """Takes in the value of the origin, and what two of them say of noise."""
    memory = state.memory
    xp = array_namespace(values)
    value = float(values[0])
    if asks_twice(state) and values.shape[0] > 1 and math.isfinite(again := float(values[-1])):
        change = again - value
        finite = values[xp.isfinite(values)]
        spread = float(xp.max(finite)) - float(xp.min(finite))
        if abs(change) > JITTER * max(abs(value), spread):
            memory["noise"] = max(abs(change) / math.sqrt(2), float(memory["noise"]) / 2)
            value += change / 2
        else:
            memory["jitter"] = max(abs(change), float(memory["jitter"]))
    memory.update(value=value, origin_value=abs(value))


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
    if is_first or value < float(state.memory["fallback_value"]):
        state.memory["fallback"] = copy(candidates[best])
        state.memory["fallback_value"] = value
