"""A search at its last checkpoint, and its bilevel loss on fixed batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoopt_nas.errors import RunError
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.settings.config import SearchConfig

GRADIENT_INNER = ("first", "second")  # other approximations are numbers of inner steps
MAX_VAL_BATCHES = 16


class DrawnObjective(BilevelObjective):
    """The bilevel loss on fixed draws: a call without a draw returns the mean over all of them.

    ``draw`` returns them in turn, so the updates of a method see one draw each, as in a search.
    """

    _draws: Sequence[Draw] = ()
    _turn = 0

    def fix(self, draws: Sequence[Draw]) -> None:
        """Set the draws, each with at least one training batch per inner step."""
        self._draws, self._turn = draws, 0

    def draw(self) -> Draw:
        """Return the next draw, with as many training batches as there are inner steps."""
        self._fixed = self._draws[self._turn]
        self._turn = (self._turn + 1) % len(self._draws)
        return super().draw()

    def all_draws(self) -> list[Draw]:
        """Return every draw once."""
        return [self.draw() for _ in self._draws]

    def __call__(self, alphas: Tensor, draw: Draw | None = None) -> Tensor:
        """Return the losses ``(n,)`` on ``draw``; on None, their means over all draws."""
        draws = self.all_draws() if draw is None else [draw]
        losses = [BilevelObjective.__call__(self, alphas, one) for one in draws]
        return torch.stack(losses).mean(0)


class Snapshot(Search):
    """A search at its last checkpoint, opened for measurements; it does not continue.

    Raises:
        RunError: the folder holds no search, or no usable checkpoint.
    """

    def __init__(self, folder: RunFolder) -> None:
        config = folder.config(SearchConfig)
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

    def objective(self, inner: str, draws: Sequence[Draw]) -> DrawnObjective:
        """Return L_val, averaged over ``draws``.

        Args:
            inner: the approximation of omega*: ``first``, ``second``, or a number of inner steps.
                ``first`` trains nothing, so it uses the first draw only.
            draws: the batches, with at least one training batch per inner step.
        """
        is_gradient = inner in GRADIENT_INNER
        config = self.config if is_gradient else self.config.replace(inner_steps=int(inner))
        objective = DrawnObjective.from_config(
            self.supernet,
            self._optimizer,
            self._streams["inner"],
            self._streams["val"],
            config,
            seed=0,  # not used, since the draws are fixed
            inner=inner if is_gradient else "sgd",
            execution=self.setup.execution,
        )
        objective.fix(draws[:1] if inner == "first" else draws)
        return objective
