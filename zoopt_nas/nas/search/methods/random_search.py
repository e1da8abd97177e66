"""The random baselines: a random architecture, and random search with weight sharing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.networks.space import Path, SearchSpace
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.updater import AlphaUpdater, EpochEnd, Metrics, Verdict
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.methods import RANDOM

# Li and Talwalkar: 1000 architectures on one batch, the best 10 on the whole validation part.
N_SAMPLES, N_FINALISTS = 1000, 10
# After other epochs, to monitor the search; not part of the method.
N_SAMPLES_IN_BETWEEN, N_BATCHES_IN_BETWEEN = 10, 10


class RandomArchitecture(AlphaUpdater):
    """A random architecture; nothing is trained.

    Alpha is standard normal. In all published spaces, every operation other than ``none`` and every
    pair of edges into a node are equally likely.
    """

    kind = RANDOM
    trains = False
    follows_paths = True

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None:
        self._draws = torch.Generator().manual_seed(seed)
        self._alpha = self._draw(alpha).to(alpha.device)

    @property
    def alpha(self) -> Tensor:
        """The drawn architecture parameters ``(dim,)``."""
        return self._alpha

    def move_to(self, alpha: Tensor) -> None:
        """Set alpha."""
        self._alpha = alpha.to(self._alpha, copy=True)

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Do nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return alpha and the generator."""
        return {"alpha": self._alpha, "draws": self._draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._alpha = state["alpha"].to(self._alpha.device)
        self._draws.set_state(state["draws"].cpu())

    def _draw(self, like: Tensor) -> Tensor:
        """Return a random alpha on the CPU."""
        return torch.randn(like.shape, generator=self._draws).to(like.dtype)


class WeightSharingSearch(RandomArchitecture):
    """Random search with weight sharing (Li and Talwalkar, 2019).

    Every weight step trains one random architecture. At the end, random architectures are compared
    with the shared weights (section 3.2). Only the operations of the architecture are computed.
    """

    trains = True
    trains_paths = True

    def training_paths(self, space: SearchSpace, progress: float) -> list[Path]:
        """Return the path of a random architecture."""
        return [_path(space, self._draw(self._alpha))]

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Take the best of many architectures; a non-finite loss counts as failed."""
        objective, space = end.objective, end.objective.supernet.space
        n = N_SAMPLES if end.is_last else N_SAMPLES_IN_BETWEEN
        alphas = [self._draw(self._alpha) for _ in range(n)]
        draw = objective.draw()
        losses = torch.stack([objective.path_loss(_path(space, alpha), draw) for alpha in alphas])
        ranks, n_finite = _ranks(losses)
        finalists = [alphas[k] for k in ranks[: min(n_finite, N_FINALISTS)]]
        if finalists:
            paths = [_path(space, alpha) for alpha in finalists]
            ranks, n_final = _ranks(_final_losses(paths, end))
            if n_final:
                self._alpha = finalists[ranks[0]].to(self._alpha.device)
                return Verdict(n_tried=n, n_failed=n - n_finite)
        return Verdict(n_tried=n, n_failed=n)


def _ranks(losses: Tensor) -> tuple[list[int], int]:
    """Return the order of ``losses`` ``(n,)``, non-finite ones last, and the number of others."""
    is_finite = torch.isfinite(losses)
    order = torch.where(is_finite, losses, torch.inf).argsort(stable=True)
    return order.tolist(), int(is_finite.sum())


def _final_losses(paths: list[Path], end: EpochEnd) -> Tensor:
    """Return the losses ``(n,)`` of architectures, all on the same batches and with the same noise.

    The batches are the whole validation part after the last epoch, else ``N_BATCHES_IN_BETWEEN``.
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
        if size > 1 or total is None:  # BatchNorm needs more than one image
            losses = torch.stack([objective.path_loss(path, draw) for path in paths])
            total = size * losses if total is None else total + size * losses
            n_images += size
    assert total is not None  # there is at least one batch
    return total / n_images


def _path(space: SearchSpace, alpha: Tensor) -> Path:
    """Return the path of the architecture of alpha."""
    return space.path(space.discretize(alpha))
