"""Where to look as long as no point has a value, or all have the same."""

from __future__ import annotations

import math

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, device
from zoopt_nas.solvers.state import SolverState, within_bounds

# The rows of a batch, and how often the farthest distance doubles before it begins anew.
N_WIDENED = 12
MAX_DOUBLINGS = 40
# After so many batches of one value the function is taken to be flat wherever it matters.
MAX_FLAT = 40


def widened(state: SolverState) -> Array:
    """Returns points around x, (n, dim), of which the farthest are twice as far in each batch.

    A third lies in random directions, a third along the coordinates, and a third on the way to the
    middle of the box or, without one, to zero and beyond. Distances are spread evenly in their
    logarithm, as what is sought may be near and small, or far and large. In every second batch the
    coordinates between two bounds are drawn from all of the width instead.
    """
    xp, x = array_namespace(state.x), state.x
    dim = x.shape[0]
    n_before, unit = state.n_widenings, natural_scale(state)
    doublings = 1 + (n_before - 1) % MAX_DOUBLINGS
    shares = sampling.uniform(state.rng, N_WIDENED, x).tolist()
    # Row by row and in place, since x may be large.
    rows = xp.empty((N_WIDENED, dim), dtype=x.dtype, device=device(x))
    for k, share in enumerate(shares):
        distance = unit * 2.0 ** (share * (doublings + 4) - 4)
        if k % 3 == 0:
            rows[k] = sampling.sphere(state.rng, 1, x)[0]
            rows[k] *= distance
            rows[k] += x
        elif k % 3 == 1:
            rows[k] = x
            column = (N_WIDENED * n_before + k) // 3 % dim
            rows[k, column] += distance if k % 2 else -distance
        else:
            _write_inwards(state, rows[k], 1.5 * share, 0.1 * distance * (n_before > 1))
    if state.lower is None or state.upper is None:
        return rows
    for k in range(N_WIDENED if n_before % 2 == 0 else 0):
        width = state.upper - state.lower
        anywhere = state.lower + width * sampling.uniform(state.rng, dim, x)
        rows[k] = xp.where(xp.isfinite(width), anywhere, rows[k])
    return within_bounds(state, rows)


def _write_inwards(state: SolverState, row: Array, share: float, spread: float) -> None:
    """Sets ``row`` to a point about a share of the way to the middle of the box, or to zero."""
    row[:] = sampling.gaussian(state.rng, 1, state.x)[0]
    row *= spread
    if state.lower is not None and state.upper is not None:
        xp = array_namespace(row)
        middle = state.lower / 2 + state.upper / 2
        row += share * xp.where(xp.isfinite(middle), middle, 0.0)
    row += (1 - share) * state.x


def natural_scale(state: SolverState) -> float:
    """Returns the length of a sensible first step, where nothing but the start is known."""
    return 1.0 if state.is_scaled else natural_size(state.x)


def natural_size(x: Array) -> float:
    """Returns the root mean square of the coordinates, or 1 where that is larger."""
    xp = array_namespace(x)
    return max(1.0, float(xp.linalg.vector_norm(x)) / math.sqrt(x.shape[0]))
