"""Fits the widths of a solver to the noise of the objective (docs/noise.md).

Inner steps amplify any difference of alpha, so two candidates that differ by almost nothing already
differ in value: the floor. Candidates whose values spread by less say nothing about alpha. If the
objective is constant in pieces, they do not differ at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache

import torch
from torch import Tensor

from zoopt_nas import Solver

N_PROBES = 4  # the least number of candidates in a measurement
N_BATCHES = 4  # the least number of validation batches in a measurement
FLOOR_STEP = 1e-6  # the distance of the candidates that measure the floor, in widths
MIN_RATIO = 3.0  # the least spread, in floors
MAX_FACTOR = 32  # the largest factor of the widths
MAX_VAL_BATCHES = 8  # the largest number of validation batches, unless the config has more
MAX_ERROR = 0.5  # the largest standard error of a difference of candidates, in spreads


@dataclass
class NoiseGauge:
    """What the noise of an objective is, and the widths and batches that follow from it.

    Attributes:
        least_val_batches: the ``val_batches`` of the config.
        val_batches: the number of validation batches of an update.
        factor: multiplies the solver's lengths; a power of 2 from 1 to ``MAX_FACTOR``.
        floor: the standard deviation of the values of candidates at almost the same place.
        spread: the standard deviation of the values of candidates at the widths of the solver.
        is_due: whether to measure before the next update.
    """

    least_val_batches: int
    val_batches: int = 0
    factor: float = 1.0
    floor: float = math.nan
    spread: float = math.nan
    is_due: bool = True

    def __post_init__(self) -> None:
        self.val_batches = self.val_batches or self.least_val_batches

    @property
    def n_drawn(self) -> int:
        """Number of validation batches for ``measure``."""
        return max(N_BATCHES, self.val_batches)

    def measure(
        self,
        x: Tensor,
        candidates: Callable[[float], Tensor],
        values: Callable[[Tensor], Tensor],
        *,
        can_widen: bool = True,
    ) -> None:
        """Measure floor and spread, and choose the factor and the number of batches.

        The factor is the smallest at which the spread is positive and at least ``MIN_RATIO``
        floors, looked for in steps of 2 from the last factor. If there is none, it is
        ``MAX_FACTOR`` if all values are equal there, else 1. If fewer than two candidates have a
        finite value, the last choice stays.

        Args:
            x: the iterate ``(dim,)``.
            candidates: returns candidates ``(n, dim)`` around x for a factor of the widths.
            values: maps candidates to their values on each of ``n_drawn`` batches, ``(n, batches)``
                on the same draw in every call.
            can_widen: whether the factor may change.
        """
        self.is_due = False
        floor = _spread(values(_almost_at(x, candidates(self.factor))))
        if math.isnan(floor):
            return
        self.floor = floor
        factor, found = self._choose(cache(lambda k: values(candidates(k))), can_widen)
        spread = _spread(found)
        if math.isnan(spread):
            return
        self.factor, self.spread = factor, spread
        most = max(MAX_VAL_BATCHES, self.least_val_batches)
        needed = (_batch_noise(found) / (MAX_ERROR * spread)) ** 2 if spread > 0 else math.inf
        self.val_batches = max(math.ceil(min(needed, most)), self.least_val_batches)

    def fitted(self, solver: Solver) -> Solver:
        """Return the solver with the factor, and with a temperature on the scale of its values.

        The temperature is the spread, or ``MIN_RATIO`` floors if that is more, so that a difference
        of one floor changes a weight exp(-f / temperature) by a factor of at most exp(1 / 3) = 1.4.
        """
        scale = max(self.spread, MIN_RATIO * self.floor)
        names = solver.value_scales if scale > 0 else ()  # it is NaN before the first measurement
        return replace(solver.stretched(self.factor), **dict.fromkeys(names, scale))

    def metrics(self) -> dict[str, float]:
        """Return the columns of ``metrics.jsonl``; without those that are not known yet."""
        found = {
            "noise_floor": self.floor,
            "spread": self.spread,
            "width_factor": self.factor,
            "val_batches": float(self.val_batches),
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def state_dict(self) -> dict[str, float]:
        """Return all attributes."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the attributes that ``state_dict`` returned."""
        for name, value in state.items():
            setattr(self, name, value)

    def _choose(
        self, values_at: Callable[[float], Tensor], can_widen: bool
    ) -> tuple[float, Tensor]:
        """Return the factor, and the values at it."""
        factor = self.factor
        if not can_widen:
            return factor, values_at(factor)
        while factor < MAX_FACTOR and not self._clears(values_at(factor)):
            factor *= 2
        if not self._clears(values_at(factor)):
            # Wider moves at random are worse than short ones, but where all values are equal, any
            # other place is better.
            factor = factor if _spread(values_at(factor)) == 0 else 1.0
            return factor, values_at(factor)
        while factor > 1 and self._clears(values_at(factor / 2)):
            factor /= 2
        return factor, values_at(factor)

    def _clears(self, values: Tensor) -> bool:
        spread = _spread(values)
        return spread > 0 and spread >= MIN_RATIO * self.floor


def _almost_at(x: Tensor, candidates: Tensor) -> Tensor:
    """Return the candidates moved next to x, but so that rounding does not make them equal."""
    steps = candidates - x
    longest = steps.abs().max()
    rounding = 4 * torch.finfo(x.dtype).eps * x.abs().max()
    scale = torch.clamp(rounding / torch.where(longest > 0, longest, 1.0), min=FLOOR_STEP)
    return x + scale * steps


def _finite(values: Tensor) -> Tensor:
    """Return the rows of ``values`` without a failure, on the CPU in float64."""
    rows = values.detach().cpu().to(torch.float64)
    return rows[torch.isfinite(rows).all(1)]


def _spread(values: Tensor) -> float:
    """Return the standard deviation of candidates' mean values; NaN for fewer than two."""
    means = _finite(values).mean(1)
    if len(means) < 2:
        return math.nan
    # Rounding would give equal values a small deviation.
    return float(means.std()) if means.min() < means.max() else 0.0


def _batch_noise(values: Tensor) -> float:
    """Return the standard error of one batch of the differences between candidates.

    The level of a batch is common to all candidates, and does not count. Two candidates differ with
    sqrt(2) times this error, and by sqrt(2) times the spread.
    """
    rows = _finite(values)
    deviations = rows - rows.mean(0)
    n = len(rows)
    return math.sqrt(float(deviations.var(1).mean()) * n / (n - 1))
