"""Worker processes with one pipe each.

A single process can then be killed, and the call that a dead process was running is known.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Collection
from multiprocessing import connection, util
from typing import Any

# Seconds between two checks for dead processes. Usually a pipe reports the death at once, but not
# while a child of the process holds its other end.
_POLL = 1.0


class Process:
    """A worker process. The arguments have their meaning in ``ProcessPoolExecutor``."""

    def __init__(
        self,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        context = mp_context or multiprocessing.get_context()
        self.pipe: Any
        self.pipe, end = context.Pipe()
        # A daemon could not start child processes.
        self._process = context.Process(
            target=_work, args=(end, initializer, initargs), daemon=False
        )
        self._process.start()
        end.close()
        self.is_alive = self._process.is_alive

    def send(self, job: tuple[Callable[[Any], Any], Any] | None) -> bool:
        """Send a function and its argument, or None to stop; return False if the process died."""
        try:
            self.pipe.send(job)
        except OSError:  # the process has died
            return False
        return True

    def receive(self) -> Any:
        """Return (value, exception or None) of a call, or None if the process died."""
        try:
            return self.pipe.recv() if self.pipe.poll() else None
        except Exception:  # noqa: BLE001 (an incomplete answer, or one that cannot be unpickled)
            return None

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        self.join()

    def join(self) -> None:
        """Wait until the process ends."""
        self._process.join()
        self.pipe.close()


def wait(processes: Collection[Process], seconds: float | None) -> Collection[Process]:
    """Wait until a process answers or dies, or for ``seconds``; return those that did."""
    pipes = {process.pipe: process for process in processes}
    ready = connection.wait(pipes, _POLL if seconds is None else min(seconds, _POLL))
    if ready:
        return {pipes[pipe] for pipe in ready}
    return {process for process in processes if not process.is_alive()}


def stop(idle: list[Process]) -> None:
    """Stop idle processes, and empty the list."""
    for process in idle:
        process.send(None)
    while idle:
        idle.pop().join()


def stop_with(owner: object, idle: list[Process]) -> None:
    """Stop the processes when ``owner`` is collected, or before the interpreter exits."""
    util.Finalize(owner, stop, (idle,), exitpriority=10)


def _work(pipe: Any, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """Make the calls that arrive through the pipe until None arrives."""
    if initializer is not None:
        initializer(*initargs)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):  # the parent process ended
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
            except Exception as error:  # noqa: BLE001 (the value cannot be pickled)
                pipe.send((None, error))
