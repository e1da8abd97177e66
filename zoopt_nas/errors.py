"""Exceptions of this package. A message names the field, the rule and the value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

_MAX_LIST = 150  # characters of the known names in a message
_SHOWN_FAILURES = 3  # in a message


class ZooptNasError(Exception):
    """Base class of every exception of this package; the message is one line."""


class InvalidValueError(ZooptNasError, ValueError):
    """A value is invalid: ``n_samples must be a positive integer, got 0``."""


class UnknownNameError(ZooptNasError, KeyError):
    """A name is unknown. The message suggests the nearest known name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {_short_list(self.known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")

    def __str__(self) -> str:  # KeyError prints the repr of its message
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, which holds only the message.
        return type(self), (self.kind, self.name, self.known), self.__dict__


def _short_list(names: list[str]) -> str:
    """Join the names; if there are too many for a line, name the first ones and the number."""
    text = ", ".join(names)
    if len(text) <= _MAX_LIST:
        return text
    return f"{text[:_MAX_LIST].rpartition(',')[0]}, ... ({len(names)} names)"


class EntryPointError(ZooptNasError):
    """An entry point of an installed package cannot be imported or has the wrong type."""


class MissingDependencyError(ZooptNasError, ImportError):
    """An optional package is missing. The message names the extra that installs it."""


class DataError(ZooptNasError):
    """A data file is missing, truncated or malformed."""


class MissingDataError(DataError):
    """A data file does not exist, or does not contain the requested split."""


class RunError(ZooptNasError):
    """A run folder or a checkpoint is missing, truncated, from another run or already there."""


class NotEnoughMemoryError(MemoryError, ZooptNasError):  # MemoryError defines __new__: first base
    """A run exceeds the memory of its device. The message names settings that reduce it."""


class DivergedError(ZooptNasError):
    """The weights or the loss became non-finite. The last checkpoint is still valid."""


class WorkerError(ZooptNasError):
    """A process that evaluates candidates has died or failed. The search can be resumed."""


class ExportError(ZooptNasError):
    """An exported network differs from the trained one in its output; no file was written."""


class FailedRunsError(ZooptNasError):
    """Runs of a sweep failed; all others are finished.

    Attributes:
        failures: the error of each failed run, by its name.
        n_runs: number of runs of the sweep.
    """

    def __init__(self, failures: Mapping[str, str], n_runs: int) -> None:
        self.failures = dict(failures)
        self.n_runs = n_runs
        shown = [f"{name}: {error}" for name, error in self.failures.items()][:_SHOWN_FAILURES]
        more = len(self.failures) - len(shown)
        shown += [f"and {more} more"] if more else []
        super().__init__(f"{len(self.failures)} of {n_runs} runs failed: {'; '.join(shown)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failures, self.n_runs), self.__dict__


class RunInterrupted(ZooptNasError):  # noqa: N818 - a request, not a fault
    """A run saved a checkpoint and stopped, as requested."""
