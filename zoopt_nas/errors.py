"""The errors that this package raises. A message names the field, the rule and the value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ZooptNasError(Exception):
    """Root of every error that the package raises on purpose; its message is one line."""


class InvalidValueError(ZooptNasError, ValueError):
    """A value breaks a rule: ``n_samples must be a positive integer, got 0``."""


class UnknownNameError(ZooptNasError, KeyError):
    """A name is in no table. The message suggests the nearest known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is copied and unpickled by calling its class with `args`, here the message.
        return type(self), (self.kind, self.name, self.known), self.__dict__


class EntryPointError(ZooptNasError):
    """What an installed package registers cannot be imported, or is not what it should be."""


class MissingDependencyError(ZooptNasError, ImportError):
    """An optional package is not installed. The message says which extra brings it."""


class DataError(ZooptNasError):
    """A data file is missing, truncated or not in the expected form."""


class MissingDataError(DataError):
    """A data file is not there, or the file holds no such split. Nothing in it is damaged."""


class RunError(ZooptNasError):
    """A run folder or a checkpoint cannot be used: missing, foreign, truncated or in the way."""


class NotEnoughMemoryError(MemoryError, ZooptNasError):  # MemoryError's own __new__ comes first
    """A run does not fit into the memory of its device. The message names what makes it smaller."""


class DivergedError(ZooptNasError):
    """Training has become non-finite; the last good checkpoint is still there."""


class ExportError(ZooptNasError):
    """An exported network does not compute what the trained one does; nothing was written."""


class RunInterrupted(ZooptNasError):  # noqa: N818 - a request, not a fault
    """A run was asked to stop, and has saved where it is."""
