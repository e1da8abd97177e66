"""Diagnostics of searches: curves by epoch (Fig. 4) and the condition number Q (Eq. 11).

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
    """The diagnostics of a search by epoch."""

    n_samples: int | None  # N, if the config sets it
    epochs: list[int]  # counted from 1
    columns: dict[str, list[float | None]]  # by name of COLUMNS; None where a row has no number


def epoch_curves(folder: RunFolder) -> EpochCurves:
    """Read N_e, R_e, the dominant eigenvalue and the skip connections of a search.

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
    folder: RunFolder, *, n_directions: int = N_DIRECTIONS, radius: float = RADIUS, seed: int = 0
) -> dict[str, float]:
    """Return Q (Eq. 11) at the end of a search, for omega* by ``sgd``, ``second`` and ``first``.

    All losses start from the same weights and use the same batches, steps and directions.

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
