"""Trust region: steps that minimize a quadratic model of the last points.

Source: see ``engines.interpolation`` and ``engines.trust_moves``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, as_like, copy
from zoopt_nas._checks import check_positive, check_positive_int
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.engines import trust_moves, trust_start
from zoopt_nas.solvers.engines.trust_state import TRUST_STATES, Phase, TrustState, as_float64


@dataclass(frozen=True)
class TrustRegion(Solver):
    """Minimizes a quadratic model of the last points in a region around the best one."""

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
        """Yes: the model is of points of many batches."""
        return True

    def _init(self, state: SolverState) -> None:
        state.value = math.inf
        state.inner = TrustState(eps=float(array_namespace(state.x).finfo(state.x.dtype).eps))

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        inner: TrustState = state.inner
        if inner.start is None:  # not in `_init`, because a warm start moves x
            trust_start.begin(state, self.radius)
        rows = inner.planned
        limit = float(array_namespace(state.x).finfo(state.x.dtype).max)
        rows = np.clip(rows, -limit, limit)
        if len(inner.block) < state.x.shape[0]:
            whole = np.repeat(as_float64(state.x)[None, :], len(rows), axis=0)
            whole[:, inner.block] = rows
            rows = whole
        return as_like("candidates", rows, state.x, rows.shape)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        inner: TrustState = state.inner
        rows, told = as_float64(candidates)[:, inner.block], as_float64(values)
        if inner.phase == Phase.FIRST:
            if not trust_start.tell_first(state, rows, told):
                trust_start.restart(state)
            return self._best(state, candidates, told)
        x = self._best(state, candidates, told)
        ratio = None
        if inner.phase == Phase.SECOND:
            trust_moves.start_moves(inner, trust_start.first_model(inner, rows, told))
        else:
            ratio = trust_moves.learn(state, rows, told)
        state.x = x
        if not trust_moves.plan(state, ratio, self.n_samples):
            trust_start.restart(state)
        return x

    def _best(self, state: SolverState, candidates: Array, told: np.ndarray) -> Array:
        """Return the best point of the run."""
        is_new = state.inner.phase == Phase.FIRST
        best = int(np.argmin(told))
        if not (told[best] < state.value or (is_new and math.isfinite(told[best]))):
            return state.x
        state.value = float(told[best])
        return copy(candidates[best])
