"""Record a weight step as a CUDA graph and replay it.

A step of a supernet launches thousands of small kernels, and a GPU finishes many of them before
Python can launch the next. A graph launches the whole step at once. Unlike
``torch.compile(mode="reduce-overhead")``, it includes clipping and the optimizer, needs no tracing,
and runs the kernels of the eager step, so the numbers are the same.

A graph repeats the recorded addresses and Python numbers. Therefore:

- Each step copies images, labels and alpha into fixed tensors.
- The learning rate is a tensor. Only the fused SGD reads it without synchronization.
- A change of the optimizer's settings or momentum buffers causes a new recording.
- A batch of another shape, such as the last of an epoch, runs eagerly.
- Registered generators advance in a replay as in an eager step.
- The warm-up steps before a recording are ordinary training steps.
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

WARM_UP_STEPS = 3  # as in PyTorch's notes on CUDA graphs
_SETTINGS = ("momentum", "weight_decay", "dampening", "nesterov")


def warn_not_compiled(error: Exception) -> None:
    """Warn in one line why weight steps run eagerly."""
    reason = " ".join(str(error).split())[:200]
    warnings.warn(f"weight steps are not compiled: {reason}", stacklevel=3)


class Recorder(Protocol):
    """Warms up and records functions."""

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        """Call ``run`` on the stream of the recording."""

    def record(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Record ``run`` without executing its kernels; return a function that replays it."""


class CudaRecorder:
    """A `Recorder` for a CUDA device; ``generators`` give the random numbers of a step."""

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self._device, self._generators = device, generators
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        """Call ``run`` on the stream of the recording."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = run()
        current.wait_stream(self._stream)
        return outputs

    def record(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Record ``run``; return a function that replays it."""
        graph = torch.cuda.CUDAGraph()
        with silenced():
            # From PyTorch 2.14 on, generators register themselves and this call only warns.
            for generator in self._generators:
                graph.register_generator_state(generator)
        # The outer context restores the stream even if the end of the recording fails.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, stream=self._stream),
        ):
            outputs = run()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


class CudaGraphStep:
    """A weight step that is recorded after its warm-up and then replayed.

    Each step overwrites the tensors returned by the one before.

    Args:
        step: The eager step with ``optimizer``, from tensors to tensors.
        optimizer: The optimizer; the recording includes its buffers and settings.
        device: Device of the parameters.
        recorder: The recorder; tests pass one that needs no GPU.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.SGD, device: torch.device, recorder: Recorder
    ) -> None:
        self._step, self._optimizer, self._recorder = step, optimizer, recorder
        # The fused kernel requires float32.
        self._lrs = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._is_impossible = False
        self.reset()

    def reset(self) -> None:
        """Discard the recording."""
        self._replay: Callable[[], Outputs] | None = None
        self._inputs: list[Tensor] = []
        self._shapes: list[torch.Size] = []
        self._n_warm = 0
        self._buffers: list[Any] = []
        self._settings: list[Any] = []

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Warm up, record, replay, or take an eager step."""
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
        """Take a warm-up step or, after enough steps of the same shape, record one."""
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
            warn_not_compiled(error)
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
        """Switch the optimizer to its fused form, with tensors as learning rates."""
        groups = self._optimizer.param_groups
        before = [{name: group[name] for name in ("lr", "fused", "foreach")} for group in groups]
        for group, lr in zip(groups, self._lrs, strict=True):
            group.update(lr=lr, fused=True, foreach=False)
        try:
            yield
        finally:
            for group, settings in zip(groups, before, strict=True):
                group.update(settings)
