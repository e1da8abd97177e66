"""The baselines without a search: a random architecture, and random search with weight sharing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.bilevel import BilevelObjective
from zoopt_nas.nas.config import SearchConfig
from zoopt_nas.nas.spaces import SearchSpace
from zoopt_nas.nas.supernet import Supernet
from zoopt_nas.nas.transfer import to_device
from zoopt_nas.nas.updaters import AlphaUpdater, EpochEnd, Metrics, Verdict

# Released code of Li and Talwalkar: 1000 architectures on one batch each, the best 10 on more.
N_SAMPLES, N_FINALISTS, N_FINAL_BATCHES = 1000, 10, 10
N_SAMPLES_IN_BETWEEN = 10  # ours: after the other epochs, to see where the search is


class RandomArchitecture(AlphaUpdater):
    """A random alpha, standard normal, that never moves: the architecture that it stands for.

    Every operation other than ``none`` and every pair of edges into a node is as likely where all
    edges have as many candidates, as in all published spaces.

    Args:
        config: of the search.
        alpha: gives shape, dtype and device.
        seed: of the draw.
    """

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None:
        if config.solver:
            raise InvalidValueError(
                f"solver must have no options with {config.algo}, which uses none of them, "
                f"got {', '.join(config.solver)}"
            )
        self._draws = torch.Generator().manual_seed(seed)
        self._alpha = self._draw(alpha).to(alpha.device)

    @property
    def alpha(self) -> Tensor:
        return self._alpha

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self._alpha, "draws": self._draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._alpha = state["alpha"].to(self._alpha.device)
        self._draws.set_state(state["draws"].cpu())

    def _draw(self, like: Tensor) -> Tensor:
        """A random alpha on the host, where architectures are made of it."""
        return torch.randn(like.shape, generator=self._draws).to(like.dtype)


class WeightSharingSearch(RandomArchitecture):
    """Random search with weight sharing (Li and Talwalkar, 2019, section 3.2).

    Every weight step trains the weights of one random architecture; at the end random
    architectures are compared with the shared weights. All operations are computed, those outside
    the architecture with weight 0.
    """

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        return self._weights(supernet.space, self._draw(self._alpha))

    def end_epoch(self, end: EpochEnd) -> Verdict:
        n = N_SAMPLES if end.is_last else N_SAMPLES_IN_BETWEEN
        alphas = [self._draw(self._alpha) for _ in range(n)]
        for n_batches, n_left in ((1, N_FINALISTS), (N_FINAL_BATCHES, 1)):
            draws = [end.objective.draw() for _ in range(n_batches)]
            losses = torch.stack(
                [
                    torch.stack([self._loss(end.objective, alpha, draw) for draw in draws]).mean()
                    for alpha in alphas
                ]
            )
            ranks = torch.nan_to_num(losses, nan=torch.inf).argsort(stable=True)
            alphas = [alphas[k] for k in ranks[:n_left].tolist()]
        self._alpha = alphas[0].to(self._alpha.device)
        return Verdict()

    def _loss(self, objective: BilevelObjective, alpha: Tensor, draw: Any) -> Tensor:
        return objective.mixture_loss(self._weights(objective.supernet.space, alpha), draw)

    def _weights(self, space: SearchSpace, alpha: Tensor) -> Tensor:
        """The architecture weights of an alpha of the host, beside those of the search."""
        return to_device([one_hot(space, alpha).to(alpha.dtype)], self._alpha.device)[0]


def one_hot(space: SearchSpace, alpha: Tensor) -> Tensor:
    """The architecture weights of a discrete architecture: 1 for what it has, 0 for the rest.

    Args:
        space: in which ``alpha`` stands for it.
        alpha: ``(dim,)``.

    Returns:
        ``(2 n_edges, max candidates)`` on the CPU, as ``Supernet.mix`` takes it.
    """
    return space.edge_table(space.discretize(alpha))
