"""Retraining: a found network is trained from scratch on all training images, then tested once.

Protocol of Liu et al. (2019, section 3.2): SGD with a cosine to zero, auxiliary head, cutout, drop
path that grows linearly; ``defaults.TRAIN_PROTOCOLS`` has it and the others. No validation set, no
choice among epochs: the last one counts. The released code's choice by the test set is
``report="best"``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from zoopt_nas.errors import DivergedError, InvalidValueError
from zoopt_nas.nas.data.datasets import DatasetSpec
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.build import check_smallest_batch
from zoopt_nas.nas.networks.counting import count_multiply_adds, count_parameters
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.retraining.processes import ALONE, Processes
from zoopt_nas.nas.retraining.training import Best, Tested, Training
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.memory import (
    MemoryEstimate,
    explain_out_of_memory,
)
from zoopt_nas.nas.runs.setup import Setup, prepare
from zoopt_nas.nas.settings.config import TrainConfig
from zoopt_nas.nas.steps.devices import pick_device
from zoopt_nas.nas.steps.execution import Execution, cpu_threads


@dataclass(frozen=True)
class TrainResult:
    """What a retraining ended with, as in ``result.json``.

    Attributes:
        genotype: the architecture, in its published string form.
        test_accuracy: share of right answers on the test set, in [0, 1], at ``epoch``.
        test_loss: mean cross-entropy on the test set, at ``epoch``.
        epoch: which epoch the two are of, from 0.
        selected_on_test_set: whether that epoch was chosen by its test accuracy
            (``report="best"``), so that it flatters the network.
        last_test_accuracy: of the last epoch, whichever is reported.
        train_accuracy: of the last epoch, on augmented images.
        n_parameters: without the auxiliary head.
        n_multiply_adds: of one image, without the auxiliary head; see ``count_multiply_adds``.
        seconds: of training, and of the tests after each epoch if there are any.
    """

    genotype: str
    test_accuracy: float
    test_loss: float
    epoch: int
    selected_on_test_set: bool
    last_test_accuracy: float
    train_accuracy: float
    n_parameters: int
    n_multiply_adds: int
    seconds: float


def _prepare(
    config: TrainConfig,
    device: torch.device,
    processes: Processes,
    record: DataRecord | None = None,
    dataset: Dataset | DatasetSpec | None = None,
) -> Setup:
    """Returns the setup of this process; process 0 goes first, since it may fetch the images."""
    Genotype.load(config.genotype)  # a wrong one before the images are read
    setup = processes.first_then_others(
        lambda: prepare(config, ("train", "test"), dataset=dataset, record=record, device=device)
    )
    return replace(setup, execution=_shared(setup.execution, config, processes))


def _shared(execution: Execution, config: TrainConfig, processes: Processes) -> Execution:
    """Returns how steps run in several processes: without a CUDA graph."""
    if processes.n == 1:
        return execution
    if config.compile == "on":
        raise InvalidValueError(
            f"compile must be auto or off in {processes.n} processes, whose gradients are "
            "exchanged in the backward pass, got on"
        )
    return replace(execution, compile=False)


def run_training(
    config: TrainConfig,
    *,
    dataset: Dataset | DatasetSpec | None = None,
    run_dir: str | Path | None = None,
    observer: Observer | None = None,
    processes: Processes = ALONE,
) -> TrainResult:
    """Trains a genotype from scratch and tests it once, at the end (``report="last"``).

    Args:
        config: all settings.
        dataset: loaded images, or what loads them, in place of the data set that ``config`` names.
        run_dir: a folder to create and to write the run into; None writes nothing.
        observer: watches the run and may stop it.
        processes: which process of a run in several this is. Each of them calls this function;
            ``batch_size`` is that of all together. They all return the same.

    Raises:
        UnknownNameError: no such data set or genotype.
        DataError: the data set's files are missing or damaged.
        InvalidValueError: the processes cannot share a batch.
        RunError: ``run_dir`` exists or cannot be written.
        RunInterrupted: the observer asked to stop; the run is saved.
        DivergedError: training became non-finite.
        NotEnoughMemoryError: the device has too little memory, before the run or in it.
    """
    with _started(config, processes) as device:
        if dataset is not None:
            config = config.replace(dataset=dataset.name)
        setup = _prepare(config, device, processes, dataset=dataset)
        training = _build(config, setup, observer, processes)  # before the folder: see run_search
        if run_dir is not None:
            processes.first(lambda: _create_folder(training, run_dir))
        return _finish(training)


def resume_training(
    run_dir: str | Path,
    *,
    dataset: Dataset | DatasetSpec | None = None,
    observer: Observer | None = None,
    processes: Processes = ALONE,
) -> TrainResult:
    """Goes on with the retraining in ``run_dir`` from its last checkpoint, bit for bit on a CPU.

    A finished retraining gives its result again, from the weights. It takes as many processes as
    before. Raises as ``run_training`` does.
    """
    folder = RunFolder.open(run_dir)
    config = folder.config(TrainConfig)
    with _started(config, processes) as device:
        setup = _prepare(config, device, processes, folder.data(), dataset)
        training = _build(config, setup, observer, processes)
        training.folder = folder
        training.resume()
        return _finish(training)


def estimate_training(config: TrainConfig, dataset: Dataset) -> MemoryEstimate:
    """Estimates the memory of ``run_training(config)`` on a data set that is loaded."""
    return Training(config, prepare(config, dataset=dataset)).estimate_memory()


@contextmanager
def _started(config: TrainConfig, processes: Processes) -> Iterator[torch.device]:
    device = processes.device(pick_device(config.device))
    with cpu_threads(config.threads), processes.connected(device):
        yield device


def _create_folder(training: Training, run_dir: str | Path) -> None:
    record = DataRecord.of(training.setup.dataset)
    training.folder = RunFolder.create(run_dir, training.config, record)


def _build(
    config: TrainConfig, setup: Setup, observer: Observer | None, processes: Processes
) -> Training:
    n_images = min(config.batch_size, len(setup.dataset.train))
    check_smallest_batch(config, setup.dataset, processes.share_of_batch(n_images))
    training = Training(config, setup, observer, processes)
    training.check_memory(training.estimate_memory(), setup.free)
    return training


def _finish(training: Training) -> TrainResult:
    training.run()
    with explain_out_of_memory(training.config, training.device, lambda: "in the test"):
        test = training.test()
    if not math.isfinite(test.loss):
        raise DivergedError(
            "the test loss is not finite after the last step; train again with a lower lr"
        )
    return training.processes.first(lambda: _keep(training, test))


def _keep(training: Training, test: Tested) -> TrainResult:
    """The result, written into the run's folder if it has one."""
    config, network, rows = training.config, training.network, training.rows
    images = training.setup.dataset
    best = training.best or Best(len(rows) - 1, test.accuracy, test.loss, network.state_dict())
    result = TrainResult(
        genotype=str(network.genotype),
        test_accuracy=best.accuracy,
        test_loss=best.loss,
        epoch=best.epoch,
        selected_on_test_set=config.report == "best",
        last_test_accuracy=test.accuracy,
        train_accuracy=rows[-1]["train_accuracy"],
        n_parameters=count_parameters(network),
        n_multiply_adds=count_multiply_adds(network, images.image_size, images.in_channels),
        seconds=round(sum(row["seconds"] for row in rows), 3),
    )
    if training.folder is not None:
        training.folder.save_tensors("weights.pt", {"network": best.weights})
        training.folder.write("genotype.json", network.genotype.to_json() + "\n")
        training.folder.write("result.json", json.dumps(asdict(result), indent=1) + "\n")
    return result
