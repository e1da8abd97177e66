"""What all architectures have in common: their cells as graphs, and their form in files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple


class CellGraph(NamedTuple):
    """A cell as a graph, for pictures and tables.

    Attributes:
        title: For people, such as ``"normal cell"``.
        nodes: The name of each node but the output; the inputs come first.
        n_inputs: Number of input nodes.
        edges: ``(operation, source, target)``, nodes by position.
        outputs: The nodes whose channels form the output.
    """

    title: str
    nodes: tuple[str, ...]
    n_inputs: int
    edges: tuple[tuple[str, int, int], ...]
    outputs: tuple[int, ...]


class PublishedSize(NamedTuple):
    """The network that papers build from an architecture, to compare sizes.

    Attributes:
        dataset: Name of the data set.
        image_size: Side of its images.
        n_classes: Number of classes.
        init_channels: Width of the first cell.
        n_cells: Number of cells.
        stem: A name of ``skeleton.STEMS``.
    """

    dataset: str
    image_size: int
    n_classes: int
    init_channels: int
    n_cells: int
    stem: str


class Architecture(ABC):
    """A discrete architecture: one or more cells, which the skeleton of its space repeats.

    Attributes:
        published_sizes: The networks that papers build from architectures of this kind.
    """

    published_sizes: ClassVar[tuple[PublishedSize, ...]]

    @property
    @abstractmethod
    def cells(self) -> Mapping[str, CellGraph]:
        """The cells by kind. The skip connections of the first show whether a search collapsed."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return lists, strings and integers, for JSON."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the form in which papers publish the architecture."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.to_dict())

    def count(self, operation: str, kind: str | None = None) -> int:
        """Count the edges of a cell, by default the first, that use ``operation``."""
        cells = self.cells
        graph = next(iter(cells.values())) if kind is None else cells[kind]
        return sum(name == operation for name, _, _ in graph.edges)
