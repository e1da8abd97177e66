"""RS: random search, gradient descent along an estimated gradient (ZARTS, section 4.1).

Source: Wang et al., "ZARTS: On Zero-order Optimization for Neural Architecture Search", NeurIPS
2022, Eq. 4-6; Liu et al., IEEE SPM 2020, arXiv 2006.06224 (a survey of the estimators).
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

        one_point:    g = (1 / N) Σ φ / μ · f(x + μ u_i) u_i                           (Eq. 4)
        multi_point:  g = (1 / N) Σ φ / (2μ) · [f(x + μ u_i) - f(x - μ u_i)] u_i       (Eq. 6)

    The latter with N = 1 is Eq. 5. A batch holds x + μ u_1, x - μ u_1, x + μ u_2, ..., so that a
    batch cut by a budget keeps whole pairs. The mean is over the directions without a failed
    evaluation; if there is none, x stays.

    Attributes:
        learning_rate: ξ > 0. The largest stable one shrinks like n_samples / (dim * curvature),
            because the noise of the estimate grows with dim.
        smoothing: μ > 0, the distance of the candidates from x. A small one amplifies rounding and
            a large one blurs the objective (Eq. 13). ``one_point`` needs a much larger one: its
            noise grows like the value of the objective over μ.
        n_samples: N, the directions of a step, of two evaluations each (``one_point``: one).
        estimator: ``"one_point"`` or ``"multi_point"``.
        direction: ``"sphere"`` (φ = dim) or ``"gaussian"`` (φ = 1).
        orthogonal: whether directions are orthogonal within blocks of dim, each of norm 1 or, if
            Gaussian, sqrt(dim); this reduces variance (Choromanski et al., arXiv 1804.02395).
    """

    name: ClassVar[str] = "rs"
    lengths: ClassVar[tuple[str, ...]] = ("smoothing",)

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
        """Whether the candidates are pairs x + d and x - d."""
        return self.estimator == "multi_point"

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        xp = array_namespace(state.x)
        steps = self.smoothing * self._directions(state)
        if self.estimator == "one_point":
            return state.x + steps
        pairs = xp.stack([state.x + steps, state.x - steps], axis=1)
        return xp.reshape(pairs, (-1, state.x.shape[0]))

    def _directions(self, state: SolverState) -> Array:
        """Return the directions u_i, (n_samples, dim)."""
        x, n = state.x, self.n_samples
        if self.orthogonal:
            rows = sampling.orthogonal(state.rng, n, x)
            return rows * math.sqrt(x.shape[0]) if self.direction == "gaussian" else rows
        draw = sampling.sphere if self.direction == "sphere" else sampling.gaussian
        return draw(state.rng, n, x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        gradient, _ = self._estimate(state, candidates, values)
        return state.x - self.learning_rate * gradient

    def _estimate(
        self, state: SolverState, candidates: Array, values: Array
    ) -> tuple[Array, Array]:
        """Return the gradient, (dim,), 0 if all directions failed, and whether one did not."""
        xp = array_namespace(state.x)
        phi = state.x.shape[0] if self.direction == "sphere" else 1
        # u_i is read back from the candidates, which rounding or a repair may have moved. Dividing
        # by 2μ even if a repair has shortened a pair avoids a division by zero.
        if self.estimator == "one_point":
            directions = (candidates - state.x) / self.smoothing
            slopes = phi / self.smoothing * values  # (Eq. 4)
        else:
            directions = (candidates[::2] - candidates[1::2]) / (2 * self.smoothing)
            slopes = phi / (2 * self.smoothing) * (values[::2] - values[1::2])  # (Eq. 5)
        survived = xp.isfinite(slopes)  # a failure gives +inf, or +inf - +inf = NaN
        n_survived = survived.sum()
        mean = xp.where(survived, slopes, 0.0) / (n_survived + (n_survived == 0))
        gradient = xp.astype(mean, directions.dtype) @ directions  # (Eq. 6)
        state.metrics["gradient_norm"] = xp.sqrt((gradient * gradient).sum())
        return gradient, n_survived > 0
