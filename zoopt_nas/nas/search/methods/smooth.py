"""SmoothDARTS (Chen and Hsieh, 2020): weights that tolerate a change of the architecture.

Alpha moves as in first-order DARTS. The weights are trained at perturbed architecture weights A:
``sdarts_rs`` draws them near A, ``sdarts_adv`` searches those with the largest loss. The radius of
the perturbation grows over the epochs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.methods.darts import FirstOrder
from zoopt_nas.nas.settings.config import SOFTMAX, SearchConfig
from zoopt_nas.nas.steps.seeds import restore

# As in the paper and the released code.
FIRST_RADIUS, LAST_RADIUS = 0.03, 0.3
N_ASCENTS = 7


def perturbation_radius(progress: float) -> float:
    """Return the largest change of an architecture weight, from 0.03 to 0.3 over the epochs."""
    return FIRST_RADIUS + (LAST_RADIUS - FIRST_RADIUS) * progress


def to_simplex(weights: Tensor, clean: Tensor) -> Tensor:
    """Return weights in [0, 1] with sum 1 on each edge (a row), as in the released code.

    ``clean`` are the unperturbed weights, 0 where there is no candidate. An edge without positive
    weights gets a one-hot row at its largest clean weight.
    """
    weights = torch.where(clean > 0, weights, 0.0).clamp(0.0, 1.0)
    largest = F.one_hot(clean.argmax(dim=1), clean.shape[1]).to(clean.dtype)
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp_min(1e-30), largest)


class RandomSmoothing(FirstOrder):
    """SmoothDARTS: darts1, weights trained at a random perturbation.

    Every weight step sees uniform noise on the architecture weights.
    """

    relaxations = (SOFTMAX,)

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None:
        super().__init__(config, alpha, seed)
        self._generator = torch.Generator(alpha.device).manual_seed(seed)

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        """Return randomly perturbed architecture weights."""
        clean = supernet.operation_weights(self.alpha)
        drawn = self._drawn(clean, perturbation_radius(progress))
        return supernet.with_edges(drawn, self.alpha)

    def _drawn(self, clean: Tensor, radius: float) -> Tensor:
        noise = torch.empty_like(clean).uniform_(-radius, radius, generator=self._generator)
        return to_simplex(clean + noise, clean)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method and the generator."""
        return super().state_dict() | {"noise": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        restore(self._generator, state["noise"])


class AdversarialSmoothing(RandomSmoothing):
    """SmoothDARTS: darts1, weights trained at the worst perturbation.

    Seven steps of sign ascent on the batch's loss start from noise, with the supernet in evaluation
    mode. If they do not increase the loss, the weights stay unperturbed.
    """

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        """Return the architecture weights with the largest loss found."""
        clean = supernet.operation_weights(self.alpha)
        radius = perturbation_radius(progress)
        weights = self._drawn(clean, radius)
        was_training = supernet.training
        supernet.eval()

        def loss(weights: Tensor) -> Tensor:
            mixed = supernet.mix(images, supernet.with_edges(weights, self.alpha))
            return F.cross_entropy(mixed, labels)

        for _ in range(N_ASCENTS):
            weights = weights.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(weights), weights)
            moved = weights.detach() + 2 * radius / N_ASCENTS * gradient.sign()
            weights = to_simplex(torch.clamp(moved, clean - radius, clean + radius), clean)
        with torch.no_grad():
            is_worse = loss(weights) > loss(clean)  # a tensor: no synchronization
        supernet.train(was_training)
        return supernet.with_edges(torch.where(is_worse, weights, clean), self.alpha)
