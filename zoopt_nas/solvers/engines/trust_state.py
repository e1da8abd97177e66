"""The state of a trust-region method, which its modules share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from zoopt_nas._arrays import Array, to_numpy
from zoopt_nas.solvers.engines.interpolation import Model
from zoopt_nas.solvers.state import SolverState

# The target of a row that tries a step, or is to improve the model, but replaces no certain point.
STEP, SAMPLE = -1, -2


class TrustPhase(IntEnum):
    """The purpose of the pending batch."""

    FIRST = 0
    SECOND = 1
    MOVE = 2
    CHECK = 3


@dataclass(eq=False)
class TrustState:
    """The state of a trust-region method.

    The model covers the k coordinates of a block: all that bounds leave free, or some of them.
    Arrays without another type are NumPy float64 arrays.
    """

    eps: float  # the relative rounding error of points
    limit: float  # the largest coordinate of a point
    start: Array = None  # the first iterate, (dim,) like x; None before the first batch
    best: Array = None  # the best end of a run, (dim,) like x
    best_value: float = math.inf  # the value of ``best``; +inf before the first end
    n_restarts: int = 0  # the number of restarts
    scale: float = 1.0  # the first radius of the first run
    n_free: int = 0  # the number of coordinates that bounds leave free
    end_length: float = 0.0  # the length of the longest axis of the region
    origin: Any = None  # the start of this run, (k,)
    block: Any = None  # the indices of the coordinates of the model, (k,) int64
    scales: Any = None  # the first radius along each coordinate, (k,)
    phase: TrustPhase = TrustPhase.FIRST  # the purpose of the pending or next batch
    planned: Any = None  # the rows of that batch in the coordinates of the block, (n, k)
    targets: Any = None  # the point that each row is to replace, STEP or SAMPLE; (n,) int64
    gains: Any = None  # the decrease that the model predicts for each row, (n,)
    first_rows: Any = None  # the points of FIRST, (n, k)
    first_values: Any = None  # their values, (n,)
    model: Any = None  # the Model of the run; None before the second batch is told
    least_length: float = 0.0  # the least length of the longest axis of the resolution
    radius: float = 1.0  # of the trust region, in coordinates of the model
    resolution: float = 1.0  # ρ: no step is shorter than ρ / 2
    noise: float = 0.0  # the standard deviation of values; 0 if none was seen
    first_size: float = 0.0  # the absolute value of the objective at the first point of the run
    is_proven: bool = False  # whether the model predicted the last step well
    is_stale: bool = False  # whether the model has points that its inverse does not know
    n_fruitless: int = 0  # the number of steps in a row without a better point
    has_converged: bool = False  # whether a restart follows, after a check
    n_averaged: int = 0  # the number of batches in a row that only averaged noise


TRUST_STATES = (TrustState, Model, TrustPhase)


def ends_of(state: SolverState) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return the bounds of the coordinates of the block, (k,) each; None without bounds."""
    if state.lower is None or state.upper is None:
        return None, None
    block = state.inner.block
    lower, upper = (as_float64(end)[block] for end in (state.lower, state.upper))
    return lower, upper


def value_error(state: SolverState, value: float) -> float:
    """Return the error of a value by rounding: relative to it or, near 0, to the first value."""
    inner: TrustState = state.inner
    eps = inner.eps
    return max(4 * eps * abs(value), eps * math.sqrt(eps) * inner.first_size)


def as_float64(array: Array) -> np.ndarray:
    """Return a copy as NumPy float64."""
    if isinstance(array, np.ndarray):  # skips a look-up of a microsecond
        return array.astype(np.float64)
    return np.array(to_numpy(array), dtype=np.float64)
