"""The gradient baselines: DARTS (Liu et al., 2019) of first and second order."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.evaluation import Draw
from zoopt_nas.nas.search.objective import BilevelObjective, Weigh
from zoopt_nas.nas.search.updater import N_FAILED, N_TRIED, AlphaUpdater, Metrics
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.methods import GRADIENT

# Radius of the finite difference in weight space (paper, appendix A.1: epsilon' of Eq. 24).
DIFFERENCE_RADIUS = 0.01


def first_order_gradient(
    objective: BilevelObjective, alpha: Tensor, weigh: Weigh = Supernet.edge_weights
) -> Tensor:
    """Return the gradient ``(dim,)`` of L_val(omega, alpha), with omega* = omega (Eq. 3)."""
    return objective.alpha_gradient(alpha, objective.draw(), weigh)


def second_order_gradient(objective: BilevelObjective, alpha: Tensor) -> Tensor:
    """Return the gradient ``(dim,)`` of L_val(omega'(alpha), alpha), one SGD step away (Eq. 2).

    By the chain rule it is the gradient in alpha at omega' minus xi times a mixed second derivative
    times v = grad_omega' L_val, computed as a central difference along v (Eq. 20). Momentum and
    weight decay shift omega' but do not depend on alpha, so the formula stays exact.
    """
    if objective.inner != "second":
        raise InvalidValueError(
            f"the second-order gradient needs inner='second', got {objective.inner!r}"
        )
    draw = objective.draw()
    alpha = alpha.detach().requires_grad_()
    network = objective.fit(alpha.detach(), draw)
    weights: list[Tensor] = list(network.parameters())
    loss = objective.val_loss(network, alpha, draw)
    direct, *v = torch.autograd.grad(loss, [alpha, *weights], materialize_grads=True)
    (mixed,) = slope_along(objective, alpha, draw, v, by_alpha=True)
    gradient: Tensor = direct - objective.lr * mixed
    return gradient


def slope_along(
    objective: BilevelObjective,
    alpha: Tensor,
    draw: Draw,
    direction: Sequence[Tensor],
    *,
    by_alpha: bool,
) -> list[Tensor]:
    """Return the derivative along a direction in weight space of the gradient of L_train.

    It is a central difference (Eq. 20) around the supernet's weights. The gradient is that in
    alpha, which requires one, or, unless ``by_alpha``, in the weights.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(direction))))
    epsilon = DIFFERENCE_RADIUS / norm.clamp_min(1e-12)
    offset = torch._foreach_mul(list(direction), epsilon)
    sides = []
    for sign in (1.0, -1.0):
        network = objective.start()
        weights: list[Tensor] = list(network.parameters())
        with torch.no_grad():
            torch._foreach_add_(weights, offset, alpha=sign)
        loss = objective.train_loss(network, alpha, draw)
        inputs = [alpha] if by_alpha else weights
        sides.append(torch.autograd.grad(loss, inputs, materialize_grads=True))
    return [(up - down) / (2.0 * epsilon) for up, down in zip(*sides, strict=True)]


class GradientUpdater(AlphaUpdater):
    """Adam on alpha; ``seed`` is not used (DARTS: lr 3e-4, betas (0.5, 0.999), weight decay 1e-3).

    A non-finite gradient counts as failed and changes nothing.
    """

    kind = GRADIENT
    tries = "gradients in alpha"

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int = 0) -> None:
        self._alpha = alpha.detach().clone().requires_grad_()
        self._adam = torch.optim.Adam(
            [self._alpha],
            config.alpha_lr,
            config.alpha_betas,
            weight_decay=config.alpha_weight_decay,
        )

    @abstractmethod
    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the gradient ``(dim,)`` at alpha, on the objective's next draw."""

    @property
    def alpha(self) -> Tensor:
        """The current architecture parameters ``(dim,)``."""
        return self._alpha.detach()

    def move_to(self, alpha: Tensor) -> None:
        """Set alpha and keep the moments of Adam."""
        with torch.no_grad():
            self._alpha.copy_(alpha)

    def restart(self, alpha: Tensor) -> None:
        """Set alpha and forget the moments of Adam."""
        self.move_to(alpha)
        self._adam.state.clear()

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Take one step of Adam."""
        gradient = self.gradient(objective)
        is_finite = torch.isfinite(gradient).all()  # a tensor: no synchronization
        before = {name: value.clone() for name, value in self._moving().items()}
        self._alpha.grad = gradient
        self._adam.step()
        with torch.no_grad():
            for name, value in self._moving().items():
                old = before.get(name, torch.zeros_like(value))  # no moments before the first step
                value.copy_(torch.where(is_finite, value, old))
        norm = torch.linalg.vector_norm(gradient)
        return {"gradient_norm": norm, N_TRIED: 1, N_FAILED: (~is_finite).to(torch.int64)}

    def _moving(self) -> dict[str, Tensor]:
        """Return alpha and the moments of Adam."""
        state = self._adam.state[self._alpha]
        moments = {name: state[name] for name in ("exp_avg", "exp_avg_sq") if name in state}
        return {"alpha": self.alpha, **moments}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of alpha and of the state of Adam."""
        # Copies, since Adam changes its tensors in place and keeps those that it loads.
        return copy.deepcopy({"alpha": self.alpha, "adam": self._adam.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        with torch.no_grad():
            self._alpha.copy_(state["alpha"])
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))


class FirstOrder(GradientUpdater):
    """DARTS of first order (Eq. 3)."""

    inner = "first"

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the first-order gradient."""
        return first_order_gradient(objective, self.alpha)


class FirstOrderInSpace(FirstOrder):
    """DARTS of first order, for methods that fix a part of alpha, depending on the search space."""

    def __init__(
        self, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> None:
        super().__init__(config, alpha, seed)
        assert space is not None  # the base class leaves it out
        self.space = space

    @classmethod
    def create(
        cls, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None
    ) -> Self:
        """Return the updater of a search in ``space``."""
        return cls(config, alpha, seed, space)

    def move_to(self, alpha: Tensor) -> None:
        """Set alpha where it is free, and keep the moments of Adam."""
        super().move_to(alpha)
        self._restore()

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Take one step of Adam where alpha is free."""
        metrics = super().step(objective, progress)
        self._restore()
        return metrics

    def _restore(self) -> None:
        """Set the entries of alpha that do not move."""
        raise NotImplementedError


class SecondOrder(GradientUpdater):
    """DARTS of second order (Eq. 2)."""

    inner = "second"

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the second-order gradient."""
        return second_order_gradient(objective, self.alpha)


class PartialChannels(FirstOrder):
    """PC-DARTS: darts1 on partial channels, edges normalized."""


class MergedKernels(FirstOrder):
    """MergeNAS: darts1, with one kernel for the convolutions of an edge.

    See ``networks.merged_kernels`` and the setting ``merge_kernels``.
    """

    @classmethod
    def check_supernet(cls, config: SearchConfig) -> None:
        """Refuse the other settings of the supernet, and separate kernels."""
        super().check_supernet(config)
        if not config.merge_kernels:
            raise InvalidValueError(f"merge_kernels must be true with {config.algo}, got false")


class AuxiliarySkip(FirstOrder):
    """DARTS-: darts1 with a skip connection beside each edge, which fades out.

    The output of an edge is ``beta x + sum_o softmax(alpha)_o o(x)`` (Chu et al., 2021). The weight
    beta falls linearly from 1 to 0; see the setting ``auxiliary_skip``.
    """
