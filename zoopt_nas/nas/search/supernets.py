"""The supernets of a search, one for each stage, and what trains them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.build import build_supernet
from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.networks.space import Kept, SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.runs.memory import WeightLimit
from zoopt_nas.nas.runs.setup import Setup
from zoopt_nas.nas.search.memory import N_COPIES, heaviest_kept
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.paths import PathStep
from zoopt_nas.nas.search.stages import SearchStage
from zoopt_nas.nas.search.streams import AheadStream, Peeked
from zoopt_nas.nas.search.updater import AlphaUpdater
from zoopt_nas.nas.search.workers import CandidateWorkers, candidate_workers, n_beside
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.weight_step import WeightStep, cross_entropy_of, make_sgd


class Trained(NamedTuple):
    """A supernet and what trains it."""

    supernet: Supernet
    optimizer: torch.optim.SGD
    step: WeightStep
    path_step: PathStep
    objective: BilevelObjective
    workers: CandidateWorkers | None  # that evaluate its candidates


@dataclass(frozen=True)
class Supernets:
    """Builds the supernets of a search.

    Attributes:
        config: the settings.
        setup: device, execution and data set.
        space: the search space.
        method: the method of the search.
        stages: the stages of the search; each has initial weights of its own.
        streams: as ``make_streams`` returns them.
        seeds: the seeds of the search, by use.
        noise: the generator of noise, drop path and dropout, on the device.

    Raises:
        InvalidValueError: workers, which keep one supernet, are to evaluate several stages.
    """

    config: SearchConfig
    setup: Setup
    space: SearchSpace
    method: type[AlphaUpdater]
    stages: Sequence[SearchStage]
    streams: Mapping[str, AheadStream]
    seeds: Mapping[str, int]
    noise: torch.Generator

    def __post_init__(self) -> None:
        if len(self.stages) > 1 and self.config.worker_names:
            raise InvalidValueError(
                f"candidate_devices must be empty for {self.config.algo}, which has several stages"
            )

    def build(self, stage: SearchStage, kept: Kept | None) -> Supernet:
        """Return the supernet of a stage with its initial weights.

        Raises:
            NotEnoughMemoryError: the weights exceed the memory.
        """
        device = self.setup.device
        n_copies = N_COPIES * (1 + n_beside(self.config, device))
        with WeightLimit(self.setup.free, n_copies, self.config, device):
            supernet = build_supernet(
                self.config,
                self.setup.dataset,
                seed=self.seeds["weights"] + self.stages.index(stage),
                execution=self.setup.execution,
                space=self.space,
                n_cells=stage.n_cells,
                kept=kept,
                drops_skips=stage.drops_skips,
            )
        seed_noise(supernet, self.noise)
        return supernet

    def largest_after(self, stage: SearchStage) -> Iterator[Supernet]:
        """Yield the largest possible supernet of each later stage."""
        for later in self.stages[self.stages.index(stage) + 1 :]:
            yield self.build(later, heaviest_kept(self.space, later.n_kept))

    def start(self, stage: SearchStage, kept: Kept | None) -> Trained:
        """Return the supernet of a stage with its initial weights, and what trains it."""
        config, execution, streams = self.config, self.setup.execution, self.streams
        supernet = self.build(stage, kept)
        optimizer = make_sgd(supernet, config)
        compiles = execution.compile and not self.method.is_joint
        step = WeightStep(
            cross_entropy_of(supernet.mix),
            supernet,
            optimizer,
            config.grad_clip,
            execution=replace(execution, compile=compiles),
            generators=(self.noise,),
        )
        inner = self.method.inner
        is_unrolled = (inner or config.inner) == "second"  # the next weight step (DARTS)
        workers = candidate_workers(
            config, self.setup, supernet, optimizer, inner=inner, seeds=self.seeds
        )
        objective = BilevelObjective.from_config(
            supernet,
            optimizer,
            Peeked(streams["train"]) if is_unrolled else streams["inner"],
            streams["val"],
            config,
            seed=self.seeds["objective"],
            inner=inner,
            execution=execution,
            evaluator=workers,
        )
        path_step = PathStep(supernet, optimizer, config.grad_clip, execution)
        return Trained(supernet, optimizer, step, path_step, objective, workers)
