"""Saving a run and resuming it exactly: one ``.npz`` file, written atomically, without pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoopt_nas.errors import MissingDependencyError, RunError
from zoopt_nas.solvers import SOLVERS, Solver, SolverState

_FORMAT = "zoopt_nas.state.v1"

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
    path = Path(path)
    data = state.to_dict()
    meta = {
        "format": _FORMAT,
        "solver": solver.name,
        "fields": dataclasses.asdict(solver),
        "state": data["meta"],
    }
    # A field may have been given as a NumPy scalar; `item` makes it a Python number.
    text = json.dumps(meta, default=lambda scalar: scalar.item())
    # Beside the target, so that the rename stays within one file system and is atomic.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, meta=np.array(text), **data["arrays"])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)  # still there only if something went wrong


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
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        meta = json.loads(str(arrays.pop("meta")))
        if meta["format"] != _FORMAT:
            raise RunError(f"{path} has format {meta['format']!r}, expected {_FORMAT!r}")
        if meta["solver"] not in solvers:
            raise RunError(f"{path} was saved by an unknown solver, {meta['solver']!r}")
        solver = solvers[meta["solver"]](**meta["fields"])
        return solver, SolverState.from_dict({"arrays": arrays, "meta": meta["state"]})
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (RunError, MissingDependencyError):
        raise
    except _MALFORMED as error:
        raise RunError(f"{path} is not a saved solver state, or is truncated") from error
