"""One run in several processes, each with a part of every batch (data parallelism).

Every process holds the whole network, draws the same batches and takes every n-th image; the
gradients are averaged. A step equals a step of one process on the whole batch, except that
BatchNorm uses the statistics of each part, and drop path draws its masks for each part. Only
process 0 writes and reports.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from zoopt_nas.errors import InvalidValueError, ZooptNasError

T = TypeVar("T")
# The other processes wait while process 0 tests (PyTorch's default on GPUs is 10 minutes).
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """The rank of this process, and the number of processes; by default a single one.

    Attributes:
        rank: from 0.
        n: the number of processes.
        local_rank: from 0 on each machine; the index of this process's GPU.
        address: ``tcp://host:port`` at which process 0 listens.

    Raises:
        InvalidValueError: the rank is not below the number of processes.
    """

    rank: int = 0
    n: int = 1
    local_rank: int = 0
    address: str = "tcp://127.0.0.1:29500"
    _averaged: list[DistributedDataParallel] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.n:
            raise InvalidValueError(f"rank must lie in 0..{self.n - 1}, got {self.rank}")

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Let the processes exchange tensors inside; every process has to enter.

        Args:
            device: of this process. GPU tensors are sent by NCCL, CPU tensors by gloo.
        """
        if self.n == 1:
            yield
            return
        # The functions of this module keep, as a default argument, the process group that exists
        # at its first import (DistributedDataParallel imports it); import it before there is one.
        importlib.import_module("torch.distributed.nn.functional")
        is_cuda = device.type == "cuda"
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            init_method=self.address,
            rank=self.rank,
            world_size=self.n,
            timeout=_TIMEOUT,
            device_id=device if is_cuda else None,
        )
        try:
            with warnings.catch_warnings():
                # Raised for depthwise weights: the stride of a single channel is arbitrary.
                warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
                yield
        finally:
            self._let_go()
            distributed.destroy_process_group()

    def _let_go(self) -> None:
        """Release all references to the process group, so that its threads end with it.

        A gloo thread that is alive when the interpreter ends may abort a finished process.
        """
        while self._averaged:
            model = self._averaged.pop()  # part of a reference cycle
            del model.process_group, model.reducer, model.logger

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process; on GPUs, each process has a different one."""
        if self.n > 1 and device.type == "cuda":
            return torch.device("cuda", self.local_rank)
        return device

    def share_of_batch(self, batch_size: int) -> int:
        """Return the number of images of a batch that this process takes.

        Raises:
            InvalidValueError: the batch cannot be divided evenly, or BatchNorm would get one image.
        """
        share, rest = divmod(batch_size, self.n)
        if self.n > 1 and (rest or share < 2):
            raise InvalidValueError(
                f"batch_size must be a multiple of the {self.n} processes, with at least 2 images "
                f"for each, got {batch_size}"
            )
        return share

    def average_gradients(self, model: nn.Module) -> nn.Module:
        """Return ``model`` with gradients that the backward pass averages over the processes.

        Weights start as in process 0. Running statistics of BatchNorm differ between processes;
        process 0 tests and saves its statistics.
        """
        if self.n == 1:
            return model
        device = next(model.parameters()).device
        averaged = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            static_graph=True,  # a genotype may leave a cell's input unused, in every step
        )
        self._averaged.append(averaged)
        return averaged

    def total(self, numbers: Tensor) -> None:
        """Sum ``numbers`` over the processes, in place."""
        if self.n > 1:
            distributed.all_reduce(numbers)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process; does not wait for a GPU."""
        if self.n == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def gather(self, value: T) -> list[T]:
        """Return the ``value`` of each process, by rank: CPU tensors or Python values."""
        if self.n == 1:
            return [value]
        values = [value] * self.n
        distributed.all_gather_object(values, value)
        return values

    def first(self, function: Callable[[], T]) -> T:
        """Call ``function`` in process 0; return its result in every process.

        Raises:
            ZooptNasError: process 0 raised it.
        """
        if self.n == 1:
            return function()
        outcome: list[T | ZooptNasError | None] = [None]
        if self.rank == 0:
            try:
                outcome = [function()]
            except ZooptNasError as error:
                outcome = [error]
        distributed.broadcast_object_list(outcome)
        if isinstance(outcome[0], ZooptNasError):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]

    def first_then_others(self, function: Callable[[], T]) -> T:
        """Call ``function`` in process 0 first, which may download a file, then in the others."""
        if self.n == 1:
            return function()
        result: list[T] = []
        self.first(lambda: result.append(function()))
        return result[0] if result else function()


ALONE = Processes()
