"""Lay out the boxes, arrows and labels of a drawn cell, in inches and without matplotlib.

Nodes stand in columns from left to right, each one column after its latest input. An edge has a row
in every column: a lane where it passes, or a place on the left side of the node where it ends.
Between two columns edges first change rows and then run level under their labels. So no edge
crosses a box or the label of another edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zoopt_nas.nas.networks.architecture import CellGraph

NODE_WIDTH, NODE_HEIGHT = 0.62, 0.46  # a node with more than two labelled inputs is higher
LABEL_HEIGHT = 0.19
HEAD_LENGTH = 0.11  # of an arrow
_LABEL_PITCH = 0.23  # between the edges that end at a node
_PORT_PITCH = 0.11  # between unlabelled edges of a node, if there is room
_PORT_SHARE = 0.8  # of the side of a node, for its edges
_LANE_HEIGHT = 0.1
_ROW_GAP = 0.1  # between neighbours in a column
_INPUT_GAP = 0.35
_TURN = 0.55  # where edges change rows
_LABEL_GAP = 0.08  # on both sides of a label
_N_SWEEPS = 12

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A rectangle given by its centre and its size."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two boxes overlap."""
        return (
            abs(self.x - other.x) < (self.width + other.width) / 2
            and abs(self.y - other.y) < (self.height + other.height) / 2
        )


@dataclass(frozen=True)
class Arrow:
    """An edge of a drawn cell."""

    source: int
    target: int
    operation: str | None  # its label; None for an edge into the concatenation
    curve: Array  # (3 k + 1, 2) control points of k joined cubic Bézier curves, up to the tip
    label: Box | None  # the box of the label, if there is one


@dataclass(frozen=True)
class CellDrawing:
    """A cell laid out in the rectangle from (0, 0) to (width, height), in inches."""

    nodes: tuple[Box, ...]  # the inputs, the other nodes, the output
    arrows: tuple[Arrow, ...]  # the edges of the cell in order, then the edges into the output
    width: float
    height: float


def lay_out_cell(graph: CellGraph, label_width: Callable[[str], float]) -> CellDrawing:
    """Lay out one cell of an architecture, with a box for its output.

    ``label_width`` maps an operation to the width of its label in inches.
    """
    output = len(graph.nodes)
    links: list[tuple[int, int, str | None]] = [
        (source, target, operation) for operation, source, target in graph.edges
    ]
    links += [(node, output, None) for node in dict.fromkeys(graph.outputs)]
    columns, paths = _columns(links, output, graph.n_inputs)
    heights = np.full(len(columns), _LANE_HEIGHT)
    heights[: output + 1] = NODE_HEIGHT
    for node in range(graph.n_inputs, output):
        n_labels = sum(target == node for _, target, _ in links)
        heights[node] = max(NODE_HEIGHT, (n_labels - 1) * _LABEL_PITCH / _PORT_SHARE)
    ys = _rows(columns, paths, heights, graph.n_inputs)
    leaving, entering = (_ports(paths, ys, heights[: output + 1], at=at) for at in (0, -1))

    lefts, label_xs = [0.0], [0.0]  # by column: its left side, and the centre of its labels
    for column in range(1, max(columns) + 1):
        names = {name for _, node, name in links if name and columns[node] == column}
        labels = max(map(label_width, names), default=0.0) + 2 * _LABEL_GAP
        lefts.append(lefts[-1] + NODE_WIDTH + _TURN + labels + HEAD_LENGTH)
        label_xs.append(lefts[-1] - HEAD_LENGTH - labels / 2)

    arrows = []
    for i, (link, path) in enumerate(zip(links, paths, strict=True)):
        corners = [(lefts[columns[path[0]]] + NODE_WIDTH, ys[path[0]] + leaving[i])]
        for item in path[1:]:
            column, is_last = columns[item], item == path[-1]
            y = ys[item] + (entering[i] if is_last else 0.0)
            turned = lefts[column - 1] + NODE_WIDTH + _TURN
            end = lefts[column] + (0.0 if is_last else NODE_WIDTH)
            corners += [(turned, y), (end, y)]
        operation = link[2]
        label = None
        if operation is not None:
            x, y = label_xs[columns[path[-1]]], corners[-1][1]
            label = Box(x, y, label_width(operation), LABEL_HEIGHT)
        arrows.append(Arrow(*link, _curve(corners), label))
    nodes = tuple(
        Box(lefts[columns[node]] + NODE_WIDTH / 2, ys[node], NODE_WIDTH, float(heights[node]))
        for node in range(output + 1)
    )
    return CellDrawing(
        nodes, tuple(arrows), lefts[-1] + NODE_WIDTH, float((ys + heights / 2).max())
    )


def _columns(
    links: Sequence[tuple[int, int, str | None]], output: int, n_inputs: int
) -> tuple[list[int], list[list[int]]]:
    """Return the column of each node and lane, and the items along each link."""
    columns = [0] * (output + 1)
    for node in range(n_inputs, output):
        columns[node] = 1 + max(columns[source] for source, target, _ in links if target == node)
    columns[output] = max(columns) + 1
    paths = []
    for source, target, _ in links:
        between = range(columns[source] + 1, columns[target])
        lanes = range(len(columns), len(columns) + len(between))
        columns += between
        paths.append([source, *lanes, target])
    return columns, paths


def _rows(
    columns: Sequence[int], paths: Sequence[Sequence[int]], heights: Array, n_inputs: int
) -> Array:
    """Return the y of every item: near the mean of its neighbours, without overlaps."""
    neighbours: list[list[int]] = [[] for _ in columns]
    for path in paths:
        for left, right in pairwise(path):
            neighbours[right].append(left)
    members = [np.flatnonzero(np.equal(columns, c)) for c in range(max(columns) + 1)]
    ys = np.zeros(len(columns))
    inputs = list(range(n_inputs))[::-1]  # c_{k-2} above c_{k-1}
    ys[inputs] = np.arange(n_inputs)
    for sweep in range(_N_SWEEPS):
        for c, items in enumerate(members):
            means = [ys[neighbours[item] or item].mean() for item in items]
            order = np.argsort(means, kind="stable") if c else inputs
            wanted, items = np.array(means)[order], items[order]
            gap = _ROW_GAP if c else _INPUT_GAP
            distances = (heights[items][:-1] + heights[items][1:]) / 2 + gap
            below = np.concatenate([[0.0], np.cumsum(distances)])
            placed = np.maximum.accumulate(wanted - below) + below
            ys[items] = placed - (placed - wanted).mean()
        if sweep == 0:  # everything has a row now, so count the neighbours on the right too
            for path in paths:
                for left, right in pairwise(path):
                    neighbours[left].append(right)
    ys -= (ys - heights / 2).min()
    return ys


def _ports(paths: Sequence[Sequence[int]], ys: Array, heights: Array, at: int) -> dict[int, float]:
    """Return the offset at which each edge leaves (``at`` 0) or enters (-1) its node, by height.

    ``heights`` are those of the nodes, the output last.
    """
    offsets = {}
    for node, height in enumerate(heights):
        edges = [i for i, path in enumerate(paths) if path[at] == node]
        edges.sort(key=lambda i: ys[paths[i][1 if at == 0 else -2]])
        has_labels = at == -1 and node != len(heights) - 1
        pitch = _LABEL_PITCH if has_labels else _PORT_PITCH
        pitch = min(pitch, _PORT_SHARE * height / max(len(edges) - 1, 1))
        for rank, i in enumerate(edges):
            offsets[i] = (rank - (len(edges) - 1) / 2) * pitch
    return offsets


def _curve(corners: Sequence[tuple[float, float]]) -> Array:
    """Return a curve through points that is level at each."""
    curve = [corners[0]]
    for (x0, y0), (x1, y1) in pairwise(corners):
        reach = (x1 - x0) / 2
        curve += [(x0 + reach, y0), (x1 - reach, y1), (x1, y1)]
    return np.array(curve)
