"""What solvers share that run a local algorithm to its end, again and again.

A restart begins at a normal draw around the first start, of standard deviation 1, 2, 4, 8, 1, ...
times the solver's own scale: doubling without end would soon leave any region of interest.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, as_like, to_numpy
from zoopt_nas.solvers.base import Solver, SolverState

_N_SCALES = 4


@dataclass(eq=False)
class Restarts:
    """What such a solver keeps of its restarts.

    Attributes:
        origin: the first start, (dim,); None before the first batch.
        start: where this run of the algorithm began, (dim,).
        signs: -1 or +1, (dim,), for an algorithm that has to choose sides.
        n_restarts: how many there were.
    """

    origin: Any = None
    start: Any = None
    signs: Any = None
    n_restarts: int = 0


@dataclass(frozen=True)
class RestartingSolver(Solver):
    """A solver whose iterate is the best point told so far, with restarts around the start.

    The algorithm computes in float64 on the CPU, whatever the points are.
    """

    evaluates_iterate: ClassVar[bool] = True

    @property
    @abstractmethod
    def _scale(self) -> float:
        """The standard deviation of the first restart around the start, in units of x."""

    def _init(self, state: SolverState) -> None:
        state.value = math.inf

    def _draw_start(self, state: SolverState) -> None:
        """Writes where the next run of the algorithm begins."""
        inner: Restarts = state.inner
        if inner.origin is None:
            # Not before the first batch: a warm start moves x.
            inner.origin = inner.start = as_float64(state.x)
        else:
            scale = self._scale * 2.0 ** (inner.n_restarts % _N_SCALES)
            step = as_float64(sampling.gaussian(state.rng, 1, state.x)[0])
            inner.n_restarts += 1
            inner.start = np.nan_to_num(inner.origin + scale * step)
        inner.signs = as_float64(sampling.rademacher(state.rng, 1, state.x)[0])

    def _best_told(self, state: SolverState, candidates: Array, values: np.ndarray) -> Array:
        """Returns the iterate after a batch."""
        state.metrics["n_restarts"] = state.inner.n_restarts
        best = int(np.argmin(values))
        if not values[best] < state.value:
            return state.x
        state.value = float(values[best])
        return array_namespace(candidates).asarray(candidates[best], copy=True)


def as_float64(array: Array) -> np.ndarray:
    """Returns a copy as NumPy float64."""
    return np.array(to_numpy(array), dtype=np.float64)


def as_rows(points: np.ndarray, like: Array) -> Array:
    """Returns float64 points (n, dim) beside ``like``, cut off where its dtype ends."""
    limit = float(array_namespace(like).finfo(like.dtype).max)
    return as_like("candidates", np.clip(points, -limit, limit), like, points.shape)
