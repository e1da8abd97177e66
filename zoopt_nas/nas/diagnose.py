"""What searches say of their method: curves by epoch (Fig. 4) and condition number Q (Eq. 11).

Nothing here writes into a run folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from zoopt_nas.diagnostics import condition_number
from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.bilevel import BilevelObjective
from zoopt_nas.nas.config import SearchConfig
from zoopt_nas.nas.execution import Execution, cpu_threads
from zoopt_nas.nas.loop import load_run_dataset
from zoopt_nas.nas.runs import METRICS, RunFolder
from zoopt_nas.nas.search import Search

COLUMNS = ("n_effective", "effective_ratio", "eigenvalue", "skip_connections")
N_DIRECTIONS, RADIUS = 50, 0.01  # of the paper's released script


@dataclass(frozen=True)
class EpochCurves:
    """The diagnostics of a search by epoch.

    Attributes:
        n_samples: N; None if the solver's default or none.
        epochs: counted from 1.
        columns: by name of ``COLUMNS``, a number for each epoch, None where there is none.
    """

    n_samples: int | None
    epochs: list[int]
    columns: dict[str, list[float | None]]


def epoch_curves(folder: RunFolder) -> EpochCurves:
    """Reads N_e, R_e, the dominant eigenvalue and the skip connections of a search.

    Raises:
        RunError: the folder is not that of a search, or no epoch has ended.
    """
    config = folder.config(SearchConfig)
    rows = folder.rows(METRICS)
    if not rows:
        raise RunError(f"{folder.path} has no epoch to read yet")
    return EpochCurves(
        config.solver.get("n_samples"),
        [row["epoch"] + 1 for row in rows],
        {name: [row.get(name) for row in rows] for name in COLUMNS},
    )


class TrainedSearch(Search):
    """A search as its last checkpoint left it, to be measured: it takes no step."""

    @classmethod
    def load(cls, folder: RunFolder) -> TrainedSearch:
        """Reads the checkpoint.

        Raises:
            RunError: there is none, or it does not belong to the config.
        """
        config = folder.config(SearchConfig)
        search = cls(config, load_run_dataset(config, ("train",)))
        state = folder.load_checkpoint(search.device)
        if state is None:
            raise RunError(f"{folder.path} has no checkpoint to measure")
        try:
            search.load_own_state(state["own"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RunError(f"the checkpoint in {folder.path} is not that of its config") from error
        return search

    def condition_numbers(self, *, n_directions: int, radius: float, seed: int) -> dict[str, float]:
        """Q (Eq. 11) at the current alpha with each approximation of omega*, by its name.

        The base loss is fitted as the perturbed ones are: from the same weights, on the same
        batches, by the same steps. Directions and validation batches are those of all three.
        """
        config = self.config
        numbers: dict[str, float] = {}
        shared: Any = None
        for inner, n_steps in (("sgd", config.inner_steps), ("second", 1), ("first", 0)):
            objective = BilevelObjective.from_config(
                self.supernet,
                self._optimizer,
                self._streams["inner"],
                self._streams["val"],
                config.replace(reuse_fits=False),
                seed=seed,
                inner=inner,
                execution=Execution.from_config(config, self.device),
            )
            if shared is None:
                shared = objective.draw()
            own = objective.draw() if n_steps > len(shared.train) else shared
            draw = shared._replace(train=own.train[:n_steps])
            numbers[inner] = condition_number(
                partial(objective, draw=draw),
                self.alpha,
                radius=radius,
                n_directions=n_directions,
                rng=seed,
                vectorized=True,
            )
        return numbers


def run_condition_numbers(
    folder: RunFolder, *, n_directions: int = N_DIRECTIONS, radius: float = RADIUS, seed: int = 0
) -> dict[str, float]:
    """Q (Eq. 11) at the end of a search, for ``sgd``, ``second`` and ``first``.

    Args:
        folder: of the search.
        n_directions: K.
        radius: norm of each perturbation.
        seed: of the directions.

    Raises:
        RunError: the checkpoint cannot be used.
        InvalidValueError: a number is out of range.
    """
    if n_directions < 1 or not radius > 0:
        raise InvalidValueError(
            f"n_directions and radius must be positive, got {n_directions} and {radius}"
        )
    with cpu_threads(folder.config(SearchConfig).threads):
        return TrainedSearch.load(folder).condition_numbers(
            n_directions=n_directions, radius=radius, seed=seed
        )
