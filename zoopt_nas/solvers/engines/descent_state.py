"""The state of a descent, which the modules of the descent share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from zoopt_nas._arrays import Array


class DescentPhase(IntEnum):
    """The purpose of the pending batch."""

    START = 0
    PROBE = 1
    SEARCH = 2
    EXPAND = 3
    HESSIAN = 4
    CLOSE = 5
    ORIGINS = 6


@dataclass(eq=False)
class Look:
    """The first look at a new origin. Arrays are (dim,)."""

    origin: Array  # the start of the descent
    scales: Array  # the distance of the probes along each coordinate
    unclear: Array  # whether the next batch probes a coordinate
    is_bent: Array  # whether both probes of a coordinate have a value
    gradient: Array  # the slopes at the origin
    curvatures: Array  # the curvatures along the coordinates
    n_looks: int = 0  # the number of batches told
    n_moves: int = 0  # how often the origin has moved to a better point
    ahead: Array = None  # the displacement of the first pending probe of each coordinate
    looked: Array = None  # whether the pending batch probes a coordinate


@dataclass(eq=False)
class DescentState:
    """The state of a descent."""

    start: Array  # the first iterate, (dim,)
    best: Array  # the best end of a local descent, (dim,)
    look: Look  # the last first look
    best_value: float = math.inf  # the value of ``best``; +inf before the first end
    looked_value: float = math.inf  # ``best_value`` when rounding last made ``best`` an origin
    phase: DescentPhase = DescentPhase.START  # the purpose of the pending batch
    noise: float = 0.0  # the standard deviation of values; 0 if none was seen
    jitter: float = 0.0  # the largest difference of two values of one point that counts as rounding
    recent: list[float] = field(default_factory=list)  # the last finite values
    grain: float = 0.0  # the divisor of the differences of ``recent``; 0 if there is none
    closeness: float = 0.0  # the distance of the point of CLOSE, in units of the model
    hidden: float = 0.0  # the largest change of value that CLOSE may have missed
    reach: float = 0.0  # the least distance of a probe in x, as nearer ones tell nothing; or 0
    origin_value: float = 0.0  # the absolute value of the objective at the last origin
    n_restarts: int = 0  # the number of restarts
    n_spreads: int = 0  # the number of spreads of all cycles so far
    spread: float = 0.0  # the one around ``best`` that this descent began with; 0 if elsewhere
    returned: float = 0.0  # the largest spread of this cycle that led back to ``best``
    n_renewals: int = 0  # the number of new models since the last restart
    fallback: Array = None  # the best of the last probes, (dim,)
    fallback_value: float = math.inf  # the value of ``fallback``
    basis: Array = None  # Z, (dim, dim): Z Zᵀ estimates the inverse Hessian
    smoothing: float = 1.0  # the distance of the probes, in lengths of the columns of Z
    slopes: Array = None  # the slopes along the columns, (dim,)
    steps: Array = None  # the distances of the pending probes along the columns, (dim,)
    near: Array = None  # whether a coordinate is near a bound, (dim,); None if none is
    inwards: Array = None  # the displacements of the pending probes of the k near coordinates, (k,)
    is_central: bool = False  # whether probes are pairs
    direction: Array = None  # the step of length 1, (dim,); None before the first search
    in_basis: Array = None  # ``direction`` in coordinates of the basis
    promised: float = 0.0  # the decrease that the slope predicts for length 1
    length: float = 1.0  # the length to try, or of the last step
    is_first: bool = False  # whether no search since the last START has ended
    n_above: int = 0  # the number of lengths of that search with values far above the origin
    n_rejected: int = 0  # the number of steps of all searches that were not accepted
    n_trials: int = 0  # the number of lengths of this search that failed
    step: Array = None  # the last step, in coordinates of the basis, (dim,)
    has_pair: bool = False  # whether ``slopes`` precede ``step``, so the next ones give a curvature
    n_stalls: int = 0  # the number of steps in a row whose gain was within rounding
    n_poor: int = 0  # the number of searches in a row that failed or were short
    n_spent: int = 0  # the number of values told since the last START, with its own
    has_hessian: bool = False  # whether second differences were told since the last START


DESCENT_STATES = (DescentState, Look, DescentPhase)
