"""The loop over epochs and steps of a search and a retraining: checkpoints, rows, stopping.

A checkpoint may be taken between any two steps; a run resumed from it continues bit for bit.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from zoopt_nas._files import as_json
from zoopt_nas.errors import DivergedError, RunError, RunInterrupted
from zoopt_nas.nas.runs.folder import ARCHITECTURES, DISCARDED, METRICS, RunFolder
from zoopt_nas.nas.runs.memory import MemoryEstimate, check_free, explain_out_of_memory, in_words
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.steps.meter import Meter


class Progress(NamedTuple):
    """The position of a loop. Reading ``meter`` synchronizes with the device, so read it rarely."""

    epoch: int
    n_epochs: int
    step: int
    n_steps: int
    meter: Meter


class Observer(Protocol):
    """Watches a run and may stop it. Subclass it, or write a class with the same methods.

    An observer that also has ``on_start`` is a ``StartObserver``.
    """

    def on_step(self, progress: Progress) -> None:
        """Receive the position after every weight step."""
        return  # with an empty body mypy would treat the method as abstract

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Receive an epoch's row of ``metrics.jsonl``, after its checkpoint is written."""
        return

    def should_stop(self) -> bool:
        """Return True to save a checkpoint and raise RunInterrupted before the next step."""
        return False


class Start(NamedTuple):
    """What is known before the first step of a run.

    Attributes:
        device: the device of the run.
        memory: the estimated memory.
        free: free bytes on the device; None if unknown.
    """

    device: torch.device
    memory: MemoryEstimate
    free: int | None

    def __str__(self) -> str:
        """Return e.g. ``about 1.9 GB of memory, 21.3 GB free on cpu``."""
        free = "" if self.free is None else f"{in_words(self.free)} free "
        return f"about {in_words(self.memory.total)} of memory, {free}on {self.device}"


@runtime_checkable
class StartObserver(Observer, Protocol):
    """An observer that is also told what a run needs."""

    def on_start(self, start: Start) -> None:
        """Receive the estimate, once, before the first step."""
        return


class _NoObserver(Observer):
    """Watches nothing."""


class EpochLoop(ABC):
    """Runs ``config.epochs`` epochs of ``n_steps`` steps; a subclass defines the steps.

    Args:
        config: the settings.
        observer: watches the run; None watches nothing.
        device: the device of the model.

    Attributes:
        folder: receives rows and checkpoints; None keeps everything in memory.
        epoch: number of completed epochs.
        step: steps taken in the current epoch.
        rows: one row per completed epoch.
        trains_weights: whether steps train the weights of the model.
    """

    trains_weights = True

    def __init__(self, config: RunConfig, observer: Observer | None, device: torch.device) -> None:
        self.device = device
        self.folder: RunFolder | None = None
        self.epoch = 0
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self._config = config
        self._observer = observer or _NoObserver()
        self._start: Start | None = None
        self._elapsed = 0.0  # seconds of the current epoch before its last resumption
        self._meter = Meter(device)

    @property
    def n_epochs(self) -> int:
        """Number of epochs; a subclass may end the run earlier."""
        return self._config.epochs

    @property
    @abstractmethod
    def n_steps(self) -> int:
        """Number of steps in an epoch."""

    def should_stop(self) -> bool:
        """Whether the observer asks to stop."""
        return self._observer.should_stop()

    @abstractmethod
    def begin_epoch(self) -> None:
        """Set what depends on ``self.epoch`` only: schedules and training mode."""

    @abstractmethod
    def train_step(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Take one step; return its loss (), logits (batch, classes) and labels (batch,).

        None if the step trains no weights.
        """

    @abstractmethod
    def end_epoch(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return more columns of the epoch's row, and its row of ``architectures.jsonl``."""

    def after_epoch(self) -> None:
        """Finish an epoch, after its row is written and before its checkpoint.

        It may load an earlier state and set ``self.epoch`` to the epoch that comes next.
        """
        return

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """Return the subclass's state: tensors and Python values."""

    @abstractmethod
    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore the state that ``own_state`` returned."""

    def check_memory(self, estimate: MemoryEstimate, free: int | None) -> None:
        """Refuse a run that exceeds the free memory, and keep the estimate for ``on_start``.

        ``free`` are the bytes before the data set and the model were loaded; None if unknown.

        Raises:
            NotEnoughMemoryError: the run needs more.
        """
        check_free(estimate, free, self._config, self.device)
        self._start = Start(self.device, estimate, free)

    def run(self) -> None:
        """Run the remaining epochs.

        Raises:
            RunInterrupted: the observer stopped the run; the checkpoint is written.
            DivergedError: the training loss of an epoch is not finite.
            NotEnoughMemoryError: an allocation failed; the last checkpoint is unchanged.
        """
        if self._start is not None and isinstance(self._observer, StartObserver):
            self._observer.on_start(self._start)
        with explain_out_of_memory(self._config, self.device, lambda: f"in epoch {self.epoch + 1}"):
            self._run()

    def _run(self) -> None:
        while self.epoch < self.n_epochs:
            started = time.perf_counter()
            self.begin_epoch()
            while self.step < self.n_steps:
                if self.should_stop():
                    self._elapsed += time.perf_counter() - started
                    self._stop()
                measured = self.train_step()
                if measured is not None:
                    self._meter.update(*measured)
                self.step += 1
                self._observer.on_step(
                    Progress(self.epoch, self.n_epochs, self.step, self.n_steps, self._meter)
                )
            self._close_epoch(started)

    def load_checkpoint(self) -> bool:
        """Load the folder's last checkpoint, or raise RunError; return False if there is none."""
        state = None if self.folder is None else self.folder.load_checkpoint(self.device)
        if self.folder is None or state is None:
            return False
        try:
            self.epoch, self.step = int(state["epoch"]), int(state["step"])
            self._elapsed = float(state["elapsed"])
            self._meter.load_state_dict(state["meter"])
            self.load_own_state(state["own"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RunError(
                f"the checkpoint in {self.folder.path} does not belong to its config.toml"
            ) from error
        return True

    def resume(self) -> bool:
        """Load the last checkpoint and drop later rows; return False if there is no checkpoint.

        Raises:
            RunError: the checkpoint cannot be used, or rows of earlier epochs are missing.
        """
        if self.folder is None:
            return False
        is_loaded = self.load_checkpoint()
        rows = [row for row in self.folder.rows(METRICS) if row["epoch"] < self.epoch]
        if [row["epoch"] for row in rows] != list(range(self.epoch)):
            raise RunError(
                f"{self.folder.path / METRICS} must have a row for each of the {self.epoch} epochs "
                f"before the checkpoint, got {len(rows)}"
            )
        self.folder.cut(self.epoch)
        self.rows = rows
        return is_loaded

    def _stop(self) -> None:
        where = f"stopped in epoch {self.epoch + 1} of {self.n_epochs}"
        self._save()
        if self.folder is None:
            raise RunInterrupted(f"{where}; nothing is saved without a run folder")
        raise RunInterrupted(f"{where} and saved in {self.folder.path}")

    def _save(self) -> None:
        if self.folder is not None:
            self.folder.save_checkpoint(
                {
                    "epoch": self.epoch,
                    "step": self.step,
                    "elapsed": self._elapsed,
                    "meter": self._meter.state_dict(),
                    "own": self.own_state(),
                    "config": self._config.to_toml(),
                }
            )

    def _close_epoch(self, started: float) -> None:
        if self.trains_weights and not math.isfinite(self._meter.loss):
            raise DivergedError(
                f"the training loss is not finite in epoch {self.epoch + 1}; "
                "start again with a lower lr, or resume on other hardware"
            )
        columns, architecture = self.end_epoch()
        row = {
            "epoch": self.epoch,
            **as_json({"train_loss": self._meter.loss, "train_accuracy": self._meter.accuracy}),
            **as_json(columns),
            "seconds": round(self._elapsed + time.perf_counter() - started, 3),
        }
        self.rows.append(row)
        if self.folder is not None:
            self.folder.append(METRICS, row)
            if architecture is not None:
                self.folder.append(ARCHITECTURES, {"epoch": self.epoch, **architecture})
        ended = self.epoch
        self.epoch, self.step, self._elapsed = self.epoch + 1, 0, 0.0
        self._meter = Meter(self.device)
        self.after_epoch()
        self._save()
        if self.epoch <= ended:
            self._discard_rows()
        self._observer.on_epoch(row)

    def _discard_rows(self) -> None:
        """Move the rows of epochs that will be run again to ``discarded.jsonl``."""
        discarded, self.rows = self.rows[self.epoch :], self.rows[: self.epoch]
        if self.folder is not None:  # the checkpoint is written, so resuming drops the rows too
            for row in discarded:
                self.folder.append(DISCARDED, row)
            self.folder.cut(self.epoch)
