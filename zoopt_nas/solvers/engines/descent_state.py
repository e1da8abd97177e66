"""What a descent keeps between its steps; the files of the descent share it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from zoopt_nas._arrays import Array


class Phase(IntEnum):
    """What the pending batch is for."""

    START = 0
    PROBE = 1
    SEARCH = 2
    EXPAND = 3


@dataclass(eq=False)
class Look:
    """The first look from an origin: what a START has found so far. Arrays are (dim,).

    Attributes:
        origin: where the descent begins.
        scales: how far the probes are away along each coordinate.
        unclear: the coordinates that the next batch looks at.
        is_bent: the coordinates of which both probes have a value.
        gradient: the slopes at the origin.
        curvatures: the curvatures along the coordinates.
        n_looks: how many batches were told.
        n_moves: how often the origin has moved to a better point.
        ahead: of the pending batch, the displacement of the first probe of each coordinate.
        looked: the coordinates of the pending batch.
    """

    origin: Array
    scales: Array
    unclear: Array
    is_bent: Array
    gradient: Array
    curvatures: Array
    n_looks: int = 0
    n_moves: int = 0
    ahead: Array = None
    looked: Array = None


@dataclass(eq=False)
class DescentState:
    """What a descent keeps.

    Attributes:
        start: where the run began, (dim,).
        best: the best end of a descent, (dim,).
        look: the last first look.
        best_value: the value of ``best``; +inf before the first end.
        phase: what the pending batch is for.
        noise: the standard deviation of values; 0 where none was seen.
        jitter: the largest difference of two values of one point that was taken for rounding.
        origin_value: the size of the value of the last origin.
        n_restarts: how many origins were drawn.
        n_renewals: how often the model was made anew since the last restart.
        fallback: the best of the last probes, (dim,), and ...
        fallback_value: ... its value.
        basis: Z, (dim, dim): Z Zᵀ is the estimate of the inverse Hessian. None before the first.
        smoothing: the distance of the probes, in lengths of the columns of the basis.
        slopes: along the columns, (dim,).
        steps: how far the pending probes are away along the columns, (dim,).
        near: which coordinates are near a bound, (dim,); None for none.
        inwards: the displacements of the pending probes of those, (k,).
        is_central: whether probes are pairs.
        direction: the step of length 1, (dim,). None before the first search.
        in_basis: the same in coordinates of the basis.
        promised: the decrease that the slope promises for a length of 1.
        length: the length to try, or of the last step.
        n_trials: how many lengths of this search have failed.
        step: the last step, in coordinates of the basis, (dim,).
        has_pair: whether ``slopes`` are those before ``step``, so that the next ones tell a
            curvature.
        n_stalls: how many steps in a row gained nothing that differs from rounding.
        n_poor: how many searches in a row failed or ended short.
    """

    start: Array
    best: Array
    look: Look
    best_value: float = math.inf
    phase: Phase = Phase.START
    noise: float = 0.0
    jitter: float = 0.0
    origin_value: float = 0.0
    n_restarts: int = 0
    n_renewals: int = 0
    fallback: Array = None
    fallback_value: float = math.inf
    basis: Array = None
    smoothing: float = 1.0
    slopes: Array = None
    steps: Array = None
    near: Array = None
    inwards: Array = None
    is_central: bool = False
    direction: Array = None
    in_basis: Array = None
    promised: float = 0.0
    length: float = 1.0
    n_trials: int = 0
    step: Array = None
    has_pair: bool = False
    n_stalls: int = 0
    n_poor: int = 0


DESCENT_STATES = (DescentState, Look, Phase)
