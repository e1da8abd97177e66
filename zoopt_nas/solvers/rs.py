"""RS: random search, gradient descent along an estimated gradient (ZARTS, section 4.1).

Source: Wang et al., "ZARTS: On Zero-order Optimization for Neural Architecture Search", NeurIPS
2022, Eq. 4-6; estimators as surveyed by Liu et al., IEEE SPM 2020, arXiv 2006.06224. The steps of
the adaptive form are those of ``zoopt_nas.solvers.descent``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace
from zoopt_nas._checks import check_bool, check_choice, check_positive, check_positive_int
from zoopt_nas.solvers import descent, subspace
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.descent_state import DESCENT_STATES
from zoopt_nas.solvers.differences import basis_slopes, probe_basis

ESTIMATORS = ("one_point", "two_point", "multi_point")
DIRECTIONS = ("sphere", "gaussian")
ACCELERATIONS = ("quasi_newton", "momentum", "none")

# What the paper's form takes for None. The paper gives no numbers, and no step suits every
# curvature: 0.02 is the largest that was stable on the sphere function in 2, 10 and 50 dimensions
# with room to spare.
LEARNING_RATE = 0.02
SMOOTHING = 0.01
N_SAMPLES = 4


@dataclass(frozen=True)
class RS(Solver):
    """Random search: x <- x - step * estimated gradient.

    The adaptive form, the default, needs no constants of the objective. Up to 100 dimensions it
    differences along dim conjugate directions, which gives the whole gradient, takes BFGS steps,
    and starts anew where it has converged. Above, or with fewer ``n_samples``, it differences along
    random orthogonal directions and the last step, and searches along their gradient. Both evaluate
    the iterate, adapt the distance of the differences to the steps and to measured noise.

    With a ``learning_rate`` it is the paper's form. A batch holds x + μu_1, x - μu_1, x + μu_2,
    x - μu_2, ...: interleaved, so that a batch cut by a budget keeps whole pairs (``one_point``:
    x + μu_1, x + μu_2, ...). If either member of a pair failed the pair is dropped, and the mean is
    over those that survive; if none does, x stays.

    Attributes:
        learning_rate: None for the adaptive form, or ξ > 0, a plain step along the estimate (the
            paper's form). The largest stable one shrinks like n_samples / (dim * curvature),
            because the estimate's noise grows with dim. For the estimators ``one_point`` and
            ``two_point``, which only the paper's form has, None is 0.02.
        smoothing: μ > 0, how far from x the objective is probed. Too small and rounding dominates,
            too large and the estimate is that of a blurred objective (Eq. 13). ``one_point`` needs
            a far larger one: its noise grows like the value of the objective over μ. None adapts
            it; in the paper's form None is 0.01.
        n_samples: N, the number of directions a step, each of two evaluations (``one_point`` and
            the adaptive form: one). None takes dim up to 100, fewer above; in the paper's form 4.
        estimator: ``"one_point"`` (Eq. 4, averaged over N directions), ``"two_point"`` (Eq. 5, a
            single pair whatever ``n_samples`` says) or ``"multi_point"`` (Eq. 6).
        direction: ``"sphere"`` (φ = dim) or ``"gaussian"`` (φ = 1), of the paper's form.
        orthogonal: draw directions of the paper's form that are orthogonal within blocks of dim, at
            the norm that the formula expects: 1 for the sphere, sqrt(dim) for Gaussian. Less
            variance, and exact on a linear objective if dim divides N (Choromanski et al. 2018,
            arXiv 1804.02395). The adaptive form always draws such directions.
        acceleration: of the adaptive form, ``"quasi_newton"`` where it can measure whole gradients
            (``n_samples`` None or at least dim, and dim <= 100; elsewhere it is ``"momentum"``),
            ``"momentum"`` (the last step is one of the directions) or ``"none"``.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "rs"
    lengths: ClassVar[tuple[str, ...]] = ("smoothing",)
    inner_states: ClassVar[tuple[type, ...]] = (*DESCENT_STATES, subspace.SubspaceState)

    learning_rate: float | None = None
    smoothing: float | None = None
    n_samples: int | None = None
    estimator: str = "multi_point"
    direction: str = "sphere"
    orthogonal: bool = False
    acceleration: str = "quasi_newton"

    def __post_init__(self) -> None:
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        if self.smoothing is not None:
            check_positive("smoothing", self.smoothing)
        if self.n_samples is not None:
            check_positive_int("n_samples", self.n_samples)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("direction", self.direction, DIRECTIONS)
        check_bool("orthogonal", self.orthogonal)
        check_choice("acceleration", self.acceleration, ACCELERATIONS)

    @property
    def is_adaptive(self) -> bool:
        """Whether this is the adaptive form, not the paper's."""
        return self.learning_rate is None and self.estimator == "multi_point"

    @property
    def evaluates_iterate(self) -> bool:
        return self.is_adaptive

    @property
    def adapts_steps(self) -> bool:
        return self.is_adaptive

    @property
    def keeps_bounds(self) -> bool:
        return self.is_adaptive

    @property
    def antithetic(self) -> bool:
        return not self.is_adaptive and self.estimator != "one_point"

    def _has_basis(self, dim: int) -> bool:
        if self.acceleration != "quasi_newton" or dim > descent.MAX_BASIS_DIM:
            return False
        return self.n_samples is None or self.n_samples >= dim

    def _init(self, state: SolverState) -> None:
        if self.is_adaptive:
            kind = descent if self._has_basis(state.x.shape[0]) else subspace
            kind.begin(state)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        if not self.is_adaptive:
            return self._pairs(state)
        if self._has_basis(state.x.shape[0]):
            return descent.ask(state, partial(probe_basis, smoothing=self.smoothing))
        return subspace.ask(
            state,
            n_directions=self.n_samples,
            smoothing=self.smoothing,
            has_momentum=self.acceleration != "none",
        )

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        if not self.is_adaptive:
            return self._plain_step(state, candidates, values)
        if self._has_basis(state.x.shape[0]):
            return descent.tell(state, candidates, values, basis_slopes)
        return subspace.tell(state, candidates, values)

    def _pairs(self, state: SolverState) -> Array:
        """Returns the batch of the paper's form."""
        xp = array_namespace(state.x)
        steps = self._plain_smoothing * self._draw(state)
        if self.estimator == "one_point":
            return state.x + steps
        pairs = xp.stack([state.x + steps, state.x - steps], axis=1)
        return xp.reshape(pairs, (-1, state.x.shape[0]))

    @property
    def _plain_smoothing(self) -> float:
        return self.smoothing or SMOOTHING

    def _draw(self, state: SolverState) -> Array:
        n = 1 if self.estimator == "two_point" else self.n_samples or N_SAMPLES
        if self.orthogonal:
            rows = sampling.orthogonal(state.rng, n, state.x)
            return rows * math.sqrt(state.x.shape[0]) if self.direction == "gaussian" else rows
        draw = sampling.sphere if self.direction == "sphere" else sampling.gaussian
        return draw(state.rng, n, state.x)

    def _plain_step(self, state: SolverState, candidates: Array, values: Array) -> Array:
        """Returns the iterate after the paper's step."""
        smoothing = self._plain_smoothing
        xp = array_namespace(state.x)
        phi = state.x.shape[0] if self.direction == "sphere" else 1
        # The directions are read back from the candidates: these are the points at which the
        # objective was in fact evaluated, after rounding and after any repair by the caller. The
        # slope is over 2μ however short a repair made a pair: on a linear objective the estimate is
        # then Σ d dᵀ g, which never points uphill, and nothing is divided by a vanishing length.
        if self.estimator == "one_point":
            directions = (candidates - state.x) / smoothing
            slopes = phi / smoothing * values  # Eq. 4
        else:
            directions = (candidates[::2] - candidates[1::2]) / (2 * smoothing)
            slopes = phi / (2 * smoothing) * (values[::2] - values[1::2])  # Eq. 5
        survived = xp.isfinite(slopes)  # +inf, or +inf - +inf, where an evaluation failed
        slopes = xp.where(survived, slopes, 0.0)
        n_survived = xp.astype(xp.sum(xp.astype(survived, slopes.dtype)), slopes.dtype)
        mean = xp.astype(slopes / xp.where(n_survived > 0, n_survived, 1.0), directions.dtype)
        gradient = mean @ directions  # Eq. 6
        state.metrics["gradient_norm"] = xp.sqrt(xp.sum(gradient * gradient))
        return state.x - (self.learning_rate or LEARNING_RATE) * gradient
