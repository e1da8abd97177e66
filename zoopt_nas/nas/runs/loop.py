"""The loop over epochs and steps that a search and a retraining share: checkpoints, rows, stopping.

A checkpoint may be taken between any two steps; whoever resumes from it goes on bit for bit.
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
from zoopt_nas.nas.runs.memory import (
    MemoryEstimate,
    check_fits,
    in_words,
    out_of_memory_in_one_line,
)
from zoopt_nas.nas.settings.config import RunConfig
from zoopt_nas.nas.steps.meter import Meter


class Progress(NamedTuple):
    """Where a loop is. Reading ``meter`` waits for the device, so read it seldom."""

    epoch: int
    n_epochs: int
    step: int
    n_steps: int
    meter: Meter


class Observer(Protocol):
    """Watches a run and may stop it. Subclass it and override what you need; the rest does nothing.

    A class with the same three methods will do as well. A fourth, ``on_start``, makes it a
    ``StartObserver``.
    """

    def on_step(self, progress: Progress) -> None:
        """Called after every weight step."""
        return  # said out loud: an empty body would make the method abstract

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Called with an epoch's row of ``metrics.jsonl``, after its checkpoint is written."""
        return

    def should_stop(self) -> bool:
        """Asked before every weight step; True saves a checkpoint and raises RunInterrupted."""
        return False


class Start(NamedTuple):
    """What is known before a run's first step.

    Attributes:
        device: where it runs.
        memory: what it needs there.
        free: bytes that the device has left; None = unknown.
    """

    device: torch.device
    memory: MemoryEstimate
    free: int | None

    def __str__(self) -> str:
        """``about 1.9 GB of memory, 21.3 GB free on cpu``."""
        free = "" if self.free is None else f"{in_words(self.free)} free "
        return f"about {in_words(self.memory.total)} of memory, {free}on {self.device}"


@runtime_checkable
class StartObserver(Observer, Protocol):
    """An observer that also wants to know what a run needs; no other has to have ``on_start``."""

    def on_start(self, start: Start) -> None:
        """Called once, before the first step."""
        return


class _NoObserver(Observer):
    """Watches nothing."""


class EpochLoop(ABC):
    """Runs ``config.epochs`` epochs of ``n_steps`` steps.

    A subclass says what a step does, what an epoch ends with, and what its own state is.

    Args:
        config: the settings.
        observer: watches.
        device: where the model is.

    Attributes:
        folder: where rows and checkpoints go; None keeps everything in memory.
        epoch: epochs that are complete.
        step: steps taken in the current epoch.
        rows: one for each complete epoch.
    """

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
        """How many epochs the run has; a subclass may end it earlier."""
        return self._config.epochs

    @property
    @abstractmethod
    def n_steps(self) -> int:
        """Steps of an epoch."""

    @abstractmethod
    def begin_epoch(self) -> None:
        """Sets what depends on ``self.epoch`` alone: schedules, training mode."""

    @abstractmethod
    def train_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """One step; returns its loss (), logits (batch, classes) and labels (batch,)."""

    @abstractmethod
    def end_epoch(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """More columns of the epoch's row, and its row of ``architectures.jsonl`` if it has one."""

    def after_epoch(self) -> None:
        """Called when an epoch is complete and its row is written, before its checkpoint.

        It may go back: load an earlier state, and set ``self.epoch`` to the epoch that comes next.
        """
        return

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """All that changes from step to step in the subclass: tensors and plain values."""

    @abstractmethod
    def load_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``own_state``."""

    def check_memory(self, estimate: MemoryEstimate, free: int | None) -> None:
        """Refuses a run that does not fit; ``run`` tells the observer of one that does.

        Args:
            estimate: what the run needs.
            free: bytes that its device had before data set and model; None = unknown.

        Raises:
            NotEnoughMemoryError: it needs more.
        """
        check_fits(estimate, free, self._config, self.device)
        self._start = Start(self.device, estimate, free)

    def run(self) -> None:
        """Runs the epochs that are left.

        Raises:
            RunInterrupted: the observer asked to stop; the checkpoint is written.
            DivergedError: an epoch's training loss is not finite.
            NotEnoughMemoryError: an allocation failed; the last checkpoint is as it was.
        """
        if self._start is not None and isinstance(self._observer, StartObserver):
            self._observer.on_start(self._start)
        with out_of_memory_in_one_line(
            self._config, self.device, lambda: f"in epoch {self.epoch + 1}"
        ):
            self._run()

    def _run(self) -> None:
        while self.epoch < self.n_epochs:
            started = time.perf_counter()
            self.begin_epoch()
            while self.step < self.n_steps:
                if self._observer.should_stop():
                    self._elapsed += time.perf_counter() - started
                    self._stop()
                self._meter.update(*self.train_step())
                self.step += 1
                self._observer.on_step(
                    Progress(self.epoch, self._config.epochs, self.step, self.n_steps, self._meter)
                )
            self._close_epoch(started)

    def load_checkpoint(self) -> bool:
        """Goes to the folder's last checkpoint, which is only read; False if it has none.

        Raises:
            RunError: the checkpoint cannot be used.
        """
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
        """Goes back to the folder's last checkpoint; False if it has none and the run starts anew.

        Raises:
            RunError: the checkpoint cannot be used, or rows of epochs before it are missing.
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
        where = f"stopped in epoch {self.epoch + 1} of {self._config.epochs}"
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
        if not math.isfinite(self._meter.loss):
            raise DivergedError(
                f"the training loss is not finite in epoch {self.epoch + 1}; "
                "start again with a lower lr, or resume on other hardware"
            )
        own, architecture = self.end_epoch()
        row = {
            "epoch": self.epoch,
            "train_loss": self._meter.loss,
            "train_accuracy": self._meter.accuracy,
            **as_json(own),
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
        """Takes the rows of epochs that will be run again out of the way."""
        discarded, self.rows = self.rows[self.epoch :], self.rows[: self.epoch]
        if self.folder is not None:  # its checkpoint is written: whoever resumes from it cuts too
            for row in discarded:
                self.folder.append(DISCARDED, row)
            self.folder.cut(self.epoch)
