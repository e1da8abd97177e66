"""The file of a landscape's arrays, written after every row.

::

    axis, centre, directions    the grid and its plane, as in ``Landscape`` and ``Plane``
    values_<panel>              losses (n, n); rows that are not computed yet are NaN
    path_<method>               coordinates of a path, path_values_<method> the losses there
    identity, n_rows            JSON: what the losses depend on; number of known rows by panel
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from zoopt_nas._files import replacing
from zoopt_nas.errors import RunError
from zoopt_nas.nas.analyses.landscape.plane import Track
from zoopt_nas.nas.analyses.landscape.sharpness import Array

ARRAYS = "landscape.npz"
# What np.load raises for damaged files.
_UNREADABLE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile)


class GridFile:
    """The grids computed so far, in ``landscape.npz``, including panels of earlier calls.

    ``out`` None keeps everything in memory. The losses depend on ``identity``, on ``arrays`` (the
    plane and its grid by name, including "axis") and on the panel.

    Raises:
        RunError: the file is damaged or of another landscape, or the folder cannot be created.
    """

    def __init__(self, out: Path | None, identity: dict[str, Any], arrays: dict[str, Array]):
        self._out = out
        self._identity, self._arrays = identity, arrays
        self._grids: dict[str, Array] = {}
        self._n_rows: dict[str, int] = {}
        self._tracks: dict[str, Array] = {}
        if out is None:
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the folder {out}: {error.strerror}") from error
        if (out / ARRAYS).exists():
            self._load(out / ARRAYS)

    def __getitem__(self, panel: str) -> Array:
        """Return the losses ``(n, n)``; unknown rows are NaN."""
        n = len(self._arrays["axis"])
        return self._grids.setdefault(panel, np.full((n, n), np.nan))

    def has_row(self, panel: str, i: int) -> bool:
        """Whether row ``i`` is known."""
        return i < self._n_rows.get(panel, 0)

    def put_row(self, panel: str, i: int, values: Array) -> None:
        """Store row ``i``, which follows the last known one, and write the file."""
        self[panel][i] = values
        self._n_rows[panel] = i + 1
        self._save()

    def put_tracks(self, tracks: dict[str, Track]) -> None:
        """Replace the paths, and write the file."""
        self._tracks = {}
        for name, track in tracks.items():
            self._tracks[f"path_{name}"] = track.coordinates
            self._tracks[f"path_values_{name}"] = track.values
        self._save()

    def _save(self) -> None:
        if self._out is None:
            return
        texts = {"identity": self._identity, "n_rows": self._n_rows}
        content: dict[str, Any] = {
            **{name: np.array(json.dumps(value)) for name, value in texts.items()},
            **self._arrays,
            **{f"values_{name}": grid for name, grid in self._grids.items()},
            **self._tracks,
        }
        with replacing(self._out / ARRAYS) as file:
            np.savez(file, **content)

    def _load(self, path: Path) -> None:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                identity = json.loads(str(file["identity"]))
                n_rows: dict[str, int] = json.loads(str(file["n_rows"]))
                grids = {name: file[f"values_{name}"] for name in n_rows}
                same = all(np.array_equal(file[name], a) for name, a in self._arrays.items())
        except _UNREADABLE as error:
            raise RunError(f"{path} is damaged, or no landscape of zoopt-nas") from error
        if identity != self._identity or not same:
            changed = [
                f"{name} {identity.get(name)} instead of {value}"
                for name, value in self._identity.items()
                if identity.get(name) != value
            ]
            raise RunError(
                f"{path} must be of the same landscape, got one with "
                f"{', '.join(changed) or 'another alpha'}; name another folder"
            )
        self._grids, self._n_rows = grids, n_rows
