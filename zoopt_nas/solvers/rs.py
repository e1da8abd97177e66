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

ESTIMATORS = ("one_point", "multi_point")
DIRECTIONS = ("sphere", "gaussian")


@dataclass(frozen=True)
class RS(Solver):
    """Random search: x <- x - ξ g, where g estimates the gradient along random directions u_i.

    With φ = dim for directions on the unit sphere and φ = 1 for Gaussian ones::

        g = φ / μ · f(x + μ u) u                                  one_point, the mean of N (Eq. 4)
        g = φ / (2μ) · [f(x + μ u) - f(x - μ u)] u                multi_point with N = 1   (Eq. 5)
        g = (1 / N) Σ φ / (2μ) · [f(x + μ u_i) - f(x - μ u_i)] u_i             multi_point (Eq. 6)

    A batch holds x + μ u_1, x - μ u_1, x + μ u_2, x - μ u_2, ...: interleaved, so that a batch cut
    by a budget keeps whole pairs (``one_point``: x + μ u_1, x + μ u_2, ...). If either member of a
    pair failed, the pair is dropped; the mean is over the pairs that are left. If none is, x stays.

    Attributes:
        learning_rate: ξ > 0. The largest stable one shrinks like n_samples / (dim * curvature),
            because the noise of the estimate grows with dim. The paper gives no numbers: 0.02 is
            stable on the sphere function in 2, 10 and 50 dimensions with room to spare.
        smoothing: μ > 0, the distance of the candidates from x. Too small and rounding dominates,
            too large and the estimate is that of a blurred objective (Eq. 13). ``one_point`` needs
            a far larger one: its noise grows like the value of the objective over μ.
        n_samples: N, the number of directions a step, each of two evaluations (``one_point``: one).
        estimator: ``"one_point"`` or ``"multi_point"``.
        direction: ``"sphere"`` (φ = dim) or ``"gaussian"`` (φ = 1).
        orthogonal: draw directions that are orthogonal within blocks of dim, at the norm that the
            formula expects: 1 for the sphere, sqrt(dim) for Gaussian. Less variance, and exact on a
            linear objective if dim divides N (Choromanski et al. 2018, arXiv 1804.02395).

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "rs"

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
        return self.estimator == "multi_point"

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        xp = array_namespace(state.x)
        steps = self.smoothing * self._directions(state)
        if self.estimator == "one_point":
            return state.x + steps
        pairs = xp.stack([state.x + steps, state.x - steps], axis=1)
        return xp.reshape(pairs, (-1, state.x.shape[0]))

    def _directions(self, state: SolverState) -> Array:
        """Returns the directions u_i, (n_samples, dim)."""
        x, n = state.x, self.n_samples
        if self.orthogonal:
            rows = sampling.orthogonal(state.rng, n, x)
            return rows * math.sqrt(x.shape[0]) if self.direction == "gaussian" else rows
        draw = sampling.sphere if self.direction == "sphere" else sampling.gaussian
        return draw(state.rng, n, x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        xp = array_namespace(state.x)
        phi = state.x.shape[0] if self.direction == "sphere" else 1
        # The directions are read back from the candidates: these are the points at which the
        # objective was in fact evaluated, after rounding and after any repair by the caller. The
        # slope is over 2μ however short a repair made a pair: on a linear objective the estimate is
        # then Σ d dᵀ g, which never points uphill, and nothing is divided by a vanishing length.
        if self.estimator == "one_point":
            directions = (candidates - state.x) / self.smoothing
            slopes = phi / self.smoothing * values  # (Eq. 4)
        else:
            directions = (candidates[::2] - candidates[1::2]) / (2 * self.smoothing)
            slopes = phi / (2 * self.smoothing) * (values[::2] - values[1::2])  # (Eq. 5)
        survived = xp.isfinite(slopes)  # +inf, or +inf - +inf, where an evaluation failed
        slopes = xp.where(survived, slopes, 0.0)
        n_survived = xp.astype(xp.sum(xp.astype(survived, slopes.dtype)), slopes.dtype)
        mean = xp.astype(slopes / xp.where(n_survived > 0, n_survived, 1.0), directions.dtype)
        gradient = mean @ directions  # (Eq. 6)
        state.metrics["gradient_norm"] = xp.sqrt(xp.sum(gradient * gradient))
        return state.x - self.learning_rate * gradient
