"""MGS: maximum-likelihood guided parameter search (ZARTS, section 4.2 and A.3).

The step is the mean of random displacements, weighted by how likely each is under
p(u) ∝ exp(-[L(x + u) - L(x)] / τ) (Eq. 7), estimated by importance sampling from a proposal q.

Source: Wang et al., "ZARTS: On Zero-order Optimization for Neural Architecture Search", NeurIPS
2022, Eq. 7-10, 26, 27; after Welleck and Cho, AAAI 2021, arXiv 2006.03158.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy
from zoopt_nas._checks import check_choice, check_fraction, check_positive, check_positive_int
from zoopt_nas.solvers.base import Solver, SolverState

WEIGHTINGS = ("exact", "density_free", "fixed_norm")


@dataclass(frozen=True)
class MGS(Solver):
    """Maximum-likelihood guided search: x <- x + weighted mean of n_samples displacements.

    A failed candidate has weight 0; if all failed, x stays. Each step leaves N_e = 1 / Σ c_i² in
    ``metrics["n_effective"]`` and N_e / N (Eq. 27) in ``metrics["effective_ratio"]``.

    Attributes:
        sigma: σ > 0, the standard deviation of each proposal component, per coordinate.
        temperature: τ > 0, in units of the objective. Small, and the best sample takes all.
        n_samples: N, the evaluations a step.
        mixing: λ in [0, 1] of Eq. 26, the probability that a sample is centred at x rather than at
            x + guide.
        weighting: how the displacement u_i is weighted:

            * ``"exact"``: c ∝ exp(-L/τ) / q(u), Eq. 10 as printed. log q varies by sqrt(dim / 2)
              between samples, so that in more than a few dimensions one sample takes all.
            * ``"density_free"``: c ∝ exp(-L/τ). What the paper's released code computes in effect:
              its q is constant in floating point.
            * ``"fixed_norm"``: the noise is scaled to the norm σ sqrt(dim) and c is as in "exact".
              The density of a sample's own component is then the same for all, and the ratio
              corrects for the mixture alone.

    The guide of ``ask`` is the centre of the first component of Eq. 26: the negative gradient where
    one is cheap. Without one both components are centred at x.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "mgs"
    uses_guide: ClassVar[bool] = True
    annealed: ClassVar[tuple[str, ...]] = ("sigma",)

    # σ, τ, N and λ are those of the paper's released search script. The weighting is measured
    # (benchmarks/mgs_weightings.py): with N = 4 on noisy quadratics of dim 56 and 196, with and
    # without a guide, "density_free" and "fixed_norm" end alike (N_e 2.6 to 2.7) and "exact" 2.3 to
    # 3.8 times higher (N_e 1.2 to 1.3).
    sigma: float = 0.025
    temperature: float = 0.01
    n_samples: int = 4
    mixing: float = 1e-3
    weighting: str = "density_free"

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)
        check_positive("temperature", self.temperature)
        check_positive_int("n_samples", self.n_samples)
        check_fraction("mixing", self.mixing)
        check_choice("weighting", self.weighting, WEIGHTINGS)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        noise = self._noise(state)
        if guide is None:
            # The last step as a guide (momentum) was measured too: on the sphere and Rosenbrock
            # functions in 10 dimensions half of it ends 1.4 to 6 times higher, and all of it
            # diverges, since nothing damps the noise that each step hands on to the next.
            state.memory.pop("guide", None)
            return state.x + noise
        xp = array_namespace(state.x)
        state.memory["guide"] = copy(guide)  # _tell needs q again
        # A mixture: each sample draws the component that it comes from (Eq. 26).
        is_centred = sampling.choose(state.rng, self.n_samples, self.mixing, state.x)
        centres = xp.where(is_centred[:, None], xp.zeros_like(guide), guide)
        return state.x + (centres + noise)

    def _noise(self, state: SolverState) -> Array:
        if self.weighting == "fixed_norm":
            norm = self.sigma * math.sqrt(state.x.shape[0])
            return norm * sampling.sphere(state.rng, self.n_samples, state.x)
        return self.sigma * sampling.gaussian(state.rng, self.n_samples, state.x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        xp = array_namespace(state.x)
        steps = candidates - state.x
        weights = self._weights(steps, values, state.memory.get("guide"))
        squares = xp.sum(weights * weights)
        n_effective = xp.sum(weights) / xp.where(squares > 0, squares, 1.0)  # N_e of A.3; or 0
        state.metrics["n_effective"] = n_effective
        state.metrics["effective_ratio"] = n_effective / self.n_samples  # Eq. 27
        return state.x + xp.astype(weights, steps.dtype) @ steps

    def _weights(self, steps: Array, values: Array, guide: Array | None) -> Array:
        """Returns (n,) weights that sum to 1, or all 0 if every value is +inf (Eq. 10)."""
        xp = array_namespace(values)
        # Only differences of values matter, so L(x) of Eq. 10 cancels; the least value in its place
        # keeps the exponent of the best sample at 0 whatever the scale of the objective.
        best = xp.min(values)
        best = xp.where(xp.isfinite(best), best, 0.0)
        log_c = -(values - best) / self.temperature
        if self.weighting != "density_free":
            log_c = log_c - xp.astype(self._log_density(steps, guide), log_c.dtype)
        top = xp.max(log_c)
        c = xp.exp(log_c - xp.where(xp.isfinite(top), top, 0.0))
        total = xp.sum(c)
        return c / xp.where(total > 0, total, 1.0)

    def _log_density(self, steps: Array, guide: Array | None) -> Array:
        """Returns log q(u) of Eq. 26 at each row, up to the constant that both components share."""
        centred = -_half_square(steps, self.sigma)
        if guide is None:  # the components coincide
            return centred
        guided = -_half_square(steps - guide, self.sigma)
        xp = array_namespace(steps)
        return xp.logaddexp(
            guided + _log_weight(1 - self.mixing), centred + _log_weight(self.mixing)
        )


def _log_weight(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _half_square(rows: Array, sigma: float) -> Array:
    xp = array_namespace(rows)
    scaled = rows / sigma
    return xp.sum(scaled * scaled, axis=1) / 2
