"""A weight step as one CUDA graph: recorded once, then launched as a whole.

A step of a supernet is thousands of small kernels. A GPU is done with many of them sooner than
Python launches the next; a graph has no launches between them.

The whole step is recorded, by hand, rather than its forward and backward pass by
``torch.compile(mode="reduce-overhead")``: clipping and the optimizer are hundreds of launches too,
nothing of the supernet has to be traced, there are no minutes of compilation, and the kernels, and
so the numbers, are those of the plain step.

A graph repeats what was recorded, with the same addresses and the same Python numbers. So:

- Images, labels and alpha are copied into tensors that stay.
- The learning rate is a tensor. SGD reads it without waiting in its fused form only.
- Momentum, weight decay and the momentum's buffers are compared before each step; if they are
  others, the step is recorded anew. Gradients live in the graph's own memory.
- A batch of another shape, such as the last of an epoch, runs as a plain step.
- Generators are registered, so that a replay draws on from where they are.
- The steps that warm up, which a recording needs, are steps of the training like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from zoopt_nas.nas.steps.execution import silenced

Outputs = tuple[Tensor, Tensor]
Step = Callable[..., Outputs]

# As many as the notes of PyTorch on CUDA graphs take: libraries choose and load their kernels.
WARM_UP_STEPS = 3
_SETTINGS = ("momentum", "weight_decay", "dampening", "nesterov")


def warn_of_plain_steps(error: Exception) -> None:
    """Says in one line why weight steps run as plain ones, though asked for otherwise."""
    reason = " ".join(str(error).split())[:200]
    warnings.warn(f"weight steps are not compiled: {reason}", stacklevel=3)


class Recorder(Protocol):
    """Runs functions so that they can be recorded, and records them."""

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        """Runs ``run`` where it will be recorded."""

    def record(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Records ``run`` without any effect of its kernels; the result does it again."""


class CudaRecorder:
    """Records on a stream of its own.

    Args:
        device: a CUDA device.
        generators: those on the device that a step draws from.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self._device, self._generators = device, generators
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = run()
        current.wait_stream(self._stream)
        return outputs

    def record(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        graph = torch.cuda.CUDAGraph()
        with silenced():
            # Since PyTorch 2.14 generators register themselves, and this call only warns.
            for generator in self._generators:
                graph.register_generator_state(generator)
        # The outer context gives the stream back even where the end of a recording fails.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, stream=self._stream),
        ):
            outputs = run()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


class CapturedStep:
    """``step`` of an optimizer's parameters, recorded after its warm-up.

    What it returns is overwritten by the next step.

    Args:
        step: the plain step, from tensors to tensors, with ``optimizer``.
        optimizer: whose buffers and settings are recorded with it.
        device: of the parameters.
        recorder: how to record; a test passes one that needs no GPU.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.SGD, device: torch.device, recorder: Recorder
    ) -> None:
        self._step, self._optimizer, self._recorder = step, optimizer, recorder
        # float32: the fused kernel takes no other type.
        self._lrs = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._is_impossible = False
        self.reset()

    def reset(self) -> None:
        """Forgets the recording: what it holds beside its tensors has changed."""
        self._replay: Callable[[], Outputs] | None = None
        self._inputs: list[Tensor] = []
        self._shapes: list[torch.Size] = []
        self._n_warm = 0
        self._buffers: list[Any] = []
        self._settings: list[Any] = []

    def __call__(self, *inputs: Tensor) -> Outputs:
        if self._is_impossible:
            return self._step(*inputs)
        if self._replay is not None and not self._is_valid():
            self.reset()
        shapes = [x.shape for x in inputs]
        if self._replay is None:
            return self._prepare(inputs, shapes)
        if shapes != self._shapes:
            return self._step(*inputs)
        torch._foreach_copy_(self._inputs, list(inputs))
        self._set_lrs()
        return self._replay()

    def _prepare(self, inputs: tuple[Tensor, ...], shapes: list[torch.Size]) -> Outputs:
        """A step of the warm-up, or, after as many of the same shape in a row, the recording."""
        self._n_warm = self._n_warm + 1 if shapes == self._shapes else 1
        self._shapes = shapes
        self._set_lrs()
        if self._n_warm <= WARM_UP_STEPS:
            with self._lrs_on_device():
                return self._recorder.warm_up(lambda: self._step(*inputs))
        self._inputs = [x.clone() for x in inputs]
        self._buffers, self._settings = self._momenta(), self._group_settings()
        try:
            with self._lrs_on_device():
                self._replay = self._recorder.record(lambda: self._step(*self._inputs))
        except RuntimeError as error:
            self._is_impossible = True
            warn_of_plain_steps(error)
            return self._step(*inputs)
        return self._replay()

    def _is_valid(self) -> bool:
        momenta = self._momenta()
        return self._settings == self._group_settings() and all(
            now is then for now, then in zip(momenta, self._buffers, strict=True)
        )

    def _momenta(self) -> list[Any]:
        state = self._optimizer.state
        return [
            state[parameter].get("momentum_buffer") if parameter in state else None
            for group in self._optimizer.param_groups
            for parameter in group["params"]
        ]

    def _group_settings(self) -> list[Any]:
        return [[group[name] for name in _SETTINGS] for group in self._optimizer.param_groups]

    def _set_lrs(self) -> None:
        for lr, group in zip(self._lrs, self._optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])

    @contextmanager
    def _lrs_on_device(self) -> Iterator[None]:
        """Inside, the optimizer takes its fused form, with the learning rates as tensors."""
        groups = self._optimizer.param_groups
        before = [{name: group[name] for name in ("lr", "fused", "foreach")} for group in groups]
        for group, lr in zip(groups, self._lrs, strict=True):
            group.update(lr=lr, fused=True, foreach=False)
        try:
            yield
        finally:
            for group, settings in zip(groups, before, strict=True):
                group.update(settings)
