"""What searches say of their method: curves by epoch (Fig. 4) and condition number Q (Eq. 11).

Nothing here writes into a run folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from zoopt_nas.diagnostics import condition_number
from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.analyses.snapshot import Snapshot
from zoopt_nas.nas.runs.folder import METRICS, RunFolder
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.execution import cpu_threads

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


def run_condition_numbers(
    folder: RunFolder, *, n_directions: int = N_DIRECTIONS, radius: float = RADIUS, seed: int = 0
) -> dict[str, float]:
    """Q (Eq. 11) at the end of a search, for omega* by ``sgd``, ``second`` and ``first``.

    The base loss is fitted as the perturbed ones are: from the same weights, on the same batches,
    by the same steps. Directions and validation batches are those of all three.

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
    config = folder.config(SearchConfig)
    with cpu_threads(config.threads):
        search = Snapshot(folder)
        n_steps = max(config.inner_steps, 1)
        draw = search.draw_once(n_steps, config.val_batches, seed)
        return {
            name: condition_number(
                search.objective(inner, draw),
                search.alpha,
                radius=radius,
                n_directions=n_directions,
                rng=seed,
                vectorized=True,
            )
            for name, inner in (("sgd", str(n_steps)), ("second", "second"), ("first", "first"))
        }
