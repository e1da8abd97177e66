"""The tables of the paper as sweeps: one TOML file each, in the form of ``sweep.toml``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from zoopt_nas.errors import RunError, UnknownNameError, ZooptNasError
from zoopt_nas.nas.analyses.sweep import Sweep

TABLES = ("table2", "table3", "table5", "table6", "table7")


def read_sweep(source: str) -> Sweep:
    """Return the sweep of a table of the paper, or in a TOML file.

    Args:
        source: a name in ``TABLES``, or the path of a file.

    Raises:
        UnknownNameError: ``source`` is neither a table nor a file.
        RunError: the file is no sweep.
    """
    if source in TABLES:
        return Sweep.from_toml((resources.files(__name__) / f"{source}.toml").read_text("utf-8"))
    path = Path(source)
    if not path.is_file():
        raise UnknownNameError("table or file", source, TABLES)
    try:
        return Sweep.from_toml(path.read_text(encoding="utf-8"))
    except (ZooptNasError, UnicodeDecodeError, OSError) as error:
        raise RunError(f"{path}: {error}") from error
