"""A weight step, in one place for the search, its inner steps and the retraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.settings.config import RunConfig
from zoopt_nas.nas.steps.cuda_graph import CapturedStep, CudaRecorder, warn_of_plain_steps
from zoopt_nas.nas.steps.execution import Execution


class Losses(NamedTuple):
    """What a forward pass ends with.

    Attributes:
        total: what is minimised, ().
        loss: what is reported, (): without the share of an auxiliary head.
        logits: ``(batch, classes)``.
    """

    total: Tensor
    loss: Tensor
    logits: Tensor


Compute = Callable[..., Losses]
"""``(images, labels, *more)`` to losses: tensors in, tensors out, no look at their values."""


def cross_entropy_of(model: Callable[..., Tensor]) -> Compute:
    """The plain loss of a model that maps images, and whatever else it is given, to logits."""

    def compute(images: Tensor, labels: Tensor, *more: Tensor) -> Losses:
        logits = model(images, *more)
        loss = F.cross_entropy(logits, labels)
        return Losses(loss, loss, logits)

    return compute


class WeightStep:
    """One step of a model's weights: forward, backward, clipping, update.

    It waits for no value: everything that it returns is still on the device.

    Args:
        compute: the forward pass.
        model: what it runs; its buffers may change in it.
        optimizer: steps the weights.
        grad_clip: bound on the gradient's norm; None is no bound. There is nothing to unscale
            before: bf16 has the range of float32.
        by_row: the weights are rows of one tensor, and the bound holds for each row.
        execution: precision and compilation; None is neither.
        generators: what ``compute`` draws from, on the model's device.
    """

    def __init__(
        self,
        compute: Compute,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        grad_clip: float | None,
        *,
        by_row: bool = False,
        execution: Execution | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self._compute, self._model, self._optimizer = compute, model, optimizer
        self._grad_clip, self._by_row, self._generators = grad_clip, by_row, generators
        self._execution = execution or Execution(next(model.parameters()).device)
        self._captured: CapturedStep | None = None
        self._compiled: Compute | None = None
        self._is_tried = False
        device = self._execution.device
        if not self._execution.compile:
            return
        if device.type == "cuda":
            recorder = CudaRecorder(device, generators)
            self._captured = CapturedStep(self._plain, optimizer, device, recorder)
        else:
            self._compile()

    def __call__(self, images: Tensor, labels: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a step; returns the reported loss () and the logits (batch, classes), detached.

        With a CUDA graph the next step overwrites them.

        Args:
            images: ``(batch, channels, height, width)``.
            labels: ``(batch,)``.
            more: what else the forward pass takes, as alpha.
        """
        if self._captured is not None:
            return self._captured(images, labels, *more)
        if self._compiled is None:
            return self._plain(images, labels, *more)
        if self._is_tried:
            return self._step(self._compiled, images, labels, *more)
        return self._try(self._compiled, images, labels, *more)

    def reset(self) -> None:
        """Forgets a recorded step: a number that ``compute`` takes from Python has changed."""
        if self._captured is not None:
            self._captured.reset()

    def _plain(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self._step(self._compute, *inputs)

    def _step(self, compute: Compute, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        with self._execution.precision():
            losses = compute(*inputs)
        weight_step(losses.total, self._optimizer, self._grad_clip, by_row=self._by_row)
        return losses.loss.detach(), losses.logits.detach()

    def _compile(self) -> None:
        try:
            # A batch of another shape is compiled by itself, whatever came before: a resumed run
            # then has the code of an uninterrupted one.
            self._compiled = torch.compile(self._compute, dynamic=False)
        except RuntimeError as error:  # no compiler for this version of Python
            warn_of_plain_steps(error)

    def _try(self, compute: Compute, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first compiled step. If it fails, it is taken back and done without."""
        self._is_tried = True
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        states = [(generator, generator.get_state()) for generator in self._generators]
        try:
            return self._step(compute, *inputs)
        except RuntimeError as error:  # the weights are not touched before the last line of a step
            warn_of_plain_steps(error)
        self._compiled = None
        for buffer, value in buffers:
            buffer.copy_(value)
        for generator, state in states:
            generator.set_state(state)
        return self._plain(*inputs)


def make_sgd(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """SGD with momentum and weight decay over the weights of ``model``."""
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def start_momentum(optimizer: torch.optim.SGD, momenta: Sequence[Tensor | None]) -> None:
    """Gives each of the optimizer's parameters, as a copy, the momentum that it starts with.

    Args:
        optimizer: its buffers stay where they are, as a CUDA graph needs it.
        momenta: one for each parameter, of a shape that expands to its; None is no momentum.
    """
    group = optimizer.param_groups[0]
    parameters = group["params"]
    pairs = [
        (parameter, momentum)
        for parameter, momentum in zip(parameters, momenta, strict=True)
        if momentum is not None
    ]
    if len(pairs) < len(parameters):
        if group["dampening"]:  # SGD makes a missing buffer from its first gradient
            optimizer.state.clear()
        # As does a buffer of zeros without dampening.
        for state in optimizer.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].zero_()
    for parameter, _ in pairs:
        if optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
    if pairs:
        buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter, _ in pairs]
        torch._foreach_copy_(buffers, [momentum for _, momentum in pairs])


def weight_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    grad_clip: float | None,
    *,
    by_row: bool = False,
) -> None:
    """One step down the gradient of ``loss``.

    Args:
        loss: ``()``.
        optimizer: steps its parameters.
        grad_clip: bound on the gradient's norm; None is no bound.
        by_row: the bound holds for each row of the one parameter, not for all of it.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if grad_clip is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if by_row:
            (rows,) = parameters
            norms = torch.linalg.vector_norm(rows.grad, dim=1, keepdim=True)
            # The same formula as that of clip_grad_norm_.
            rows.grad.mul_((grad_clip / (norms + 1e-6)).clamp(max=1.0))
        else:
            nn.utils.clip_grad_norm_(parameters, grad_clip)
    optimizer.step()
