"""Quasi-Newton: BFGS or subspace steps along gradients by finite differences.

Source: see ``engines.descent`` and ``engines.subspace``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zoopt_nas._arrays import Array
from zoopt_nas._checks import check_positive, check_positive_int
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.engines import descent, subspace
from zoopt_nas.solvers.engines.descent_state import DESCENT_STATES


@dataclass(frozen=True)
class QuasiNewton(Solver):
    """Quasi-Newton descent with slopes and curvatures from differences of values.

    Up to 100 dimensions, it differences along dim conjugate directions, which gives the whole
    gradient, takes BFGS steps, and restarts after convergence. Above, or with fewer ``n_samples``,
    it differences along random orthogonal directions and the last step, and searches along the
    gradient in their span. The distance of the differences follows the steps and the noise.

    Attributes:
        smoothing: > 0, the distance of the differences, in units of x. None: adaptive.
        n_samples: the number of directions of a step. None: dim up to 100 dimensions, fewer above.
    """

    name: ClassVar[str] = "quasi_newton"
    evaluates_iterate: ClassVar[bool] = True
    adapts_steps: ClassVar[bool] = True
    keeps_bounds: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("smoothing",)
    inner_states: ClassVar[tuple[type, ...]] = (*DESCENT_STATES, subspace.SubspaceState)

    smoothing: float | None = None
    n_samples: int | None = None

    def __post_init__(self) -> None:
        if self.smoothing is not None:
            check_positive("smoothing", self.smoothing)
        if self.n_samples is not None:
            check_positive_int("n_samples", self.n_samples)

    @property
    def compares_batches(self) -> bool:
        """Yes: a line search compares with the value of its start."""
        return True

    def _has_basis(self, dim: int) -> bool:
        """Return whether a step measures the whole gradient."""
        return dim <= descent.MAX_BASIS_DIM and (self.n_samples is None or self.n_samples >= dim)

    def _init(self, state: SolverState) -> None:
        (descent if self._has_basis(state.x.shape[0]) else subspace).begin(state)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        if self._has_basis(state.x.shape[0]):
            return descent.ask(state, smoothing=self.smoothing)
        return subspace.ask(state, n_directions=self.n_samples, smoothing=self.smoothing)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        if self._has_basis(state.x.shape[0]):
            return descent.tell(state, candidates, values, smoothing=self.smoothing)
        return subspace.tell(state, candidates, values)
