"""Convergence of a search: what the networks of its epochs come to (paper, section 5.1 and Fig. 2).

The genotype of every k-th epoch is retrained from scratch, into ``RUN/convergence/epoch-<number>``.
A method converges if the test accuracy settles at a high value; the supernet's accuracy does not
say so (Bi et al., 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.analyses.run_once import retraining_of, train_once
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.retraining.retrain import TrainResult
from zoopt_nas.nas.runs.folder import ARCHITECTURES, METRICS, RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig

EVERY = 25  # paper 5.1: of 200 epochs


@dataclass(frozen=True)
class Retraining:
    """One retraining that the analysis needs.

    Attributes:
        epoch: of the search, counted from 1.
        config: its settings, with the genotype of that epoch.
        val_accuracy: of the supernet after that epoch, in [0, 1].
        run_dir: its folder. Epochs with one and the same genotype share a folder.
    """

    epoch: int
    config: TrainConfig
    val_accuracy: float
    run_dir: Path


@dataclass(frozen=True)
class ConvergencePoint:
    """What the network of one epoch came to.

    Attributes:
        epoch: of the search, counted from 1.
        test_accuracy: of the retrained network, in [0, 1].
        n_parameters: of the retrained network, without the auxiliary head.
        val_accuracy: of the supernet after that epoch, in [0, 1].
        skip_connections: edges of the normal cell, in [0, 8].
        genotype: in its published string form.
        run_dir: the retraining.
    """

    epoch: int
    test_accuracy: float
    n_parameters: int
    val_accuracy: float
    skip_connections: int
    genotype: str
    run_dir: Path


def plan_retrainings(
    folder: RunFolder, *, every: int = EVERY, name: str = "convergence", **settings: Any
) -> list[Retraining]:
    """The retrainings of the genotypes of epochs ``every``, 2 ``every``, ...; nothing is run yet.

    Args:
        folder: of a search, finished or not.
        every: epochs from one retrained genotype to the next.
        name: of the folder in the run folder that they go into.
        settings: of the retrainings, over the data and the seed of the search and the defaults of
            ``TrainConfig``.

    Raises:
        InvalidValueError: ``every`` is not positive, or the search has no such epoch yet.
        UnknownNameError: there is no such setting.
        RunError: the folder is not that of a search.
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
        genotype = Genotype.from_dict(row["genotype"])
        # The same network with the same seed would only be trained twice.
        run_dir = folders.setdefault(str(genotype), folder.path / name / f"epoch-{epoch:03d}")
        config = retraining_of(search, genotype, **settings)
        plan.append(Retraining(epoch, config, accuracies[row["epoch"]], run_dir))
    return plan


def run_retrainings(
    plan: Iterable[Retraining], *, observer: Observer | None = None
) -> Iterator[ConvergencePoint]:
    """Does what is left of a plan, and gives each point as it is known.

    Raises:
        RunError: a folder is that of another retraining.
        RunInterrupted: the observer asked to stop. Run the same plan again to go on.
    """
    for retraining in plan:
        result = train_once(retraining.config, retraining.run_dir, observer=observer)
        yield _point(retraining, result)


def _point(retraining: Retraining, result: TrainResult) -> ConvergencePoint:
    return ConvergencePoint(
        epoch=retraining.epoch,
        test_accuracy=result.test_accuracy,
        n_parameters=result.n_parameters,
        val_accuracy=retraining.val_accuracy,
        skip_connections=Genotype.load(result.genotype).count("skip_connect"),
        genotype=result.genotype,
        run_dir=retraining.run_dir,
    )
