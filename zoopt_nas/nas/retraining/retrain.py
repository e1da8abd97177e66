"""Retraining: train the found network from scratch on all training images, and test it once.

The protocol of Liu et al. (2019, section 3.2) has SGD with a cosine schedule, an auxiliary head,
cutout, and a linearly growing drop path; ``defaults.TRAIN_PROTOCOLS`` lists all protocols. The last
epoch counts; ``report="best"`` selects the epoch on the test set, as the released code does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from zoopt_nas.errors import DivergedError, InvalidValueError
from zoopt_nas.nas.data.datasets import DatasetSpec
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.architectures import load_architecture
from zoopt_nas.nas.networks.build import check_smallest_batch
from zoopt_nas.nas.networks.counting import count_multiply_adds, count_parameters
from zoopt_nas.nas.retraining.processes import ALONE, Processes
from zoopt_nas.nas.retraining.training import Best, Tested, Training
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.machine import describe_machine
from zoopt_nas.nas.runs.memory import MemoryEstimate, explain_out_of_memory
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.settings.config import TrainConfig
from zoopt_nas.nas.steps.devices import pick_device
from zoopt_nas.nas.steps.execution import Execution, cpu_threads


@dataclass(frozen=True)
class TrainResult:
    """The result of a retraining, as in ``result.json``.

    Attributes:
        genotype: the architecture, in its published string form.
        test_accuracy: on the test set, in [0, 1], after ``epoch``.
        test_loss: mean cross-entropy on the test set, after ``epoch``.
        epoch: the reported epoch, from 0.
        selected_on_test_set: whether that epoch was selected by its test accuracy
            (``report="best"``), which biases the accuracy upwards.
        last_test_accuracy: after the last epoch.
        train_accuracy: of the last epoch, on augmented images.
        n_parameters: without the auxiliary head.
        n_multiply_adds: per image, without the auxiliary head; see ``count_multiply_adds``.
        seconds: time of training, and of the tests after each epoch if there are any.
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


def _shared(execution: Execution, config: TrainConfig, processes: Processes) -> Execution:
    """Return how steps run in several processes: without a CUDA graph."""
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
    """Train a genotype from scratch and test it once, at the end (``report="last"``).

    Args:
        config: the settings.
        dataset: loaded images, or a loader, in place of the data set that ``config`` names.
        run_dir: a new folder for the run; None writes nothing.
        observer: watches the run and may stop it.
        processes: the rank of this process. Each process calls this function, with the
            ``batch_size`` of all together, and gets the same result.

    Raises:
        UnknownNameError: no such data set or genotype.
        DataError: files of the data set are missing or damaged.
        InvalidValueError: the batch cannot be divided among the processes.
        RunError: ``run_dir`` exists, cannot be written, or is held by another process.
        RunInterrupted: the observer stopped the run, which is saved.
        DivergedError: the loss became non-finite.
        NotEnoughMemoryError: the device has too little memory.
    """
    with _started(config, processes) as device:
        if dataset is not None:
            config = config.replace(dataset=dataset.name)
        training = _build(config, device, processes, observer, dataset)
        if run_dir is not None:  # after the checks: a wrong setting leaves no folder behind
            processes.first(lambda: _create_folder(training, run_dir))
        with _held(training.folder, processes):
            return _finish(training)


def resume_training(
    run_dir: str | Path,
    *,
    dataset: Dataset | DatasetSpec | None = None,
    observer: Observer | None = None,
    processes: Processes = ALONE,
) -> TrainResult:
    """Continue the retraining in ``run_dir`` from its last checkpoint, bit for bit on a CPU.

    It needs as many processes as before. A finished retraining is only tested again. Raises the
    same errors as ``run_training``.
    """
    folder = RunFolder.open(run_dir)
    config = folder.config(TrainConfig)
    with _started(config, processes) as device, _held(folder, processes):
        training = _build(config, device, processes, observer, dataset, folder.data())
        training.folder = folder
        training.resume()
        return _finish(training)


def estimate_training(config: TrainConfig, dataset: Dataset) -> MemoryEstimate:
    """Estimate the memory of ``run_training(config)`` on a loaded data set."""
    return Training(config, prepare(config, dataset=dataset)).estimate_memory()


@contextmanager
def _started(config: TrainConfig, processes: Processes) -> Iterator[torch.device]:
    device = processes.device(pick_device(config.device))
    with cpu_threads(config.threads), processes.connected(device):
        yield device


@contextmanager
def _held(folder: RunFolder | None, processes: Processes) -> Iterator[None]:
    """Let process 0 hold the folder."""
    with ExitStack() as stack:
        processes.first(lambda: None if folder is None else stack.enter_context(folder.held()))
        yield


def _create_folder(training: Training, run_dir: str | Path) -> None:
    record = DataRecord.of(training.setup.dataset)
    machine = describe_machine(training.device)
    training.folder = RunFolder.create(run_dir, training.config, record, machine=machine)


def _build(
    config: TrainConfig,
    device: torch.device,
    processes: Processes,
    observer: Observer | None,
    dataset: Dataset | DatasetSpec | None,
    record: DataRecord | None = None,
) -> Training:
    load_architecture(config.genotype)  # reject a wrong one before the images are read
    # Process 0 goes first, since it may download the images.
    setup = processes.first_then_others(
        lambda: prepare(config, ("train", "test"), dataset=dataset, record=record, device=device)
    )
    setup = replace(setup, execution=_shared(setup.execution, config, processes))
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
    """Return the result, after writing it into the run folder if there is one."""
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
