"""The state of a descent, which the modules of the descent share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from zoopt_nas._arrays import Array


class Phase(IntEnum):
    """The purpose of the pending batch."""

    START = 0
    PROBE = 1
    SEARCH = 2
    EXPAND = 3


@dataclass(eq=False)
class Look:
    """The first look at a new origin. Arrays are (dim,).

    Attributes:
        origin: the start of the descent.
        scales: the distance of the probes along each coordinate.
        unclear: whether the next batch probes a coordinate.
        is_bent: whether both probes of a coordinate have a value.
        gradient: the slopes at the origin.
        curvatures: the curvatures along the coordinates.
        n_looks: the number of batches told.
        n_moves: how often the origin has moved to a better point.
        ahead: the displacement of the first pending probe of each coordinate.
        looked: whether the pending batch probes a coordinate.
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
    """The state of a descent.

    Attributes:
        start: the first iterate, (dim,).
        best: the best end of a local descent, (dim,).
        look: the last first look.
        best_value: the value of ``best``; +inf before the first end.
        phase: the purpose of the pending batch.
        noise: the standard deviation of values; 0 if none was seen.
        jitter: the largest difference of two values of one point that counts as rounding.
        origin_value: the absolute value of the objective at the last origin.
        n_restarts: the number of restarts.
        n_renewals: the number of new models since the last restart.
        fallback: the best of the last probes, (dim,).
        fallback_value: the value of ``fallback``.
        basis: Z, (dim, dim), where Z Zᵀ estimates the inverse Hessian; None before the first.
        smoothing: the distance of the probes, in lengths of the columns of Z.
        slopes: the slopes along the columns, (dim,).
        steps: the distances of the pending probes along the columns, (dim,).
        near: whether a coordinate is near a bound, (dim,); None if none is.
        inwards: the displacements of the pending probes of the k near coordinates, (k,).
        is_central: whether probes are pairs.
        direction: the step of length 1, (dim,); None before the first search.
        in_basis: ``direction`` in coordinates of the basis.
        promised: the decrease that the slope predicts for length 1.
        length: the length to try, or of the last step.
        n_trials: the number of lengths of this search that failed.
        step: the last step, in coordinates of the basis, (dim,).
        has_pair: whether ``slopes`` are those before ``step``, so that the next ones give a
            curvature.
        n_stalls: the number of steps in a row whose gain was within rounding.
        n_poor: the number of searches in a row that failed or were short.
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
