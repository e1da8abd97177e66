"""The candidates of an update side by side, in processes with replicas of the search.

A call goes to every process as bytes: the weights, the batches and the candidates. The processes
take one part of the candidates after the other. No value depends on which process computes it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import warnings
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker, util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoopt_nas import _processes
from zoopt_nas.errors import InvalidValueError, WorkerError
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.fused import kernels_enabled
from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.runs.memory import MemoryEstimate, check_free
from zoopt_nas.nas.runs.setup import Setup
from zoopt_nas.nas.search import replica
from zoopt_nas.nas.search.candidates import batch_size
from zoopt_nas.nas.search.evaluation import Draw, Measured, Points, stem_numbers
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.parallel import n_cores

MAX_LOST = 1  # how often a part is lost with its process and repeated
_SIGNALS = {signal.SIGINT, signal.SIGTERM}

Part = tuple[int, int]
"""The candidates of a call from the first number to before the second."""


def candidate_workers(
    config: SearchConfig,
    setup: Setup,
    supernet: Supernet,
    optimizer: torch.optim.SGD,
    *,
    inner: str | None,
    seeds: Mapping[str, int],
) -> CandidateWorkers | None:
    """Return the workers of a search; None without ``candidate_devices``.

    ``inner`` is the approximation of omega* (None: the config's), and ``seeds`` are those of the
    streams.

    Raises:
        InvalidValueError: a device is of another kind than the device of the search.
    """
    devices = worker_devices(config, setup.device)
    if not devices:
        return None
    # A replica uses the kernels if the search does.
    kernels = "on" if setup.execution.cpu_kernels else "off"
    plan = replica.Plan(
        config.replace(cpu_kernels=kernels, inner=inner or config.inner),
        supernet.space.to_json(),
        DataRecord.of(setup.dataset).to_json(),
        seeds,
        os.getcwd(),
        device="",
        threads=config.threads or min(torch.get_num_threads(), max(1, n_cores() // len(devices))),
    )
    plans = [plan._replace(device=str(device)) for device in devices]
    return CandidateWorkers(plans, setup.device, supernet, optimizer)


class CandidateWorkers:
    """An ``Evaluator`` with one process for each of several devices.

    A process starts when it is needed, and is replaced when it dies.

    Args:
        plans: the plan of each replica.
        device: the device of the search.
        supernet: holds the current weights.
        optimizer: the SGD that trains them.

    Raises:
        WorkerError: processes die again and again, or evaluations fail.
    """

    def __init__(
        self,
        plans: Sequence[replica.Plan],
        device: torch.device,
        supernet: Supernet,
        optimizer: torch.optim.SGD,
    ) -> None:
        self._config, self._device = plans[0].config, device
        self._supernet, self._optimizer = supernet, optimizer
        self._cpu_kernels = kernels_enabled(supernet)
        self._workers = [_Worker(plan) for plan in plans]
        util.Finalize(self, _close, (self._workers,), exitpriority=10)

    def values(self, points: Points, draw: Draw, *, by_batch: bool = False) -> Tensor:
        """Return the values of candidates; see ``Evaluator``."""
        what = replica.VALUES_BY_BATCH if by_batch else replica.VALUES
        found = self._map(points, draw, what, self._n_at_once(points, draw))
        return torch.from_numpy(np.stack(found)).to(self._device)

    def measure(self, paths: Sequence[Path], draw: Draw) -> list[Measured]:
        """Return what each cell reaches; see ``Evaluator``."""
        return [
            Measured(*(torch.from_numpy(number).to(self._device) for number in cell))
            for cell in self._map(paths, draw, replica.CELLS, 1)
        ]

    @contextmanager
    def started(self, needs: MemoryEstimate) -> Iterator[None]:
        """Start all processes, and end them on exit.

        ``needs`` is the memory of one of them. It is compared with what is free on the other
        devices; the search checks its own.

        Raises:
            InvalidValueError: this machine has no such device.
            NotEnoughMemoryError: a device has too little memory.
        """
        try:
            for worker in self._workers:
                worker.start()
            free = {worker: worker.wait_until_ready() for worker in self._workers}
            self._check_memory(free, needs)
            yield
        finally:
            self.close()

    def close(self) -> None:
        """End all processes."""
        _close(self._workers)

    def _n_at_once(self, points: Points, draw: Draw) -> int:
        """Return how many candidates go to a process at once: as many as the search would take."""
        if not isinstance(points, Tensor):
            return 1
        given, n = self._config.candidates_per_batch, len(points)
        if given is None and points.device.type == "cuda":  # a replica knows its memory
            return math.ceil(n / len(self._workers))
        n_numbers = stem_numbers(self._supernet, draw)
        return batch_size(given, n, n_numbers, points.device, self._cpu_kernels)

    def _map(self, points: Points, draw: Draw, what: str, n_at_once: int) -> list[Any]:
        """Return what the replicas find for each candidate."""
        call = replica.pack(self._supernet, self._optimizer, points, draw, what)
        n = len(points)
        parts = [(first, min(first + n_at_once, n)) for first in range(0, n, n_at_once)]
        try:
            found = self._evaluate(call, parts)
        except BaseException:
            self.close()  # their answers would be taken for those of the next call
            raise
        return [one for part in parts for one in found[part]]

    def _evaluate(self, call: bytes, parts: Sequence[Part]) -> dict[Part, list[Any]]:
        waiting, idle = deque(parts), deque(self._workers)
        running, found, n_lost = dict[_Worker, Part](), dict[Part, list[Any]](), Counter[Part]()
        while waiting or running:
            while waiting and idle:
                worker, part = idle.popleft(), waiting.popleft()
                worker.begin(call, part)
                running[worker] = part
            for worker in _ended(running):
                part = running.pop(worker)
                idle.append(worker)
                try:
                    found[part] = worker.result()
                except _LostError:
                    n_lost[part] += 1
                    if n_lost[part] > MAX_LOST:
                        raise WorkerError(
                            f"{worker} died {n_lost[part]} times in the same evaluation; resume "
                            "the run with fewer candidate_devices or where more memory is free"
                        ) from None
                    warnings.warn(
                        f"{worker} died; a new one replaces it", RuntimeWarning, stacklevel=2
                    )
                    worker.restart()
                    waiting.appendleft(part)
        return found

    def _check_memory(self, free: Mapping[_Worker, int | None], needs: MemoryEstimate) -> None:
        """Refuse replicas that exceed the memory of a device other than the search's."""
        devices = Counter(worker.device for worker in self._workers)
        del devices[_numbered(self._device)]
        for device, n in devices.items():
            known = [b for worker, b in free.items() if worker.device == device and b is not None]
            if known:
                all_of_them = replace(needs, workers=(n - 1) * needs.total)
                check_free(all_of_them, max(known), self._config, device)


class _LostError(Exception):
    """A process has died with a call."""


class _Worker:
    """A process with a replica."""

    def __init__(self, plan: replica.Plan) -> None:
        self._plan = plan
        self.device = torch.device(plan.device)
        self.process: _processes.Process | None = None
        self._call: bytes | None = None  # the last one, which the replica keeps

    def __str__(self) -> str:
        return f"the process that evaluates candidates on {self._plan.device}"

    def start(self) -> None:
        """Start a new process, which builds the replica."""
        self.close()
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        with _blocked_signals():
            self.process = _processes.Process(context, replica.begin_process, (self._plan.threads,))
        self.process.send((replica.build, self._plan))

    def wait_until_ready(self) -> int | None:
        """Wait for the replica; return the free bytes on its device before."""
        while not _ended([self]):
            pass
        try:
            free: int | None = self.result()
        except _LostError:
            raise WorkerError(
                f"{self} ended before it was ready; a script that starts a search needs "
                'the line if __name__ == "__main__":'
            ) from None
        return free

    def restart(self) -> None:
        """Replace the process, and wait for the replica."""
        self.start()
        self.wait_until_ready()

    def begin(self, call: bytes, part: Part) -> None:
        """Begin to evaluate some candidates of a call."""
        if self.process is None:
            self.restart()
        assert self.process is not None
        job = replica.Job(None if call is self._call else call, *part)
        self._call = call
        self.process.send((replica.evaluate, job))  # a dead process shows in ``result``

    def result(self) -> Any:
        """Return the result of a function that has ended, or raise its exception.

        Raises:
            _LostError: the process has died.
        """
        assert self.process is not None
        answer = self.process.receive()
        if answer is None:
            raise _LostError
        value, error = answer
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
        self.process = self._call = None


def worker_devices(config: SearchConfig, device: torch.device) -> list[torch.device]:
    """Return the devices of the workers of a search on ``device``.

    Raises:
        InvalidValueError: a device is of another kind, on which the same random numbers and
            rounding cannot be had.
    """
    devices = []
    for name in config.worker_names:
        try:
            found = device if name == "auto" else torch.device(name)
        except RuntimeError as error:
            raise InvalidValueError(
                f"candidate_devices must be devices of torch, got {name}"
            ) from error
        if found.type != device.type:
            raise InvalidValueError(
                f"candidate_devices must be of the same kind as the device of the search, "
                f"{device.type}, got {name}"
            )
        devices.append(_numbered(found))
    return devices


def n_beside(config: SearchConfig, device: torch.device) -> int:
    """Return how many workers of a search have the same device as the search."""
    return worker_devices(config, device).count(_numbered(device))


def _numbered(device: torch.device) -> torch.device:
    """Return a device with its number; the CPU has none."""
    if device.type == "cpu":
        return torch.device("cpu")
    return torch.device(device.type, device.index or 0)


def _ended(workers: Collection[_Worker]) -> list[_Worker]:
    """Wait about a second for workers whose function has ended, and return them."""
    by_process = {worker.process: worker for worker in workers if worker.process is not None}
    return [by_process[process] for process in _processes.wait(by_process, None)]


def _close(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.close()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Let a process that is started inside ignore requests to stop, which the search handles."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
