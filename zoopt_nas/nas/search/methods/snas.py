"""SNAS (Xie et al., ICLR 2019): weights and alpha descend one loss at a relaxed sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.methods.darts import GradientUpdater
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.updater import Metrics
from zoopt_nas.nas.settings.config import SOFTMAX, SearchConfig
from zoopt_nas.nas.steps.seeds import restore

# Released code.
FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 0.03


def temperature(progress: float) -> float:
    """Return the temperature lambda of the samples, which falls linearly over the epochs."""
    return FIRST_TEMPERATURE + (LAST_TEMPERATURE - FIRST_TEMPERATURE) * progress


def sample_weights(
    supernet: Supernet, alpha: Tensor, temperature: float, generator: torch.Generator
) -> Tensor:
    """Return operation weights ``(n_edges, width)``: softmax((alpha + Gumbel noise) / temperature).

    It is a sample of the concrete distribution. The generator is on the device of alpha;
    gradients flow to alpha.
    """
    table = supernet.alpha_table(alpha)
    noise = -torch.empty_like(table).exponential_(generator=generator).log()
    return torch.softmax((table + noise) / temperature, dim=1)


class ConcreteSamples(GradientUpdater):
    """SNAS: weights and alpha trained on one loss, at concrete samples.

    Every weight step draws architecture weights, and alpha takes a step of Adam with the gradient
    of the same loss: one level, without L_val. The samples become one-hot as the temperature falls.
    """

    inner = "first"
    is_joint = True
    relaxations = (SOFTMAX,)

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None:
        super().__init__(config, alpha, seed)
        self._generator = torch.Generator(alpha.device).manual_seed(seed)
        self._temperature = FIRST_TEMPERATURE

    def begin_epoch(self, progress: float) -> None:
        """Set the temperature."""
        self._temperature = temperature(progress)

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        """Return a sample of the architecture weights, a function of alpha."""
        self._alpha.grad = None
        drawn = sample_weights(supernet, self._alpha, self._temperature, self._generator)
        return supernet.with_edges(drawn, self._alpha)

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the gradient of the last weight step's loss."""
        assert self._alpha.grad is not None  # a weight step came before
        return self._alpha.grad

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Take one step of Adam."""
        return {**super().step(objective, progress), "temperature": self._temperature}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method and the generator."""
        return super().state_dict() | {"noise": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        restore(self._generator, state["noise"])
