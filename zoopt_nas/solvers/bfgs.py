"""BFGS with a gradient of finite differences, with restarts.

Source: Nocedal and Wright, "Numerical Optimization", second edition, 2006, Algorithm 6.1 (BFGS) and
Eq. 8.1 (forward differences).
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from zoopt_nas._arrays import array_namespace
from zoopt_nas._checks import check_positive
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.inversion import Algorithm, SteppedSolver
from zoopt_nas.solvers.line_search import LineSearch


@dataclass(frozen=True)
class BFGS(SteppedSolver):
    """BFGS: a quasi-Newton method, here on a gradient of forward differences.

    A batch is a point and its dim neighbours, one along each coordinate: the value and the gradient
    there (Nocedal and Wright, Eq. 8.1). It takes the objective for smooth and deterministic; noise
    is divided by ``difference_step``. The iterate is the best point told.

    Where a neighbour failed, the component of the gradient is taken for 0. Where its value is that
    of the point, as where a bound has moved it back there, the neighbour on the other side follows.

    Attributes:
        difference_step: > 0, the distance to a neighbour, times max(1, |x_i|), in units of x. None:
            the square root of the machine precision of x's dtype, 1.5e-8 in float64. Which side
            it is on is drawn for each coordinate when the algorithm starts.
        gtol: > 0, restart once no component of the gradient is larger.
        spread: > 0, the scale of restarts, in units of x. None: 1.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "bfgs"
    adapts_steps: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("difference_step", "spread")

    difference_step: float | None = None
    gtol: float = 1e-5
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.difference_step is not None:
            check_positive("difference_step", self.difference_step)
        check_positive("gtol", self.gtol)
        if self.spread is not None:
            check_positive("spread", self.spread)

    @property
    def _scale(self) -> float:
        return 1.0 if self.spread is None else self.spread

    def _algorithm(self, state: SolverState) -> Algorithm:
        step = self.difference_step
        if step is None:
            step = math.sqrt(array_namespace(state.x).finfo(state.x.dtype).eps)
        steps = step * state.inner.signs
        return self._run(state.inner.start, steps)

    def _run(self, start: np.ndarray, steps: np.ndarray) -> Algorithm:
        x = start
        value, gradient = yield from _value_and_gradient(x, steps)
        inverse = np.eye(len(x))  # H
        before = value + float(np.linalg.norm(gradient)) / 2
        while np.abs(gradient).max() > self.gtol and math.isfinite(value):
            direction = -inverse @ gradient
            slope = float(gradient @ direction)
            # As much decrease as in the last step (Eq. 3.60).
            guess = 1.01 * 2 * (value - before) / slope if slope < 0 else 0.0
            search = LineSearch(value, slope, min(1.0, guess) if guess > 0 else 1.0)
            last, before = (x, gradient), value
            while not (search.is_done or search.has_failed):
                x = last[0] + search.step * direction
                value, gradient = yield from _value_and_gradient(x, steps)
                search.tell(value, float(gradient @ direction))
            if search.has_failed:
                return
            s, y = search.step * direction, gradient - last[1]
            inverse = _updated(inverse, s, y)


def _value_and_gradient(
    x: np.ndarray, steps: np.ndarray
) -> Generator[np.ndarray, np.ndarray, tuple[float, np.ndarray]]:
    neighbours = x + np.diag(steps * np.maximum(1.0, np.abs(x)))
    # As rounded, not as meant: the rounding of x + h would be an error of the slope.
    distances = np.diagonal(neighbours) - x
    values = yield np.concatenate([x[None, :], neighbours])
    slopes = (values[1:] - values[0]) / distances
    # A neighbour that a bound has moved back to x says nothing: the one on the other side does.
    tied = np.flatnonzero(slopes == 0)
    if len(tied):
        others = yield x - np.diag(distances)[tied]
        slopes[tied] = (values[0] - others) / distances[tied]
    return float(values[0]), np.where(np.isfinite(slopes), slopes, 0.0)


def _updated(inverse: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns H after a step s that changed the gradient by y (Eq. 6.17)."""
    product = float(s @ y)
    if product <= 0 or not math.isfinite(1 / product):
        return inverse
    left = np.eye(len(s)) - np.outer(s, y) / product
    updated: np.ndarray = left @ inverse @ left.T + np.outer(s, s) / product
    return updated if np.isfinite(updated).all() else inverse
