"""Diagnostics of searches: curves by epoch (Fig. 4) and the condition number Q (Eq. 11).

Nothing here writes into a run folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoopt_nas.diagnostics import ConditionNumber, condition_numbers
from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.analyses.snapshot import Snapshot, on_each
from zoopt_nas.nas.runs.folder import METRICS, RunFolder
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.execution import cpu_threads

COLUMNS = ("n_effective", "effective_ratio", "selection_ratio", "eigenvalue", "skip_connections")
N_DIRECTIONS = 50  # of the paper's released script, which has the radius 0.01
RADII = (0.001, 0.01, 0.1, 1.0)
N_DRAWS = 4


@dataclass(frozen=True)
class EpochCurves:
    """The diagnostics of a search by epoch."""

    n_samples: int | None  # N, if the config sets it
    epochs: list[int]  # counted from 1
    columns: dict[str, list[float | None]]  # by name of COLUMNS; None where a row has no number


def epoch_curves(folder: RunFolder) -> EpochCurves:
    """Read N_e, R_e, selection ratio, dominant eigenvalue and skip connections of a search.

    Raises:
        RunError: the folder does not hold a search, or no epoch has ended.
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


def run_condition_numbers(
    folder: RunFolder,
    *,
    n_directions: int = N_DIRECTIONS,
    radii: Sequence[float] = RADII,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> dict[str, list[ConditionNumber]]:
    """Return Q (Eq. 11) at the end of a search, for omega* by ``sgd``, ``second`` and ``first``.

    All losses start from the same weights and use the same steps, validation batches and
    directions; all losses of a draw use the same training batches. ``first`` trains nothing, so it
    has a single draw.

    Args:
        folder: of the search.
        n_directions: K.
        radii: norms of the perturbations.
        n_draws: number of draws of the training batches, over which the losses are averaged.
        seed: of the directions.

    Raises:
        RunError: the checkpoint cannot be used.
        InvalidValueError: a number is out of range, or there is no radius.
    """
    if n_directions < 1 or n_draws < 1:
        raise InvalidValueError(
            f"n_directions and n_draws must be positive, got {n_directions} and {n_draws}"
        )
    if not radii or not all(0 < radius < math.inf for radius in radii):
        raise InvalidValueError(
            f"radii must be positive and finite, got {', '.join(map(str, radii)) or 'none'}"
        )
    config = folder.config(SearchConfig)
    with cpu_threads(config.threads):
        search = Snapshot(folder)
        n_steps = max(config.inner_steps, 1)
        draws = search.draws(n_draws, n_train=n_steps, n_val=config.val_batches, noise_seed=seed)
        found = {}
        for name, inner in (("sgd", str(n_steps)), ("second", "second"), ("first", "first")):
            objective = search.objective(inner, draws)
            found[name] = condition_numbers(
                on_each(objective, len(draws)),
                search.alpha,
                radii=radii,
                n_directions=n_directions,
                rng=seed,
                vectorized=True,
            )
        return found
