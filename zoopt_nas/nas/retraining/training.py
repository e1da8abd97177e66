"""A retraining in progress: the network of a genotype, its steps and its tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import RunError
from zoopt_nas.nas.data.augmentation import RankSlice
from zoopt_nas.nas.data.batches import BatchStream, sequential_batches
from zoopt_nas.nas.networks.build import build_network
from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.retraining.memory import memory_of
from zoopt_nas.nas.retraining.processes import ALONE, Processes
from zoopt_nas.nas.runs.loop import EpochLoop, Observer
from zoopt_nas.nas.runs.memory import MemoryEstimate, WeightLimit
from zoopt_nas.nas.runs.setup import Setup
from zoopt_nas.nas.settings.config import TrainConfig
from zoopt_nas.nas.steps.meter import EVAL_BATCH_SIZE, evaluate
from zoopt_nas.nas.steps.schedules import scheduled_lr, set_lr
from zoopt_nas.nas.steps.seeds import generator, restore, seeds_for
from zoopt_nas.nas.steps.weight_step import Losses, WeightStep, make_sgd


class Best(NamedTuple):
    """The first epoch with the highest test accuracy so far."""

    epoch: int  # from 0
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
    """A retraining in progress; use ``run_training`` to run one."""

    def __init__(
        self,
        config: TrainConfig,
        setup: Setup,
        observer: Observer | None = None,
        processes: Processes = ALONE,
    ) -> None:
        device, dataset = setup.device, setup.dataset
        super().__init__(config, observer, device)
        self.config, self.setup, self.processes = config, setup, processes
        self.best: Best | None = None
        self._states: list[dict[str, Tensor]] = []
        execution = setup.execution
        uses = ("weights", "train", "drop_path", *(f"drop_path {i}" for i in range(1, processes.n)))
        seeds = seeds_for(config.seed, uses)
        if processes.rank > 0:
            seeds["drop_path"] = seeds[f"drop_path {processes.rank}"]
        with WeightLimit(setup.free, 1, config, device):
            seed = seeds["weights"]
            self.network = build_network(config, dataset, seed=seed, execution=execution)
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
            transform=dataset.transform(augment=config.augment, cutout=config.cutout),
            generator=generator(seeds["train"]),
            rank_slice=RankSlice(processes.rank, processes.n),
        )

    def estimate_memory(self) -> MemoryEstimate:
        """Estimate the memory of this process; its state does not change."""
        batch_size = self.processes.share_of_batch(self.config.batch_size)
        return memory_of(self.config, self.setup, self.network, batch_size, self._drop_path)

    @property
    def n_steps(self) -> int:
        """Number of batches in a pass over the training images."""
        return self._stream.n_batches

    def should_stop(self) -> bool:
        """Whether any process is asked to stop; all stop at the same step."""
        return self.processes.any(super().should_stop())

    def begin_epoch(self) -> None:
        """Set the learning rate, drop path and training mode."""
        config = self.config
        set_lr(self._optimizer, scheduled_lr(config, self.epoch))
        probability = config.drop_path * self.epoch / config.epochs
        if probability != self.network.drop_path_probability:
            self.network.drop_path_probability = probability
            self._step.reset()
        self.network.train()

    def train_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step on the next batch; return loss, logits and labels."""
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
        """Return the learning rate, drop path and perhaps the test result."""
        row = {
            "lr": self._optimizer.param_groups[0]["lr"],
            "drop_path": self.network.drop_path_probability,
        }
        if self.config.report == "best":
            row |= self._compare_with_best()
        return row, None

    def _compare_with_best(self) -> dict[str, float]:
        """Test the network, and keep its weights if it is the best so far."""
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
        """Evaluate the current weights on the test set, in process 0."""
        return self.processes.first(self._test)

    def _test(self) -> Tested:
        dataset = self.setup.dataset
        assert dataset.test is not None  # _build asks for both splits
        transform = dataset.transform(augment=False)
        batches = sequential_batches(dataset.test, None, EVAL_BATCH_SIZE, transform)
        drawn = self._drop_path.get_state()  # a noise operation draws; a test must not affect steps
        measured = evaluate(self.network.eval(), batches, self.device)
        self._drop_path.set_state(drawn)
        return Tested(measured.loss, measured.accuracy)

    def own_state(self) -> dict[str, Any]:
        """Return network, optimizer, stream, generator and best epoch."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "stream": self._stream.state_dict(),
            "drop_path": self._drop_path.get_state(),
            "best": None if self.best is None else self.best._asdict(),
            **({"processes": self._states} if self._states else {}),
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore the state that ``own_state`` returned."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._stream.load_state_dict(state["stream"])
        restore(self._drop_path, state["drop_path"])
        self.best = Best(**state["best"]) if state["best"] else None
        states = state.get("processes", [])
        if max(len(states), 1) != self.processes.n:
            raise RunError(
                f"a run of {max(len(states), 1)} processes must be resumed with as many, "
                f"got {self.processes.n}"
            )
        if states:
            mine = states[self.processes.rank]
            restore(self._drop_path, mine["drop_path"])
            self._meter.sums.copy_(mine["sums"])

    def resume(self) -> bool:
        """Load the checkpoint in every process; only process 0 keeps the folder."""
        resumed = self.processes.first(super().resume)
        if self.processes.rank > 0:
            self.load_checkpoint()
            self.folder = None
        return resumed

    def _save(self) -> None:
        if self.processes.n > 1:
            mine = {"drop_path": self._drop_path.get_state(), "sums": self._meter.sums.cpu()}
            self._states = self.processes.gather(mine)
        super()._save()

    def _close_epoch(self, started: float) -> None:
        self.processes.total(self._meter.sums)
        super()._close_epoch(started)
