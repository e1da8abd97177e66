"""The baselines without a search: a random architecture, and random search with weight sharing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.data.transfer import to_device
from zoopt_nas.nas.networks.spaces import SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.updater import AlphaUpdater, EpochEnd, Metrics, Verdict
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.methods import RANDOM

# Li and Talwalkar: 1000 architectures on one batch, the best 10 on the whole validation part.
N_SAMPLES, N_FINALISTS = 1000, 10
# Ours: after the other epochs, to see where the search is.
N_SAMPLES_IN_BETWEEN, N_BATCHES_IN_BETWEEN = 10, 10


class RandomArchitecture(AlphaUpdater):
    """A random architecture; nothing is trained.

    Alpha is standard normal and never moves.
    Every operation other than ``none`` and every pair of edges into a node is as likely where all
    edges have as many candidates, as in all published spaces.

    Args:
        config: of the search.
        alpha: gives shape, dtype and device.
        seed: of the draw.
    """

    kind = RANDOM
    trains = False

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None:
        self._draws = torch.Generator().manual_seed(seed)
        self._alpha = self._draw(alpha).to(alpha.device)

    @property
    def alpha(self) -> Tensor:
        return self._alpha

    def move_to(self, alpha: Tensor) -> None:
        self._alpha = alpha.to(self._alpha, copy=True)

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
    """Random search with weight sharing (Li and Talwalkar, 2019).

    Every weight step trains the weights of one random architecture; at the end random
    architectures are compared with the shared weights (section 3.2). All operations are computed,
    those outside the architecture with weight 0.
    """

    trains = True

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        return self._weights(supernet.space, self._draw(self._alpha))

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Take the best of many architectures; one whose loss is not finite has failed."""
        objective, space = end.objective, end.objective.supernet.space
        n = N_SAMPLES if end.is_last else N_SAMPLES_IN_BETWEEN
        alphas = [self._draw(self._alpha) for _ in range(n)]
        draw = objective.draw()
        losses = torch.stack(
            [objective.mixture_loss(self._weights(space, alpha), draw) for alpha in alphas]
        )
        ranks, n_finite = _ranks(losses)
        finalists = [alphas[k] for k in ranks[: min(n_finite, N_FINALISTS)]]
        if finalists:
            tables = [self._weights(space, alpha) for alpha in finalists]
            ranks, n_final = _ranks(_final_losses(tables, end))
            if n_final:
                self._alpha = finalists[ranks[0]].to(self._alpha.device)
                return Verdict(n_tried=n, n_failed=n - n_finite)
        return Verdict(n_tried=n, n_failed=n)

    def _weights(self, space: SearchSpace, alpha: Tensor) -> Tensor:
        """The architecture weights of an alpha of the host, beside those of the search."""
        return to_device([one_hot(space, alpha).to(alpha.dtype)], self._alpha.device)[0]


def _ranks(losses: Tensor) -> tuple[list[int], int]:
    """The order of ``losses`` ``(n,)``, least first and not finite last; how many are finite."""
    is_finite = torch.isfinite(losses)
    order = torch.where(is_finite, losses, torch.inf).argsort(stable=True)
    return order.tolist(), int(is_finite.sum())


def _final_losses(tables: list[Tensor], end: EpochEnd) -> Tensor:
    """The losses ``(n,)`` of architectures; all see the same batches and the same noise.

    After the last epoch they are those of the whole validation part, after the others those of
    ``N_BATCHES_IN_BETWEEN`` batches of L_val.
    """
    objective = end.objective
    if end.is_last:
        draw = objective.draw()
        draws = (draw._replace(val=[batch]) for batch in end.val_batches())
    else:
        draws = (objective.draw() for _ in range(N_BATCHES_IN_BETWEEN))
    total: Tensor | None = None
    n_images = 0
    for draw in draws:
        size = sum(len(labels) for _, labels in draw.val)
        if size > 1 or total is None:  # BatchNorm cannot take a rest of one image
            losses = torch.stack([objective.mixture_loss(table, draw) for table in tables])
            total = size * losses if total is None else total + size * losses
            n_images += size
    assert total is not None  # no stream of batches is empty
    return total / n_images


def one_hot(space: SearchSpace, alpha: Tensor) -> Tensor:
    """The architecture weights of a discrete architecture: 1 for what it has, 0 for the rest.

    Args:
        space: in which ``alpha`` stands for it.
        alpha: ``(dim,)``.

    Returns:
        ``(2 n_edges, max candidates)`` on the CPU, as ``Supernet.mix`` takes it.
    """
    return space.edge_table(space.discretize(alpha))
