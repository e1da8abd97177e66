"""ZO-AdaMM: adaptive momentum (AMSGrad) on an estimated gradient.

Source: Chen et al., "ZO-AdaMM: Zeroth-Order Adaptive Momentum Method for Black-Box Optimization",
NeurIPS 2019, Algorithm 1; the decay rates are from the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zoopt_nas._arrays import Array, array_namespace, device, value_dtype
from zoopt_nas._checks import check_decay
from zoopt_nas.solvers.rs import RS
from zoopt_nas.solvers.state import SolverState


@dataclass(eq=False)
class AdaMMState:
    """The state of ZO-AdaMM: the moments of the gradient, (dim,) each."""

    mean: Array  # m
    square: Array  # v
    max_square: Array  # v̂, the largest v so far


@dataclass(frozen=True)
class ZOAdaMM(RS):
    """ZO-AdaMM: x <- x - α m / √v̂, with moments of the gradient g that `RS` estimates.

    The moments are::

        m <- β1 m + (1 - β1) g
        v <- β2 v + (1 - β2) g²
        v̂ <- max(v̂, v)

    The moments start at 0, without a correction of their bias, so that the length of a step does
    not depend on the scale of the objective. A coordinate with v̂ = 0 does not move. If all
    directions of a batch fail or the moments overflow, x and the moments stay.

    The paper projects x onto the feasible set in the norm of √v̂. For a box this is clipping, as in
    `minimize`, because the norm is diagonal.

    Attributes:
        learning_rate: α > 0. A steady gradient moves each coordinate by α in a step, and a noisy
            one by much less.
        beta1: β1 in [0, 1), the decay rate of the mean.
        beta2: β2 in [0, 1), the decay rate of the mean square. v̂ never shrinks; a larger β2
            averages more batches before a large gradient raises it.
    """

    name: ClassVar[str] = "zo_adamm"
    inner_states: ClassVar[tuple[type, ...]] = (AdaMMState,)

    learning_rate: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay("beta1", self.beta1)
        check_decay("beta2", self.beta2)

    def _init(self, state: SolverState) -> None:
        xp, x = array_namespace(state.x), state.x
        # The square of a gradient overflows in a short dtype.
        zeros = xp.zeros(x.shape, dtype=value_dtype(x), device=device(x))
        state.inner = AdaMMState(zeros, zeros, zeros)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        xp, x = array_namespace(state.x), state.x
        gradient, has_survivors = self._estimate(state, candidates, values)
        inner: AdaMMState = state.inner
        gradient = xp.astype(gradient, inner.mean.dtype)
        mean = self.beta1 * inner.mean + (1 - self.beta1) * gradient
        square = self.beta2 * inner.square + (1 - self.beta2) * gradient**2
        max_square = xp.maximum(inner.max_square, square)
        moves = max_square > 0
        step = xp.where(moves, mean / xp.sqrt(xp.where(moves, max_square, 1.0)), 0.0)
        # `where` does not wait for the device to know.
        is_usable = has_survivors & xp.all(xp.isfinite(square))
        state.inner = AdaMMState(
            xp.where(is_usable, mean, inner.mean),
            xp.where(is_usable, square, inner.square),
            xp.where(is_usable, max_square, inner.max_square),
        )
        return xp.where(is_usable, x - xp.astype(self.learning_rate * step, x.dtype), x)
