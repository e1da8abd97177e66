"""Trust region: steps that minimize a quadratic model of the last points.

Source: see ``engines.interpolation``, ``engines.trust_moves`` and ``engines.trust_shape``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, as_like, copy
from zoopt_nas._checks import check_positive, check_positive_int
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.engines import trust_moves, trust_shape, trust_start
from zoopt_nas.solvers.engines.interpolation import Model
from zoopt_nas.solvers.engines.trust_state import TRUST_STATES, TrustPhase, TrustState, as_float64


@dataclass(frozen=True)
class TrustRegion(Solver):
    """Minimizes a quadratic model of the last points in an ellipsoid around the best one.

    The model interpolates up to (dim + 1)(dim + 2) / 2 points, at most 250 or 2 dim + 1; with fewer
    of them, its Hessian changes as little as possible. With noise it is a ridge regression of up to
    three times as many. Above 100 dimensions it covers 100 random coordinates in turn, fewer above
    50 000. It computes in float64 on the CPU. The run restarts after convergence but, with noise,
    goes on to average it. It requires an objective that does not change over time.

    Attributes:
        radius: > 0, the first radius of the trust region, in units of x. None: 1.
        n_samples: the points of a batch, after two batches at the start of dim + 2 and dim points:
            a step, steps in regions of twice and half the radius, and points that improve the
            model.
    """

    name: ClassVar[str] = "trust_region"
    evaluates_iterate: ClassVar[bool] = True
    adapts_steps: ClassVar[bool] = True
    keeps_bounds: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("radius",)
    inner_states: ClassVar[tuple[type, ...]] = TRUST_STATES

    radius: float | None = None
    n_samples: int = 1

    def __post_init__(self) -> None:
        if self.radius is not None:
            check_positive("radius", self.radius)
        check_positive_int("n_samples", self.n_samples)

    @property
    def compares_batches(self) -> bool:
        """Yes: the model combines values of many batches."""
        return True

    def _init(self, state: SolverState) -> None:
        state.value = math.inf
        limits = array_namespace(state.x).finfo(state.x.dtype)
        state.inner = TrustState(eps=float(limits.eps), limit=float(limits.max))

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        inner: TrustState = state.inner
        if inner.start is None:  # not in `_init`, because a warm start moves x
            trust_start.begin(state, self.radius)
        return _whole(state, inner.planned)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        inner: TrustState = state.inner
        rows, told = as_float64(candidates), as_float64(values)
        if len(inner.block) < rows.shape[1]:
            rows = rows[:, inner.block]
        ratio = None
        if inner.phase == TrustPhase.CHECK:
            if not trust_moves.check(state, float(told[0])):
                trust_start.restart(state)
                return state.x
        elif inner.phase == TrustPhase.MOVE:
            ratio = trust_moves.learn(state, rows, told)
            _follow_centre(state)
        else:
            _take_best(state, candidates, told)
            if inner.phase == TrustPhase.FIRST:
                if len(inner.block) > 0 and not trust_start.tell_first(state, rows, told):
                    trust_start.restart(state)
                return state.x
            trust_shape.start(inner, trust_start.first_model(inner, rows, told))
        trust_moves.plan(state, ratio, self.n_samples)
        inner.end_length = inner.radius * inner.model.longest
        state.metrics["radius"] = inner.end_length
        return state.x


def _whole(state: SolverState, rows: np.ndarray) -> Array:
    """Return whole points, (n, dim) like x, that have these coordinates of the block."""
    limit = state.inner.limit
    rows = np.minimum(np.maximum(rows, -limit), limit)
    if rows.shape[1] < state.x.shape[0]:
        whole = np.repeat(as_float64(state.x)[None, :], len(rows), axis=0)
        whole[:, state.inner.block] = rows
        rows = whole
    return as_like("candidates", rows, state.x, rows.shape)


def _take_best(state: SolverState, candidates: Array, told: np.ndarray) -> None:
    """Move to the best of the first points of a run, if it has a value."""
    best = int(np.argmin(told))
    is_new = state.inner.phase == TrustPhase.FIRST and math.isfinite(told[best])
    if is_new or told[best] < state.value:
        state.x, state.value = copy(candidates[best]), float(told[best])


def _follow_centre(state: SolverState) -> None:
    """Move to the best point of the model."""
    model: Model = state.inner.model
    value = float(model.values[model.centre])
    if value != state.value or state.inner.noise > 0:  # without noise, equal values mean no move
        state.x = _whole(state, model.rows[model.centre][None, :])[0]
        state.value = value
