"""Runs in a series, each in its folder.

A finished run is kept, a stopped run continues, and a missing run starts: an interrupted series
is continued by running it again.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import torch

from zoopt_nas.errors import DataError, InvalidValueError, MissingDataError, RunError
from zoopt_nas.nas.data.datasets import DATASETS
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.retraining.retrain import TrainResult, resume_training, run_training
from zoopt_nas.nas.runs.folder import METRICS, RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.setup import load_images
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.tabular.table import CellTable

# What a retraining takes over from its search. Not n_train: it trains on all images by default.
_OF_DATA = ("dataset", "seed", "data_dir", "download", "image_size")
_OF_EXECUTION = ("device", "threads", "amp", "compile", "channels_last", "cpu_kernels")

GENOTYPE = "genotype.json"  # of a finished search
RESULT = "result.json"  # of a finished retraining

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def settings_from(run: RunConfig, dataset: str | None = None) -> dict[str, Any]:
    """Return the settings that a retraining on ``dataset`` takes over from a run.

    None is the data set of ``run``. Another data set takes over only how the run was executed.
    """
    same = dataset is None or _is_same(run.dataset, dataset)
    names = (*_OF_DATA, *_OF_EXECUTION) if same else _OF_EXECUTION
    return {name: getattr(run, name) for name in names}


def _is_same(dataset: str, other: str) -> bool:
    """Whether two texts name the same data set: one name, or two spellings of one path."""
    if dataset in DATASETS or other in DATASETS:
        return dataset == other
    return Path(dataset).expanduser().resolve() == Path(other).expanduser().resolve()


def retraining_of(search: SearchConfig, genotype: Architecture, /, **settings: Any) -> TrainConfig:
    """Return the retraining of a genotype, with data and seed of its search unless set otherwise.

    On another data set it takes over the seed, but not the folder or the image size. ``settings``
    are as for ``TrainConfig.for_dataset``; the space of ``search`` selects the sizes of the
    protocol ``rdarts``.

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
    """Run the search, resume it, or return at once if it is complete; return its folder.

    Raises:
        RunError: the folder holds another run.
        DataError: the data of the finished run differ from the present ones.
    """
    path = Path(run_dir)
    if not os.path.lexists(path):
        run_search(config, run_dir=path, observer=observer)
        return RunFolder.open(path)
    folder = _open_as(path, config)
    if (path / GENOTYPE).is_file():
        _check_data(folder, config)
    else:
        resume_search(path, observer=observer)
    return folder


def train_once(
    config: TrainConfig, run_dir: str | Path, *, observer: Observer | None = None
) -> TrainResult:
    """Run the retraining, resume it, or return at once if it is complete; return its result.

    Raises:
        RunError: the folder holds another run, or its result is damaged.
        DataError: the data of the finished run differ from the present ones.
    """
    path = Path(run_dir)
    if not os.path.lexists(path):
        return run_training(config, run_dir=path, observer=observer)
    folder = _open_as(path, config)
    if not (path / RESULT).is_file():
        return resume_training(path, observer=observer)
    _check_data(folder, config)
    return train_result(path)


def train_result(run_dir: str | Path) -> TrainResult:
    """Return the result of the finished retraining in a folder.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = Path(run_dir) / RESULT
    try:
        return TrainResult(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is not the result of a retraining") from error


def last_row(folder: RunFolder) -> dict[str, Any]:
    """Return the metrics of the last epoch of a finished search.

    A method without epochs has those of its cell: ``skip_connections``, and the true accuracies if
    the table that the search names can still be read.

    Raises:
        RunError: the search is not finished, or its folder is damaged.
    """
    if rows := folder.rows(METRICS):
        return rows[-1]
    genotype, table = folder.genotype(), folder.config(SearchConfig).table
    row: dict[str, Any] = {"skip_connections": genotype.count("skip_connect")}
    if table is not None:
        with contextlib.suppress(DataError):
            row |= CellTable.load(table).true_accuracies(str(genotype))
    return row


def _open_as(path: Path, config: RunConfig) -> RunFolder:
    """Return the run folder at ``path``, if its settings equal ``config``."""
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
    """Refuse a finished run whose data differ from the present ones, if there are any."""
    splits = ("train",) if isinstance(config, SearchConfig) else ("train", "test")
    with contextlib.suppress(MissingDataError):
        images = load_images(config, torch.device("cpu"), splits)
        folder.data().restore(images, config.dataset)
