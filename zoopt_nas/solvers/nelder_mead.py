"""Nelder-Mead: the simplex method, as ``scipy.optimize`` has it, with restarts.

Source: Nelder and Mead, "A Simplex Method for Function Minimization", The Computer Journal 7, 1965;
Gao and Han, "Implementing the Nelder-Mead simplex algorithm with adaptive parameters",
Computational Optimization and Applications 51, 2012.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from zoopt_nas._checks import check_bool, check_positive
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.inversion import Algorithm, Evaluate, SteppedSolver

_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class NelderMead(SteppedSolver):
    """Nelder-Mead: moves the worst corner of a simplex through the middle of the others.

    Only comparisons of values are used. The first dim + 1 candidates of a restart are one batch,
    then each is a batch of its own: workers do not help. It takes the objective for deterministic,
    and the iterate is the best point told.

    Attributes:
        step: > 0, the length of the edges of the first simplex along the coordinate axes, in units
            of x. Their directions, up or down, are drawn. Also the scale of restarts.
        adaptive: coefficients that depend on the dimension (Gao and Han, section 4); with False
            those of Nelder and Mead, which fail above some ten dimensions.
        tolerance: > 0, restart once no corner is further than this from the best one, in any
            coordinate and in value.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "nelder_mead"
    adapts_steps: ClassVar[bool] = True

    step: float = 1.0
    adaptive: bool = True
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        check_positive("step", self.step)
        check_bool("adaptive", self.adaptive)
        check_positive("tolerance", self.tolerance)

    @property
    def _scale(self) -> float:
        return self.step

    def _algorithm(self, state: SolverState) -> Algorithm:
        start = state.memory["start"]
        corners = start + np.diag(self.step * state.memory["signs"])
        return partial(self._run, simplex=np.concatenate([start[None, :], corners]))

    def _run(self, evaluate: Evaluate, simplex: np.ndarray) -> None:
        from scipy.optimize import minimize  # slow to load: not at import

        # scipy begins with the corners one by one: their values are asked for together before.
        first = iter(evaluate(simplex).tolist())

        def fun(x: np.ndarray) -> float:
            value = next(first, None)
            if value is None:
                value = float(evaluate(x[None, :])[0])
            # inf - inf is NaN, at which the tolerance would never be met.
            return min(value, _LARGEST)

        minimize(
            fun,
            simplex[0],
            method="Nelder-Mead",
            options={
                "initial_simplex": simplex,
                "adaptive": self.adaptive,
                "xatol": self.tolerance,
                "fatol": self.tolerance,
                # Whoever asks decides when it is enough.
                "maxiter": np.inf,
                "maxfev": np.inf,
            },
        )
