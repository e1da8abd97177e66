"""The search: Algorithm 1 of the paper alternates weight steps and updates of alpha."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from zoopt_nas.errors import DivergedError
from zoopt_nas.nas.data.batches import sequential_batches, split_indices
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.architectures import load_architecture
from zoopt_nas.nas.networks.nasbench201 import check_cells
from zoopt_nas.nas.networks.space import Path, SearchSpace
from zoopt_nas.nas.networks.spaces import space_of
from zoopt_nas.nas.runs.loop import EpochLoop, Observer
from zoopt_nas.nas.runs.memory import MemoryEstimate
from zoopt_nas.nas.runs.setup import Setup
from zoopt_nas.nas.runs.snapshots import Snapshots
from zoopt_nas.nas.search.hessian import dominant_eigenvalue
from zoopt_nas.nas.search.memory import SearchMemory, memory_of
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.paths import path_sampler
from zoopt_nas.nas.search.stages import SearchStage, stage_at
from zoopt_nas.nas.search.streams import Replayed, make_streams
from zoopt_nas.nas.search.supernets import Supernets
from zoopt_nas.nas.search.updater import EpochEnd, Metrics, Verdict, count_failures, mean_metrics
from zoopt_nas.nas.settings.config import MIXED, SHARED, SearchConfig
from zoopt_nas.nas.settings.methods import GRADIENT
from zoopt_nas.nas.steps.meter import EVAL_BATCH_SIZE, Meter, evaluate
from zoopt_nas.nas.steps.schedules import cosine, set_lr
from zoopt_nas.nas.steps.seeds import generator, restore, seeds_for
from zoopt_nas.nas.tabular.table import CellTable

_SEEDED = (
    *("weights", "alpha", "split", "train", "inner", "val", "objective", "noise", "solver"),
    "paths",
)


class Search(EpochLoop):
    """A search in progress; use ``run_search`` to run one."""

    def __init__(
        self,
        config: SearchConfig,
        setup: Setup,
        observer: Observer | None = None,
        space: SearchSpace | None = None,
    ) -> None:
        super().__init__(config, observer, setup.device)
        self.config, self.setup = config, setup
        dataset, method = setup.dataset, METHODS[config.algo]
        self._table = None if config.table is None else CellTable.load(config.table)
        self._method, self._space = method, space_of(config, space)
        seeds = seeds_for(config.seed, _SEEDED)
        self._noise = generator(seeds["noise"], setup.device)
        self._sampler = path_sampler(config, self._space, generator(seeds["paths"]))

        n_images, rng = len(dataset.train), generator(seeds["split"])
        train, val = split_indices(n_images, config.train_portion, rng)
        self._streams = make_streams(config, dataset, train, val, seeds)
        batches = partial(sequential_batches, dataset.train, val)
        self._val_batches = partial(batches, EVAL_BATCH_SIZE, dataset.transform(augment=False))
        if self._table is not None:
            check_cells(self._space)
        alpha = self._space.init_alpha(rng=seeds["alpha"], device=setup.device)
        if config.start is not None:
            path = self._space.path(load_architecture(config.start))
            alpha = self._space.one_hot(path, alpha)
        self._updater = method.build(config, alpha, seeds["solver"], self._space)
        self._stages = method.stages(config, self._space)
        self._supernets = Supernets(
            config=config,
            setup=setup,
            space=self._space,
            method=method,
            stages=self._stages,
            streams=self._streams,
            seeds=seeds,
            noise=self._noise,
        )
        self._begin_stage(self._stages[0])
        self.trains_weights = config.weights == SHARED
        if not self.trains_weights:
            self._hold_still()
        default_period = 1 if method.kind == GRADIENT else max(config.inner_steps, 1)
        self._period = config.update_period or default_period
        self._updates: list[Metrics] = []  # metrics of the updates in this epoch
        self._verdict = Verdict()  # of the last epoch
        self._is_stopped = False
        self._snapshots = Snapshots()  # empty unless the method goes back

    def _begin_stage(self, stage: SearchStage) -> None:
        """Build the supernet of a stage, with new weights, and what trains it."""
        self._stage, self._kept = stage, self._updater.kept
        trained = self._supernets.start(stage, self._kept)
        self.supernet, self._optimizer = trained.supernet, trained.optimizer
        self._step, self._path_step = trained.step, trained.path_step
        self._objective, self._workers = trained.objective, trained.workers

    def estimate_memory(self) -> MemoryEstimate:
        """Estimate the memory of the whole search on its device; its state does not change."""
        return self._estimate().here

    def _estimate(self) -> SearchMemory:
        supernets = chain([self.supernet], self._supernets.largest_after(self._stage))
        estimates = [
            memory_of(self.config, self.setup, supernet, self._updater, self._noise)
            for supernet in supernets
        ]
        return max(estimates, key=lambda found: found.here.total)

    def workers_started(self) -> AbstractContextManager[None]:
        """Start the processes that evaluate candidates, if it needs any, and end them on exit."""
        if self._workers is None or self.epoch >= self.n_epochs:
            return nullcontext()
        return self._workers.started(self._estimate().worker)

    @property
    def alpha(self) -> Tensor:
        """The current architecture parameters ``(dim,)``."""
        return self._updater.alpha

    @property
    def genotype(self) -> Architecture:
        """The architecture of the current alpha."""
        return self._updater.architecture(self._space)

    @property
    def n_epochs(self) -> int:
        """Number of epochs: 0 if nothing is trained, fewer if the method stops."""
        if not self._method.trains:
            return 0
        if self._is_stopped:
            return self.epoch
        return self.config.epochs

    @property
    def n_steps(self) -> int:
        """Number of batches in a pass over the training part.

        With fresh weights it is the number of updates.
        """
        n_batches = self._streams["train"].n_batches
        return n_batches if self.trains_weights else max(n_batches // self._period, 1)

    def begin_epoch(self) -> None:
        """Set the learning rate, drop path and training mode."""
        config, progress, n_epochs = self.config, self._progress, self._stage.n_epochs
        set_lr(self._optimizer, cosine(self._stage_epoch, n_epochs, config.lr, config.lr_min))
        probability = config.drop_path * self._stage_epoch / max(n_epochs - 1, 1)
        if probability != self.supernet.drop_path_probability:
            self.supernet.drop_path_probability = probability
            self._step.reset()
        self._updater.begin_epoch(progress)
        self._objective.set_schedules(
            probability, config.auxiliary_skip * (1 - progress), self._updater.skip_dropout
        )
        self.supernet.train()

    @property
    def _stage_epoch(self) -> int:
        """The number of elapsed epochs of the stage."""
        return self.epoch - self._stage.first_epoch

    @property
    def _progress(self) -> float:
        """The elapsed fraction of the epochs of the stage."""
        return self._stage_epoch / self._stage.n_epochs

    def _hold_still(self) -> None:
        """Give all candidates the same batches, so that the value of a cell does not change."""
        train = Replayed(self._streams["inner"], self.config.inner_steps)
        val = list(Replayed(self._streams["val"], self.config.val_batches))
        self._objective.hold_still(train, val)

    def train_step(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Update alpha if it is time, then take one weight step unless weights are fresh."""
        if not self._method.is_joint:
            self._update_alpha()
        if not self.trains_weights:
            return None
        (images, labels), progress = self._streams["train"].next_batch(), self._progress
        if self._sampler is not None:
            return self._path_step(images, labels, self._sampler.next_paths())
        if self._method.trains_paths:
            paths = self._updater.training_paths(self.supernet.space, progress)
            return self._path_step(images, labels, paths)
        weights = self._updater.training_weights(self.supernet, images, labels, progress)
        measured = *self._step(images, labels, weights), labels
        if self._method.is_joint:
            self._update_alpha()
        return measured

    def _update_alpha(self) -> None:
        """Update alpha if it is time."""
        first, epoch = self.config.warmup_epochs, self._stage_epoch
        is_due = not self.trains_weights or self.step % self._period == 0
        if epoch >= first and is_due:
            progress = (epoch - first) / (self._stage.n_epochs - first)
            self._updates.append(self._updater.step(self._objective, progress))

    def end_epoch(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Let the method judge the epoch, and evaluate the supernet on the validation part."""
        judged = self._judge_epoch()
        n_failed = self._count_failures()
        genotype = self.genotype
        val_loss, val_accuracy = self._evaluate()
        if not math.isfinite(val_loss):
            raise DivergedError(f"the validation loss is not finite in epoch {self.epoch + 1}")
        row = {
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "lr": self._optimizer.param_groups[0]["lr"],
            "sigma": None,
            "n_effective": None,
            **mean_metrics(self._updates),
            "updates": len(self._updates),
            "evaluations": self._objective.n_evaluations,
            "skip_connections": genotype.count("skip_connect"),
            **judged,
            "failures": n_failed,
        }
        self._updates = []
        if self._table is not None:
            row |= self._table.true_accuracies(str(genotype))
        return row, {"genotype": genotype.to_dict(), "alpha": self.alpha.tolist()}

    def _evaluate(self) -> tuple[float, float]:
        """Return loss and accuracy of the current architecture on the validation part.

        With fresh weights they are those of the candidate, on its batches.
        """
        alpha: Tensor | Path = self.alpha
        if self.config.paths != MIXED or self._method.trains_paths:
            alpha = self.supernet.space.path(self.genotype)
            if not self.trains_weights:
                known = self._objective.measure(alpha)
                return float(known.loss), float(known.accuracy)
        if not self.trains_weights:
            found = self._evaluate_trained(alpha)
            return found.loss, found.accuracy
        model: Callable[[Tensor], Tensor]
        if isinstance(alpha, Tensor):
            weights = self._updater.weights(self.supernet, alpha)
            model = partial(self.supernet.eval().mix, weights=weights)
        else:  # running statistics mix all paths, so along a path each batch has its own
            model = partial(self._objective.start(), alpha=alpha)
        val = evaluate(model, self._val_batches(), self.device)
        return val.loss, val.accuracy

    def _evaluate_trained(self, alpha: Tensor | Path) -> Meter:
        """Evaluate a candidate after its inner steps on the validation part."""
        batches = Replayed(self._streams["inner"], self.config.inner_steps)
        draw = self._objective.draw()._replace(train=batches)
        network = self._objective.fit(alpha, draw)
        return evaluate(lambda images: network(images, alpha), self._val_batches(), self.device)

    def _judge_epoch(self) -> dict[str, Any]:
        """Let the method judge the epoch; return the columns that it depends on."""
        updater, row = self._updater, {}
        weight_decay = self._optimizer.param_groups[0]["weight_decay"]
        eigenvalue = None
        if updater.wants_eigenvalue or self.config.track_eigenvalue:
            eigenvalue = row["eigenvalue"] = self._measure_eigenvalue()
        if updater.goes_back:
            row["weight_decay"] = weight_decay
        is_last = self.epoch + 1 == self.config.epochs
        self._verdict = updater.end_epoch(
            EpochEnd(self._objective, is_last, weight_decay, eigenvalue, self._val_batches)
        )
        return row

    def _count_failures(self) -> int:
        """Return the number of failed candidates or gradients; refuse it if all have failed."""
        n_tried, n_failed = count_failures(self._updates, self._verdict)
        if n_tried and n_failed == n_tried:
            raise DivergedError(
                f"all {n_tried} {self._updater.tries} of epoch {self.epoch + 1} failed: none is "
                "finite; start again with a lower inner_lr or lr"
            )
        return n_failed

    def _measure_eigenvalue(self) -> float:
        """Return the dominant eigenvalue on the next batches of L_val, without consuming them."""
        objective = self._objective
        consumed: list[Any] = [objective, *self._streams.values()]
        states = [item.state_dict() for item in consumed]
        draws = [objective.draw() for _ in range(self.config.eigenvalue_batches)]
        for item, state in zip(consumed, states, strict=True):
            item.load_state_dict(state)
        val_loss = partial(objective.val_loss, objective.start(), weigh=self._updater.weights)
        losses = [partial(val_loss, draw=draw) for draw in draws]
        return statistics.fmean(dominant_eigenvalue(loss, self.alpha) for loss in losses)

    def after_epoch(self) -> None:
        """Stop the search, go back to an earlier epoch or begin a stage, as the method says."""
        verdict, settings = self._verdict, self._optimizer.param_groups[0]
        self._is_stopped = verdict.stop
        ended = self.epoch - 1
        if self._updater.goes_back:
            oldest = self._updater.oldest_return(ended, settings["weight_decay"])
            self._snapshots.add(ended, self._trained_state(), oldest)
        if verdict.go_back:
            self.epoch -= verdict.go_back
            self._load_trained_state(self._snapshots.go_back(self.epoch - 1))
        if verdict.weight_decay is not None:
            # A loaded state has replaced ``settings``.
            self._optimizer.param_groups[0]["weight_decay"] = verdict.weight_decay
            oldest = self._updater.oldest_return(self.epoch - 1, verdict.weight_decay)
            self._snapshots.forget(oldest)
        stage = stage_at(self._stages, self.epoch)
        if stage != self._stage:
            counts = self._objective.state_dict()
            self._updater.begin_stage()
            self._begin_stage(stage)
            self._objective.load_state_dict(counts)

    def _trained_state(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "updater": self._updater.state_dict(),
        }

    def _load_trained_state(self, state: dict[str, Any]) -> None:
        self._updater.load_state_dict(state["updater"])
        stage = stage_at(self._stages, self.epoch)
        if (stage, self._updater.kept) != (self._stage, self._kept):
            self._begin_stage(stage)
        self.supernet.load_state_dict(state["supernet"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def start_from(self, supernet: dict[str, Any], alpha: Tensor) -> None:
        """Continue with the weights and alpha of another search."""
        self.supernet.load_state_dict(supernet)
        self._updater.move_to(alpha)

    def own_state(self) -> dict[str, Any]:
        """Return supernet, optimizer, method, streams, generators and snapshots."""
        return {
            **self._trained_state(),
            "objective": self._objective.state_dict(),
            "streams": {name: stream.state_dict() for name, stream in self._streams.items()},
            "paths": None if self._sampler is None else self._sampler.state_dict(),
            "noise": self._noise.get_state(),
            "is_stopped": self._is_stopped,
            "snapshots": self._snapshots.state_dict(),
            "updates": [{name: float(x) for name, x in row.items()} for row in self._updates],
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore the state that ``own_state`` returned."""
        self._load_trained_state(state)
        for name, stream in self._streams.items():
            stream.load_state_dict(state["streams"][name])
        if not self.trains_weights:
            self._hold_still()
        self._objective.load_state_dict(state["objective"])
        if self._sampler is not None:
            self._sampler.load_state_dict(state["paths"])
        restore(self._noise, state["noise"])
        self._updates = state["updates"]
        self._is_stopped = bool(state["is_stopped"])
        self._snapshots.load_state_dict(state["snapshots"])
