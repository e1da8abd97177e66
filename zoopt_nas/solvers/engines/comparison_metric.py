"""A metric and a descent direction learnt from comparisons of values.

Sources: Igel, Suttorp and Hansen, "A Computational Efficient Covariance Matrix Update and a
(1+1)-CMA for Evolution Strategies", GECCO 2006 (the metric); Arnold and Hansen, "Active Covariance
Matrix Adaptation for the (1+1)-CMA-ES", GECCO 2010 (its negative update); Arnold, "Optimal Weighted
Recombination", FOGA 2005 (the descent direction is its version with signs instead of values).
"""

from __future__ import annotations

import math

from zoopt_nas._arrays import Array
from zoopt_nas.solvers.engines.comparison_state import ComparisonState
from zoopt_nas.solvers.state import SolverState

# The largest dim with a metric, which takes about dim² evaluations and two matrices.
MAX_METRIC_DIM = 100


def learns_metric(x: Array) -> bool:
    """Return whether ``x`` has a metric: a small dim and a dtype with linear algebra."""
    name = str(x.dtype).removeprefix("torch.")
    return x.shape[0] <= MAX_METRIC_DIM and name in ("float64", "float32")


def learn_descent(state: SolverState, candidates: Array, wins: list[bool], n_before: int) -> None:
    """Update the descent direction: g <- decay g + sum_i s_i z_i."""
    inner: ComparisonState = state.inner
    descent = inner.descent
    descent *= 1 - len(wins) / (descent.shape[0] + len(wins))
    for k, is_win in enumerate(wins):  # one row at a time and in place, because dim may be 10^6
        step = candidates[n_before + k] - state.x
        step *= (1.0 if is_win else -1.0) / norm_or_one(step)
        descent += step
        del step  # before the next one is allocated


def learn_shape(
    state: SolverState,
    candidates: Array,
    told: list[float],
    n_before: int,
    best: int,
    value: float,
) -> None:
    """Update the metric, and g in its coordinates."""
    x = state.x
    inner: ComparisonState = state.inner
    dim, new = x.shape[0], told[n_before:]
    units = (candidates[n_before:] - x) @ inner.inverse.T
    units *= math.exp(min(-inner.log_radius, 700.0))
    descent = inner.descent * (1 - len(new) / (dim + len(new)))
    for v, unit in zip(new, units, strict=True):
        descent = descent + unit if v < value else descent - unit
    inner.descent = descent
    rate = math.exp(inner.log_move) * 2 / (dim * dim + 6)
    if told[best] < value:
        step = candidates[best] - x
        c = 2 / (dim + 2)
        scale = math.sqrt(c * (2 - c) * dim) / norm_or_one(inner.inverse @ step)
        inner.path = inner.path * (1 - c) + step * scale
        _reshape(inner, inner.inverse @ inner.path, rate)
    elif len(new) > 1:
        worst = max(range(len(new)), key=new.__getitem__)
        # Half of Arnold and Hansen's limit, for |w|² = dim: C stays positive definite.
        rate = min(rate, 0.5 / (2 * dim - 1))
        unit = units[worst] * (math.sqrt(dim) / norm_or_one(units[worst]))
        _reshape(inner, unit, -rate)


def _reshape(inner: ComparisonState, direction: Array, rate: float) -> None:
    inner.factor, inner.inverse = rank_one_update(inner.factor, inner.inverse, direction, rate)


def rank_one_update(
    factor: Array, inverse: Array, direction: Array, rate: float
) -> tuple[Array, Array]:
    """Return A' with A' A'^T = (1 - rate) A A^T + rate (A w)(A w)^T, and its inverse.

    w is ``direction``. A negative rate shrinks A along w and requires |rate| |w|² < 1 - rate.
    Source: Igel, Suttorp and Hansen 2006, Theorem 1; Sherman-Morrison for the inverse.
    """
    square = direction @ direction
    stretch = (1 + (rate / (1 - rate)) * square) ** 0.5
    square = square + (square == 0)
    shrink = math.sqrt(1 - rate)
    column = (factor @ direction) * (shrink * (stretch - 1) / square)
    row = (direction @ inverse) * ((1 - 1 / stretch) / (shrink * square))
    return (
        factor * shrink + column[:, None] * direction,
        inverse * (1 / shrink) - direction[:, None] * row,
    )


def norm_or_one(vector: Array) -> Array:
    """Return the norm of ``vector`` as a 0-d array, or 1 if it is 0."""
    norm = (vector @ vector) ** 0.5
    return norm + (norm == 0)  # faster than `where` on a 0-d array
