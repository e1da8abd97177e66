"""RS: random search, gradient descent along an estimated gradient (ZARTS, section 4.1).

Source: Wang et al., "ZARTS: On Zero-order Optimization for Neural Architecture Search", NeurIPS
2022, Eq. 4-6; estimators as surveyed by Liu et al., IEEE SPM 2020, arXiv 2006.06224.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace
from zoopt_nas._checks import check_bool, check_choice, check_positive, check_positive_int
from zoopt_nas.solvers.base import Solver, SolverState

ESTIMATORS = ("one_point", "two_point", "multi_point")
DIRECTIONS = ("sphere", "gaussian")


@dataclass(frozen=True)
class RS(Solver):
    """Random search: alpha <- alpha - learning_rate * estimated gradient.

    A batch holds x + μu_1, x - μu_1, x + μu_2, x - μu_2, ...: interleaved, so that a batch cut by a
    budget keeps whole pairs (``one_point``: x + μu_1, x + μu_2, ...). If either member of a pair
    failed the pair is dropped, and the mean is over those that survive; if none does, x stays.

    Attributes:
        learning_rate: ξ > 0, a plain step along the estimate. The largest stable one shrinks like
            n_samples / (dim * curvature), because the estimate's noise grows with dim.
        smoothing: μ > 0, how far from x the objective is probed. Too small and rounding dominates,
            too large and the estimate is that of a blurred objective (Eq. 13). ``one_point`` needs
            a far larger one: its noise grows like the value of the objective over μ.
        n_samples: N, the number of directions a step, each of two evaluations (``one_point``: one).
        estimator: ``"one_point"`` (Eq. 4, averaged over N directions), ``"two_point"`` (Eq. 5, a
            single pair whatever ``n_samples`` says) or ``"multi_point"`` (Eq. 6).
        direction: ``"sphere"`` (φ = dim) or ``"gaussian"`` (φ = 1).
        orthogonal: draw directions that are orthogonal within blocks of dim, at the norm that the
            formula expects: 1 for the sphere, sqrt(dim) for Gaussian. Less variance, and exact on
            a linear objective if dim divides N (Choromanski et al. 2018, arXiv 1804.02395).

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "rs"

    # The paper gives no numbers, and no step suits every curvature: 0.02 is the largest that was
    # stable on the sphere function in 2, 10 and 50 dimensions with room to spare.
    learning_rate: float = 0.02
    smoothing: float = 0.01
    n_samples: int = 4
    estimator: str = "multi_point"
    direction: str = "sphere"
    orthogonal: bool = False

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_positive("smoothing", self.smoothing)
        check_positive_int("n_samples", self.n_samples)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("direction", self.direction, DIRECTIONS)
        check_bool("orthogonal", self.orthogonal)

    @property
    def antithetic(self) -> bool:
        return self.estimator != "one_point"

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        xp = array_namespace(state.x)
        steps = self.smoothing * self._draw(state)
        if self.estimator == "one_point":
            return state.x + steps
        pairs = xp.stack([state.x + steps, state.x - steps], axis=1)
        return xp.reshape(pairs, (-1, state.x.shape[0]))

    def _draw(self, state: SolverState) -> Array:
        n = 1 if self.estimator == "two_point" else self.n_samples
        if self.orthogonal:
            rows = sampling.orthogonal(state.rng, n, state.x)
            return rows * math.sqrt(state.x.shape[0]) if self.direction == "gaussian" else rows
        draw = sampling.sphere if self.direction == "sphere" else sampling.gaussian
        return draw(state.rng, n, state.x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        xp = array_namespace(state.x)
        phi = state.x.shape[0] if self.direction == "sphere" else 1
        # The directions are read back from the candidates: these are the points at which the
        # objective was in fact evaluated, after rounding and after any repair by the caller. The
        # slope is over 2μ however short a repair made a pair: on a linear objective the estimate is
        # then Σ d dᵀ g, which never points uphill, and nothing is divided by a vanishing length.
        if self.estimator == "one_point":
            directions = (candidates - state.x) / self.smoothing
            slopes = phi / self.smoothing * values  # Eq. 4
        else:
            directions = (candidates[::2] - candidates[1::2]) / (2 * self.smoothing)
            slopes = phi / (2 * self.smoothing) * (values[::2] - values[1::2])  # Eq. 5
        survived = xp.isfinite(slopes)  # +inf, or +inf - +inf, where an evaluation failed
        slopes = xp.where(survived, slopes, 0.0)
        n_survived = xp.astype(xp.sum(xp.astype(survived, slopes.dtype)), slopes.dtype)
        mean = xp.astype(slopes / xp.where(n_survived > 0, n_survived, 1.0), directions.dtype)
        gradient = mean @ directions  # Eq. 6
        state.metrics["gradient_norm"] = xp.sqrt(xp.sum(gradient * gradient))
        return state.x - self.learning_rate * gradient
