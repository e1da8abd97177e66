"""A registry: a visible table of names, plus the entry points of installed third-party packages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from zoopt_nas.errors import UnknownNameError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A read-only mapping from a name to the thing it names.

    The package's own entries are given in ``table`` and always win. Entries of other installed
    packages are found in the entry-point group ``group``; they are listed by name at the first
    look-up and imported only when asked for.

    Args:
        kind: what an entry is, as it reads in an error ("solver").
        table: the package's own entries, in the order in which they are listed.
        group: the entry-point group of third-party entries; None if there is none.
    """

    def __init__(self, kind: str, table: Mapping[str, T], group: str | None = None) -> None:
        self.kind = kind
        self._table = dict(table)
        self._group = group

    def _third_party(self) -> dict[str, object]:
        if self._group is None:
            return {}
        found = entry_points(group=self._group)
        return {point.name: point for point in found if point.name not in self._table}

    def __getitem__(self, name: str) -> T:
        """Returns the entry ``name``.

        Raises:
            UnknownNameError: nothing has that name; the message suggests the nearest one.
        """
        if name in self._table:
            return self._table[name]
        others = self._third_party()
        if name not in others:
            raise UnknownNameError(self.kind, name, [*self._table, *others])
        loaded: T = others[name].load()  # type: ignore[attr-defined]
        return loaded

    def __iter__(self) -> Iterator[str]:
        yield from self._table
        yield from sorted(self._third_party())

    def __len__(self) -> int:
        return len(self._table) + len(self._third_party())
