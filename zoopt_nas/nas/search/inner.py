"""The inner training: the weights omega*(alpha) of a candidate, from those of the supernet."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.candidates import (
    Batch,
    CandidateGroup,
    WeightAverage,
    flat,
    scratch_copy,
)
from zoopt_nas.nas.steps.cuda_graph import Step
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.schedules import cosine, set_lr
from zoopt_nas.nas.steps.weight_step import WeightStep, cross_entropy_of, start_momentum

# Each path needs a CUDA graph of its own, which pays after some eight steps on an H200.
MIN_RECORDED_STEPS = 20


class InnerTraining:
    """Trains candidates from the weights of a supernet, which is only read.

    One scratch copy of the supernet is refilled for every candidate, or computes several together.

    Args:
        supernet: The supernet with the weights from which candidates start.
        optimizer: The SGD that trains them; candidates take its settings and momentum.
        generator: The generator of the candidates' noise and drop path, on the supernet's device.
        lr: Learning rate; None is the current one of ``optimizer``.
        lr_end: Learning rate after the last step, reached by a cosine; None keeps it constant.
        uses_momentum: Whether candidates start from the momentum of ``optimizer``.
        average: Decay of the average over the steps that replaces the weights; 0 keeps the last.
        grad_clip: Bound on the gradient's norm; None is no bound.
        execution: Execution of the steps; None is float32.
        single_path: Whether candidates are paths.
    """

    def __init__(
        self,
        supernet: Supernet,
        optimizer: torch.optim.SGD,
        generator: torch.Generator,
        *,
        lr: float | None,
        lr_end: float | None = None,
        uses_momentum: bool = True,
        average: float = 0.0,
        grad_clip: float | None = None,
        execution: Execution | None = None,
        single_path: bool = False,
    ) -> None:
        self._supernet, self._optimizer, self._generator = supernet, optimizer, generator
        self._lr, self._lr_end, self._uses_momentum = lr, lr_end, uses_momentum
        self._average = average
        self.scratch = scratch_copy(supernet)
        seed_noise(self.scratch, generator)
        # The released code steps other parameters than it trains (docs/deviations.md, B1).
        self._inner_optimizer = torch.optim.SGD(self.scratch.parameters(), lr=1.0)
        self._path: Path | None = None  # the one that the step was last recorded along
        if single_path and execution is not None and execution.device.type != "cuda":
            execution = replace(execution, compile=False)  # compiling a path takes minutes
        self._step = WeightStep(
            cross_entropy_of(self._logits),
            self.scratch,
            self._inner_optimizer,
            grad_clip,
            execution=execution,
            generators=(generator,),
        )
        self.group = CandidateGroup(
            self.scratch, grad_clip, execution=execution, generators=(generator,)
        )

    @property
    def lr(self) -> float:
        """The learning rate of the first step: xi of Eq. 2."""
        current: float = self._optimizer.param_groups[0]["lr"]
        return current if self._lr is None else self._lr

    def start(self) -> Supernet:
        """Return the scratch network with the supernet's weights; the next call reuses it."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.scratch.parameters()), list(self._supernet.parameters()))
        return self.scratch

    def fit(self, alpha: Tensor | Path, batches: Sequence[Batch], noise_seed: int) -> Supernet:
        """Return the scratch network after a step on each batch, at alpha or along a path.

        Along a path only the weights of the path are trained.
        """
        for average in deque(self._train(alpha, batches, noise_seed), maxlen=1):
            average.swap()
        return self.scratch

    def stages(
        self, path: Path, batches: Sequence[Batch], noise_seed: int, ends: Collection[int]
    ) -> Iterator[Supernet]:
        """Train as ``fit`` does; yield the scratch network after each number of steps in ``ends``.

        It is what ``fit`` would return after so many steps, and must be used before the next one.
        """
        for n_done, average in enumerate(self._train(path, batches, noise_seed), start=1):
            if n_done in ends:
                noise = self._generator.get_state()
                average.swap()
                yield self.scratch
                average.swap()
                self._generator.set_state(noise)

    def _train(
        self, alpha: Tensor | Path, batches: Sequence[Batch], noise_seed: int
    ) -> Iterator[WeightAverage]:
        """Take a step on each batch; yield the average of the weights after each step."""
        network = self.start()
        self._inner_optimizer.param_groups[0].update(self._settings())
        start_momentum(self._inner_optimizer, self._momenta())
        self._generator.manual_seed(noise_seed)
        average = WeightAverage(network.parameters(), self._average)
        step, more = self._step_at(alpha, len(batches))
        for lr, (images, labels) in zip(self._lrs(len(batches)), batches, strict=True):
            set_lr(self._inner_optimizer, lr)
            step(images, labels, *more)
            average.update()
            yield average

    def _step_at(self, alpha: Tensor | Path, n_steps: int) -> tuple[Step, tuple[Tensor, ...]]:
        """Return the weight step at alpha or along a path, and its arguments after the batch."""
        if isinstance(alpha, Tensor):
            self._path = None
            return self._step, (alpha,)
        if alpha != self._path:
            self._path = alpha
            self._step.reset()
        return self._step if n_steps >= MIN_RECORDED_STEPS else self._step.eager, ()

    def _logits(self, images: Tensor, *alpha: Tensor) -> Tensor:
        """Return the logits of the scratch network at alpha, or along the current path."""
        logits: Tensor = self.scratch(images, *(alpha or (self._path,)))
        return logits

    def fit_together(self, alphas: Tensor, batches: Sequence[Batch], noise_seed: int) -> Tensor:
        """Return the weights ``(n, n_weights)`` of alphas ``(n, dim)`` after the same steps.

        The next call overwrites them.
        """
        with torch.no_grad():
            start = flat(self._supernet.parameters())
        self._generator.manual_seed(noise_seed)
        lrs = self._lrs(len(batches))
        return self.group.fit(
            start, self._flat_momentum(), alphas, batches, lrs, self._settings(), self._average
        )

    def can_fit_together(self) -> bool:
        """Whether candidates that are trained together start with the right momentum.

        SGD does not dampen the first gradient of a parameter without momentum, which one tensor of
        mixed parameters cannot express. Without dampening, zero momentum equals none.
        """
        missing = [momentum is None for momentum in self._momenta()]
        return all(missing) or not any(missing) or not self._settings()["dampening"]

    def set_drop_path(self, probability: float) -> None:
        """Set the probability with which paths are dropped."""
        if probability != self.scratch.drop_path_probability:
            self.scratch.drop_path_probability = probability
            self._step.reset()
            self.group.forget()

    def _lrs(self, n_steps: int) -> list[float]:
        """Return the learning rate of each step."""
        end = self.lr if self._lr_end is None else self._lr_end
        return [cosine(i, n_steps, self.lr, end) for i in range(n_steps)]

    def _settings(self) -> dict[str, Any]:
        """Return the settings of SGD other than its learning rate."""
        settings = self._optimizer.param_groups[0]
        names = ("momentum", "weight_decay", "dampening", "nesterov")
        return {name: settings[name] for name in names}

    def _momenta(self) -> list[Tensor | None]:
        """Return the initial momentum of each parameter."""
        state = self._optimizer.state if self._uses_momentum else {}
        parameters = self._supernet.parameters()
        return [state.get(parameter, {}).get("momentum_buffer") for parameter in parameters]

    def _flat_momentum(self) -> Tensor | None:
        momenta = self._momenta()
        if all(momentum is None for momentum in momenta):
            return None
        return flat(
            torch.zeros_like(parameter) if momentum is None else momentum
            for momentum, parameter in zip(momenta, self._supernet.parameters(), strict=True)
        )
