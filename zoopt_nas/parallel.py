"""Workers: one batch of calls of the user's function, made side by side.

`make_workers` turns what a user may give as ``workers`` into one of three `Workers`: processes of
our own, an executor of the caller's, or a map-like callable. All return the values with their rows,
so that the order in which calls happen to end changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import Any

from zoopt_nas._calls import Call, Raised
from zoopt_nas._checks import check_positive
from zoopt_nas.errors import InvalidValueError

Function = Callable[[Any], Any]

# What `pickle` raises for a function that it cannot find by name.
_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)


class Workers(ABC):
    """Where calls are made."""

    @abstractmethod
    def map(
        self, fun: Function, points: Sequence[Any], deadline: float = math.inf
    ) -> Iterator[tuple[int, Any]]:
        """Calls ``fun`` at each point, and yields (row, value) as the calls end, in any order.

        The value of a call whose worker died or took too long is NaN. After ``deadline``, on the
        clock of ``time.monotonic``, no call starts: rows without one are not yielded. A map-like
        callable is given the whole batch.

        Raises:
            InvalidValueError: ``fun`` cannot be sent to another process, or a map-like callable
                did not return one value for each point.
            Exception: what ``fun`` raises.
        """

    def close(self) -> None:  # noqa: B027 (an optional hook)
        """Ends what was started here; what belongs to the caller is left open."""


def make_workers(workers: Any, timeout: float | None = None) -> Workers | None:
    """Returns what makes the calls, or None for plain calls in this process.

    Args:
        workers: the number of processes (-1: one for each core that this process may use), a
            ``concurrent.futures.Executor``, or a callable that maps: ``workers(fun, points)``
            returns the values in order.
        timeout: the seconds that a call may take. Only processes can be stopped, so that with it
            even one worker is a process of its own.

    Raises:
        InvalidValueError: ``workers`` is none of these, or ``timeout`` breaks a rule.
    """
    if timeout is not None:
        timeout = check_positive("timeout", timeout)
    if isinstance(workers, Executor):
        return _ExecutorWorkers(workers, timeout)
    if callable(workers):
        if timeout is not None:
            raise InvalidValueError(
                f"timeout must be None where workers is a map-like callable, got {timeout}"
            )
        return _MapWorkers(workers)
    is_count = isinstance(workers, int) and not isinstance(workers, bool)
    if not is_count or not (workers == -1 or workers > 0):
        raise InvalidValueError(
            "workers must be a positive integer, -1, an Executor or a map-like callable, "
            f"got {workers!r}"
        )
    n = _n_cores() if workers == -1 else workers
    return None if n == 1 and timeout is None else _ProcessWorkers(n, timeout)


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _MapWorkers(Workers):
    """``multiprocessing.Pool().map`` and its like."""

    def __init__(self, mapper: Callable[..., Any]) -> None:
        self._mapper = mapper

    def map(
        self, fun: Function, points: Sequence[Any], deadline: float = math.inf
    ) -> Iterator[tuple[int, Any]]:
        values = list(self._mapper(fun, points))
        if len(values) != len(points):
            raise InvalidValueError(
                f"workers must return one value for each of {len(points)} points, "
                f"got {len(values)} values"
            )
        return iter(enumerate(values))


class _ExecutorWorkers(Workers):
    """An executor of the caller's.

    It gets as many calls at a time as it has workers, so that none waits in a queue while its clock
    runs. Where the executor does not say how many those are, it gets the whole batch at once.

    A pool of processes of which one dies is broken for good: from then on processes of our own take
    its place.
    """

    def __init__(self, executor: Executor, timeout: float | None) -> None:
        self._executor = executor
        self._timeout = timeout
        n_workers = getattr(executor, "_max_workers", None)
        self._n_workers = n_workers if isinstance(n_workers, int) else None
        # The class itself would load multiprocessing. Loky's has the same name, but takes functions
        # that `pickle` does not, which processes of our own could not run.
        names = [f"{cls.__module__}.{cls.__name__}" for cls in type(executor).__mro__]
        self._uses_processes = "concurrent.futures.process.ProcessPoolExecutor" in names
        self._has_checked = False
        self._has_worked = False
        self._successor: _ProcessWorkers | None = None

    def map(
        self, fun: Function, points: Sequence[Any], deadline: float = math.inf
    ) -> Iterator[tuple[int, Any]]:
        if self._uses_processes and not self._has_checked:
            _check_picklable(fun)
            self._has_checked = True
        rest = set(range(len(points)))
        if self._successor is None:
            try:
                for row, value in self._map_executor(fun, points, deadline):
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

    def _map_executor(
        self, fun: Function, points: Sequence[Any], deadline: float
    ) -> Iterator[tuple[int, Any]]:
        limit = self._n_workers or len(points)
        waiting = deque(range(len(points)))
        running = _Running(self._timeout)
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    row = waiting.popleft()
                    running.add(row, self._executor.submit(fun, points[row]))
                done, late = running.wait(deadline)
                if time.monotonic() >= deadline:
                    waiting.clear()
                    running.drop_queued()
                for row, future in done:
                    yield row, self._result(fun, future)
                    self._has_worked = True
                for row in late:  # a thread cannot be stopped: the call is given up
                    yield row, math.nan
        finally:
            running.cancel()

    def _result(self, fun: Function, future: Future[Any]) -> Any:
        error = future.exception()
        # A function that catches its own exceptions has none: a cluster lost the call's worker. A
        # pool that is broken stays so.
        catches = isinstance(fun, Call) and fun.catches
        if catches and isinstance(error, Exception) and not isinstance(error, BrokenExecutor):
            return Raised(error)
        return future.result()

    def _replace_pool(self, error: BrokenExecutor) -> _ProcessWorkers:
        """Returns processes like those of the broken pool, or raises ``error``."""
        # Private, for want of public ones.
        initializer = getattr(self._executor, "_initializer", None)
        # One that fails breaks the pool at its first call, and would break ours.
        is_to_blame = initializer is not None and not self._has_worked
        if not self._uses_processes or is_to_blame:
            raise error
        options = {
            "mp_context": getattr(self._executor, "_mp_context", None),
            "initializer": initializer,
            "initargs": getattr(self._executor, "_initargs", ()),
        }
        n_workers = self._n_workers or _n_cores()
        warnings.warn(
            f"a process of the executor given as workers died; {n_workers} new ones go on",
            RuntimeWarning,
            stacklevel=2,
        )
        return _ProcessWorkers(n_workers, self._timeout, options)


class _ProcessWorkers(Workers):
    """Processes of our own, started at the first call and replaced when one dies or hangs."""

    def __init__(
        self, n_workers: int, timeout: float | None, options: dict[str, Any] | None = None
    ) -> None:
        self._n_workers = n_workers
        self._timeout = timeout
        self._options = options or {}  # of ProcessPoolExecutor
        self._pool: Any = None
        self._is_busy = False

    def map(
        self, fun: Function, points: Sequence[Any], deadline: float = math.inf
    ) -> Iterator[tuple[int, Any]]:
        self._is_busy = True
        # When a process dies, the pool gives up every call that runs. Which of them was to blame
        # shows only when each is made again with no other beside it.
        suspects: list[int] = []
        yield from self._map_together(fun, points, suspects, deadline)
        for row in suspects:
            if time.monotonic() >= deadline:
                break
            yield row, self._call_alone(fun, points[row])
        self._is_busy = False

    def close(self) -> None:
        if self._is_busy:  # an exception came between, and calls may still run
            self._kill()
        elif self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _map_together(
        self, fun: Function, points: Sequence[Any], suspects: list[int], deadline: float
    ) -> Iterator[tuple[int, Any]]:
        """As ``map``, but appends to ``suspects`` the rows that ran when a process died."""
        waiting = deque(range(len(points)))
        running = _Running(self._timeout)
        while waiting or running:
            while waiting and len(running) < self._n_workers:
                row = waiting.popleft()
                running.add(row, self._submit(fun, points[row]))
            done, late = running.wait(deadline)
            if time.monotonic() >= deadline:
                waiting.clear()
            is_broken = False
            for row, future in done:
                if isinstance(future.exception(), BrokenExecutor):
                    is_broken = True
                    suspects.append(row)
                else:
                    yield row, future.result()
            for row in late:
                yield row, math.nan
            if is_broken:
                suspects.extend(running.cancel())
                self._kill()
            elif late:
                waiting.extendleft(reversed(running.cancel()))  # they did nothing wrong
                self._kill()

    def _call_alone(self, fun: Function, point: Any) -> Any:
        future = self._submit(fun, point)
        wait([future], self._timeout)
        if future.done() and not isinstance(future.exception(), BrokenExecutor):
            return future.result()
        self._kill()
        return math.nan

    def _submit(self, fun: Function, point: Any) -> Future[Any]:
        if self._pool is not None:
            with contextlib.suppress(BrokenExecutor):  # a process died since the last call
                return self._pool.submit(fun, point)  # type: ignore[no-any-return]
            self._kill()
        _check_picklable(fun)
        from concurrent.futures import ProcessPoolExecutor  # loads multiprocessing

        self._pool = ProcessPoolExecutor(self._n_workers, **self._options)
        return self._pool.submit(fun, point)  # type: ignore[no-any-return]

    def _kill(self) -> None:
        """Ends the processes whatever they do; the next call starts new ones."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        # `kill_workers` of Python 3.14. Before, only the private table knows the processes.
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=True)


class _Running:
    """The calls that run, and since when."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = math.inf if timeout is None else timeout
        self._calls: dict[Future[Any], tuple[int, float]] = {}  # row, and when it is late

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, row: int, future: Future[Any]) -> None:
        self._calls[future] = (row, time.monotonic() + self._timeout)

    def wait(self, deadline: float) -> tuple[list[tuple[int, Future[Any]]], list[int]]:
        """Waits until a call has ended or is late; returns those that have and the late rows.

        It also returns when ``deadline`` comes while it waits.
        """
        if not self._calls:
            return [], []
        now = time.monotonic()
        until = min(late_at for _, late_at in self._calls.values())
        until = min(until, deadline) if now < deadline else until
        patience = None if math.isinf(until) else max(0.0, until - now)
        ended = wait(self._calls, patience, FIRST_COMPLETED).done
        now = time.monotonic()
        done = sorted((self._calls.pop(future)[0], future) for future in ended)
        late = [future for future, (_, late_at) in self._calls.items() if late_at <= now]
        for future in late:
            future.cancel()
        return done, sorted(self._calls.pop(future)[0] for future in late)

    def drop_queued(self) -> None:
        """Forgets the calls that an executor holds in a queue and has not started."""
        for future in [future for future in self._calls if future.cancel()]:
            del self._calls[future]

    def cancel(self) -> list[int]:
        """Forgets the calls that run, and returns their rows."""
        rows = sorted(row for row, _ in self._calls.values())
        for future in self._calls:
            future.cancel()
        self._calls.clear()
        return rows


def _check_picklable(fun: Function) -> None:
    try:
        pickle.dumps(fun)
    except _UNPICKLABLE as error:
        raise InvalidValueError(
            "fun must be a function of a module (or else picklable) to run in processes; "
            f"or give a ThreadPoolExecutor as workers; got {fun!r}"
        ) from error
