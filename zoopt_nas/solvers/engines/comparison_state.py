"""What a descent by comparisons keeps between its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoopt_nas._arrays import Array


@dataclass(eq=False)
class ComparisonState:
    """What a descent by comparisons keeps.

    Attributes:
        spread: how far restarts draw, in units of ``max_radius``.
        patience: the batches without a success after which x is evaluated again.
        log_radius: the logarithm of r, the radius of the new directions.
        log_lead_radius: the logarithm of R, the radius of the extrapolation.
        log_limit: what neither may exceed.
        descent: g, (dim,), in coordinates of the metric.
        has_descent: whether a batch has told something of g.
        factor: A, (dim, dim); None where no metric is learnt.
        inverse: the inverse of A.
        path: the smoothed steps of x, (dim,), along which A grows.
        directions: orthonormal rows (n, dim), of which the first ``n_used`` have been asked.
        n_used: how many that is.
        failed: the displacements of the new candidates of the last batch, (n_directions, dim), if
            their antithetic partners are next; else None.
        has_x: whether row 0 of the pending batch is x.
        has_lead: whether the next row is the extrapolation.
        n_before: the rows before the new candidates.
        is_mirror: whether the new candidates are antithetic partners.
        is_restart: whether the pending batch, or the next one, draws points far from x.
        is_noisy: whether x had another value when it was evaluated again.
        n_failures: how many there were in a row.
        log_share: the logarithm of the share of the way that x moves where values are noisy.
        has_moved: whether x has moved since its value was measured.
        measured: the value measured last, if ``has_moved``.
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
    log_share: float = 0.0
    has_moved: bool = False
    measured: float = math.nan
