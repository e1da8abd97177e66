"""MGS: maximum-likelihood guided parameter search (ZARTS, section 4.2 and A.3).

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


@dataclass(eq=False)
class MGSState:
    """The state of MGS."""

    guide: Array = None  # the guide of the pending batch, (dim,), or None


@dataclass(frozen=True)
class MGS(Solver):
    """Maximum-likelihood guided search: x <- x + weighted mean of random displacements u_i.

    The weights estimate, by importance sampling, the mean of a distribution p that prefers
    displacements to low values; q is the distribution that the u_i are drawn from::

        p(u) ∝ exp(-[f(x + u) - f(x)] / τ)                                               (Eq. 7)
        x <- x + Σ c_i u_i / Σ c_i,  c_i = exp(-[f(x + u_i) - f(x)] / τ) / q(u_i)       (Eq. 10)
        q = (1 - λ) N(guide, σ² I) + λ N(0, σ² I)                                       (Eq. 26)

    In the paper the guide is the negative gradient; without a guide, q is N(0, σ² I). A failed
    candidate has weight 0; if all failed, x stays. ``metrics["n_effective"]`` is N_e = 1 / Σ c_i²
    of the normalized weights, ``metrics["effective_ratio"]`` is N_e / N (Eq. 27).

    With the negative gradient -g as the guide, the step is mostly the guide unless σ² is of the
    order of τ: on a linear function with σ ||g|| << τ, and weights without q, its mean is
    -(1 - λ) g - (1 - 1/N) (σ² / τ) g. The second term is what the values contribute.
    ``metrics["selection_ratio"]`` measures it in each step with a guide: the part of the step due
    to unequal weights, along the guide, relative to the guide.

    Attributes:
        sigma: σ > 0, the standard deviation of q in each coordinate.
        temperature: τ > 0, in units of the objective. If it is small, the best sample takes all
            the weight.
        n_samples: N, the evaluations of a step.
        mixing: λ in [0, 1], the probability that a sample ignores the guide.
        weighting: the weight of a displacement u:

            * ``"exact"``: c ∝ exp(-f / τ) / q(u), Eq. 10 as printed. The standard deviation of
              log q is sqrt(dim / 2), so above a few dimensions one sample takes all the weight.
            * ``"density_free"``: c ∝ exp(-f / τ). The paper's released code computes this in
              effect, because its q is constant in floating point.
            * ``"fixed_norm"``: as "exact", but the noise has the fixed norm σ sqrt(dim), so that
              1 / q corrects for the mixture only.

    The default numbers come from the released search script of the paper; the default weighting
    is the best in ``benchmarks/mgs_weightings.py``.
    """

    name: ClassVar[str] = "mgs"
    uses_guide: ClassVar[bool] = True
    annealed: ClassVar[tuple[str, ...]] = ("sigma",)
    lengths: ClassVar[tuple[str, ...]] = ("sigma",)
    value_scales: ClassVar[tuple[str, ...]] = ("temperature",)
    inner_states: ClassVar[tuple[type, ...]] = (MGSState,)

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

    def _init(self, state: SolverState) -> None:
        state.inner = MGSState()

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        noise = self._noise(state)
        if guide is None:
            state.inner.guide = None
            return state.x + noise
        xp = array_namespace(state.x)
        state.inner.guide = copy(guide)  # for q in _tell
        is_centred = sampling.choose(state.rng, self.n_samples, self.mixing, state.x)  # (Eq. 26)
        centres = xp.where(is_centred[:, None], xp.zeros_like(guide), guide)
        return state.x + (centres + noise)

    def _noise(self, state: SolverState) -> Array:
        """Return the displacements from their centres, (n_samples, dim)."""
        if self.weighting == "fixed_norm":
            norm = self.sigma * math.sqrt(state.x.shape[0])
            return norm * sampling.sphere(state.rng, self.n_samples, state.x)
        return self.sigma * sampling.gaussian(state.rng, self.n_samples, state.x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        xp = array_namespace(state.x)
        steps = candidates - state.x
        weights = self._weights(steps, values, state.inner.guide)
        squares = (weights * weights).sum()
        n_effective = weights.sum() / (squares + (squares == 0))  # N_e of A.3; or 0
        state.metrics["n_effective"] = n_effective
        state.metrics["effective_ratio"] = n_effective / values.shape[0]  # (Eq. 27)
        weights = xp.astype(weights, steps.dtype)
        guide = state.inner.guide
        if guide is not None:
            # Equal weights would move x by the guide and by noise, whatever the values are.
            selected = (weights - weights.sum() / values.shape[0]) @ steps
            square = guide @ guide
            ratio = (selected @ guide) / xp.where(square > 0, square, 1.0)
            state.metrics["selection_ratio"] = ratio
        return state.x + weights @ steps

    def _weights(self, steps: Array, values: Array, guide: Array | None) -> Array:
        """Return (n,) weights that sum to 1, or all 0 if every value is +inf (Eq. 10)."""
        xp = array_namespace(values)
        # f(x) of Eq. 10 cancels; the least value in its place prevents overflow.
        log_c = (values.min() - values) / self.temperature  # (Eq. 7)
        log_c = xp.where(xp.isfinite(values), log_c, -xp.inf)  # inf - inf if all have failed
        if self.weighting != "density_free":
            log_q = log_mixture(steps, guide, self.sigma, self.mixing)
            log_c = log_c - xp.astype(log_q, log_c.dtype)
            top = log_c.max()
            log_c = log_c - xp.where(xp.isfinite(top), top, 0.0)
        c = xp.exp(log_c)  # (Eq. 10)
        total = c.sum()
        return c / (total + (total == 0))


def log_mixture(steps: Array, guide: Array | None, sigma: float, mixing: float) -> Array:
    """Return log q(u) (Eq. 26) for each row of ``steps``, up to a constant; λ is ``mixing``."""
    centred = -_half_square(steps, sigma)
    if guide is None:
        return centred
    guided = -_half_square(steps - guide, sigma)
    xp = array_namespace(steps)
    return xp.logaddexp(guided + _log_weight(1 - mixing), centred + _log_weight(mixing))


def _log_weight(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _half_square(rows: Array, sigma: float) -> Array:
    xp = array_namespace(rows)
    scaled = rows / sigma
    return xp.sum(scaled * scaled, axis=1) / 2
