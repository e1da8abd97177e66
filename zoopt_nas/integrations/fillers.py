"""Filler points: evaluated while all points of a batch are assigned and some are unfinished."""

from __future__ import annotations

import math

import numpy as np

from zoopt_nas import sampling
from zoopt_nas.solvers import SolverState

# The minimum distance if the batch consists of the iterate, in units of the solver.
_MIN_DISTANCE = 1e-3
# Squares of longer steps overflow.
_MAX_DISTANCE = 1e150
# A row is lost when so many filler points per running evaluation have finished since.
_PATIENCE = 4


def filler_point(
    state: SolverState, rng: np.random.Generator, distance_factor: float = 1.0
) -> np.ndarray:
    """Return a random point, (dim,), around the iterate of a run with a pending batch.

    The logarithm of its distance is uniform, from the nearest row of the batch to
    ``distance_factor`` times the maximum of 1 and the farthest row.
    """
    steps: np.ndarray = state.pending - state.x
    distances = np.minimum(np.linalg.norm(steps, axis=1), _MAX_DISTANCE)
    farthest = distance_factor * max(1.0, distances.max())
    # At most 0.5: in one dimension, a single distance would allow only two points.
    nearest = distances[distances > 0].min(initial=0.5 if distances.any() else _MIN_DISTANCE)
    distance = math.exp(rng.uniform(math.log(nearest), math.log(farthest)))
    point: np.ndarray = state.x + distance * sampling.sphere(rng, 1, state.x)[0]
    return point


def is_overdue(n_fillers: int, n_rows: int, n_running: int) -> bool:
    """Return whether a row of a batch counts as lost, so that it is assigned again.

    A worker that died never returns its row. The criterion counts finished filler points, so that
    a slow evaluation is not repeated.

    Args:
        n_fillers: the filler points that finished after the row was assigned.
        n_rows: the rows of the batch.
        n_running: the running evaluations, including the row.
    """
    return n_fillers >= max(n_rows, _PATIENCE * n_running)
