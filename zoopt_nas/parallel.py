"""Parallel calls of the user's function: worker processes, an executor or a map-like callable."""

from __future__ import annotations

import math
import os
import pickle
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import TYPE_CHECKING, Any

from zoopt_nas._calls import Call, Raised
from zoopt_nas._checks import check_positive
from zoopt_nas.errors import InvalidValueError

if TYPE_CHECKING:
    from zoopt_nas._processes import Process

Function = Callable[[Any], Any]
Results = Iterator[tuple[int, Any]]  # (row, value) of each call


class Workers(ABC):
    """Makes the calls of a batch in parallel."""

    @abstractmethod
    def map(self, fun: Function, points: Sequence[Any], deadline: float = math.inf) -> Results:
        """Call ``fun`` at each point, and yield (row, value) in the order in which calls end.

        The value is NaN if the worker died or exceeded the timeout. No call starts after
        ``deadline`` (on ``time.monotonic``), and a row without a call is not yielded; a map-like
        callable always gets the whole batch.
        """

    def close(self) -> None:  # noqa: B027 (an optional hook)
        """Stop the processes that this object started; leave the caller's pool open."""


def make_workers(workers: Any, timeout: float | None = None) -> Workers | None:
    """Return the object that makes the calls, or None for calls in this process.

    The arguments are those of `minimize`. A timeout requires a process even for one worker, since
    only processes can be killed.
    """
    if timeout is not None:
        timeout = check_positive("timeout", timeout)
    if isinstance(workers, Executor):
        return _ExecutorWorkers(workers, timeout)
    if callable(workers):
        if timeout is not None:
            raise InvalidValueError(
                f"timeout must be None if workers is a map-like callable, got {timeout}"
            )
        return _MapWorkers(workers)
    is_count = isinstance(workers, int) and not isinstance(workers, bool)
    if not is_count or not (workers == -1 or workers > 0):
        raise InvalidValueError(
            "workers must be a positive integer, -1, an Executor or a map-like callable, "
            f"got {workers!r}"
        )
    n = n_cores() if workers == -1 else workers
    return None if n == 1 and timeout is None else _ProcessWorkers(n, timeout)


def n_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _MapWorkers(Workers):
    """Workers behind a function such as ``multiprocessing.Pool().map``."""

    def __init__(self, map_like: Callable[..., Any]) -> None:
        self._map_like = map_like

    def map(self, fun: Function, points: Sequence[Any], deadline: float = math.inf) -> Results:
        values = list(self._map_like(fun, points))
        if len(values) != len(points):
            raise InvalidValueError(
                f"workers must return one value for each of {len(points)} points, "
                f"got {len(values)} values"
            )
        return iter(enumerate(values))


_LOST = object()  # the value of a call whose process died


class _Dispatch(Workers):
    """Runs at most ``limit`` calls at a time, and stops those that exceed the timeout.

    Subclasses start and end the calls; a handle represents a started call.
    """

    def __init__(self, limit: float, timeout: float | None) -> None:
        self._limit = limit
        self._timeout = math.inf if timeout is None else timeout

    @abstractmethod
    def _begin(self, fun: Function, point: Any) -> Any:
        """Start or queue a call, and return its handle."""

    @abstractmethod
    def _wait(self, handles: Collection[Any], seconds: float | None) -> Collection[Any]:
        """Wait until a call ends, or for ``seconds``; return the calls that ended."""

    @abstractmethod
    def _result(self, fun: Function, handle: Any) -> Any:
        """Return the value of a call that ended, or raise its exception."""

    @abstractmethod
    def _give_up(self, handle: Any) -> None:
        """Stop a call if possible."""

    def _take_back(self, handle: Any) -> bool:
        """Remove a call from the queue; return False if it has started."""
        return False

    def map(self, fun: Function, points: Sequence[Any], deadline: float = math.inf) -> Results:
        waiting = deque(range(len(points)))
        running: dict[Any, tuple[int, float]] = {}  # row, and when it is late
        try:
            while waiting or running:
                while waiting and len(running) < self._limit:
                    row = waiting.popleft()
                    late_at = time.monotonic() + self._timeout
                    running[self._begin(fun, points[row])] = (row, late_at)
                now = time.monotonic()
                until = min(late_at for _, late_at in running.values())
                until = min(until, deadline) if now < deadline else until
                ended = self._wait(running, None if math.isinf(until) else max(0.0, until - now))
                now = time.monotonic()
                if now >= deadline:
                    waiting.clear()
                for handle, (row, late_at) in list(running.items()):
                    if handle in ended:
                        del running[handle]
                        yield row, self._result(fun, handle)
                    elif late_at <= now:
                        del running[handle]
                        self._give_up(handle)
                        yield row, math.nan
                    elif now >= deadline and self._take_back(handle):
                        del running[handle]
        finally:  # calls are left after an exception
            for handle in running:
                self._give_up(handle)


class _ExecutorWorkers(_Dispatch):
    """An executor of the caller.

    It gets one call per worker at a time, because a timeout must not count time in a queue, or the
    whole batch if its number of workers is unknown. When a process of a ``ProcessPoolExecutor``
    dies, which breaks the pool, processes of this module replace it.
    """

    def __init__(self, executor: Executor, timeout: float | None) -> None:
        n_workers = getattr(executor, "_max_workers", None)
        super().__init__(n_workers if isinstance(n_workers, int) else math.inf, timeout)
        self._executor = executor
        # Not imported here, since that loads multiprocessing.
        process = sys.modules.get("concurrent.futures.process")
        self._uses_processes = process and isinstance(executor, process.ProcessPoolExecutor)
        self._has_checked = False
        self._has_worked = False
        self._successor: _ProcessWorkers | None = None

    def map(self, fun: Function, points: Sequence[Any], deadline: float = math.inf) -> Results:
        if self._uses_processes and not self._has_checked:
            _check_picklable(fun)
            self._has_checked = True
        rest = set(range(len(points)))
        if self._successor is None:
            try:
                for row, value in super().map(fun, points, deadline):
                    rest.discard(row)
                    yield row, value
                return
            except BrokenExecutor as error:
                self._successor = self._replace_pool(error)
        rows = sorted(rest)
        for k, value in self._successor.map(fun, [points[row] for row in rows], deadline):
            yield rows[k], value

    def close(self) -> None:
        if self._successor is not None:
            self._successor.close()

    def _begin(self, fun: Function, point: Any) -> Future[Any]:
        return self._executor.submit(fun, point)

    def _wait(
        self, handles: Collection[Future[Any]], seconds: float | None
    ) -> Collection[Future[Any]]:
        return wait(handles, seconds, FIRST_COMPLETED).done

    def _result(self, fun: Function, handle: Future[Any]) -> Any:
        error = handle.exception()
        # A `Call` that catches exceptions raises none: a cluster has lost the worker.
        catches = isinstance(fun, Call) and fun.catches
        if catches and isinstance(error, Exception) and not isinstance(error, BrokenExecutor):
            return Raised(error)
        value = handle.result()
        self._has_worked = True
        return value

    def _give_up(self, handle: Future[Any]) -> None:
        handle.cancel()  # a running thread cannot be stopped

    def _take_back(self, handle: Future[Any]) -> bool:
        return handle.cancel()

    def _replace_pool(self, error: BrokenExecutor) -> _ProcessWorkers:
        """Return processes like those of the broken pool, or raise ``error``."""
        # There are no public attributes for these.
        names = ("_mp_context", "_initializer", "_initargs")
        setup = [getattr(self._executor, name, None) for name in names]
        # A failing initializer breaks a pool at its first call, and would break its successor.
        initializer_failed = setup[1] is not None and not self._has_worked
        if not self._uses_processes or initializer_failed:
            raise error
        warnings.warn(
            f"a process of the executor given as workers died; {self._limit} new ones replace it",
            RuntimeWarning,
            stacklevel=2,
        )
        return _ProcessWorkers(self._limit, self._timeout, *setup)


class _ProcessWorkers(_Dispatch):
    """Processes of this module, started on demand and replaced when one dies or hangs."""

    def __init__(self, n_workers: float, timeout: float | None, *setup: Any) -> None:
        super().__init__(n_workers, timeout)
        from zoopt_nas import _processes  # loads multiprocessing

        self._processes = _processes
        self._setup = setup  # the arguments of `Process`
        self._idle: list[Process] = []
        _processes.stop_with(self, self._idle)

    def map(self, fun: Function, points: Sequence[Any], deadline: float = math.inf) -> Results:
        lost = []
        for row, value in super().map(fun, points, deadline):
            if value is not _LOST:
                yield row, value
            else:
                lost.append(row)
        # Retried one at a time: memory may have been short because of the calls in parallel.
        for row in lost:
            if time.monotonic() >= deadline:
                return
            for _, value in super().map(fun, [points[row]], deadline):
                yield row, math.nan if value is _LOST else value

    def close(self) -> None:
        self._processes.stop(self._idle)

    def _begin(self, fun: Function, point: Any) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive() and process.send((fun, point)):
                return process
            process.kill()  # it died after its last call
        _check_picklable(fun)
        process = self._processes.Process(*self._setup)
        process.send((fun, point))
        return process

    def _wait(self, handles: Collection[Process], seconds: float | None) -> Collection[Process]:
        return self._processes.wait(handles, seconds)

    def _result(self, fun: Function, handle: Process) -> Any:
        answer = handle.receive()
        if answer is None:
            handle.kill()
            return _LOST
        self._idle.append(handle)
        value, error = answer
        if error is not None:
            raise error
        return value

    def _give_up(self, handle: Process) -> None:
        handle.kill()


def _check_picklable(fun: Function) -> None:
    try:
        pickle.dumps(fun)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidValueError(
            "fun must be picklable, such as a function of a module, to run in processes; "
            f"a ThreadPoolExecutor as workers takes any function; got {fun!r}"
        ) from error
