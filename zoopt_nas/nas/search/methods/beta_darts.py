"""Beta-DARTS (Ye et al., CVPR 2022): decay of the weights that the softmax gives."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.methods.darts import FirstOrder
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.settings.config import SOFTMAX, SearchConfig


def beta_loss(supernet: Supernet, alpha: Tensor) -> Tensor:
    """Return the mean over edges of ``log sum_k exp(alpha_k)``, ().

    Its gradient on an edge is the softmax of alpha, so the largest weights decay most.
    """
    return torch.logsumexp(supernet.alpha_table(alpha), dim=1).mean()


class BetaDecay(FirstOrder):
    """Beta-DARTS: darts1 with the logsumexp of alpha as a growing penalty.

    Its weight grows linearly over the epochs from 0 to ``alpha_penalty``.
    """

    relaxations = (SOFTMAX,)
    has_penalty = True

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int = 0) -> None:
        super().__init__(config, alpha, seed)
        self._last = config.alpha_penalty
        self._penalty = 0.0

    def begin_epoch(self, progress: float) -> None:
        """Set the weight of the penalty."""
        self._penalty = self._last * progress

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the first-order gradient of the loss with its penalty."""
        alpha = self.alpha.requires_grad_()
        (slope,) = torch.autograd.grad(beta_loss(objective.supernet, alpha), alpha)
        return super().gradient(objective) + self._penalty * slope
