"""A recorder of weight steps that needs no GPU: it repeats operators as a CUDA graph does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Keeps every operator with the very tensors and numbers that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.overwritten: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.overwritten += [(x, x.clone()) for x in tree_leaves(value) if x is not None]
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def rewind(self) -> None:
        """Takes back what the recording wrote: the kernels of a CUDA graph do not run in it."""
        for tensor, value in reversed(self.overwritten):
            tensor.copy_(value)

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """As ``CudaRecorder``; counts what it did.

    Args:
        generators: what a step draws from.
        buffers: the running statistics, which BatchNorm writes without its schema saying so.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator] = (),
        buffers: Sequence[torch.Tensor] = (),
    ) -> None:
        self.generators, self.buffers = generators, buffers
        self.n_warm, self.n_recorded, self.n_replayed = 0, 0, 0

    def warm_up(self, run):
        self.n_warm += 1
        return run()

    def record(self, run):
        tape = Tape()
        tape.overwritten += [(buffer, buffer.clone()) for buffer in self.buffers]
        states = [generator.get_state() for generator in self.generators]
        try:
            with tape:
                outputs = run()
        finally:
            with torch.no_grad():
                tape.rewind()
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)
        self.n_recorded += 1

        def replay():
            self.n_replayed += 1
            tape.play()
            return outputs

        return replay
