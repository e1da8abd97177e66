"""Where the next run begins when one has ended: around the best end, or around the start.

A descent takes some 10 evaluations per dimension, and one point of a random batch is likely to be
nearer to a low minimum than the others. So the batch holds one point for each dimension, and the
best of them becomes the origin. For a trust region in two dimensions several points make no
difference, so it draws one.
"""

from __future__ import annotations

import math

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy
from zoopt_nas.solvers.engines.box_steps import BoxStep
from zoopt_nas.solvers.engines.descent_state import DescentState
from zoopt_nas.solvers.state import SolverState, within_bounds
from zoopt_nas.solvers.widening import natural_size

# The spreads of one cycle, in units of the first scales: the scale of a start is a guess, so the
# neighbourhood to search may be larger or smaller.
SPREADS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 8.0)
# A descent has returned if it ends within this fraction of the mean distance of its origins.
RETURNED = 0.5
# A step is expected to end at the best point if it does so within NEAR of its length, at a decrease
# that is the gap to the best value up to the factor SIMILAR.
NEAR = 0.1
SIMILAR = 2.0


def spread(n_restarts: int) -> float:
    """Return the standard deviation of an origin; two restarts in a row have the same."""
    return SPREADS[(n_restarts - 1) // 2 % len(SPREADS)]


def first_scales(state: SolverState, start: Array) -> Array:
    """Return the distance of the first probes along each coordinate, (dim,)."""
    xp = array_namespace(state.x)
    scale = 1.0 if state.is_scaled else natural_size(start)
    return xp.ones_like(state.x) * scale


def remember_end(state: SolverState, x: Array) -> None:
    """Take in the end of a descent: whether it returned to the best end, or is the best one."""
    xp = array_namespace(x)
    inner: DescentState = state.inner
    off = (x - inner.best) / first_scales(state, inner.start)
    reach = RETURNED * inner.spread * math.sqrt(x.shape[0])
    is_better = state.value < inner.best_value
    if float(xp.linalg.vector_norm(off)) < reach:
        inner.returned = max(inner.returned, inner.spread)
    elif is_better:
        inner.returned = 0.0
    inner.spread = 0.0
    if is_better:
        inner.best, inner.best_value = copy(x), state.value


def ends_at_best(state: SolverState, x: Array, step: BoxStep) -> bool:
    """Return whether the model expects its minimum at the best end of an earlier descent."""
    xp = array_namespace(x)
    inner: DescentState = state.inner
    gap = state.value - inner.best_value
    if inner.noise > 0 or not gap / SIMILAR <= step.promised / 2 <= gap * SIMILAR:
        return False
    off = x + step.direction - inner.best
    return float(xp.linalg.vector_norm(off)) <= NEAR * float(xp.linalg.vector_norm(step.direction))


def origins(state: SolverState) -> Array:
    """Draw the origins to choose from, (dim, dim), alternately around the best end and the start.

    Around the best end a cycle leaves out the spreads that were too small to leave it.
    """
    inner: DescentState = state.inner
    if inner.n_restarts % 2:
        centre, inner.spread = inner.best, _next_spread(inner)
        width = inner.spread
    else:
        centre, width = inner.start, spread(inner.n_restarts)
    scales = first_scales(state, inner.start)
    return points_around(state, centre, width * scales, n=state.x.shape[0])


def points_around(state: SolverState, centre: Array, deviations: Array | float, n: int) -> Array:
    """Draw normal points within the bounds, (n, dim).

    ``deviations`` are the standard deviations, (dim,), or one for all coordinates. Coordinates
    outside are drawn again, uniformly, because clipping would favour corners.
    """
    xp = array_namespace(state.x)
    dim = state.x.shape[0]
    rows = centre + deviations * sampling.gaussian(state.rng, n, state.x)
    if state.lower is None or state.upper is None:
        return rows
    gap = state.upper - state.lower
    has_gap = xp.isfinite(gap)
    leaves = ((rows < state.lower) | (rows > state.upper)) & has_gap
    if bool(xp.any(leaves)):  # bounds that are far away do not change a run
        fractions = xp.reshape(sampling.uniform(state.rng, n * dim, state.x), (n, dim))
        rows = xp.where(leaves, state.lower + xp.where(has_gap, gap, 0.0) * fractions, rows)
    return within_bounds(state, rows)


def _next_spread(inner: DescentState) -> float:
    """Return the next spread of the cycle that is larger than all that returned in it."""
    while True:
        place = inner.n_spreads % len(SPREADS)
        if place == 0:
            inner.returned = 0.0
        inner.n_spreads += 1
        if SPREADS[place] > inner.returned:
            return SPREADS[place]
