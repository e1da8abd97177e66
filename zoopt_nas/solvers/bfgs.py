"""BFGS with a gradient of finite differences, as ``scipy.optimize`` has it, with restarts.

Source: Nocedal and Wright, "Numerical Optimization", second edition, 2006, Algorithm 6.1 (BFGS) and
Eq. 8.1 (forward differences).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from zoopt_nas._arrays import array_namespace
from zoopt_nas._checks import check_positive
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.inversion import Algorithm, Evaluate, SteppedSolver


@dataclass(frozen=True)
class BFGS(SteppedSolver):
    """BFGS: a quasi-Newton method, here on a gradient of forward differences.

    A batch is a point and its dim neighbours, one along each coordinate: the value and the gradient
    there (Nocedal and Wright, Eq. 8.1). It takes the objective for smooth and deterministic; noise
    is divided by ``difference_step``. The iterate is the best point told.

    Where a neighbour failed, the component of the gradient is taken for 0.

    Attributes:
        difference_step: > 0, the distance to a neighbour, times max(1, |x_i|), in units of x. None:
            the square root of the machine precision of x's dtype, 1.5e-8 in float64. Which side
            it is on is drawn for each coordinate when the algorithm starts.
        gtol: > 0, restart once no component of the gradient is larger.
        spread: > 0, the scale of restarts, in units of x.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "bfgs"
    adapts_steps: ClassVar[bool] = True

    difference_step: float | None = None
    gtol: float = 1e-5
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.difference_step is not None:
            check_positive("difference_step", self.difference_step)
        check_positive("gtol", self.gtol)
        check_positive("spread", self.spread)

    @property
    def _scale(self) -> float:
        return self.spread

    def _algorithm(self, state: SolverState) -> Algorithm:
        step = self.difference_step
        if step is None:
            step = math.sqrt(array_namespace(state.x).finfo(state.x.dtype).eps)
        steps = step * state.memory["signs"]
        return partial(self._run, start=state.memory["start"], steps=steps)

    def _run(self, evaluate: Evaluate, start: np.ndarray, steps: np.ndarray) -> None:
        from scipy.optimize import minimize  # slow to load: not at import

        def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
            neighbours = x + np.diag(steps * np.maximum(1.0, np.abs(x)))
            # As rounded, not as meant: the rounding of x + h would be an error of the slope.
            distances = np.diagonal(neighbours) - x
            values = evaluate(np.concatenate([x[None, :], neighbours]))
            slopes = (values[1:] - values[0]) / distances
            return float(values[0]), np.where(np.isfinite(slopes), slopes, 0.0)

        minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": self.gtol})
