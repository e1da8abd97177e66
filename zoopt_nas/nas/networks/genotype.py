"""A genotype: the discrete architecture of a normal and a reduction cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, ClassVar

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.architecture import Architecture, CellGraph, PublishedSize
from zoopt_nas.nas.networks.genotype_text import (
    FIELDS,
    brief,
    holds_genotype,
    last_genotype,
    read_json,
    read_source,
)
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.nas.networks.published_cells import PUBLISHED_CELLS

CELL_KINDS = ("normal", "reduce")
N_INPUTS = 2  # nodes 0 and 1 of a cell are the outputs of the two previous cells
EDGES_PER_NODE = 2  # in a genotype
_TITLES = {"normal": "normal cell", "reduce": "reduction cell"}

Edge = tuple[str, int]
"""``(operation, source node)``."""


# The networks with which papers compare genotypes (DARTS).
_PUBLISHED_SIZES = (
    PublishedSize("CIFAR-10", 32, 10, 36, 20, "cifar"),
    PublishedSize("ImageNet", 224, 1000, 48, 14, "imagenet"),
)


@dataclass(frozen=True)
class Genotype(Architecture):
    """The immutable architecture of a normal and a reduction cell.

    Attributes:
        normal, reduce: Edges of the cell, two for each intermediate node: node ``2 + i // 2``
            receives edge i. Of each two the stronger edge comes first.
        normal_concat, reduce_concat: The nodes whose channels form the cell's output.

    Raises:
        InvalidValueError: An edge is not a pair or does not come from an earlier node, a node does
            not have two edges, or a concatenated node does not exist.
        UnknownNameError: An operation is not in ``OPERATIONS``.
    """

    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]
    normal_concat: tuple[int, ...] = (2, 3, 4, 5)
    reduce_concat: tuple[int, ...] = (2, 3, 4, 5)
    published_sizes: ClassVar[tuple[PublishedSize, ...]] = _PUBLISHED_SIZES

    def __post_init__(self) -> None:
        for kind in CELL_KINDS:
            try:
                edges = tuple((str(op), index(source)) for op, source in self.edges(kind))
                concat = tuple(index(node) for node in self.concat(kind))
            except (TypeError, ValueError) as error:
                raise InvalidValueError(
                    f"{kind} must be pairs (operation, source) and {kind}_concat integers, "
                    f"got {brief(self.edges(kind))} and {brief(self.concat(kind))}"
                ) from error
            object.__setattr__(self, kind, edges)
            object.__setattr__(self, f"{kind}_concat", concat)
            _check_cell(kind, edges, concat)

    def edges(self, kind: str) -> tuple[Edge, ...]:
        """Return the edges of the ``"normal"`` or ``"reduce"`` cell."""
        edges: tuple[Edge, ...] = getattr(self, kind)
        return edges

    def concat(self, kind: str) -> tuple[int, ...]:
        """Return the output nodes of the ``"normal"`` or ``"reduce"`` cell."""
        concat: tuple[int, ...] = getattr(self, f"{kind}_concat")
        return concat

    @property
    def cells(self) -> dict[str, CellGraph]:
        """The graphs of both cells; nodes are named as in the paper's Fig. 5."""
        return {kind: self._graph(kind) for kind in CELL_KINDS}

    def _graph(self, kind: str) -> CellGraph:
        edges = tuple(
            (name, source, N_INPUTS + i // EDGES_PER_NODE)
            for i, (name, source) in enumerate(self.edges(kind))
        )
        n_nodes = len(edges) // EDGES_PER_NODE
        nodes = ("c_{k-2}", "c_{k-1}", *map(str, range(n_nodes)))
        return CellGraph(_TITLES[kind], nodes, N_INPUTS, edges, self.concat(kind))

    def to_dict(self) -> dict[str, Any]:
        """Return lists of strings and integers, for JSON."""
        return {
            key: [list(item) if isinstance(item, tuple) else item for item in getattr(self, key)]
            for key in FIELDS
        }

    @classmethod
    def from_dict(cls, fields: object) -> Genotype:
        """Read the result of ``to_dict``; the edges may also be grouped by node.

        Raises:
            InvalidValueError: It is not a mapping with the cells ``normal`` and ``reduce``.
        """
        if not isinstance(fields, dict) or not {"normal", "reduce"} <= set(fields) <= set(FIELDS):
            raise InvalidValueError(
                f"genotype must have the fields normal and reduce, got {brief(fields)}"
            )
        try:
            return cls(**{key: tuple(map(_item, _flat(value))) for key, value in fields.items()})
        except TypeError as error:
            raise InvalidValueError(
                f"genotype edges must be pairs (operation, source), got {brief(fields)}"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read the result of ``to_json``.

        Raises:
            InvalidValueError: The text is not JSON, or not a genotype.
        """
        return cls.from_dict(read_json(text))

    def __str__(self) -> str:
        """Return the form in which papers publish genotypes."""
        return (
            f"Genotype(normal={list(self.normal)!r}, normal_concat={list(self.normal_concat)!r}, "
            f"reduce={list(self.reduce)!r}, reduce_concat={list(self.reduce_concat)!r})"
        )

    @classmethod
    def from_string(cls, text: str) -> Genotype:
        """Read the last genotype in a text, such as a log: as published, as a dict or as JSON.

        The published form is ``Genotype(normal=[('skip_connect', 0), ...], ...)``. Nothing is
        executed.

        Raises:
            InvalidValueError: The text has no genotype, or the last one has another form.
        """
        return cls.from_dict(last_genotype(text))

    @classmethod
    def load(cls, source: str | Path) -> Genotype:
        """Load a genotype by name, from a text for ``from_string`` or from a file with one.

        Raises:
            InvalidValueError: The text or file is not a genotype.
            UnknownNameError: It is neither a known name, nor such a text, nor a file.
        """
        name = str(source).strip()
        if name in GENOTYPES:
            return GENOTYPES[name]
        return cls.from_string(read_source(source, holds_genotype, GENOTYPES))


def _item(item: Any) -> Any:
    return tuple(item) if isinstance(item, list) else item


def _flat(items: Any) -> Any:
    """Flatten the edges of a cell if they are grouped by node."""
    is_nested = isinstance(items, list | tuple) and all(
        isinstance(node, list | tuple)
        and len(node) == EDGES_PER_NODE
        and all(isinstance(edge, list | tuple) for edge in node)
        for node in items
    )
    return [edge for node in items for edge in node] if is_nested else items


def _check_cell(kind: str, edges: Sequence[Edge], concat: Sequence[int]) -> None:
    if not edges or len(edges) % EDGES_PER_NODE:
        raise InvalidValueError(
            f"{kind} must have {EDGES_PER_NODE} edges for each node, got {len(edges)} edges"
        )
    for i, (operation, source) in enumerate(edges):
        node = N_INPUTS + i // EDGES_PER_NODE
        if operation not in OPERATIONS:
            raise UnknownNameError("operation", operation, OPERATIONS)
        if not 0 <= source < node:
            raise InvalidValueError(
                f"{kind} edge {i} into node {node} must come from a node before it, got {source}"
            )
    n_nodes = N_INPUTS + len(edges) // EDGES_PER_NODE
    if not concat or not all(N_INPUTS <= node < n_nodes for node in concat):
        raise InvalidValueError(
            f"{kind}_concat must name nodes from {N_INPUTS} to {n_nodes - 1}, got {tuple(concat)}"
        )


def _cell(*edges: str) -> tuple[Edge, ...]:
    return tuple((name, int(source)) for name, source in (edge.split() for edge in edges))


GENOTYPES = {
    name: Genotype(_cell(*normal), _cell(*reduce))
    for name, (normal, reduce) in PUBLISHED_CELLS.items()
}
