"""Observers of runs: several at once, and a log for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoopt_nas.errors import MissingDependencyError, RunError
from zoopt_nas.nas.runs.loop import Observer, Progress, Start, StartObserver


class Observers(StartObserver):
    """Several observers as one; each may stop the run.

    Args:
        observers: The observers, which are called in this order.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_start(self, start: Start) -> None:
        """Pass on the estimate to those that take it."""
        for observer in self._observers:
            if isinstance(observer, StartObserver):
                observer.on_start(start)

    def on_step(self, progress: Progress) -> None:
        """Pass on the position."""
        for observer in self._observers:
            observer.on_step(progress)

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Pass on the row."""
        for observer in self._observers:
            observer.on_epoch(row)

    def should_stop(self) -> bool:
        """Whether one of them asks to stop."""
        return any(observer.should_stop() for observer in self._observers)


class TensorBoardLog(StartObserver):
    """Writes every number of ``metrics.jsonl`` to event files of TensorBoard.

    A run that was resumed overwrites the epochs that it repeats.

    Args:
        folder: Where the files are written; created when the run starts.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "logging to TensorBoard needs tensorboard: pip install 'zoopt-nas[tensorboard]'"
            ) from error
        self._folder, self._make = Path(folder), SummaryWriter
        self._writer: SummaryWriter | None = None

    def on_start(self, start: Start) -> None:
        """Create the folder."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the folder {self._folder}: {error.strerror}") from error

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row at its epoch."""
        epoch = row["epoch"]
        try:
            if self._writer is None:
                # TensorBoard ignores what earlier files have at this step and later ones.
                self._writer = self._make(str(self._folder), purge_step=epoch)
            for name, value in row.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._writer.add_scalar(name, value, epoch)
            self._writer.flush()
        except OSError as error:
            raise RunError(f"cannot write to {self._folder}: {error.strerror}") from error
