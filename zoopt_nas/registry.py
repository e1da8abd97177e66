"""Tables of named objects, extended by the entry points of installed packages."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from zoopt_nas.errors import EntryPointError, UnknownNameError

T = TypeVar("T")


def installed(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by name, without loading them; cached per ``sys.path``."""
    return _installed(group, tuple(sys.path))


@functools.lru_cache(maxsize=64)
def _installed(group: str, path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=group))}


class Registry(Mapping[str, T]):
    """A read-only mapping from names to objects.

    Built-in entries take precedence. Entry points are imported when they are looked up.

    Args:
        kind: the word for an entry in error messages, such as "solver".
        table: the built-in entries in display order; an ``EntryPoint`` is loaded when looked up.
        group: the entry-point group of third-party entries, or None.
        check: returns whether a third-party entry is valid.
    """

    def __init__(
        self,
        kind: str,
        table: Mapping[str, T | EntryPoint],
        group: str | None = None,
        check: Callable[[Any], bool] = lambda entry: True,
    ) -> None:
        self.kind = kind
        self._table = dict(table)
        self._group = group
        self._check = check

    def _third_party(self) -> Mapping[str, EntryPoint]:
        return installed(self._group) if self._group is not None else {}

    def is_built_in(self, name: str) -> bool:
        """Return whether ``name`` is a built-in entry."""
        return name in self._table

    def __contains__(self, name: object) -> bool:
        return name in self._table or name in self._third_party()

    def __getitem__(self, name: str) -> T:
        """Return the entry ``name``.

        Raises:
            UnknownNameError: there is no such entry.
            EntryPointError: a third-party entry cannot be loaded or fails the check.
        """
        if name in self._table:
            entry = self._table[name]
            return entry.load() if isinstance(entry, EntryPoint) else entry
        others = self._third_party()
        if name not in others:
            raise UnknownNameError(self.kind, name, self)
        return self._load(others[name])

    def _load(self, point: EntryPoint) -> T:
        where = f"{self.kind} {point.name!r} of another package ({point.value})"
        try:
            entry: T = point.load()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EntryPointError(
                f"{where} cannot be loaded: {type(error).__name__}: {reason}"
            ) from error
        if not self._check(entry):
            raise EntryPointError(f"{where} must be a {self.kind}, got {entry!r}")
        return entry

    def __iter__(self) -> Iterator[str]:
        yield from self._table
        yield from sorted(self._third_party().keys() - self._table.keys())

    def __len__(self) -> int:
        return len(self._table.keys() | self._third_party().keys())
