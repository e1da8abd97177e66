"""The state of a descent by comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoopt_nas._arrays import Array


@dataclass(eq=False)
class ComparisonState:
    """The state of a descent by comparisons. A success is a candidate better than x."""

    spread: float  # the standard deviation of the next restart, in units of ``max_radius``
    patience: int  # the batches without success after which x is evaluated again
    log_radius: float = 0.0  # the logarithm of r, the radius of the new directions
    log_lead_radius: float = 0.0  # the logarithm of R, the radius of the extrapolation
    log_limit: float = math.inf  # the upper limit of both
    descent: Array = None  # g, (dim,), in coordinates of the metric
    has_descent: bool = False  # whether a batch has updated g
    factor: Array = None  # A, (dim, dim); None without a metric
    inverse: Array = None  # the inverse of A
    path: Array = None  # the smoothed steps of x, (dim,), along which A grows
    directions: Array = None  # orthonormal rows, (n, dim)
    n_used: int = 0  # the number of rows of ``directions`` that have been used
    failed: Array = None  # displacements whose antithetic partners are next, or None
    has_x: bool = False  # whether row 0 of the pending batch is x
    has_lead: bool = False  # whether the next row is the extrapolation
    n_before: int = 0  # the number of rows before the new candidates
    is_mirror: bool = False  # whether the new candidates are antithetic partners
    is_restart: bool = False  # whether the pending or next batch is a restart
    is_noisy: bool = False  # whether x had another value when it was evaluated again
    n_failures: int = 0  # the number of batches without success in a row
    log_move: float = 0.0  # the logarithm of η, the fraction of a step that x moves under noise
    has_moved: bool = False  # whether x has moved since its value was measured
    measured: float = math.nan  # the last measured value, if ``has_moved``
