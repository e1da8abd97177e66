"""Search for a first difference in value, while no point has a value or all values are equal."""

from __future__ import annotations

import math

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, device
from zoopt_nas.solvers.state import SolverState, within_bounds

# The rows of a batch, and the doublings of the largest distance before it starts over.
N_WIDENED = 12
MAX_DOUBLINGS = 40
# After this many batches with one value, the function counts as flat.
MAX_FLAT = 40


def widened(state: SolverState) -> Array:
    """Return points around x, (n, dim), at distances up to a maximum that doubles with each batch.

    A third lies in random directions, a third along coordinate axes, and a third on the line to the
    centre of the box or, without bounds, to zero and beyond. Distances are log-uniform. In every
    second batch, coordinates with two bounds are drawn uniformly between them.
    """
    xp, x = array_namespace(state.x), state.x
    dim = x.shape[0]
    n_before, unit = state.n_widenings, natural_scale(state)
    doublings = 1 + (n_before - 1) % MAX_DOUBLINGS
    fractions = sampling.uniform(state.rng, N_WIDENED, x).tolist()
    # Row by row and in place, because x may be large.
    rows = xp.empty((N_WIDENED, dim), dtype=x.dtype, device=device(x))
    for k, fraction in enumerate(fractions):
        distance = unit * 2.0 ** (fraction * (doublings + 4) - 4)
        if k % 3 == 0:
            rows[k] = sampling.sphere(state.rng, 1, x)[0]
            rows[k] *= distance
            rows[k] += x
        elif k % 3 == 1:
            rows[k] = x
            column = (N_WIDENED * n_before + k) // 3 % dim
            rows[k, column] += distance if k % 2 else -distance
        else:
            _write_inwards(state, rows[k], 1.5 * fraction, 0.1 * distance * (n_before > 1))
    if state.lower is None or state.upper is None:
        return rows
    for k in range(N_WIDENED if n_before % 2 == 0 else 0):
        width = state.upper - state.lower
        anywhere = state.lower + width * sampling.uniform(state.rng, dim, x)
        rows[k] = xp.where(xp.isfinite(width), anywhere, rows[k])
    return within_bounds(state, rows)


def _write_inwards(state: SolverState, row: Array, fraction: float, spread: float) -> None:
    """Set ``row`` to a point near x + fraction (centre - x), with the centre of the box or zero."""
    row[:] = sampling.gaussian(state.rng, 1, state.x)[0]
    row *= spread
    if state.lower is not None and state.upper is not None:
        xp = array_namespace(row)
        middle = state.lower / 2 + state.upper / 2
        row += fraction * xp.where(xp.isfinite(middle), middle, 0.0)
    row += (1 - fraction) * state.x


def natural_scale(state: SolverState) -> float:
    """Return a sensible length for a first step, from the start point alone."""
    return 1.0 if state.is_scaled else natural_size(state.x)


def natural_size(x: Array) -> float:
    """Return the root mean square of the coordinates, at least 1."""
    xp = array_namespace(x)
    return max(1.0, float(xp.linalg.vector_norm(x)) / math.sqrt(x.shape[0]))
