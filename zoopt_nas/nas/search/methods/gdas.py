"""GDAS (Dong and Yang, CVPR 2019): gradients through one sampled operation per edge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.data.transfer import to_device
from zoopt_nas.nas.networks.space import Path, SearchSpace
from zoopt_nas.nas.search.methods.darts import GradientUpdater
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.updater import Metrics
from zoopt_nas.nas.settings.config import SOFTMAX, SearchConfig

# As published.
FIRST_TEMPERATURE, LAST_TEMPERATURE = 10.0, 0.1


def temperature(progress: float) -> float:
    """Return the temperature tau of the softmax, which falls linearly over the epochs."""
    return FIRST_TEMPERATURE + (LAST_TEMPERATURE - FIRST_TEMPERATURE) * progress


class GumbelPaths(GradientUpdater):
    """GDAS: one operation per edge, sampled by the Gumbel-max trick.

    Weights and alpha are trained along sampled paths. On each edge the path has the operation with
    the largest ``log softmax(alpha) + Gumbel noise``. Its output is multiplied by a weight h that
    is 1 and has the gradient of the softmax of this sum over tau (Eq. 5 to 7). The gradient flows
    only through the sampled operations. A step reads the sampled operations on the host, which
    synchronizes with a GPU once.
    """

    inner = "first"
    trains_paths = True
    relaxations = (SOFTMAX,)

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None:
        super().__init__(config, alpha, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._progress = 0.0

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Take one step of Adam at the temperature of ``progress``."""
        self._progress = progress
        return {**super().step(objective, progress), "temperature": temperature(progress)}

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the gradient ``(dim,)`` of L_val along a sampled path."""
        draw, space = objective.draw(), objective.supernet.space
        alpha = self.alpha.requires_grad_()
        path, weights = self._sample(space, alpha, self._progress)
        loss = objective.val_loss(objective.start(), path, draw, scales=weights)
        # A path of which no operation is connected does not depend on alpha.
        return torch.autograd.grad(loss, alpha, materialize_grads=True)[0]

    def training_paths(self, space: SearchSpace, progress: float) -> list[Path]:
        """Return a sampled path."""
        with torch.no_grad():
            return [self._sample(space, self.alpha, progress)[0]]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method and the generator."""
        return super().state_dict() | {"noise": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self._generator.set_state(state["noise"].cpu())

    def _sample(self, space: SearchSpace, alpha: Tensor, progress: float) -> tuple[Path, Tensor]:
        """Return a path, and the weight of each edge ``(n_edges,)``: 1 times its edge factor."""
        # Drawn on the CPU, so that a seed gives the same paths on every device.
        noise = -torch.empty(sum(space.sizes)).exponential_(generator=self._generator).log()
        parts = torch.split(alpha[: len(noise)], list(space.sizes))
        noise = to_device([noise], alpha.device)[0].to(alpha.dtype)
        noises = torch.split(noise, list(space.sizes))
        chosen, weights = [], []
        for part, gumbel in zip(parts, noises, strict=True):
            logits = torch.log_softmax(part, dim=0) + gumbel
            soft = torch.softmax(logits / temperature(progress), dim=0)
            index = logits.argmax()
            weight = soft.gather(0, index[None])[0]
            chosen.append(index)
            weights.append(1 + weight - weight.detach())
        path = tuple(torch.stack(chosen).tolist())
        return path, torch.stack(weights) * space.edge_factors(alpha)
