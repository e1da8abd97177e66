"""Amended-DARTS (Bi et al., 2019): the Hessian in place of its inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopt_nas.nas.search.methods.darts import GradientUpdater, slope_along
from zoopt_nas.nas.search.objective import BilevelObjective

AMENDING = 0.1  # the paper's coefficient eta


def amended_gradient(objective: BilevelObjective, alpha: Tensor) -> Tensor:
    """Return the gradient ``(dim,)`` of L_val in alpha with the amended term.

    If omega minimizes L_train, the chain rule adds ``-M H^-1 v``: v is the gradient of L_val in
    omega, H the Hessian of L_train in omega and M its mixed second derivative. The amended term is
    ``-eta M H v``. Both products are central differences, with the draw's training batch.
    """
    draw = objective.draw()
    alpha = alpha.detach().requires_grad_()
    network = objective.start()
    loss = objective.val_loss(network, alpha, draw)
    weights: list[Tensor] = list(network.parameters())
    direct, *v = torch.autograd.grad(loss, [alpha, *weights], materialize_grads=True)
    curvature = slope_along(objective, alpha, draw, v, by_alpha=False)
    (amended,) = slope_along(objective, alpha, draw, curvature, by_alpha=True)
    gradient: Tensor = direct - AMENDING * amended
    return gradient


class AmendedGradient(GradientUpdater):
    """Amended-DARTS: darts1 with a term for the weights' dependence on alpha.

    An update takes four forward and backward passes more than ``darts1``.
    """

    inner = "second"  # a draw has the batch of the next weight step

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the amended gradient."""
        return amended_gradient(objective, self.alpha)
