"""One run in several processes, each with its share of every batch (data parallelism).

Every process holds the whole network and draws the same batches; it takes every n-th image of them,
and the gradients are averaged. So a step is that of one process on the whole batch, but for
BatchNorm, which normalises each share by its own statistics, as usual with several GPUs, and for
drop path, whose masks are drawn for each share. Process 0 alone writes and reports.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from zoopt_nas.errors import InvalidValueError, ZooptNasError
from zoopt_nas.nas.runs.loop import Observer, Progress, Start, StartObserver

T = TypeVar("T")
# The others wait while process 0 tests after an epoch (ours; torch has 10 minutes on GPUs).
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """Which process of how many this is. The defaults are those of a run in one process.

    Attributes:
        rank: from 0.
        n: how many there are.
        local_rank: from 0 on each machine: the index of the process's GPU.
        address: ``tcp://host:port``, where process 0 listens.

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
        """Inside, the processes can exchange tensors; every one of them has to come here.

        Args:
            device: of this process. Tensors on a GPU go by NCCL, those on the CPU by gloo.
        """
        if self.n == 1:
            yield
            return
        # Its functions have the process group there is when it is first imported, which
        # DistributedDataParallel does, as a default argument: so before there is one.
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
                # Of depthwise weights, whose one channel has no stride of its own.
                warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
                yield
        finally:
            self._let_go()
            distributed.destroy_process_group()

    def _let_go(self) -> None:
        """Ends what still refers to the process group, so that its threads end with it.

        A thread of gloo that lives when the interpreter ends may just be about to free the tensors
        of the last exchange, and then aborts a process that has done its work.
        """
        while self._averaged:
            model = self._averaged.pop()  # part of a cycle, which would be collected some time
            del model.process_group, model.reducer, model.logger

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: of several GPUs, each process has its own."""
        if self.n > 1 and device.type == "cuda":
            return torch.device("cuda", self.local_rank)
        return device

    def share_of_batch(self, batch_size: int) -> int:
        """How many images of a batch this process takes.

        Raises:
            InvalidValueError: the batch cannot be shared evenly, or BatchNorm would get one image.
        """
        share, rest = divmod(batch_size, self.n)
        if self.n > 1 and (rest or share < 2):
            raise InvalidValueError(
                f"batch_size must be a multiple of the {self.n} processes, with at least 2 images "
                f"for each, got {batch_size}"
            )
        return share

    def average_gradients(self, model: nn.Module) -> nn.Module:
        """``model``, whose backward pass averages its gradients over the processes.

        Weights start as those of process 0, and BatchNorm's running statistics stay those of its
        share, which are tested and saved.
        """
        if self.n == 1:
            return model
        device = next(model.parameters()).device
        averaged = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            static_graph=True,  # a genotype may leave a cell's input unused, the same in every step
        )
        self._averaged.append(averaged)
        return averaged

    def total(self, numbers: Tensor) -> None:
        """Adds up ``numbers`` over the processes, in place."""
        if self.n > 1:
            distributed.all_reduce(numbers)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process. It goes by the CPU: no device is waited for."""
        if self.n == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def gather(self, value: T) -> list[T]:
        """The ``value`` of each process, by rank: tensors on the CPU and plain values."""
        if self.n == 1:
            return [value]
        values = [value] * self.n
        distributed.all_gather_object(values, value)
        return values

    def first(self, function: Callable[[], T]) -> T:
        """What ``function`` gives in process 0, in every process; so is the error that it raises.

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
        """Runs ``function`` in process 0 and then in the others, as when it may download a file."""
        if self.n == 1:
            return function()
        result: list[T] = []
        self.first(lambda: result.append(function()))
        return result[0] if result else function()


ALONE = Processes()


class Agreement(StartObserver):
    """Lets the processes stop at the same step, whichever of them is asked to."""

    def __init__(self, observer: Observer, processes: Processes) -> None:
        self._observer, self._processes = observer, processes

    def on_start(self, start: Start) -> None:
        if isinstance(self._observer, StartObserver):
            self._observer.on_start(start)

    def on_step(self, progress: Progress) -> None:
        self._observer.on_step(progress)

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._observer.on_epoch(row)

    def should_stop(self) -> bool:
        return self._processes.any(self._observer.should_stop())
