"""A search to be looked at: its last checkpoint, and the bilevel loss on fixed batches."""

from __future__ import annotations

from zoopt_nas.errors import RunError
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.settings.config import SearchConfig

GRADIENT_INNER = ("first", "second")  # the other approximations are numbers of inner steps
MAX_VAL_BATCHES = 16


class Snapshot(Search):
    """A search at its last checkpoint, to be looked at; it does not go on.

    Raises:
        RunError: the folder holds no search, or no checkpoint that can be used.
    """

    def __init__(self, folder: RunFolder) -> None:
        config = folder.config(SearchConfig)
        super().__init__(config, prepare(config, record=folder.data()), space=folder.space())
        self.folder = folder
        if not self.load_checkpoint():
            raise RunError(f"{folder.path} has no checkpoint yet, so there are no weights")
        self.supernet.train()

    def draw_once(self, n_train: int, n_val: int | None, noise_seed: int) -> Draw:
        """Returns the next batches of the search; ``n_val`` None = all of a pass, at most 16."""
        if n_val is None:
            n_val = min(self._streams["val"].n_batches, MAX_VAL_BATCHES)
        return Draw(
            train=[self._streams["inner"].next_batch() for _ in range(n_train)],
            val=[self._streams["val"].next_batch() for _ in range(n_val)],
            noise_seed=noise_seed,
        )

    def objective(self, inner: str, draw: Draw) -> BilevelObjective:
        """Returns L_val on the batches of ``draw``.

        Args:
            inner: the approximation of omega*: ``first``, ``second``, or a number of inner steps.
            draw: with as many training batches as that takes, or more.
        """
        is_gradient = inner in GRADIENT_INNER
        config = self.config if is_gradient else self.config.replace(inner_steps=int(inner))
        return BilevelObjective.from_config(
            self.supernet,
            self._optimizer,
            self._streams["inner"],
            self._streams["val"],
            config,
            seed=0,  # of draws, which are fixed
            inner=inner if is_gradient else "sgd",
            execution=self.setup.execution,
            fixed=draw,
        )
