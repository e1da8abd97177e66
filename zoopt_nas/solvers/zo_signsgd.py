"""ZO-signSGD: steps along the sign of an estimated gradient.

Source: Liu, Chen, Chen and Hong, "signSGD via Zeroth-Order Oracle", ICLR 2019, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zoopt_nas._arrays import Array, array_namespace
from zoopt_nas.solvers.rs import RS
from zoopt_nas.solvers.state import SolverState


@dataclass(frozen=True)
class ZOSignSGD(RS):
    """ZO-signSGD: x <- x - δ sign(g), where g is the estimate of `RS`.

    Every coordinate moves by δ, so that neither the scale of the objective nor outliers among its
    values change the length of a step. Close to a minimum the iterate oscillates by about δ.

    Attributes:
        learning_rate: δ > 0, the step of each coordinate.
    """

    name: ClassVar[str] = "zo_signsgd"

    learning_rate: float = 0.05

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        gradient, _ = self._estimate(state, candidates, values)
        return state.x - self.learning_rate * array_namespace(gradient).sign(gradient)
