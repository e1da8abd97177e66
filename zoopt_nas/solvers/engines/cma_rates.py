"""Weights and learning rates of a Gaussian proposal N(0, σ² C), as in CMA-ES.

``n_effective`` is N_e = 1 / Σ c² of the weights c, the tutorial's μ_eff.

Source: Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772, Table 1; Hansen and
Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies", 2001.
"""

from __future__ import annotations

import math

# The largest dim with a full matrix C and a model; above, C = I to save memory and time.
MAX_FULL_DIM = 64


def path_rates(dim: int, n_effective: float) -> tuple[float, float]:
    """Return the rate of the path of σ, and its damping (Hansen 2016, Table 1)."""
    if dim <= MAX_FULL_DIM:
        rate = (n_effective + 2) / (dim + n_effective + 5)
    else:  # ~ 1 / sqrt(dim), as in the first CSA: with 1 / dim, σ needs dim steps to adapt
        rate = math.sqrt(n_effective) / (math.sqrt(dim) + math.sqrt(n_effective))
    damping = 1 + 2 * max(0.0, math.sqrt((n_effective - 1) / (dim + 1)) - 1) + rate
    return rate, damping


def covariance_rates(dim: int, n_effective: float) -> tuple[float, float, float]:
    """Return the rates of the path of C, and of its rank-one and rank-μ updates (same table)."""
    c_path = (4 + n_effective / dim) / (dim + 4 + 2 * n_effective / dim)
    c_one = 2 / ((dim + 1.3) ** 2 + n_effective)
    c_mu = 2 * (n_effective - 2 + 1 / n_effective) / ((dim + 2) ** 2 + n_effective)
    return c_path, c_one, min(1 - c_one, max(0.0, c_mu))


def mean_norm(dim: int) -> float:
    """Return E ||N(0, I)||, to third order in 1 / dim."""
    return math.sqrt(dim) * (1 - 1 / (4 * dim) + 1 / (21 * dim * dim))


def growth(norm: float, dim: int, rate: float, damping: float) -> float:
    """Return the factor of σ: above 1 if the path is longer than a random walk."""
    return math.exp(min(1.0, rate / damping * (norm / mean_norm(dim) - 1)))


def tempered_weights(values: list[float], ess_target: float) -> tuple[list[float], float]:
    """Return weights ∝ exp(-value / τ), and the τ at which N_e has its target.

    τ is found by bisection on its logarithm, because N_e = 1 / Σ c² grows with τ. If more values
    than the target are equal to the least one, they get equal weights and τ is 0.

    Args:
        values: at least one; +inf if failed, which gets weight 0.
        ess_target: the target of N_e divided by the number of finite values, in (0, 1).
    """
    best = min(values)
    if best == math.inf:
        return [0.0] * len(values), 0.0
    gaps = [value - best for value in values]  # +inf if the difference overflows
    positive = [gap for gap in gaps if 0 < gap < math.inf]
    n_ties = gaps.count(0.0)
    target = max(1.0, ess_target * (n_ties + len(positive)))
    if n_ties >= target or not positive:
        return [1 / n_ties if gap == 0 else 0.0 for gap in gaps], 0.0
    # exp overflows from 709.78 on.
    low, high = max(math.log(min(positive)) - 4, -709), min(math.log(max(positive)) + 4, 709)
    for _ in range(50):
        middle = (low + high) / 2
        rate = math.exp(-middle)
        weights = [math.exp(-gap * rate) for gap in gaps]
        total = sum(weights)
        n_effective = total * total / sum([w * w for w in weights])
        if abs(n_effective - target) < 3e-2 * target:
            break
        low, high = (middle, high) if n_effective < target else (low, middle)
    return [w / total for w in weights], math.exp(middle)
