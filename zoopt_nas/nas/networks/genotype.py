"""A genotype: the discrete architecture of a normal and a reduction cell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.genotype_text import (
    FIELDS,
    brief,
    decode,
    holds_genotype,
    last_genotype,
    shorten,
)
from zoopt_nas.nas.networks.operations import OPERATIONS

CELL_KINDS = ("normal", "reduce")
N_INPUTS = 2  # nodes 0 and 1 of a cell are the outputs of the two cells before it
EDGES_PER_NODE = 2  # a derived node keeps its two strongest inputs

Edge = tuple[str, int]
"""``(operation, source node)``."""


@dataclass(frozen=True)
class Genotype:
    """Immutable; equal genotypes compare equal and hash alike.

    Attributes:
        normal: edges of the normal cell, two for each intermediate node in order: node
            ``2 + i // 2`` receives ``normal[i]``. Within a node the stronger edge comes first.
        reduce: the same for the reduction cell.
        normal_concat: the nodes whose channel-wise concatenation is the cell's output.
        reduce_concat: the same for the reduction cell.

    Raises:
        InvalidValueError: an edge is not a pair, a node has not two inputs, an edge does not come
            from an earlier node, or a concatenated node does not exist.
        UnknownNameError: an operation is not in ``OPERATIONS``.
    """

    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]
    normal_concat: tuple[int, ...] = (2, 3, 4, 5)
    reduce_concat: tuple[int, ...] = (2, 3, 4, 5)

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
        """The edges of the ``"normal"`` or ``"reduce"`` cell."""
        edges: tuple[Edge, ...] = getattr(self, kind)
        return edges

    def concat(self, kind: str) -> tuple[int, ...]:
        """The output nodes of the ``"normal"`` or ``"reduce"`` cell."""
        concat: tuple[int, ...] = getattr(self, f"{kind}_concat")
        return concat

    def count(self, operation: str, kind: str = "normal") -> int:
        """How many edges of a cell use ``operation``; the skip count is the sign of collapse."""
        return sum(op == operation for op, _ in self.edges(kind))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, as ``to_json`` writes them."""
        return {
            key: [list(item) if isinstance(item, tuple) else item for item in getattr(self, key)]
            for key in FIELDS
        }

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, fields: object) -> Genotype:
        """The inverse of ``to_dict``. The edges of a cell may also be pairs of edges, one by node.

        Raises:
            InvalidValueError: not a mapping with the cells ``normal`` and ``reduce``.
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
        """The inverse of ``to_json``.

        Raises:
            InvalidValueError: the text is not JSON, or not a genotype.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidValueError(f"genotype is not valid JSON: {error}") from error
        return cls.from_dict(fields)

    def __str__(self) -> str:
        """The form in which papers publish genotypes; ``from_string`` reads it."""
        return (
            f"Genotype(normal={list(self.normal)!r}, normal_concat={list(self.normal_concat)!r}, "
            f"reduce={list(self.reduce)!r}, reduce_concat={list(self.reduce_concat)!r})"
        )

    @classmethod
    def from_string(cls, text: str) -> Genotype:
        """Reads the last genotype in a text: as published, as a dict, or as JSON.

        ``Genotype(normal=[('skip_connect', 0), ...], ...)`` may have anything before and after it,
        such as a name, a module, or a whole log. Nothing is executed; see `genotype_text`.

        Raises:
            InvalidValueError: the text has no genotype, or the last one is of another form.
        """
        return cls.from_dict(last_genotype(text))

    @classmethod
    def load(cls, source: str | Path) -> Genotype:
        """A genotype by known name, from a text as ``from_string`` takes it, or from such a file.

        Raises:
            InvalidValueError: a text or file holds something else.
            UnknownNameError: neither a known name, nor such a text, nor a file.
        """
        text = str(source)
        if text.strip() in GENOTYPES:
            return GENOTYPES[text.strip()]
        if not holds_genotype(text) and not text.lstrip().startswith("{"):
            path = Path(text)
            if not _is_file(path):
                raise UnknownNameError("genotype", shorten(text), GENOTYPES)
            try:
                text = decode(path.read_bytes())
            except OSError as error:
                raise InvalidValueError(
                    f"genotype file {path} cannot be read: {error.strerror}"
                ) from error
            if "\ufffd" in text and not holds_genotype(text):
                raise InvalidValueError(f"genotype file {path} is not text")
        return cls.from_string(text)


def _item(item: Any) -> Any:
    return tuple(item) if isinstance(item, list) else item


def _flat(items: Any) -> Any:
    """The edges of a cell in one row, where they come as a pair of edges for each node."""
    is_nested = isinstance(items, list | tuple) and all(
        isinstance(node, list | tuple)
        and len(node) == EDGES_PER_NODE
        and all(isinstance(edge, list | tuple) for edge in node)
        for node in items
    )
    return [edge for node in items for edge in node] if is_nested else items


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no file can have such a name
        return False


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


def _sep(*sources: int) -> tuple[Edge, ...]:
    return tuple(("sep_conv_3x3", source) for source in sources)


# The two genotypes of Liu et al. (2019), the yardsticks of every later paper.
GENOTYPES = {
    "DARTS_V1": Genotype(
        normal=(
            *_sep(1, 0),
            ("skip_connect", 0),
            *_sep(1),
            ("skip_connect", 0),
            *_sep(1, 0),
            ("skip_connect", 2),
        ),
        reduce=(
            ("max_pool_3x3", 0),
            ("max_pool_3x3", 1),
            ("skip_connect", 2),
            ("max_pool_3x3", 0),
            ("max_pool_3x3", 0),
            ("skip_connect", 2),
            ("skip_connect", 2),
            ("avg_pool_3x3", 0),
        ),
    ),
    "DARTS_V2": Genotype(
        normal=(
            *_sep(0, 1, 0, 1, 1),
            ("skip_connect", 0),
            ("skip_connect", 0),
            ("dil_conv_3x3", 2),
        ),
        reduce=(
            ("max_pool_3x3", 0),
            ("max_pool_3x3", 1),
            ("skip_connect", 2),
            ("max_pool_3x3", 1),
            ("max_pool_3x3", 0),
            ("skip_connect", 2),
            ("skip_connect", 2),
            ("max_pool_3x3", 1),
        ),
    ),
}
