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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import DivergedError, InvalidValueError, RunError
from zoopt_nas.nas.data.augmentation import Share
from zoopt_nas.nas.data.batches import BatchStream, sequential_batches
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.build import build_network, check_smallest_batch
from zoopt_nas.nas.networks.counting import count_multiply_adds, count_parameters
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.retraining.memory import estimate_training
from zoopt_nas.nas.retraining.processes import ALONE, Agreement, Processes
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import EpochLoop, Observer, load_run_dataset
from zoopt_nas.nas.runs.memory import check_weights, out_of_memory_in_one_line
from zoopt_nas.nas.settings.config import TrainConfig
from zoopt_nas.nas.steps.devices import free_memory, pick_device
from zoopt_nas.nas.steps.execution import Execution, cpu_threads
from zoopt_nas.nas.steps.meter import EVAL_BATCH_SIZE, evaluate
from zoopt_nas.nas.steps.schedules import scheduled_lr, set_lr
from zoopt_nas.nas.steps.seeds import generator, seeds_for
from zoopt_nas.nas.steps.weight_step import Losses, WeightStep, make_sgd


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


class Best(NamedTuple):
    """The epoch with the highest test accuracy so far, the first of equals.

    Attributes:
        epoch: from 0.
        accuracy, loss: on the test set.
        weights: the network's state then.
    """

    epoch: int
    accuracy: float
    loss: float
    weights: dict[str, Tensor]


class Tested(NamedTuple):
    """Loss and accuracy on the test set."""

    loss: float
    accuracy: float


class _Heads(nn.Module):
    """The forward pass of a step as one module, whose gradients can be averaged."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.network.auxiliary is None:
            return self.network(images), None
        return self.network.forward_with_auxiliary(images)


class Training(EpochLoop):
    """A retraining in progress. ``run_training`` is the usual way in."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        observer: Observer | None = None,
        processes: Processes = ALONE,
    ) -> None:
        device = processes.device(pick_device(config.device))
        if observer is not None and processes.n > 1:
            observer = Agreement(observer, processes)
        super().__init__(config, observer, device)
        self.config, self.processes = config, processes
        self.best: Best | None = None
        self._dataset = dataset
        self._states: list[dict[str, Tensor]] = []
        execution = _execution(config, device, processes)
        uses = ("weights", "train", "drop_path", *(f"drop_path {i}" for i in range(1, processes.n)))
        seeds = seeds_for(config.seed, uses)
        if processes.rank > 0:
            seeds["drop_path"] = seeds[f"drop_path {processes.rank}"]
        self.network = build_network(config, dataset, seed=seeds["weights"], device=device)
        self._drop_path = generator(seeds["drop_path"], device)
        self.network.set_generator(self._drop_path)
        self._heads = processes.average_gradients(_Heads(self.network))
        self._optimizer = make_sgd(self.network, config)
        self._step = WeightStep(
            self._losses,
            self.network,
            self._optimizer,
            config.grad_clip,
            execution=execution,
            generators=(self._drop_path,),
        )
        self._stream = BatchStream(
            dataset.train,
            torch.arange(len(dataset.train)),
            config.batch_size,
            transform=dataset.transform(augment=True, cutout=config.cutout),
            generator=generator(seeds["train"]),
            share=Share(processes.rank, processes.n),
        )

    @property
    def n_steps(self) -> int:
        return self._stream.n_batches

    def begin_epoch(self) -> None:
        config = self.config
        set_lr(self._optimizer, scheduled_lr(config, self.epoch))
        probability = config.drop_path * self.epoch / config.epochs
        if probability != self.network.drop_path_probability:
            self.network.drop_path_probability = probability
            self._step.reset()
        self.network.train()

    def train_step(self) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = self._stream.next_batch()
        loss, logits = self._step(images, labels)
        return loss, logits, labels

    def _losses(self, images: Tensor, labels: Tensor) -> Losses:
        config, smoothing = self.config, self.config.label_smoothing
        logits, auxiliary = self._heads(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if auxiliary is None:
            return Losses(loss, loss, logits)
        auxiliary_loss = F.cross_entropy(auxiliary, labels, label_smoothing=smoothing)
        return Losses(loss + config.auxiliary_weight * auxiliary_loss, loss, logits)

    def end_epoch(self) -> tuple[dict[str, Any], None]:
        row = {
            "lr": self._optimizer.param_groups[0]["lr"],
            "drop_path": self.network.drop_path_probability,
        }
        if self.config.report == "best":
            row |= self._compare_with_best()
        return row, None

    def _compare_with_best(self) -> dict[str, float]:
        """Tests the network, and keeps it if it is the best so far."""
        test = self.test()
        if self.best is None or test.accuracy > self.best.accuracy:
            weights = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.best = Best(self.epoch, test.accuracy, test.loss, weights)
        return {
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "best_on_test_set": self.best.accuracy,
        }

    def test(self) -> Tested:
        """The whole test set, with the weights as they are; process 0 does it for all."""
        return self.processes.first(self._test)

    def _test(self) -> Tested:
        dataset = self._dataset
        assert dataset.test is not None  # _build asks for both splits
        transform = dataset.transform(augment=False)
        batches = sequential_batches(dataset.test, None, EVAL_BATCH_SIZE, transform)
        drawn = self._drop_path.get_state()  # a noise operation draws: no step notices a test
        measured = evaluate(self.network.eval(), batches, self.device)
        self._drop_path.set_state(drawn)
        return Tested(measured.loss, measured.accuracy)

    def own_state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "stream": self._stream.state_dict(),
            "drop_path": self._drop_path.get_state(),
            "best": None if self.best is None else self.best._asdict(),
            **({"processes": self._states} if self._states else {}),
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._stream.load_state_dict(state["stream"])
        self._drop_path.set_state(state["drop_path"].cpu())
        self.best = Best(**state["best"]) if state.get("best") else None
        states = state.get("processes", [])
        if max(len(states), 1) != self.processes.n:
            raise RunError(
                f"a run of {max(len(states), 1)} processes must be resumed with as many, "
                f"got {self.processes.n}"
            )
        if states:
            own = states[self.processes.rank]
            self._drop_path.set_state(own["drop_path"].cpu())
            self._meter.sums.copy_(own["sums"])

    def resume(self) -> bool:
        """As ``EpochLoop.resume``; all processes go to the checkpoint, and process 0 keeps it."""
        resumed = self.processes.first(super().resume)
        if self.processes.rank > 0:
            self.load_checkpoint()
            self.folder = None
        return resumed

    def _save(self) -> None:
        if self.processes.n > 1:
            own = {"drop_path": self._drop_path.get_state(), "sums": self._meter.sums.cpu()}
            self._states = self.processes.gather(own)
        super()._save()

    def _close_epoch(self, started: float) -> None:
        self.processes.total(self._meter.sums)
        super()._close_epoch(started)


def _execution(config: TrainConfig, device: torch.device, processes: Processes) -> Execution:
    execution = Execution.from_config(config, device)
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
    run_dir: str | Path | None = None,
    observer: Observer | None = None,
    processes: Processes = ALONE,
) -> TrainResult:
    """Trains a genotype from scratch and tests it once, at the end (``report="last"``).

    Args:
        config: all settings; ``TrainConfig.for_dataset`` gives good ones.
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
    with _started(config, processes):
        training, dataset = _build(config, observer, processes)  # before the folder: see run_search
        if run_dir is not None:
            processes.first(lambda: _create_folder(training, dataset, run_dir))
        return _finish(training, dataset)


def resume_training(
    run_dir: str | Path, *, observer: Observer | None = None, processes: Processes = ALONE
) -> TrainResult:
    """Goes on with the retraining in ``run_dir`` from its last checkpoint, bit for bit on a CPU.

    A finished retraining gives its result again, from the weights. It takes as many processes as
    before. Raises as ``run_training`` does.
    """
    folder = RunFolder.open(run_dir)
    config = folder.config(TrainConfig)
    with _started(config, processes):
        training, dataset = _build(config, observer, processes, folder.data())
        training.folder = folder
        training.resume()
        return _finish(training, dataset)


@contextmanager
def _started(config: TrainConfig, processes: Processes) -> Iterator[None]:
    device = processes.device(pick_device(config.device))
    with cpu_threads(config.threads), processes.connected(device):
        yield


def _create_folder(training: Training, dataset: Dataset, run_dir: str | Path) -> None:
    training.folder = RunFolder.create(run_dir, training.config, DataRecord.of(dataset))


def _build(
    config: TrainConfig,
    observer: Observer | None,
    processes: Processes,
    record: DataRecord | None = None,
) -> tuple[Training, Dataset]:
    Genotype.load(config.genotype)  # a wrong one before the data set is read
    own = config  # what this process does of it
    if processes.n > 1:
        own = config.replace(
            batch_size=processes.share_of_batch(config.batch_size),
            device=str(processes.device(pick_device(config.device))),
        )
    free = free_memory(pick_device(own.device))  # before what the estimate counts
    dataset = processes.first_then_others(lambda: load_run_dataset(own, ("train", "test"), record))
    share = processes.share_of_batch(min(config.batch_size, len(dataset.train)))
    check_smallest_batch(own, dataset, share)
    meta = torch.device("meta")
    check_weights(lambda: build_network(own, dataset, seed=0, device=meta), 1, own, free)
    training = Training(config, dataset, observer, processes)
    training.check_memory(estimate_training(own, dataset), free)
    return training, dataset


def _finish(training: Training, dataset: Dataset) -> TrainResult:
    training.run()
    with out_of_memory_in_one_line(training.config, lambda: "in the test"):
        test = training.test()
    if not math.isfinite(test.loss):
        raise DivergedError(
            "the test loss is not finite after the last step; train again with a lower lr (--lr)"
        )
    return training.processes.first(lambda: _keep(training, dataset, test))


def _keep(training: Training, dataset: Dataset, test: Tested) -> TrainResult:
    """The result, written into the run's folder if it has one."""
    config, network, rows = training.config, training.network, training.rows
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
        n_multiply_adds=count_multiply_adds(network, dataset.image_size, dataset.in_channels),
        seconds=round(sum(row["seconds"] for row in rows), 3),
    )
    if training.folder is not None:
        training.folder.save_tensors("weights.pt", {"network": best.weights})
        training.folder.write("genotype.json", network.genotype.to_json() + "\n")
        training.folder.write("result.json", json.dumps(asdict(result), indent=1) + "\n")
    return result
