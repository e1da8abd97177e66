"""Run, resume and estimate a search."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data.batches import split_indices
from zoopt_nas.nas.data.datasets import DatasetSpec
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.build import check_smallest_batch
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.machine import describe_machine
from zoopt_nas.nas.runs.memory import MemoryEstimate
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.finished import continue_finished
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.settings.config import FRESH, SearchConfig
from zoopt_nas.nas.steps.execution import cpu_threads
from zoopt_nas.nas.steps.seeds import generator


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        genotype: the architecture after the last epoch (paper B.5: no selection among epochs).
        alpha: ``(dim,)`` on the CPU.
        metrics: one row per epoch, as in ``metrics.jsonl``.
        run_dir: the run folder, if one was written.
    """

    genotype: Architecture
    alpha: Tensor
    metrics: list[dict[str, Any]]
    run_dir: Path | None


def run_search(
    config: SearchConfig,
    *,
    space: SearchSpace | None = None,
    dataset: Dataset | DatasetSpec | None = None,
    run_dir: str | Path | None = None,
    observer: Observer | None = None,
) -> SearchResult:
    """Search from scratch.

    Args:
        config: the settings.
        space: in place of the space that ``config`` names; the run folder keeps it.
        dataset: loaded images, or a loader, in place of the data set that ``config`` names.
        run_dir: a new folder for the run; None writes nothing.
        observer: watches the run and may stop it.

    Raises:
        UnknownNameError: no such space, method, data set or solver option.
        DataError: files of the data set are missing or damaged.
        RunError: ``run_dir`` exists, cannot be written, or is held by another process.
        RunInterrupted: the observer stopped the run, which is saved.
        DivergedError: the loss became non-finite.
        NotEnoughMemoryError: the device has too little memory.
        WorkerError: a process of ``candidate_devices`` has died or failed.
    """
    with cpu_threads(config.threads), ExitStack() as stack:
        # Built before the folder: a wrong setting leaves no folder behind.
        search = _build(_named(config, space, dataset), observer, space=space, dataset=dataset)
        stack.enter_context(search.workers_started())
        if METHODS[config.algo].continues:
            continue_finished(search)
        if run_dir is not None:
            record = DataRecord.of(search.setup.dataset)
            machine = describe_machine(search.setup.device)
            search.folder = RunFolder.create(run_dir, search.config, record, space, machine)
            stack.enter_context(search.folder.held())
        return _finish(search)


def resume_search(
    run_dir: str | Path,
    *,
    dataset: Dataset | DatasetSpec | None = None,
    observer: Observer | None = None,
) -> SearchResult:
    """Continue the search in ``run_dir`` from its last checkpoint, bit for bit on a CPU.

    A finished search returns its result. Raises the same errors as ``run_search``.

    Args:
        run_dir: the folder of the search.
        dataset: as for ``run_search``, if its data set has no registered name.
        observer: watches the run and may stop it.
    """
    folder = RunFolder.open(run_dir)
    config = folder.config(SearchConfig)
    with cpu_threads(config.threads), folder.held():
        search = _build(
            config, observer, space=folder.space(), dataset=dataset, record=folder.data()
        )
        search.folder = folder
        search.resume()
        with search.workers_started():
            return _finish(search)


def _named(
    config: SearchConfig, space: SearchSpace | None, dataset: Dataset | DatasetSpec | None
) -> SearchConfig:
    """Return the settings with the names of the given objects."""
    names = {"space": space, "dataset": dataset}
    fields: dict[str, Any] = {key: of.name for key, of in names.items() if of is not None}
    if space is not None and space.edge_normalization:
        fields["edge_normalization"] = True
    if space is not None and space.relaxation != "softmax":
        fields["relaxation"] = space.relaxation
    return config.replace(**fields)


def _build(
    config: SearchConfig,
    observer: Observer | None,
    *,
    space: SearchSpace | None = None,
    dataset: Dataset | DatasetSpec | None = None,
    record: DataRecord | None = None,
) -> Search:
    METHODS[config.algo]  # reject a wrong name before the images are read
    if config.candidate_devices is not None and config.weights == FRESH and dataset is not None:
        raise InvalidValueError(
            "candidate_devices must be left out with fresh weights and a data set that is passed "
            f"as an object, which their processes cannot load, got {config.candidate_devices}"
        )
    space = space or SPACES[config.space]
    setup = prepare(config, dataset=dataset, record=record, check_test=record is None)
    n_images = len(setup.dataset.train)
    parts = split_indices(n_images, config.train_portion, generator(0))
    deepest = max(stage.n_cells for stage in METHODS[config.algo].stages(config, space))
    smallest = min(config.batch_size, *map(len, parts))
    check_smallest_batch(config.replace(n_cells=deepest), setup.dataset, smallest, space)
    search = Search(config, setup, observer, space)
    search.check_memory(search.estimate_memory(), setup.free)
    return search


def estimate_search(config: SearchConfig, dataset: Dataset) -> MemoryEstimate:
    """Estimate the memory of ``run_search(config)`` on a loaded data set."""
    return Search(config, prepare(config, dataset=dataset)).estimate_memory()


def _finish(search: Search) -> SearchResult:
    search.run()
    if search.folder is not None:
        search.folder.write("genotype.json", search.genotype.to_json() + "\n")
    return SearchResult(
        genotype=search.genotype,
        alpha=search.alpha.cpu(),
        metrics=search.rows,
        run_dir=search.folder.path if search.folder is not None else None,
    )
