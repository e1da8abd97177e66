"""Save runs and resume them exactly: one ``.npz`` file, written atomically, without pickle.

``save_state`` and ``load_state`` are for ask and tell. `Checkpoint` is the file of one call of
`minimize`: it also holds what that call has counted and found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from zoopt_nas._arrays import Array, encode_array
from zoopt_nas._checks import check_at_least
from zoopt_nas._files import replacing
from zoopt_nas.errors import InvalidValueError, MissingDependencyError, RunError
from zoopt_nas.solvers import SOLVERS, Solver, SolverState

_FORMAT = "zoopt_nas.state.v1"
_RUN_FORMAT = "zoopt_nas.run.v1"

# What NumPy, zipfile, json and the decoder raise for a file that is no saved state.
_MALFORMED = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, BadZipFile)


def save_state(path: str | os.PathLike[str], solver: Solver, state: SolverState) -> None:
    """Write a solver and its state to ``path``, which is replaced atomically.

    Args:
        path: the file; its folder must exist. No suffix is added.
        solver: its fields must be numbers, strings, bools or None.
        state: is saved with its pending batch and its generator.

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
    path: str | os.PathLike[str],
    *,
    solvers: Mapping[str, type[Solver]] = SOLVERS,
    device: Any = None,
) -> tuple[Solver, SolverState]:
    """Read what ``save_state`` wrote; the run continues bitwise as if it had not stopped.

    Args:
        path: the file.
        solvers: the classes of solvers by name.
        device: the device of torch tensors; None is the one that they were on. On another kind of
            device the run continues with other random numbers.

    Raises:
        RunError: the file is missing, truncated, or not a saved state.
    """
    with _reading(path, "saved solver state"):
        meta, arrays = _read(path, _FORMAT)
        if meta["solver"] not in solvers:
            raise RunError(f"{path} was saved by an unknown solver, {meta['solver']!r}")
        solver = solvers[meta["solver"]](**meta["fields"])
        data = {"arrays": arrays, "meta": meta["state"]}
        return solver, SolverState.from_dict(data, solver.inner_states, device=device)


class Checkpoint:
    """The file that saves one call of `minimize`, at most once in ``every`` seconds.

    ``identity`` holds the arguments that must be equal when the run is resumed, as JSON values;
    None matches any value.
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
        """Return the saved state of ``solver`` and the record, or None if there is no file."""
        if not self._path.exists():
            return None
        with _reading(self._path, "checkpoint of minimize"):
            meta, arrays = _read(self._path, _RUN_FORMAT)
            for key, value in self._identity.items():
                saved = meta["identity"].get(key)
                if None not in (value, saved) and saved != value:
                    raise RunError(
                        f"{self._path} was saved by a run with another {key}; "
                        f"give it the same {key}, or use another file"
                    )
            data = {"arrays": _part(arrays, "state/"), "meta": meta["state"]}
            state = SolverState.from_dict(data, solver.inner_states)
            return state, {"arrays": _part(arrays, "record/"), "meta": meta["record"]}

    def save_if_due(self, state: SolverState, record: Callable[[], Mapping[str, Any]]) -> None:
        """Write the file unless the last write is less than ``every`` seconds ago."""
        if time.monotonic() - self._last >= self._every:
            self.save(state, record())

    def save(self, state: SolverState, record: Mapping[str, Any]) -> None:
        """Write the state of the solver and the record of the run."""
        data = state.to_dict()
        meta = {
            "format": _RUN_FORMAT,
            "identity": self._identity,
            "state": data["meta"],
            "record": record["meta"],
        }
        arrays = {f"state/{name}": array for name, array in data["arrays"].items()}
        arrays |= {f"record/{name}": array for name, array in record["arrays"].items()}
        _write(self._path, meta, arrays)
        self._last = time.monotonic()


def fingerprint(*arrays: Array) -> str:
    """Return a digest of the values, dtypes and namespaces of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        values, spec = encode_array(array)
        digest.update(_to_json({**spec, "shape": values.shape}).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    start = len(prefix)
    return {name[start:]: array for name, array in arrays.items() if name.startswith(prefix)}


def _to_json(value: object) -> str:
    # A field of a solver may be a NumPy scalar.
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
    """Convert the exceptions of an unreadable file to ``RunError``."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (RunError, MissingDependencyError):
        raise
    except _MALFORMED as error:
        raise RunError(f"{path} is not a {what}, or is truncated") from error
