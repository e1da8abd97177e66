"""A search at its last checkpoint, and its bilevel loss on fixed batches."""

from __future__ import annotations

from zoopt_nas.errors import RunError
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.settings.config import SearchConfig

GRADIENT_INNER = ("first", "second")  # other approximations are numbers of inner steps
MAX_VAL_BATCHES = 16


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

    def draw_once(self, n_train: int, n_val: int | None, noise_seed: int) -> Draw:
        """Return the next batches; ``n_val`` None is one pass, at most 16 batches."""
        if n_val is None:
            n_val = min(self._streams["val"].n_batches, MAX_VAL_BATCHES)
        return Draw(
            train=[self._streams["inner"].next_batch() for _ in range(n_train)],
            val=[self._streams["val"].next_batch() for _ in range(n_val)],
            noise_seed=noise_seed,
        )

    def objective(self, inner: str, draw: Draw) -> BilevelObjective:
        """Return L_val on the batches of ``draw``.

        Args:
            inner: the approximation of omega*: ``first``, ``second``, or a number of inner steps.
            draw: the batches, with at least one training batch per inner step.
        """
        is_gradient = inner in GRADIENT_INNER
        config = self.config if is_gradient else self.config.replace(inner_steps=int(inner))
        return BilevelObjective.from_config(
            self.supernet,
            self._optimizer,
            self._streams["inner"],
            self._streams["val"],
            config.replace(score="loss"),
            seed=0,  # not used, since the draw is fixed
            inner=inner if is_gradient else "sgd",
            execution=self.setup.execution,
            fixed=draw,
        )
