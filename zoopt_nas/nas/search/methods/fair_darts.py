"""FairDARTS (Chu et al., ECCV 2020): candidates that do not compete, pushed to 0 or 1."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.search.methods.darts import FirstOrder
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.settings.config import SIGMOID, SearchConfig


def zero_one_loss(alpha: Tensor) -> Tensor:
    """Return minus the mean of ``(sigmoid(alpha) - 1/2)^2``, ()."""
    return -(torch.sigmoid(alpha) - 0.5).square().mean()


class FairSwitches(FirstOrder):
    """FairDARTS: darts1 with a sigmoid for each candidate and the zero-one loss.

    Alpha lowers L_val plus ``alpha_penalty`` times the zero-one loss.
    """

    relaxations = (SIGMOID,)
    has_penalty = True

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int = 0) -> None:
        super().__init__(config, alpha, seed)
        self._penalty = config.alpha_penalty

    @classmethod
    def check_space(cls, config: SearchConfig, space: SearchSpace) -> None:
        """Refuse a space whose cells may have ``none``, on whose weight no loss depends."""
        if space.may_choose("none"):
            raise InvalidValueError(
                f"space must not let a cell choose none with {config.algo}, where its weight has "
                f"no effect on the loss, got {space.name}"
            )

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the first-order gradient of the loss with its penalty."""
        alpha = self.alpha.requires_grad_()
        (slope,) = torch.autograd.grad(zero_one_loss(alpha), alpha)
        return super().gradient(objective) + self._penalty * slope
