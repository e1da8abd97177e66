"""How the runs of a sweep are executed side by side: in processes of this machine.

``ray_engine`` executes them on a cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import InvalidValueError, RunError, RunInterrupted
from zoopt_nas.parallel import n_cores

LOGS = "logs"  # folder of what the processes of a sweep print
INTERRUPTED = 130  # exit code of a process that saved a checkpoint and stopped, as requested
_POLL = 0.1  # seconds between two looks at the processes


class Outcome(NamedTuple):
    """The end of one attempt at a run: its name, and one line of error, or None after success."""

    name: str
    error: str | None


class Engine(Protocol):
    """Executes runs of a sweep, which are known by their names."""

    def execute(
        self, folder: Path, queue: deque[str], should_stop: Callable[[], bool]
    ) -> Generator[Outcome, None, None]:
        """Execute runs from the front of ``queue`` until it is empty; yield each attempt's outcome.

        The caller may append to ``queue`` between two outcomes.

        Args:
            folder: the folder of the sweep.
            queue: names of runs.
            should_stop: returns True to stop all runs after they have saved a checkpoint.

        Raises:
            RunInterrupted: the runs were stopped.
        """
        ...


@dataclass(frozen=True)
class Processes:
    """An engine with one process for each run, ``jobs`` side by side.

    A process has a part of the CPU cores, and one GPU for itself if there are any. It stops when
    the process of the engine ends, for whatever reason.

    Attributes:
        jobs: number of processes.
        gpus: a value of CUDA_VISIBLE_DEVICES for each process; None takes the visible GPUs, an
            empty tuple none.
        threads: CPU threads of each process; None shares the cores evenly.
        command: the program, which receives the folder and the name of a run.

    Raises:
        InvalidValueError: there are fewer GPUs than ``jobs``, or a number is not positive.
    """

    jobs: int
    gpus: tuple[str, ...] | None = None
    threads: int | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "zoopt_nas.nas.analyses.sweep_worker")

    def __post_init__(self) -> None:
        check_positive_int("jobs", self.jobs)
        if self.threads is not None:
            check_positive_int("threads", self.threads)
        gpus = self._gpus()
        if gpus and self.jobs > len(gpus):
            raise InvalidValueError(
                f"jobs must be at most {len(gpus)}, one for each GPU, got {self.jobs}"
            )

    def execute(
        self, folder: Path, queue: deque[str], should_stop: Callable[[], bool]
    ) -> Generator[Outcome, None, None]:
        """Start processes while the queue has names; see ``Engine``."""
        free, running = deque(self._environments()), list[_Attempt]()
        try:
            while (queue or running) and not should_stop():
                while queue and free:
                    name, environment = queue.popleft(), free.popleft()
                    running.append(_Attempt(self.command, folder, name, environment))
                ended = [attempt for attempt in running if attempt.has_ended()]
                for attempt in ended:
                    running.remove(attempt)
                    free.append(attempt.environment)
                    yield attempt.outcome()
                if not ended:
                    time.sleep(_POLL)
            n_left = len(queue) + len(running)
            for attempt in running:
                attempt.ask_to_stop()
            while running:
                attempt = running[0]
                attempt.wait()
                running.remove(attempt)
                if attempt.succeeded():  # its last step was done before it was asked
                    n_left -= 1
                    yield attempt.outcome()
            if n_left:
                raise RunInterrupted(f"stopped with {n_left} runs to finish")
        finally:
            for attempt in running:
                attempt.kill()

    def _environments(self) -> list[dict[str, str]]:
        """Return the environment variables of each process."""
        threads = str(self.threads or max(1, n_cores() // self.jobs))
        shared = {"OMP_NUM_THREADS": threads}
        if self.threads is None and "OMP_NUM_THREADS" in os.environ:
            shared = {}
        gpus = self._gpus() or (None,) * self.jobs
        return [
            shared if gpu is None else {**shared, "CUDA_VISIBLE_DEVICES": gpu}
            for gpu in gpus[: self.jobs]
        ]

    def _gpus(self) -> tuple[str, ...]:
        return visible_gpus() if self.gpus is None else self.gpus


def visible_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that this process can use, for CUDA_VISIBLE_DEVICES."""
    n_gpus = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(n_gpus)) if named is None else named.split(",")
    return tuple(names)[:n_gpus]


class _Attempt:
    """A process that executes a run. It stops when its standard input ends."""

    def __init__(
        self, command: tuple[str, ...], folder: Path, name: str, environment: dict[str, str]
    ) -> None:
        self.name = name
        self.environment = environment
        self._log = folder / LOGS / f"{name}.log"
        try:
            self._log.parent.mkdir(exist_ok=True)
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*command, str(folder), name],
                    env={**os.environ, **environment},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C reaches the engine only
                )
        except OSError as error:
            raise RunError(f"cannot start a process for {name}: {error.strerror}") from error

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        self._process.wait()

    def succeeded(self) -> bool:
        return self._process.returncode == 0

    def ask_to_stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.ask_to_stop()

    def outcome(self) -> Outcome:
        """Return the outcome of the ended process."""
        self.ask_to_stop()  # closes the pipe
        code = self._process.returncode
        if code == 0:
            return Outcome(self.name, None)
        if code < 0:
            return Outcome(self.name, f"its process was killed by {_signal_name(-code)}")
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        return Outcome(self.name, last.strip())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
