"""Processes that make calls, each at the end of a pipe of its own.

The pipe tells which call a dead process was at, and one process can be killed without the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Collection
from multiprocessing import connection, util
from typing import Any

# The seconds between two looks whether silent processes live. A pipe tells sooner that its process
# does not, unless a child of that process holds the other end.
_POLL = 1.0


class Process:
    """A process, started as one of ``concurrent.futures.ProcessPoolExecutor``."""

    def __init__(
        self,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        context = mp_context or multiprocessing.get_context()
        self.pipe: Any
        self.pipe, end = context.Pipe()
        # No daemon, which could not start processes of its own.
        self._process = context.Process(
            target=_work, args=(end, initializer, initargs), daemon=False
        )
        self._process.start()
        end.close()
        self.is_alive = self._process.is_alive

    def send(self, job: tuple[Callable[[Any], Any], Any] | None) -> bool:
        """Send the function and the point of a call, or None to end; return whether it could."""
        try:
            self.pipe.send(job)
        except OSError:  # the process has died
            return False
        return True

    def receive(self) -> Any:
        """Return (value, exception or None) of a call, or None if its process died."""
        try:
            return self.pipe.recv() if self.pipe.poll() else None
        except Exception:  # noqa: BLE001 (half of an answer, or one that pickle cannot bring back)
            return None

    def kill(self) -> None:
        """End the process whatever it does."""
        self._process.kill()
        self.join()

    def join(self) -> None:
        """Wait for the end of the process."""
        self._process.join()
        self.pipe.close()


def wait(processes: Collection[Process], seconds: float | None) -> Collection[Process]:
    """Return the processes that have answered or died; wait for one, or for some seconds."""
    pipes = {process.pipe: process for process in processes}
    ready = connection.wait(pipes, _POLL if seconds is None else min(seconds, _POLL))
    if ready:
        return {pipes[pipe] for pipe in ready}
    return {process for process in processes if not process.is_alive()}


def stop(idle: list[Process]) -> None:
    """Let processes end by themselves, and empty the list."""
    for process in idle:
        process.send(None)
    while idle:
        idle.pop().join()


def stop_with(owner: object, idle: list[Process]) -> None:
    """Stop processes with the life of their owner, or before the interpreter ends."""
    util.Finalize(owner, stop, (idle,), exitpriority=10)


def _work(pipe: Any, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """Make the calls that come down the pipe, until there are no more."""
    if initializer is not None:
        initializer(*initargs)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):  # the parent has ended
        while (job := pipe.recv()) is not None:
            fun, point = job
            answer: tuple[Any, Any]
            try:
                answer = (fun(point), None)
            except BaseException as error:  # noqa: BLE001 (raised in the parent)
                error.add_note(f"In a worker process:\n{traceback.format_exc()}")
                answer = (None, error)
            try:
                pipe.send(answer)
            except Exception as error:  # noqa: BLE001 (of a value that pickle cannot send)
                pipe.send((None, error))
