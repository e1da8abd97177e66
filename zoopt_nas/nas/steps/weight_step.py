"""The weight step of the search, of its inner training and of the retraining."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.steps.cuda_graph import CudaGraphStep, CudaRecorder, warn_not_compiled
from zoopt_nas.nas.steps.execution import Execution


class Losses(NamedTuple):
    """The result of a forward pass.

    Attributes:
        total: The loss to minimize, ().
        loss: The loss to report, (), which excludes an auxiliary head.
        logits: ``(batch, classes)``.
    """

    total: Tensor
    loss: Tensor
    logits: Tensor


Compute = Callable[..., Losses]
"""Map ``(images, labels, *more)`` to losses without reading the values of tensors."""


def cross_entropy_of(model: Callable[..., Tensor]) -> Compute:
    """Return the cross-entropy of ``model``, which maps ``(images, *more)`` to logits."""

    def compute(images: Tensor, labels: Tensor, *more: Tensor) -> Losses:
        logits = model(images, *more)
        loss = F.cross_entropy(logits, labels)
        return Losses(loss, loss, logits)

    return compute


class WeightStep:
    """A step of a model's weights: forward, backward, clipping, update, without synchronization.

    Args:
        compute: The forward pass.
        model: The model that ``compute`` runs.
        optimizer: The optimizer of its weights.
        grad_clip: Bound on the norm of the gradient; None is no bound.
        by_row: Whether the weights are rows of one tensor, each with its own bound.
        execution: Precision and compilation; None uses neither.
        generators: Generators on the model's device from which ``compute`` draws.
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
        self._graph: CudaGraphStep | None = None
        self._compiled: Compute | None = None
        self._is_tried = False
        device = self._execution.device
        if not self._execution.compile:
            return
        if device.type == "cuda":
            recorder = CudaRecorder(device, generators)
            self._graph = CudaGraphStep(self.eager, optimizer, device, recorder)
        else:
            self._compile()

    def __call__(self, images: Tensor, labels: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """Take a step; return the reported loss () and the logits (batch, classes), detached.

        With a CUDA graph the next step overwrites the returned tensors.

        Args:
            images: ``(batch, channels, height, width)``.
            labels: ``(batch,)``.
            more: Further arguments of ``compute``, such as alpha. A CUDA graph takes only tensors.
        """
        if self._graph is not None:
            return self._graph(images, labels, *more)
        if self._compiled is None:
            return self.eager(images, labels, *more)
        if self._is_tried:
            return self._step(self._compiled, images, labels, *more)
        return self._try(self._compiled, images, labels, *more)

    def reset(self) -> None:
        """Discard the CUDA graph, because a Python number that ``compute`` uses has changed."""
        if self._graph is not None:
            self._graph.reset()

    def eager(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Take a step as a call does, but neither recorded nor compiled."""
        return self._step(self._compute, *inputs)

    def _step(self, compute: Compute, *inputs: Any) -> tuple[Tensor, Tensor]:
        with self._execution.precision():
            losses = compute(*inputs)
        weight_step(losses.total, self._optimizer, self._grad_clip, by_row=self._by_row)
        return losses.loss.detach(), losses.logits.detach()

    def _compile(self) -> None:
        try:
            # Static shapes: the code must not depend on earlier batches, or a resumed run differs.
            self._compiled = torch.compile(self._compute, dynamic=False)
        except RuntimeError as error:  # no compiler for this version of Python
            warn_not_compiled(error)

    def _try(self, compute: Compute, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Take the first compiled step. If it fails, undo it and take an eager one."""
        self._is_tried = True
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        states = [(generator, generator.get_state()) for generator in self._generators]
        try:
            return self._step(compute, *inputs)
        except RuntimeError as error:  # a failing step has not changed the weights
            warn_not_compiled(error)
        self._compiled = None
        for buffer, value in buffers:
            buffer.copy_(value)
        for generator, state in states:
            generator.set_state(state)
        return self.eager(*inputs)


def make_sgd(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """Return SGD with momentum and weight decay over the weights of ``model``."""
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )


def start_momentum(optimizer: torch.optim.SGD, momenta: Sequence[Tensor | None]) -> None:
    """Copy an initial momentum, or None, to each parameter of the optimizer's only group.

    Shapes must expand to the parameters'. Buffers keep their addresses, as a CUDA graph needs.
    """
    group = optimizer.param_groups[0]
    parameters = group["params"]
    missing = [p for p, momentum in zip(parameters, momenta, strict=True) if momentum is None]
    if missing and group["dampening"]:
        # SGD initializes a missing buffer with the undampened gradient.
        optimizer.state.clear()
    elif missing and group["momentum"]:
        # Without dampening a buffer of zeros is the same as none. The fused SGD takes all buffers
        # or none, and the next path may share some parameters with the last one.
        torch._foreach_zero_([_momentum_buffer(optimizer, p) for p in missing])
    given = [
        (p, momentum)
        for p, momentum in zip(parameters, momenta, strict=True)
        if momentum is not None
    ]
    if given:
        buffers = [_momentum_buffer(optimizer, p) for p, _ in given]
        torch._foreach_copy_(buffers, [momentum for _, momentum in given])


def _momentum_buffer(optimizer: torch.optim.SGD, parameter: Tensor) -> Tensor:
    """Return the momentum of a parameter, uninitialized if there was none."""
    state = optimizer.state[parameter]
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.empty_like(parameter)
    buffer: Tensor = state["momentum_buffer"]
    return buffer


def weight_step(
    losses: Tensor | Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    grad_clip: float | None,
    *,
    by_row: bool = False,
) -> None:
    """Take an optimizer step down the gradient of a loss, clipped to the norm ``grad_clip``.

    Args:
        losses: The loss (), or several whose gradients are summed. An iterator that computes them
            one by one needs the memory of one.
        optimizer: The optimizer of the weights.
        grad_clip: Bound on the norm of the gradient; None is no bound.
        by_row: Whether the bound holds for each row of the only parameter.
    """
    optimizer.zero_grad(set_to_none=True)
    for loss in (losses,) if isinstance(losses, Tensor) else losses:
        torch.autograd.backward(loss)
    if grad_clip is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if by_row:
            (rows,) = parameters
            norms = torch.linalg.vector_norm(rows.grad, dim=1, keepdim=True)
            # The formula of clip_grad_norm_.
            rows.grad.mul_((grad_clip / (norms + 1e-6)).clamp(max=1.0))
        else:
            nn.utils.clip_grad_norm_(parameters, grad_clip)
    optimizer.step()
