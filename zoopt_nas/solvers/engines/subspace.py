"""Descent in random subspaces, for dimensions where a whole gradient costs too much.

A step probes n orthogonal directions, one of them the last step, and then tries three lengths along
the gradient in their span. The best becomes the new iterate, and its length the middle one of the
next step. With the last step, the subspace contains the conjugate gradient step, as in SESOP
(Narkiss & Zibulevsky, 2005).

The state holds one vector beside x. If (n, dim) is large, nothing else of that size is allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.engines.descent_state import DescentPhase
from zoopt_nas.solvers.engines.differences import (
    averaged_noise,
    interpolated_gradient,
    orthogonal_to,
)
from zoopt_nas.solvers.widening import natural_scale, natural_size

# The lengths that a search tries, and the factor of the length if all fail.
TRIAL_LENGTHS = (0.4, 1.0, 2.5)
FAILED_LENGTH = 0.2
# The distance of the probes, in units of the step; under noise it is 1.
SMOOTHING_PER_STEP = 0.01
# The largest batch (n dim) that is orthogonalized and solved by least squares. Random directions in
# many dimensions are nearly orthogonal anyway.
MAX_EXACT_SIZE = 20_000
MAX_BATCH_SIZE = 10_000_000
MAX_DIRECTIONS = 100
MIN_DIRECTIONS = 8
# The size of a block of a large batch.
BLOCK_SIZE = 2**15


@dataclass(eq=False)
class SubspaceState:
    """The state of a descent in subspaces."""

    length: float  # the middle length of the next search
    direction: Array = None  # of the last or pending search, (dim,), of norm 1; None at first
    phase: DescentPhase = DescentPhase.START  # the purpose of the pending batch; never EXPAND
    noise: float = 0.0  # the standard deviation of values; 0 if none was seen
    n_restarts: int = 0  # how often the length became too short and was reset


def default_directions(dim: int) -> int:
    """Return the default number of directions of a step."""
    return min(dim, max(MIN_DIRECTIONS, min(MAX_DIRECTIONS, MAX_BATCH_SIZE // dim)))


def begin(state: SolverState) -> None:
    """Initialize ``state.inner`` for a descent from ``state.x``."""
    state.value = math.inf
    state.inner = SubspaceState(length=natural_scale(state))


def ask(state: SolverState, *, n_directions: int | None, smoothing: float | None) -> Array:
    """Return the batch of the current phase; None stands for the defaults."""
    inner: SubspaceState = state.inner
    xp = array_namespace(state.x)
    if inner.phase == DescentPhase.SEARCH:
        rows = xp.stack([inner.direction] * len(TRIAL_LENGTHS), axis=0)
        for k, factor in enumerate(TRIAL_LENGTHS):
            rows[k, :] *= factor * inner.length
        rows += state.x
        return rows
    dim = state.x.shape[0]
    n = min(n_directions or default_directions(dim), dim)
    first = int(_measures_iterate(inner))
    again = int(inner.phase == DescentPhase.START)
    rows = _directions(state, n, first + again)
    if n > 1 and inner.direction is not None:
        rows[first, :] = inner.direction
    rows *= probe_distance(state, smoothing)
    rows += state.x
    for k in [0] * first + [-1] * again:
        rows[k, :] = state.x
    return rows


def tell(state: SolverState, candidates: Array, values: Array) -> Array:
    """Return the new iterate."""
    inner: SubspaceState = state.inner
    if inner.phase == DescentPhase.SEARCH:
        return _tell_search(state, candidates, values)
    numbers = values.tolist()
    was_start = inner.phase == DescentPhase.START
    first = int(_measures_iterate(inner))
    for k in [0] * first + [-1] * was_start:
        if math.isfinite(numbers[k]):
            _measure(state, numbers[k])
    if was_start:
        if not math.isfinite(state.value):  # x failed: go to a point that has a value
            return _best_of(state, candidates, numbers)
        inner.phase = DescentPhase.PROBE
    last = len(numbers) - int(was_start)
    inner.direction = None  # to free its memory for the gradient
    gradient = span_gradient(state, candidates[first:last], values[first:last])
    norm = _norm(gradient)
    state.metrics["gradient_norm"] = norm
    if not 0 < norm < math.inf:
        if min(numbers) < state.value:
            return _best_of(state, candidates, numbers)
        _shorten(state)
        return state.x
    gradient /= -norm
    inner.direction = gradient
    inner.phase = DescentPhase.SEARCH
    return state.x


def probe_distance(state: SolverState, smoothing: float | None) -> float:
    """Return the distance of the probes from the iterate."""
    if smoothing is not None:
        return smoothing
    inner: SubspaceState = state.inner
    if inner.noise > 0:
        return inner.length
    return max(SMOOTHING_PER_STEP * inner.length, _floor(state))


def span_gradient(state: SolverState, rows: Array, values: Array) -> Array:
    """Return the gradient (dim,) in the span of the probes, without rows that failed."""
    xp = array_namespace(rows)
    changes = values - state.value
    alive = xp.isfinite(changes)
    changes = xp.where(alive, changes, 0.0)
    if rows.shape[0] * rows.shape[1] <= MAX_EXACT_SIZE:
        displacements = xp.where(alive[:, None], rows - state.x, 0.0)
        return interpolated_gradient(displacements, changes)
    return _summed_gradient(state.x, rows, changes)


def _summed_gradient(x: Array, rows: Array, changes: Array) -> Array:
    """Return the sum of the gradients along each row.

    Blocks of columns fit into the cache and avoid a second array of the size of the batch.
    """
    xp = array_namespace(rows)
    dtype = xp.float64 if rows.dtype == xp.float64 else xp.float32
    n_columns = max(1, BLOCK_SIZE // rows.shape[0])
    blocks = [slice(k, k + n_columns) for k in range(0, x.shape[0], n_columns)]
    squares = xp.zeros_like(changes)
    for block in blocks:
        displacements = xp.astype(rows[:, block] - x[block], dtype, copy=False)
        squares += xp.linalg.vecdot(displacements, displacements)
    # A weight of 0 would not do, because a failed row may be infinite.
    used = (changes != 0) & (squares > 0) & xp.isfinite(squares)
    is_all = bool(xp.all(used))
    weights = xp.astype(changes[used] / squares[used], dtype)
    gradient = xp.empty_like(x)
    for block in blocks:
        displacements = xp.astype(rows[:, block] - x[block], dtype, copy=False)
        gradient[block] = weights @ (displacements if is_all else displacements[used])
    return gradient


def _norm(vector: Array) -> float:
    """Return the Euclidean norm by blocks, because NumPy's makes a copy of its input."""
    of_block = array_namespace(vector).linalg.vector_norm
    starts = range(0, vector.shape[0], BLOCK_SIZE)
    return math.hypot(*[float(of_block(vector[k : k + BLOCK_SIZE])) for k in starts])


def _directions(state: SolverState, n: int, n_spare: int) -> Array:
    """Return n unit rows, orthogonal if that is cheap, with ``n_spare`` rows around them."""
    xp = array_namespace(state.x)
    dim = state.x.shape[0]
    if n * dim > MAX_EXACT_SIZE:
        return sampling.sphere(state.rng, n + n_spare, state.x)
    rows = orthogonal_to(xp.zeros_like(state.x)[None, :][:0, :], n, state)
    if n_spare == 0:
        return rows
    spare = xp.zeros_like(rows[:1, :])
    return xp.concat([spare, rows, *([spare] * (n_spare - 1))], axis=0)


def _measures_iterate(inner: SubspaceState) -> bool:
    return inner.phase == DescentPhase.START or inner.noise > 0


def _measure(state: SolverState, again: float) -> None:
    """Take in a new measurement of the iterate."""
    inner: SubspaceState = state.inner
    if not math.isfinite(state.value):
        state.value = again
        return
    change = again - state.value
    inner.noise = averaged_noise(inner.noise, change)
    state.value += change / 2


def _best_of(state: SolverState, candidates: Array, numbers: list[float]) -> Array:
    best = min(numbers)
    if not math.isfinite(best):
        _shorten(state)
        return state.x
    state.value = best
    return copy(candidates[numbers.index(best)])


def _tell_search(state: SolverState, candidates: Array, values: Array) -> Array:
    inner: SubspaceState = state.inner
    numbers = values.tolist()
    best = min(numbers)
    inner.phase = DescentPhase.PROBE
    if not best < state.value:
        _shorten(state)
        return state.x
    k = numbers.index(best)
    inner.length = min(inner.length * TRIAL_LENGTHS[k], 1e100)
    state.value = best
    return copy(candidates[k])


def _shorten(state: SolverState) -> None:
    """Shorten the next search, or reset its length if it would be too short."""
    inner: SubspaceState = state.inner
    length = FAILED_LENGTH * inner.length
    if length < _floor(state):
        inner.n_restarts += 1
        length = natural_scale(state)
    inner.length = length


def _floor(state: SolverState) -> float:
    """Return the distance below which differences are rounding: sqrt(eps) of the size of x."""
    xp = array_namespace(state.x)
    eps = float(xp.finfo(state.x.dtype).eps)
    return math.sqrt(eps) * natural_size(state.x)
