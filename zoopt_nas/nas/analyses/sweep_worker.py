"""One run of a sweep, in a process of its own or on a machine of a cluster.

    python -m zoopt_nas.nas.analyses.sweep_worker FOLDER NAME

Run or continue NAME of the sweep in FOLDER until standard input ends.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from zoopt_nas.errors import RunError, RunInterrupted, ZooptNasError
from zoopt_nas.nas.analyses.engines import INTERRUPTED, LOGS
from zoopt_nas.nas.analyses.sweep import Sweep, run_one
from zoopt_nas.nas.runs.loop import Observer

_POLL = 1.0  # seconds between two questions whether to stop waiting


def run_alone(folder: str | Path, name: str, observer: Observer) -> None:
    """Execute what is left of a run, after any other process that executes it.

    The process of an earlier attempt may still be saving its checkpoint.

    Raises:
        RunError: ``folder`` holds no sweep, or the sweep has no such run.
        RunInterrupted: the observer stopped the run.
    """
    sweep = Sweep.load(folder)
    runs = {run.name: run for run in sweep.runs()}
    if name not in runs:
        raise RunError(f"the sweep in {folder} has no run {name}")
    logs = Path(folder) / LOGS
    logs.mkdir(exist_ok=True)
    with _held(FileLock(logs / f"{name}.lock"), observer):
        run_one(sweep, runs[name], folder, observer=observer)


@contextmanager
def _held(lock: FileLock, observer: Observer) -> Iterator[None]:
    """Hold the lock, unless the observer stops the run while another process has it."""
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_POLL)
        except Timeout:
            if observer.should_stop():
                raise RunInterrupted("stopped before the run has started") from None
    try:
        yield
    finally:
        lock.release()


class _UntilInputEnds(Observer):
    """Stops a run when standard input ends, as it does when the parent process ends."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while os.read(0, 1):
            pass
        self._ended.set()

    def should_stop(self) -> bool:
        return self._ended.is_set()


def main() -> None:
    """Execute the run that the command line names; an error becomes one line."""
    parser = argparse.ArgumentParser(description="Executes one run of a sweep.")
    parser.add_argument("folder")
    parser.add_argument("name")
    asked = parser.parse_args()
    try:
        run_alone(asked.folder, asked.name, _UntilInputEnds())
    except RunInterrupted:
        sys.exit(INTERRUPTED)
    except ZooptNasError as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
