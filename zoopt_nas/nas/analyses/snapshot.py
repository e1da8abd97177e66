"""A search at its last checkpoint, and its bilevel loss on fixed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from zoopt_nas.errors import RunError
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.evaluation import Draw
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.settings.config import SearchConfig

GRADIENT_INNER = ("first", "second")  # other approximations are numbers of inner steps
MAX_VAL_BATCHES = 16

Loss = Callable[[Tensor], Tensor]
"""Maps alphas ``(n, dim)`` to losses ``(n,)``."""


class Snapshot(Search):
    """A search at its last checkpoint, opened for measurements; it does not continue.

    Raises:
        RunError: the folder holds no search, or no usable checkpoint.
    """

    def __init__(self, folder: RunFolder) -> None:
        config = folder.config(SearchConfig)
        config = config.replace(candidate_devices=None)  # measured in this process
        super().__init__(config, prepare(config, record=folder.data()), space=folder.space())
        self.folder = folder
        if not self.load_checkpoint():
            raise RunError(f"{folder.path} has no checkpoint yet, so there are no weights")
        self.supernet.train()

    def draws(self, n: int, *, n_train: int, n_val: int | None, noise_seed: int) -> list[Draw]:
        """Return ``n`` draws with different training batches and the same validation batches.

        The batches are the next ones of the search; ``n_val`` None is one pass over the validation
        part, at most 16 batches.
        """
        if n_val is None:
            n_val = min(self._streams["val"].n_batches, MAX_VAL_BATCHES)
        val = [self._streams["val"].next_batch() for _ in range(n_val)]
        return [
            Draw(
                train=[self._streams["inner"].next_batch() for _ in range(n_train)],
                val=val,
                noise_seed=noise_seed + 2 * k,  # a draw uses its seed, and the next to score
            )
            for k in range(n)
        ]

    def objective(self, inner: str, draws: Sequence[Draw]) -> BilevelObjective:
        """Return L_val, whose calls see ``draws`` in turn.

        Args:
            inner: the approximation of omega*: ``first``, ``second``, or a number of inner steps.
            draws: the batches, with at least one training batch per inner step.
        """
        is_gradient = inner in GRADIENT_INNER
        config = self.config if is_gradient else self.config.replace(inner_steps=int(inner))
        return BilevelObjective.from_config(
            self.supernet,
            self._optimizer,
            self._streams["inner"],
            self._streams["val"],
            config.replace(score="loss"),
            seed=0,  # not used, since the draws are fixed
            inner=inner if is_gradient else "sgd",
            execution=self.setup.execution,
            fixed=draws,
        )


def on_each(objective: BilevelObjective, n_draws: int) -> list[Loss]:
    """Return L_val on each of its fixed draws.

    Without inner steps the draws do not differ, and one is left.
    """
    draws = [objective.draw() for _ in range(n_draws)]  # with the batches that it needs
    needed = draws[:1] if objective.inner == "first" else draws
    return [partial(objective, draw=draw) for draw in needed]


def mean_loss(objective: BilevelObjective, n_draws: int) -> Loss:
    """Return the mean of L_val over its fixed draws, as a function of alphas ``(n, dim)``."""
    losses = on_each(objective, n_draws)
    return lambda alphas: torch.stack([loss(alphas) for loss in losses]).mean(0)
