"""Runs that are done one after the other, each in a folder of its own.

A run that has ended is kept, one that was stopped goes on, and one that is not there is done: a
series of runs that was interrupted is asked for again as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import torch

from zoopt_nas.errors import InvalidValueError, MissingDataError, RunError
from zoopt_nas.nas.data.datasets import DATASETS
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.retraining.retrain import TrainResult, resume_training, run_training
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.setup import load_images
from zoopt_nas.nas.search.algorithm import resume_search, run_search
from zoopt_nas.nas.settings.config import RunConfig, SearchConfig, TrainConfig

# What a retraining takes over from the search that found its genotype. Not n_train: the network is
# trained on all training images unless told otherwise.
_OF_DATA = ("dataset", "seed", "data_dir", "download", "image_size")
_OF_EXECUTION = ("device", "threads", "amp", "compile", "channels_last", "cpu_kernels")

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def settings_from(run: RunConfig, dataset: str | None = None) -> dict[str, Any]:
    """What a retraining takes over from the run that its genotype is of.

    Args:
        run: a search or a retraining.
        dataset: of the new retraining; None is that of ``run``. Another data set has its own seed,
            folder and image size: then only how the run was executed is taken over.
    """
    same = dataset is None or _is_same(run.dataset, dataset)
    names = (*_OF_DATA, *_OF_EXECUTION) if same else _OF_EXECUTION
    return {name: getattr(run, name) for name in names}


def _is_same(dataset: str, other: str) -> bool:
    """Whether two texts name the same data set: one name, or one path in two spellings."""
    if dataset in DATASETS or other in DATASETS:
        return dataset == other
    return Path(dataset).expanduser().resolve() == Path(other).expanduser().resolve()


def retraining_of(search: SearchConfig, genotype: Genotype, /, **settings: Any) -> TrainConfig:
    """The retraining of a genotype that a search found: its data and seed, unless set otherwise.

    On other data it takes the seed, but not where the data are or how large the images; see
    ``settings_from``.

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
    fields = {"seed": search.seed, **settings_from(search, settings.get("dataset")), **settings}
    return TrainConfig.for_dataset(**{"space": search.space, **fields, "genotype": str(genotype)})


def search_once(
    config: SearchConfig, run_dir: str | Path, *, observer: Observer | None = None
) -> RunFolder:
    """The folder of the finished search that ``config`` describes, after what is left of it.

    Raises:
        RunError: the folder is that of another run.
        DataError: the finished run had other data than are there now.
    """
    path = Path(run_dir)
    if not os.path.lexists(path):
        run_search(config, run_dir=path, observer=observer)
        return RunFolder.open(path)
    folder = _open_as(path, config)
    if (path / "genotype.json").is_file():
        _check_data(folder, config)
    else:
        resume_search(path, observer=observer)
    return folder


def train_once(
    config: TrainConfig, run_dir: str | Path, *, observer: Observer | None = None
) -> TrainResult:
    """The result of the finished retraining that ``config`` describes, after what is left of it.

    Raises:
        RunError: the folder is that of another run, or its result is damaged.
        DataError: the finished run had other data than are there now.
    """
    path = Path(run_dir)
    if not os.path.lexists(path):
        return run_training(config, run_dir=path, observer=observer)
    folder = _open_as(path, config)
    result = path / "result.json"
    if not result.is_file():
        return resume_training(path, observer=observer)
    _check_data(folder, config)
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


def _check_data(folder: RunFolder, config: RunConfig) -> None:
    """Refuses a finished run beside others that would have other data.

    Where the data are gone there is nothing to compare: a finished run needs them no more.
    """
    splits = ("train",) if isinstance(config, SearchConfig) else ("train", "test")
    with contextlib.suppress(MissingDataError):
        images = load_images(config, torch.device("cpu"), splits)
        folder.data().restore(images, config.dataset)
