"""Runs that are done one after the other, each in a folder of its own.

A run that has ended is kept, one that was stopped goes on, and one that is not there is done: a
series of runs that was interrupted is asked for again as it was.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.config import RunConfig, SearchConfig, TrainConfig
from zoopt_nas.nas.genotype import Genotype
from zoopt_nas.nas.loop import Observer
from zoopt_nas.nas.retrain import TrainResult, resume_training, run_training
from zoopt_nas.nas.runs import RunFolder
from zoopt_nas.nas.search import resume_search, run_search

# What a retraining takes over from the search that found its genotype. Not n_train: the network is
# trained on all training images unless told otherwise.
FROM_SEARCH = (
    *("dataset", "seed", "data_dir", "download", "image_size"),
    *("device", "threads", "amp", "compile", "channels_last", "native"),
)

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def retraining_of(search: SearchConfig, genotype: Genotype, /, **settings: Any) -> TrainConfig:
    """The retraining of a genotype that a search found: its data and seed, unless set otherwise.

    Args:
        search: where it was found; the protocol ``rdarts`` has its sizes by data set and space.
        genotype: the architecture.
        **settings: as ``TrainConfig.for_dataset`` takes them, ``protocol`` too.

    Raises:
        UnknownNameError, InvalidValueError: a setting is wrong.
    """
    if "genotype" in settings:
        raise InvalidValueError(
            f"genotype must be left to the search that is retrained, got {settings['genotype']}"
        )
    fields = {name: getattr(search, name) for name in FROM_SEARCH} | settings
    return TrainConfig.for_dataset(**{"space": search.space, **fields, "genotype": str(genotype)})


def search_once(
    config: SearchConfig, run_dir: str | Path, *, observer: Observer | None = None
) -> RunFolder:
    """The folder of the finished search that ``config`` describes, after what is left of it.

    Raises:
        RunError: the folder is that of another run.
    """
    path = Path(run_dir)
    if not os.path.lexists(path):
        run_search(config, run_dir=path, observer=observer)
        return RunFolder.open(path)
    folder = _open_as(path, config)
    if not (path / "genotype.json").is_file():
        resume_search(path, observer=observer)
    return folder


def train_once(
    config: TrainConfig, run_dir: str | Path, *, observer: Observer | None = None
) -> TrainResult:
    """The result of the finished retraining that ``config`` describes, after what is left of it.

    Raises:
        RunError: the folder is that of another run, or its result is damaged.
    """
    path = Path(run_dir)
    if not os.path.lexists(path):
        return run_training(config, run_dir=path, observer=observer)
    _open_as(path, config)
    result = path / "result.json"
    if not result.is_file():
        return resume_training(path, observer=observer)
    try:
        return TrainResult(**json.loads(result.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(f"{result} is not the result of a retraining") from error


def _open_as(path: Path, config: RunConfig) -> RunFolder:
    """The run folder at ``path``, if its settings are those of ``config``."""
    folder = RunFolder.open(path)
    there = folder.config(type(config))
    for name, value in vars(config).items():
        if getattr(there, name) != value:
            raise RunError(
                f"{path} is a run with {name} {getattr(there, name)}, not {value}; "
                "name another folder, or leave the setting as it was"
            )
    return folder
