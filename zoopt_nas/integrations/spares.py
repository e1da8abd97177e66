"""What to hand out where a batch is under way and another point is wanted."""

from __future__ import annotations

import math

import numpy as np

from zoopt_nas import sampling
from zoopt_nas.solvers import SolverState


def spare(state: SolverState, rng: np.random.Generator) -> np.ndarray:
    """Returns a random point, (dim,), about the iterate of a run with a pending batch.

    How far the function still improves nobody knows, so the logarithm of the distance is uniform,
    between that of the nearest row of the batch and that of the farthest, or 1.
    """
    steps: np.ndarray = state.pending - state.x
    distances = np.linalg.norm(steps, axis=1)
    nearest = min(1.0, *distances[distances > 0])
    farthest = max(1.0, *distances)
    distance = math.exp(rng.uniform(math.log(nearest), math.log(farthest)))
    point: np.ndarray = state.x + distance * sampling.sphere(rng, 1, state.x)[0]
    return point
