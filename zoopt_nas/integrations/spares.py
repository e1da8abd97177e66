"""What to hand out where a batch is under way and another point is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from zoopt_nas import sampling
from zoopt_nas.solvers import SolverState

# The least distance of a spare where the batch has no row but the iterate, in units of the solver.
_NEAREST = 1e-3
# Squares of longer steps overflow.
_FARTHEST = 1e150
_MAX_DRAWS = 30
# A row is given up when so many spares for each point that is out have come back after it.
_PATIENCE = 4


def spares(state: SolverState, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields spares from further and further around, for a grid on which the first are taken."""
    for k in range(_MAX_DRAWS):
        yield spare(state, rng, 1.1**k)


def spare(state: SolverState, rng: np.random.Generator, reach: float = 1.0) -> np.ndarray:
    """Returns a random point, (dim,), about the iterate of a run with a pending batch.

    How far the function still improves nobody knows, so the logarithm of the distance is uniform,
    between that of the nearest row of the batch, or 0.5, and that of the farthest, or 1,
    times ``reach``.
    """
    steps: np.ndarray = state.pending - state.x
    distances = np.minimum(np.linalg.norm(steps, axis=1), _FARTHEST)
    farthest = reach * max(1.0, distances.max())
    # Never one length alone: in one dimension there would be two spares.
    nearest = distances[distances > 0].min(initial=0.5 if distances.any() else _NEAREST)
    distance = math.exp(rng.uniform(math.log(nearest), math.log(farthest)))
    point: np.ndarray = state.x + distance * sampling.sphere(rng, 1, state.x)[0]
    return point


def is_overdue(n_spares: int, n_rows: int, n_out: int) -> bool:
    """Whether a row of a batch is taken for lost, so that it is handed out once more.

    A worker that died takes its row with it. One that is only slow must not make others repeat its
    evaluation, so what counts is how many spares have come back since, not how many are out.

    Args:
        n_spares: the spares that have come back since the row was handed out.
        n_rows: the rows of the batch.
        n_out: the points that are out, this row among them.
    """
    return n_spares >= max(n_rows, _PATIENCE * n_out)
