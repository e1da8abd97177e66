"""Rounded values and coordinates: what a descent sees if the objective has only a few digits.

Values with few digits, or of a count, are multiples of a grain: their differences have a common
divisor. An objective of rounded coordinates has the same value at points that are close together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from zoopt_nas._arrays import Array, array_namespace, value_dtype
from zoopt_nas.solvers.engines.descent_state import DescentPhase, DescentState
from zoopt_nas.solvers.engines.differences import value_error
from zoopt_nas.solvers.state import SolverState, within_bounds

# The number of values that are remembered. Those up to SIMILAR times the least are compared: where
# values have a number of digits, smaller ones have a finer grain. The divisor of fewer than
# MIN_DISTINCT is often a multiple of the grain, or chance.
N_RECENT = 12
SIMILAR = 8.0
MIN_DISTINCT = 4
# A divisor is certain if it is large beside the error of a value, which is ROUNDINGS of the largest
# one, and if all remainders are within this error.
ROUNDINGS = 8.0
CERTAIN = 100.0
# A point that tells nothing is followed by one that is farther by the factor FARTHER, if the slope
# predicts a change of VISIBLE errors of a value. The first one is at CLOSE, in units of the model.
FARTHER = 8.0
VISIBLE = 16.0
CLOSE = 1e-5
# Values of a smooth objective are equal by chance about as often as an error of a value goes into
# the change that the model predicts. Ties count if their probability is less than RARE.
RARE = 1e-4


def common_divisor(values: Sequence[float], eps: float) -> float:
    """Return the largest number of which all differences are multiples; 0 if there is none.

    Args:
        values: finite, at least two of them distinct.
        eps: the relative error of a value.
    """
    # Small ones first: their divisor has a small error, and each larger one makes it more exact.
    differences = sorted(high - low for low, high in pairwise(sorted(set(values))))
    error = ROUNDINGS * eps * max(map(abs, values))
    if not error < differences[0] <= differences[-1] < math.inf:
        return 0.0
    divisor = differences[0]
    for difference in differences[1:]:
        a, b = difference, divisor
        while b * b > error * difference:  # Euclid; smaller remainders are errors
            a, b = b, abs(math.remainder(a, b))
        divisor = difference / round(difference / a)
    off = max(abs(math.remainder(difference, divisor)) for difference in differences)
    return divisor if off <= error < divisor / CERTAIN else 0.0


def remember(state: SolverState, values: Array) -> None:
    """Take in the values of a batch, and find the grain of the last ones."""
    inner: DescentState = state.inner
    if inner.phase == DescentPhase.START:  # a start often has few digits, and so have its values
        return
    told = [value for value in values[-N_RECENT:].tolist() if math.isfinite(value)]
    inner.recent = [*inner.recent, *told][-N_RECENT:]
    if inner.noise > 0 or inner.phase in (DescentPhase.SEARCH, DescentPhase.EXPAND):
        return
    least = min(map(abs, inner.recent), default=0.0)
    distinct = {value for value in inner.recent if abs(value) <= SIMILAR * least}
    if len(distinct) >= MIN_DISTINCT:
        eps = float(array_namespace(state.x).finfo(state.x.dtype).eps)
        inner.grain = common_divisor(list(distinct), eps)


def begin_close(state: SolverState) -> None:
    """Begin to look for the distance at which values differ."""
    inner: DescentState = state.inner
    inner.closeness, inner.hidden = CLOSE, 0.0


def ask_close(state: SolverState) -> Array:
    """Return a point close to the iterate, down the slope."""
    xp = array_namespace(state.x)
    inner: DescentState = state.inner
    way = inner.basis @ (inner.slopes / xp.linalg.vector_norm(inner.slopes))
    return within_bounds(state, state.x - inner.closeness * way)[None, :]


def sees_nothing(state: SolverState, candidate: Array, value: float) -> bool:
    """Learn from the value of `ask_close`; return whether to ask again, farther away."""
    xp = array_namespace(state.x)
    inner: DescentState = state.inner
    change = inner.closeness * float(xp.linalg.vector_norm(inner.slopes))
    length = float(xp.linalg.vector_norm(candidate - state.x))
    if value != state.value or length == 0 or inner.closeness > 1:
        return False
    if change * RARE > value_error(state):
        inner.hidden = FARTHER * change
        inner.reach = max(inner.reach, FARTHER * length)
    inner.closeness *= FARTHER
    return True


def is_blind(state: SolverState, candidates: Array, values: Array) -> bool:
    """Return whether probes must go farther, because some have the value of the iterate.

    The slopes before must predict a change: along a coordinate that does not matter there is none.
    Unless it is known that near points tell nothing, chance must not explain it.
    """
    xp = array_namespace(candidates)
    inner: DescentState = state.inner
    if inner.near is not None:
        return False
    error = value_error(state)
    expected = xp.abs(inner.slopes * inner.steps)
    if inner.is_central:
        expected = _alternating(expected, expected)
    is_tied = (values == state.value) & (expected > VISIBLE * error)
    if not bool(xp.any(is_tied)) or (inner.reach == 0 and _may_be_chance(inner, is_tied, error)):
        return False
    lengths = xp.linalg.vector_norm(candidates - state.x, axis=1)
    reach = FARTHER * float(xp.max(xp.where(is_tied, lengths, 0.0)))
    if not inner.reach < reach <= float(xp.max(inner.look.scales)):
        return False
    inner.reach = reach
    return True


def _may_be_chance(inner: DescentState, is_tied: Array, error: float) -> bool:
    """Return whether these probes may have the value of the iterate by chance."""
    xp = array_namespace(is_tied)
    slopes = inner.slopes + inner.step if inner.has_pair else inner.slopes
    linear, bends = slopes * inner.steps, inner.steps**2 / 2
    changes = xp.abs(bends + linear)
    if inner.is_central:
        changes = _alternating(changes, xp.abs(bends - linear))
    # Logarithms in the precision of values: products of float32 slopes and steps overflow.
    dtype = value_dtype(changes)
    limits = xp.finfo(dtype)
    highest = float(limits.max)
    error = min(max(error, float(limits.smallest_normal)), highest)
    changes = xp.astype(changes, dtype)
    changes = xp.where(changes > error, changes, error)  # also where one is NaN
    changes = xp.where(changes < highest, changes, highest)
    chances = xp.where(is_tied, math.log(error) - xp.log(changes), 0.0)
    n_sets = math.comb(is_tied.shape[0], int(xp.sum(is_tied)))  # that could be tied instead
    return float(xp.sum(chances)) + math.log(n_sets) > math.log(RARE)


def _alternating(ahead: Array, behind: Array) -> Array:
    """Return the elements of both, (n,) each, in the order of the rows of a central probe."""
    xp = array_namespace(ahead)
    return xp.reshape(xp.stack([ahead, behind], axis=1), (-1,))
