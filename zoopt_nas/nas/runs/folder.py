"""The run folder: everything that a search or a retraining writes and resumes from.

::

    run/config.toml           the resolved settings
    run/data.json             shape, statistics and fingerprints of the data set
    run/machine.json          the hardware and versions that the run was started with
    run/space.json            the search space, if it was passed as an object
    run/metrics.jsonl         one row per epoch
    run/architectures.jsonl   genotype and alpha of each epoch (search)
    run/discarded.jsonl       rows of epochs that were run again (search)
    run/genotype.json         the architecture
    run/checkpoint.pt         written after every epoch and on Ctrl-C
    run/weights.pt, run/result.json   the trained network and its test accuracy (retraining)

Files are replaced atomically. A row is appended before the checkpoint of its epoch is written;
resuming drops the rows that are newer than the checkpoint.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from zoopt_nas._files import TEMPORARY, creating, holding, replacing
from zoopt_nas.errors import RunError, ZooptNasError
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.architectures import (
    architecture_from_dict,
    architecture_from_json,
    load_architecture,
)
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.networks.spaces import space_from_json, space_of
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.steps.execution import silenced

CHECKPOINT_FORMAT = "zoopt-nas-checkpoint-1"
# Settings that may change when a run is resumed: how it is executed, and where its data are
# (`DataRecord` compares the data). Any other setting would change the results.
MAY_CHANGE = (
    "device", "threads", "amp", "compile", "channels_last", "cpu_kernels", "candidates_per_batch",
    "candidate_devices", "dataset", "data_dir", "download", "table",
)  # fmt: skip
METRICS = "metrics.jsonl"
ARCHITECTURES = "architectures.jsonl"
DISCARDED = "discarded.jsonl"
SPACE = "space.json"
MACHINE = "machine.json"

# What torch.load raises for damaged files.
_UNREADABLE: tuple[type[Exception], ...] = (
    RuntimeError, EOFError, pickle.UnpicklingError, struct.error, ValueError, TypeError,
    AttributeError, LookupError, ArithmeticError, MemoryError,
)  # fmt: skip

ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: ``create`` makes a new one, ``open`` finds an existing one.

    Reading raises RunError if a required file is missing or damaged.
    """

    path: Path

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: RunConfig,
        data: DataRecord | None = None,
        space: SearchSpace | None = None,
        machine: dict[str, Any] | None = None,
    ) -> RunFolder:
        """Create the folder with its config in one step; an existing folder is never changed.

        A run without ``data`` cannot be resumed or exported. ``space`` is needed if ``config`` does
        not name it, and ``machine`` is from ``describe_machine``.

        Raises:
            RunError: the path exists, or the folder cannot be created.
        """
        path = Path(path)
        in_the_way = f"{path} exists already; name another run folder, or resume it"
        if os.path.lexists(path):  # also a link to nowhere
            raise RunError(in_the_way)
        text = config.to_toml()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run folder {path}: {error.strerror}") from error
        try:
            with creating(path) as temporary:
                cls(temporary).write("config.toml", text)
                if data is not None:
                    cls(temporary).write("data.json", data.to_json() + "\n")
                if space is not None:
                    cls(temporary).write(SPACE, space.to_json() + "\n")
                if machine is not None:
                    cls(temporary).write(MACHINE, json.dumps(machine, indent=1) + "\n")
        except OSError as error:
            exists = os.path.lexists(path)
            reason = in_the_way if exists else f"cannot write {path}: {error.strerror}"
            raise RunError(reason) from error
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run folder, which has a config."""
        path = Path(path)
        if not (path / "config.toml").is_file():
            raise RunError(f"{path} is not a run folder: it has no config.toml")
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing to this run.

        Raises:
            RunError: another process holds it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(holding(self.path))
            except OSError as error:
                is_held = isinstance(error, BlockingIOError)
                reason = "another process is writing to it" if is_held else error.strerror
                raise RunError(f"cannot continue {self.path}: {reason}") from error
            yield

    @property
    def kind(self) -> str:
        """``"search"`` or ``"train"``."""
        try:
            return str(tomllib.loads(self._read("config.toml"))["kind"])
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise RunError(f"{self.path / 'config.toml'} is not the config of a run") from error

    def config(self, cls: type[ConfigT]) -> ConfigT:
        """Return the settings that the run was started with."""
        try:
            return cls.from_toml(self._read("config.toml"))
        except ZooptNasError as error:
            raise RunError(f"{self.path / 'config.toml'}: {error}") from error

    def data(self) -> DataRecord:
        """Return the record of the run's data set."""
        path = self.path / "data.json"
        if not path.is_file():
            raise RunError(
                f"{self.path} has no data.json, which describes its images; start a new run"
            )
        try:
            return DataRecord.from_json(self._read("data.json"))
        except ZooptNasError as error:
            raise RunError(f"{path}: {error}") from error

    def machine(self) -> dict[str, Any] | None:
        """Return what ``describe_machine`` found when the run started; None if not recorded."""
        path = self.path / MACHINE
        if not path.is_file():
            return None
        try:
            machine = json.loads(self._read(MACHINE))
        except json.JSONDecodeError as error:
            raise RunError(f"{path} is damaged") from error
        if not isinstance(machine, dict):
            raise RunError(f"{path} is damaged")
        return machine

    def space(self) -> SearchSpace:
        """Return the space of a search: from the folder, or by the name in its config."""
        path = self.path / SPACE
        if not path.is_file():
            return space_of(self.config(SearchConfig))
        try:
            return space_of(self.config(SearchConfig), space_from_json(self._read(SPACE)))
        except ZooptNasError as error:
            raise RunError(f"{path}: {error}") from error

    def write(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        with replacing(self.path / name) as file:
            file.write(text.encode())

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Append one row of JSON; non-finite numbers must have been replaced by None."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a JSON-lines file; a torn last line is ignored."""
        path = self.path / name
        lines = self._read(name).splitlines() if path.is_file() else []
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):
                    break  # a kill in the middle of an append
                raise RunError(f"{path} is damaged in line {number}") from error
            if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                raise RunError(f"{path} is damaged in line {number}: it is not an epoch's row")
            rows.append(row)
        return rows

    def cut(self, epoch: int) -> None:
        """Drop the rows of ``epoch`` and later, and temporary files that a kill left behind."""
        for leftover in self.path.glob(f".*{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)
        for name in (METRICS, ARCHITECTURES):
            if (self.path / name).is_file():
                rows = [row for row in self.rows(name) if row["epoch"] < epoch]
                self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by ``state``: nested tensors and Python values."""
        self.save_tensors("checkpoint.pt", state)

    def save_tensors(self, name: str, state: dict[str, Any]) -> None:
        """Write tensors and Python values atomically."""
        with replacing(self.path / name) as file:
            torch.save({"format": CHECKPOINT_FORMAT, **state}, file)

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """Return the last checkpoint with its tensors on ``device``; None if there is none yet.

        Loading executes no code from the file. A checkpoint is refused if a setting outside
        ``MAY_CHANGE`` differs from ``config.toml``.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        try:
            with silenced():  # the error below says enough about foreign pickles
                state = torch.load(path, map_location=device, weights_only=True)
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        except _UNREADABLE as error:
            raise RunError(f"{path} is truncated or not a checkpoint of zoopt-nas") from error
        if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
            raise RunError(f"{path} is not a checkpoint of zoopt-nas, or of another version")
        if "config" in state:
            self._check_settings(state["config"])
        return state

    def _check_settings(self, saved: object) -> None:
        """Refuse a config that differs from the one in the checkpoint."""
        classes: tuple[type[RunConfig], ...] = (SearchConfig, TrainConfig)
        now = self.config(next((cls for cls in classes if cls.kind == self.kind), RunConfig))
        try:
            before = type(now).from_toml(str(saved))
        except ZooptNasError as error:
            raise RunError(
                f"the checkpoint in {self.path} does not belong to its config.toml"
            ) from error
        for name, value in vars(now).items():
            kept = getattr(before, name)
            if name not in MAY_CHANGE and value != kept:
                raise RunError(
                    f"the checkpoint in {self.path} does not belong to its config.toml: "
                    f"{name} must stay {_shown(kept)}, got {_shown(value)}; "
                    "set it back, or start a new run"
                )

    def genotype(self) -> Architecture:
        """Return the architecture: final, of the last epoch so far, or the one being trained."""
        if (self.path / "genotype.json").is_file():
            try:
                return architecture_from_json(self._read("genotype.json"))
            except ZooptNasError as error:
                raise RunError(f"{self.path / 'genotype.json'}: {error}") from error
        if self.kind == TrainConfig.kind:
            return load_architecture(self.config(TrainConfig).genotype)
        rows = self.rows(ARCHITECTURES)
        if not rows:
            raise RunError(f"{self.path} has no genotype yet: no epoch has ended")
        try:
            return architecture_from_dict(rows[-1].get("genotype"))
        except ZooptNasError as error:
            raise RunError(f"{self.path / ARCHITECTURES}: {error}") from error

    def _read(self, name: str) -> str:
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RunError(f"{path} is not text") from error


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
