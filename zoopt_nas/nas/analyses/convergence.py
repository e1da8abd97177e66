"""Convergence of a search: retrain the genotype of every k-th epoch (paper, 5.1 and Fig. 2).

Each retraining goes into ``RUN/convergence/epoch-<number>``. A method converges if the test
accuracy settles at a high value; the supernet's accuracy does not show this (Bi et al., 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.analyses.run_once import retraining_of, train_once
from zoopt_nas.nas.networks.architectures import architecture_from_dict, load_architecture
from zoopt_nas.nas.runs.folder import ARCHITECTURES, METRICS, RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig

EVERY = 25  # paper 5.1: of 200 epochs


@dataclass(frozen=True)
class Retraining:
    """One retraining of the analysis."""

    epoch: int  # of the search, from 1
    config: TrainConfig  # with the genotype of that epoch
    val_accuracy: float  # of the supernet after that epoch, in [0, 1]
    run_dir: Path  # the same for epochs with the same genotype


@dataclass(frozen=True)
class ConvergencePoint:
    """The result of the retraining for one epoch."""

    epoch: int  # of the search, from 1
    test_accuracy: float  # in [0, 1]
    n_parameters: int  # without the auxiliary head
    val_accuracy: float  # of the supernet after that epoch, in [0, 1]
    skip_connections: int  # in the normal cell
    genotype: str  # in its published string form
    run_dir: Path


def plan_retrainings(
    folder: RunFolder, *, every: int = EVERY, name: str = "convergence", **settings: Any
) -> list[Retraining]:
    """Return the retrainings of epochs ``every``, 2 ``every``, ... without running them.

    Args:
        folder: of a search, finished or not.
        every: number of epochs between two retrained genotypes.
        name: of the folder of the retrainings, in the run folder.
        settings: of the retrainings; data and seed default to the search's.

    Raises:
        InvalidValueError: ``every`` is not positive, or the search has no such epoch yet.
        UnknownNameError: there is no such setting.
        RunError: the folder does not hold a search.
    """
    if every < 1:
        raise InvalidValueError(f"every must be a positive integer, got {every}")
    search = folder.config(SearchConfig)
    accuracies = {row["epoch"]: row["val_accuracy"] for row in folder.rows(METRICS)}
    rows = [row for row in folder.rows(ARCHITECTURES) if (row["epoch"] + 1) % every == 0]
    if not rows:
        raise InvalidValueError(
            f"every must be at most the number of epochs of {folder.path} "
            f"({len(accuracies)}), got {every}"
        )
    plan: list[Retraining] = []
    folders: dict[str, Path] = {}
    for row in rows:
        epoch = row["epoch"] + 1
        genotype = architecture_from_dict(row["genotype"])
        # The same genotype with the same seed is trained once.
        run_dir = folders.setdefault(str(genotype), folder.path / name / f"epoch-{epoch:03d}")
        config = retraining_of(search, genotype, **settings)
        plan.append(Retraining(epoch, config, accuracies[row["epoch"]], run_dir))
    return plan


def run_retrainings(
    plan: Iterable[Retraining], *, observer: Observer | None = None
) -> Iterator[ConvergencePoint]:
    """Run what is left of a plan, and yield each point as soon as it is known.

    Raises:
        RunError: a folder holds another retraining.
        RunInterrupted: the observer stopped a run; running the plan again continues it.
    """
    for retraining in plan:
        result = train_once(retraining.config, retraining.run_dir, observer=observer)
        yield ConvergencePoint(
            epoch=retraining.epoch,
            test_accuracy=result.test_accuracy,
            n_parameters=result.n_parameters,
            val_accuracy=retraining.val_accuracy,
            skip_connections=load_architecture(result.genotype).count("skip_connect"),
            genotype=result.genotype,
            run_dir=retraining.run_dir,
        )
