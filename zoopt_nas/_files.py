"""Write files and folders atomically, and convert values to strict JSON."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = "-temporary-"  # part of the names of incomplete files


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, and move it to ``path`` when the block succeeds."""
    path = Path(path)
    # In the same folder: a rename is atomic only within one file system. Unlike mkstemp, the umask
    # decides on the permissions.
    temporary = path.with_name(f".{path.name}{TEMPORARY}{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def creating(folder: Path) -> Iterator[Path]:
    """Create a temporary folder beside ``folder``, and rename it when the block succeeds."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp creates it with mode 0700
        yield temporary
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes and threads that also hold it.

    The lock ends with the block or the process, and leaves no file. Where the system cannot lock
    folders there is none.

    Raises:
        BlockingIOError: another one holds it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # some network file systems
            pass
        yield
    finally:
        os.close(descriptor)


def as_json(value: Any) -> Any:
    """Return ``value`` as strict JSON: None for non-finite floats, strings for paths."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    return value
