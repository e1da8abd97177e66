"""The runs of a sweep on a Ray cluster, whose machines share the folder of the sweep."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import MissingDependencyError, RunError, RunInterrupted, ZooptNasError
from zoopt_nas.nas.analyses.engines import Outcome
from zoopt_nas.nas.analyses.sweep_worker import run_alone
from zoopt_nas.nas.runs.loop import Observer

_POLL = 0.5  # seconds between two questions whether to stop


@dataclass(frozen=True)
class RayCluster:
    """An engine with one Ray task for each run; Ray decides when and where a task runs.

    Attributes:
        address: as for ``ray.init``: ``auto`` is the cluster of this machine; None starts Ray on
            this machine, and stops it at the end.
        cpus: CPU cores of each run.
        needs_gpu: whether each run has a GPU for itself; None means if the cluster has any.

    Raises:
        InvalidValueError: ``cpus`` is not positive.
        MissingDependencyError: Ray is not installed.
    """

    address: str | None = None
    cpus: int = 1
    needs_gpu: bool | None = None

    def __post_init__(self) -> None:
        check_positive_int("cpus", self.cpus)
        _ray()

    def execute(
        self, folder: Path, queue: deque[str], should_stop: Callable[[], bool]
    ) -> Generator[Outcome, None, None]:
        """Hand the runs to Ray; see ``Engine``.

        Raises:
            RunError: there is no cluster at the address.
        """
        ray, folder = _ray(), folder.resolve()
        was_running = ray.is_initialized()
        if not was_running:
            self._connect(ray)
        running: dict[Any, str] = {}  # name of a run by the reference to its result
        try:
            has_gpu = self.needs_gpu
            if has_gpu is None:
                has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
            # The caller of the engine decides whether to repeat a task.
            options = {"num_cpus": self.cpus, "num_gpus": int(has_gpu), "max_retries": 0}
            task = ray.remote(_attempt).options(**options)
            while (queue or running) and not should_stop():
                while queue:
                    name = queue.popleft()
                    running[task.remote(str(folder), name, os.getcwd())] = name
                ended, _ = ray.wait(list(running), timeout=_POLL)
                for reference in ended:
                    yield Outcome(running.pop(reference), _error(ray, reference))
            for reference in running:
                ray.cancel(reference)
            n_left = len(queue)
            while running:
                (reference,), _ = ray.wait(list(running))
                name, error = running.pop(reference), _error(ray, reference)
                if error is None:  # its last step was done before it was cancelled
                    yield Outcome(name, None)
                else:
                    n_left += 1
            if n_left:
                raise RunInterrupted(f"stopped with {n_left} runs to finish")
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if not was_running:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        # What tasks print would mix with the results; Ray keeps it in its own logs.
        quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if self.address is None:
                ray.init(include_dashboard=False, **quiet)
            else:
                ray.init(address=self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = self.address or "this machine"
            raise RunError(f"cannot connect to Ray at {where}: {_last_line(error)}") from error
        # Ray has replaced the handler by one that ends the process at once.
        if threading.current_thread() is threading.main_thread() and on_sigterm is not None:
            signal.signal(signal.SIGTERM, on_sigterm)


def _attempt(folder: str, name: str, where: str) -> str | None:
    """Execute a run in a worker of Ray; return one line of error, or None after success.

    Relative paths of data start at the folder ``where`` the sweep was started, if it is shared.
    """
    observer = _UntilCancelled()
    previous = signal.signal(signal.SIGINT, observer.on_signal)
    try:
        with contextlib.chdir(where) if Path(where).is_dir() else contextlib.nullcontext():
            run_alone(folder, name, observer)
    except ZooptNasError as error:
        return " ".join(str(error).split())
    finally:
        signal.signal(signal.SIGINT, previous)
    return None


class _UntilCancelled(Observer):
    """Stops a run when Ray cancels its task, which Ray does as Ctrl-C would."""

    def __init__(self) -> None:
        self._is_cancelled = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_cancelled = True

    def should_stop(self) -> bool:
        return self._is_cancelled


def _error(ray: Any, reference: Any) -> str | None:
    """Return the error of a finished task in one line."""
    try:
        error: str | None = ray.get(reference)
    except ray.exceptions.WorkerCrashedError:
        return "its worker process died"
    except ray.exceptions.RayError as failure:
        return _last_line(failure)
    return error


def _last_line(error: Exception) -> str:
    return str(error).strip().split("\n")[-1].strip() or type(error).__name__


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "the engine ray needs ray: pip install 'zoopt-nas[ray]'"
        ) from error
    return ray
