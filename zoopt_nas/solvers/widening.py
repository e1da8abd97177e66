"""Where to look as long as no point has a value, or all have the same."""

from __future__ import annotations

import math

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, device
from zoopt_nas.solvers.state import SolverState

# The rows of a batch, and how often the farthest distance doubles before it begins anew.
_N_WIDENED = 12
_MAX_DOUBLINGS = 40
# After so many batches of one value the function is taken to be flat wherever it matters.
MAX_FLAT = 40


def widened(state: SolverState, n_before: int) -> Array:
    """Returns points around x, (n, dim), of which the farthest are twice as far in each batch.

    Args:
        state: the run.
        n_before: how many such batches there were, 1 or more.

    A third lies in random directions, a third along the coordinates, and a third on the way to the
    middle of the box or, without one, to zero and beyond. Distances are spread evenly in their
    logarithm, as a region with values may be near and small, or far and large. Between two bounds a
    point is drawn that lies anywhere, in every second batch.
    """
    xp, x = array_namespace(state.x), state.x
    third = _N_WIDENED // 3
    doublings = 1.0 + (n_before - 1) % _MAX_DOUBLINGS
    unit = natural_scale(state)
    # The distances of the rows: 1/16 of a unit to 2^doublings of them.
    shares = sampling.uniform(state.rng, _N_WIDENED, x)
    distances = unit * 2.0 ** (shares * (doublings + 4) - 4)
    along = xp.zeros((third, x.shape[0]), dtype=x.dtype, device=device(x))
    for k in range(third):
        column = (third * n_before + k) // 2 % x.shape[0]
        along[k, column] = 1.0 if k % 2 else -1.0
    rows = x + distances[: 2 * third, None] * xp.concat(
        [sampling.sphere(state.rng, third, x), along], axis=0
    )
    centre = _middle(state)
    shifts = sampling.uniform(state.rng, third, x)[:, None] * 1.5
    spread = 0.1 * distances[2 * third :, None] * sampling.gaussian(state.rng, third, x)
    inwards = x + shifts * (centre - x) + (n_before > 1) * spread
    rows = xp.concat([inwards, rows], axis=0)
    if state.lower is None:
        return rows
    width = state.upper - state.lower
    anywhere = state.lower + width * xp.stack(
        [sampling.uniform(state.rng, x.shape[0], x) for _ in range(_N_WIDENED)]
    )
    if n_before % 2 == 0:
        rows = xp.where(xp.isfinite(width), anywhere, rows)
    return xp.minimum(xp.maximum(rows, state.lower), state.upper)


def natural_scale(state: SolverState) -> float:
    """Returns the length of a sensible first step, where nothing but the start is known."""
    return 1.0 if state.is_scaled else natural_size(state.x)


def natural_size(x: Array) -> float:
    """Returns the root mean square of the coordinates, or 1 where that is larger."""
    xp = array_namespace(x)
    return max(1.0, float(xp.linalg.vector_norm(x)) / math.sqrt(x.shape[0]))


def _middle(state: SolverState) -> Array:
    """Returns the middle of the box, and zero along a coordinate that is not bounded twice."""
    xp = array_namespace(state.x)
    zero = xp.zeros_like(state.x)
    if state.lower is None:
        return zero
    middle = state.lower / 2 + state.upper / 2
    return xp.where(xp.isfinite(middle), middle, zero)
