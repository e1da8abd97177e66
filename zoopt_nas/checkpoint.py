"""Saving a run and resuming it exactly: one ``.npz`` file, written atomically, without pickle.

``save_state`` and ``load_state`` are for a solver that is driven by hand. `Checkpoint` is the file
of one call of `minimize`, with what that call has counted and found beside the solver's state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zoopt_nas._arrays import Array, encode_array
from zoopt_nas._checks import check_at_least
from zoopt_nas._files import replacing
from zoopt_nas.errors import InvalidValueError, MissingDependencyError, RunError
from zoopt_nas.solvers import SOLVERS, Solver, SolverState

_FORMAT = "zoopt_nas.state.v1"
_RUN_FORMAT = "zoopt_nas.run.v1"

# What NumPy, zipfile and json raise for bytes that are no .npz, and what a foreign .npz leads to.
_MALFORMED: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    zipfile.BadZipFile,
)


def save_state(path: str | os.PathLike[str], solver: Solver, state: SolverState) -> None:
    """Writes a run to ``path``, which is replaced only once the new file is complete.

    Args:
        path: the file; its folder must exist. No suffix is added.
        solver: its fields must be numbers, strings, bools or None.
        state: the run; a pending batch and the generator are saved with it.

    Raises:
        RunError: the file cannot be written.
    """
    data = state.to_dict()
    meta = {
        "format": _FORMAT,
        "solver": solver.name,
        "fields": dataclasses.asdict(solver),
        "state": data["meta"],
    }
    _write(path, meta, data["arrays"])


def load_state(
    path: str | os.PathLike[str], *, solvers: Mapping[str, type[Solver]] = SOLVERS
) -> tuple[Solver, SolverState]:
    """Reads what ``save_state`` wrote; the run continues bitwise as if it had never stopped.

    Args:
        path: the file.
        solvers: where to look the solver's class up by name, if not in ``SOLVERS``.

    Raises:
        RunError: the file is missing, truncated, or not a saved state.
    """
    with _reading(path, "saved solver state"):
        meta, arrays = _read(path, _FORMAT)
        if meta["solver"] not in solvers:
            raise RunError(f"{path} was saved by an unknown solver, {meta['solver']!r}")
        solver = solvers[meta["solver"]](**meta["fields"])
        data = {"arrays": arrays, "meta": meta["state"]}
        return solver, SolverState.from_dict(data, solver.inner_states)


class Checkpoint:
    """The file in which one call of `minimize` survives.

    Args:
        path: the file; its folder must exist.
        every: the least seconds between two writes.
        identity: what makes a run the same run, by the name of its argument; JSON-able. Values of
            None match anything.

    Raises:
        InvalidValueError: ``path`` is no path or ``every`` no number of at least 0.
        RunError: the folder of ``path`` does not exist.
    """

    def __init__(
        self, path: str | os.PathLike[str], every: float, identity: Mapping[str, Any]
    ) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise InvalidValueError(f"checkpoint must be the path of a file, got {path!r}")
        self._path = Path(path)
        if not self._path.parent.is_dir():
            raise RunError(f"cannot write {path}: {self._path.parent} is not a folder")
        self._every = check_at_least("checkpoint_every", every, 0)
        self._identity = json.loads(_to_json(identity))
        self._last = time.monotonic()

    def load(self, solver: Solver) -> tuple[SolverState, dict[str, Any]] | None:
        """Returns the state and the record that the file holds, or None if there is no file.

        Args:
            solver: whose state it is.

        Raises:
            RunError: the file is truncated, no checkpoint, or that of another run.
        """
        if not self._path.exists():
            return None
        with _reading(self._path, "checkpoint of minimize"):
            meta, arrays = _read(self._path, _RUN_FORMAT)
            for key, value in self._identity.items():
                theirs = meta["identity"].get(key)
                if None not in (value, theirs) and theirs != value:
                    raise RunError(
                        f"{self._path} was saved by a run with another {key}; "
                        f"give it the same {key}, or use another file"
                    )
            parts = _split(arrays)
            data = {"arrays": parts["state"], "meta": meta["state"]}
            state = SolverState.from_dict(data, solver.inner_states)
            return state, {"arrays": parts["record"], "meta": meta["record"]}

    def save_if_due(self, state: SolverState, record: Callable[[], Mapping[str, Any]]) -> None:
        """Writes the file if the last time is long enough ago."""
        if time.monotonic() - self._last >= self._every:
            self.save(state, record())

    def save(self, state: SolverState, record: Mapping[str, Any]) -> None:
        """Writes the file.

        Args:
            state: the solver's.
            record: the rest of the run: ``{"arrays": {name: NumPy array}, "meta": JSON-able}``.

        Raises:
            RunError: the file cannot be written.
        """
        data = state.to_dict()
        meta = {
            "format": _RUN_FORMAT,
            "identity": self._identity,
            "state": data["meta"],
            "record": record["meta"],
        }
        parts = {"state": data["arrays"], "record": record["arrays"]}
        arrays = {f"{part}/{k}": array for part, of in parts.items() for k, array in of.items()}
        _write(self._path, meta, arrays)
        self._last = time.monotonic()


def fingerprint(*arrays: Array) -> str:
    """Returns a short text that differs for arrays that differ in a bit, dtype or namespace."""
    digest = hashlib.sha256()
    for array in arrays:
        values, spec = encode_array(array)
        digest.update(_to_json({**spec, "shape": values.shape}).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _split(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    parts: dict[str, dict[str, np.ndarray]] = {"state": {}, "record": {}}
    for name, array in arrays.items():
        part, _, key = name.partition("/")
        parts[part][key] = array
    return parts


def _to_json(value: object) -> str:
    # A field may have been given as a NumPy scalar; `item` makes it a Python number.
    return json.dumps(value, default=lambda scalar: scalar.item())


def _write(path: str | os.PathLike[str], meta: object, arrays: Mapping[str, np.ndarray]) -> None:
    text = _to_json(meta)
    try:
        with replacing(path) as file:
            np.savez(file, meta=np.array(text), **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def _read(path: str | os.PathLike[str], format_: str) -> tuple[Any, dict[str, np.ndarray]]:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays.pop("meta")))
    if meta["format"] != format_:
        raise RunError(f"{path} has format {meta['format']!r}, expected {format_!r}")
    return meta, arrays


@contextmanager
def _reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turns whatever a bad file leads to into one line."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (RunError, MissingDependencyError):
        raise
    except _MALFORMED as error:
        raise RunError(f"{path} is not a {what}, or is truncated") from error
