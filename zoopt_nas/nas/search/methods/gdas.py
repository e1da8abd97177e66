"""GDAS (Dong and Yang, CVPR 2019): gradients through one sampled operation per edge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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


def straight_through(soft: Tensor) -> Tensor:
    """Return ones with the gradient of ``soft``."""
    return soft - soft.detach() + 1


def sampled_operations(
    space: SearchSpace, alpha: Tensor, noise: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sample an operation on each edge.

    Args:
        space: The search space.
        alpha: The entries of alpha for operations, ``(n_entries,)``.
        noise: Gumbel noise, ``(n, n_entries)``.
        temperature: tau.

    Returns:
        The positions of the operations with the largest ``log softmax(alpha) + noise``, and their
        weights: 1, with the gradient of the softmax of this sum over tau. Each ``(n, n_edges)``.
    """
    logits = torch.log_softmax(_by_edge(space, alpha), dim=-1) + _by_edge(space, noise)
    soft = torch.softmax(logits / temperature, dim=-1)
    index = logits.argmax(dim=-1)
    return index, straight_through(soft.gather(-1, index[..., None])[..., 0])


def _by_edge(space: SearchSpace, entries: Tensor) -> Tensor:
    """Return entries ``(..., n_entries)`` as ``(..., n_edges, width)``, padded with -inf."""
    parts, width = torch.split(entries, list(space.sizes), dim=-1), max(space.sizes)
    padded = [F.pad(part, (0, width - part.shape[-1]), value=-torch.inf) for part in parts]
    return torch.stack(padded, dim=-2)


class GumbelPaths(GradientUpdater):
    """GDAS: one operation per edge, sampled by the Gumbel-max trick.

    Weights and alpha are trained along sampled paths, ``sampled_paths`` in each step. On each edge
    the path has the operation with the largest ``log softmax(alpha) + Gumbel noise``. Its output is
    multiplied by a weight h that is 1 and has the gradient of the softmax of this sum over tau
    (Eq. 5 to 7). The gradient flows only through the sampled operations. A step reads the sampled
    operations on the host, which synchronizes with a GPU once.
    """

    inner = "first"
    trains_paths = True
    on_every_edge = True
    samples_paths = True
    relaxations = (SOFTMAX,)

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None:
        super().__init__(config, alpha, seed)
        self._n_paths = config.sampled_paths
        self._generator = torch.Generator().manual_seed(seed)
        self._progress = 0.0

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Take one step of Adam at the temperature of ``progress``."""
        self._progress = progress
        return {**super().step(objective, progress), "temperature": temperature(progress)}

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the mean gradient ``(dim,)`` of L_val along sampled paths."""
        draw, network = objective.draw(), objective.start()
        alpha = self.alpha.requires_grad_()
        paths, scales = self._sample(objective.supernet.space, alpha, self._progress)
        slopes = []
        for path, scale in zip(paths, scales.detach(), strict=True):  # the memory of one path
            loss = objective.val_loss(network, path, draw, scales=scale.requires_grad_())
            # A path of which no operation is connected does not depend on alpha.
            slopes += torch.autograd.grad(loss, scale, materialize_grads=True)
        return torch.autograd.grad(scales, alpha, torch.stack(slopes) / len(slopes))[0]

    def training_paths(self, space: SearchSpace, progress: float) -> list[Path]:
        """Return sampled paths."""
        with torch.no_grad():
            return self._sample(space, self.alpha, progress)[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method and the generator."""
        return super().state_dict() | {"noise": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self._generator.set_state(state["noise"].cpu())

    def _sample(
        self, space: SearchSpace, alpha: Tensor, progress: float
    ) -> tuple[list[Path], Tensor]:
        """Return paths, and the factors of the outputs of their edges ``(n, n_edges)``."""
        choices, scales = self._choose(space, alpha, temperature(progress))
        return [tuple(choice) for choice in choices.tolist()], scales

    def _choose(
        self, space: SearchSpace, alpha: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Return the entries of sampled paths, and the factors of their edges.

        Both are ``(n, n_edges)``.
        """
        n_entries = sum(space.sizes)
        noise = self._noise(n_entries, alpha)
        choices, scales = sampled_operations(space, alpha[:n_entries], noise, temperature)
        return choices, scales * space.edge_factors(alpha)

    def _noise(self, n: int, like: Tensor) -> Tensor:
        """Return Gumbel noise ``(n_paths, n)``."""
        # Drawn on the CPU, so that a seed gives the same paths on every device.
        uniform = torch.empty(self._n_paths, n).exponential_(generator=self._generator)
        return to_device([-uniform.log()], like.device)[0].to(like.dtype)
