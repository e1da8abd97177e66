"""The state of a descent by comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoopt_nas._arrays import Array


@dataclass(eq=False)
class ComparisonState:
    """The state of a descent by comparisons. A success is a candidate better than x.

    Attributes:
        spread: the standard deviation of the next restart, in units of ``max_radius``.
        patience: the batches without success after which x is evaluated again.
        log_radius: the logarithm of r, the radius of the new directions.
        log_lead_radius: the logarithm of R, the radius of the extrapolation.
        log_limit: the upper limit of both.
        descent: g, (dim,), in coordinates of the metric.
        has_descent: whether a batch has updated g.
        factor: A, (dim, dim); None without a metric.
        inverse: the inverse of A.
        path: the smoothed steps of x, (dim,), along which A grows.
        directions: orthonormal rows (n, dim), of which the first ``n_used`` have been used.
        n_used: see ``directions``.
        failed: the displacements whose antithetic partners are next, (n_directions, dim), or None.
        has_x: whether row 0 of the pending batch is x.
        has_lead: whether the next row is the extrapolation.
        n_before: the number of rows before the new candidates.
        is_mirror: whether the new candidates are antithetic partners.
        is_restart: whether the pending or next batch is a restart.
        is_noisy: whether x had another value when it was evaluated again.
        n_failures: the number of batches without success in a row.
        log_move: the logarithm of η, the fraction of a step that x moves under noise.
        has_moved: whether x has moved since its value was measured.
        measured: the last measured value, if ``has_moved``.
    """

    spread: float
    patience: int
    log_radius: float = 0.0
    log_lead_radius: float = 0.0
    log_limit: float = math.inf
    descent: Array = None
    has_descent: bool = False
    factor: Array = None
    inverse: Array = None
    path: Array = None
    directions: Array = None
    n_used: int = 0
    failed: Array = None
    has_x: bool = False
    has_lead: bool = False
    n_before: int = 0
    is_mirror: bool = False
    is_restart: bool = False
    is_noisy: bool = False
    n_failures: int = 0
    log_move: float = 0.0
    has_moved: bool = False
    measured: float = math.nan
