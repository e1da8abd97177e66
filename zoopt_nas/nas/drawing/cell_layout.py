"""Where the boxes, arrows and labels of a drawn cell go. Plain geometry in inches, no matplotlib.

Nodes stand in columns from left to right, each one column after its latest input. An edge over
several columns takes a slot of its own in every column between, so it cannot pass through a node.
The order in the columns keeps crossings few, heights keep long edges straight, and labels sit on
their own curve where they cover nothing. If they do not fit, the cell is spread and tried again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from zoopt_nas.nas.networks.genotype import EDGES_PER_NODE, N_INPUTS, Edge

NODE_WIDTH, NODE_HEIGHT = 0.62, 0.36
HEAD_LENGTH = 0.11  # of an arrow
_ROW_GAP = 0.13  # between neighbours in a column
_COLUMN_GAP = 0.34  # on top of the widest label
_OUTPUT_GAP = 0.85  # before the output, where arrows have no label
_CLEARANCE = 0.04  # around a label
_SPREADS = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5)
_N_STARTS, _N_SWEEPS, _N_ORDERS = 8, 6, 4
_CLASH, _COVER = 1000.0, 10.0  # costs: label on label or node; label on a foreign edge
_SAMPLES = 24  # on each piece of a curve

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A rectangle given by its centre and its full size."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box, gap: float = 0.0) -> bool:
        """Whether the two have less than ``gap`` between them."""
        return (
            abs(self.x - other.x) < (self.width + other.width) / 2 + gap
            and abs(self.y - other.y) < (self.height + other.height) / 2 + gap
        )


@dataclass(frozen=True)
class Arrow:
    """An edge.

    Attributes:
        source: node that it leaves.
        target: node that it enters.
        operation: its label; None for an edge into the concatenation.
        curve: ``(3 k + 1, 2)`` control points of k joined cubic Bézier curves, up to the tip.
        label: where its label goes, None without one.
    """

    source: int
    target: int
    operation: str | None
    curve: Array
    label: Box | None

    def points(self) -> Array:
        """Points along the curve ``(n, 2)``."""
        return _sample(self.curve)


@dataclass(frozen=True)
class CellDrawing:
    """A cell laid out in the rectangle from (0, 0) to (width, height).

    Attributes:
        nodes: the two inputs, the intermediate nodes, the output.
        arrows: the genotype's edges in its order, then those into the output.
        width: inches.
        height: inches.
    """

    nodes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    width: float
    height: float


def lay_out_cell(
    edges: Sequence[Edge],
    concat: Sequence[int],
    label_size: Callable[[str], tuple[float, float]],
) -> CellDrawing:
    """Lays out one cell of a genotype. The same cell always comes out the same.

    Args:
        edges: as ``Genotype.edges`` gives them.
        concat: as ``Genotype.concat`` gives it.
        label_size: width and height of an operation's label in inches, with its padding.
    """
    graph = _Graph.of(edges, concat)
    sizes = {operation: label_size(operation) for operation, _ in edges}
    orders = _orders(graph)
    tried: list[tuple[float, CellDrawing]] = []
    for spread in _SPREADS:
        tried += [_draw(graph, order, sizes, spread) for order in orders]
        best_cost, best = min(tried, key=lambda entry: entry[0])  # the first of equals
        if best_cost < _COVER:
            break  # every label is free
    return best


@dataclass
class _Graph:
    """Columns of items. An item is a node, or a slot that an edge takes in a column between.

    Attributes:
        links: (source, target, operation) of each edge.
        column: the column of each item; nodes come first.
        chains: for each edge, the items from its source to its target.
    """

    links: list[tuple[int, int, str | None]]
    column: list[int]
    n_nodes: int
    chains: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, edges: Sequence[Edge], concat: Sequence[int]) -> _Graph:
        links: list[tuple[int, int, str | None]] = [
            (source, N_INPUTS + i // EDGES_PER_NODE, operation)
            for i, (operation, source) in enumerate(edges)
        ]
        output = N_INPUTS + len(edges) // EDGES_PER_NODE
        column = [0] * N_INPUTS
        for node in range(N_INPUTS, output):
            sources = [source for source, target, _ in links if target == node]
            twins = len(set(sources)) < len(sources)  # parallel edges: room for a slot each
            column.append(max(column[source] for source in sources) + (2 if twins else 1))
        column.append(max(column) + 1)
        links += [(node, output, None) for node in dict.fromkeys(concat)]
        graph = cls(links, column, output + 1)
        for source, target, _ in links:
            between = range(column[source] + 1, column[target])
            slots = list(range(len(column), len(column) + len(between)))
            column.extend(between)
            graph.chains.append([source, *slots, target])
        return graph

    def height(self, item: int) -> float:
        return NODE_HEIGHT if item < self.n_nodes else 0.2

    def gaps(self) -> list[list[tuple[int, int]]]:
        """The pieces of edges between each column and the next."""
        gaps: list[list[tuple[int, int]]] = [[] for _ in range(max(self.column))]
        for chain in self.chains:
            for left, right in pairwise(chain):
                gaps[self.column[left]].append((left, right))
        return gaps


Order = list[list[int]]
"""The items of each column from bottom to top."""


def _orders(graph: _Graph) -> list[Order]:
    """The few orders with the fewest crossings that barycentre sweeps find."""
    gaps = graph.gaps()
    rng = random.Random(0)
    found: dict[str, tuple[int, Order]] = {}
    for start in range(_N_STARTS):
        order: Order = [[] for _ in range(len(gaps) + 1)]
        for item in reversed(range(len(graph.column))):
            order[graph.column[item]].append(item)
        if start:
            for column in order:
                rng.shuffle(column)
        for sweep in range(_N_SWEEPS):
            _sweep(order, gaps, forward=sweep % 2 == 0)
        _swap_neighbours(order, gaps)
        if order[0].index(0) < order[0].index(1):  # c_{k-2} above c_{k-1}
            for column in order:
                column.reverse()
        found[str(order)] = (_crossings(order, gaps), order)
    ranked = sorted(found.values(), key=lambda entry: entry[0])
    return [order for _, order in ranked[:_N_ORDERS]]


def _sweep(order: Order, gaps: list[list[tuple[int, int]]], forward: bool) -> None:
    """Sorts every column by the mean rank of its neighbours in the column before it."""
    columns = range(1, len(order)) if forward else range(len(order) - 2, -1, -1)
    for c in columns:
        links = gaps[c - 1] if forward else [(right, left) for left, right in gaps[c]]
        fixed = order[c - 1] if forward else order[c + 1]
        rank = {item: i / max(len(fixed) - 1, 1) for i, item in enumerate(fixed)}
        own = {item: i / max(len(order[c]) - 1, 1) for i, item in enumerate(order[c])}
        for item in order[c]:
            ranks = [rank[other] for other, at in links if at == item]
            own[item] = sum(ranks) / len(ranks) if ranks else own[item]
        order[c].sort(key=own.__getitem__)


def _swap_neighbours(order: Order, gaps: list[list[tuple[int, int]]]) -> None:
    """Swaps neighbours in a column as long as that removes crossings."""
    fewest, improved = _crossings(order, gaps), True
    while improved:
        improved = False
        for column in order:
            for i in range(len(column) - 1):
                column[i : i + 2] = column[i + 1], column[i]
                count = _crossings(order, gaps)
                if count < fewest:
                    fewest, improved = count, True
                else:
                    column[i : i + 2] = column[i + 1], column[i]


def _crossings(order: Order, gaps: list[list[tuple[int, int]]]) -> int:
    rank = {item: i for column in order for i, item in enumerate(column)}
    return sum(
        (rank[a] - rank[c]) * (rank[b] - rank[d]) < 0
        for links in gaps
        for i, (a, b) in enumerate(links)
        for c, d in links[:i]
    )


def _draw(
    graph: _Graph, order: Order, sizes: dict[str, tuple[float, float]], spread: float
) -> tuple[float, CellDrawing]:
    """The drawing of one order after its cost: what labels cover, then how far edges climb."""
    widest = max(width for width, _ in sizes.values())
    gap = widest + _COLUMN_GAP * spread + (spread - 1) * widest
    lefts = [(NODE_WIDTH + gap) * column for column in range(len(order))]
    lefts[-1] += _OUTPUT_GAP - gap
    ys = _heights(graph, order, spread)
    halves = np.array([graph.height(item) / 2 for item in range(len(ys))])
    ys -= (ys - halves).min()
    nodes = tuple(
        Box(round(lefts[graph.column[node]] + NODE_WIDTH / 2, 4), ys[node], NODE_WIDTH, NODE_HEIGHT)
        for node in range(graph.n_nodes)
    )
    curves = _curves(graph, lefts, ys)
    labels, cost = _place_labels(graph, curves, nodes, sizes)
    arrows = tuple(
        Arrow(*link, curve, labels.get(i))
        for i, (link, curve) in enumerate(zip(graph.links, curves, strict=True))
    )
    width, height = lefts[-1] + NODE_WIDTH, float((ys + halves).max())
    climb = sum(float(np.abs(np.diff(curve[:, 1])).sum()) for curve in curves)
    return cost + 0.01 * climb, CellDrawing(nodes, arrows, width, height)


def _heights(graph: _Graph, order: Order, spread: float) -> Array:
    """The y of every item: least squares of the climbs, with neighbours kept apart.

    The unknowns are the bottom of each column and the distances above it, so that keeping apart is
    a bound and one bounded least-squares problem is solved exactly.
    """
    n = len(graph.column)
    to_y, lower = np.zeros((n, n)), np.full(n, -np.inf)
    unknown = 0
    for c, column in enumerate(order):
        row_gap = _ROW_GAP * spread + (spread - 1) * (0.2 if c else 0.6)  # inputs fan out most
        for i, item in enumerate(column):
            if i:
                below = column[i - 1]
                to_y[item] = to_y[below]
                lower[unknown] = (graph.height(item) + graph.height(below)) / 2 + row_gap
            to_y[item, unknown] = 1.0
            unknown += 1
    rows = [1e-3 * to_y.sum(axis=0) / n]  # centres the whole, which may float freely
    rows += list(1e-2 * to_y)
    for chain in graph.chains:
        for left, right in pairwise(chain):
            slots = (left >= graph.n_nodes) + (right >= graph.n_nodes)
            rows.append((1.0, 2.0, 4.0)[slots] * (to_y[left] - to_y[right]))
    solution = lsq_linear(np.array(rows), np.zeros(len(rows)), (lower, np.inf), method="bvls")
    heights: Array = np.round(to_y @ solution.x, 4)
    return heights


def _curves(graph: _Graph, lefts: Sequence[float], ys: Array) -> list[Array]:
    """For each edge S-curves between columns and straight lines through its slots."""
    leaving = _ports(graph, ys, at=0)
    entering = _ports(graph, ys, at=-1)
    curves = []
    for i, chain in enumerate(graph.chains):
        corners: list[tuple[float, float]] = []
        for item in chain:
            left = lefts[graph.column[item]]
            if item == chain[0]:
                corners.append((left + NODE_WIDTH, ys[item] + leaving[i]))
            elif item == chain[-1]:
                corners.append((left, ys[item] + entering[i]))
            else:
                corners += [(left, ys[item]), (left + NODE_WIDTH, ys[item])]
        curve = [corners[0]]
        for (x0, y0), (x1, y1) in pairwise(corners):
            reach = 0.45 * (x1 - x0)
            curve += [(x0 + reach, y0), (x1 - reach, y1), (x1, y1)]
        curves.append(np.round(np.array(curve), 4))
    return curves


def _ports(graph: _Graph, ys: Array, at: int) -> dict[int, float]:
    """Where on the side of its node each edge starts (``at`` 0) or ends (-1): fanned by height."""
    offsets = {}
    next_item = 1 if at == 0 else -2
    for node in range(graph.n_nodes):
        mine = [i for i, chain in enumerate(graph.chains) if chain[at] == node]
        mine.sort(key=lambda i: ys[graph.chains[i][next_item]])
        step = min(0.11, 0.7 * NODE_HEIGHT / max(len(mine) - 1, 1))
        for rank, i in enumerate(mine):
            offsets[i] = (rank - (len(mine) - 1) / 2) * step
    return offsets


def _place_labels(
    graph: _Graph,
    curves: Sequence[Array],
    nodes: Sequence[Box],
    sizes: dict[str, tuple[float, float]],
) -> tuple[dict[int, Box], float]:
    """A box on the curve of every labelled edge, and what they cost.

    Each starts at its own cheapest place; then one after the other moves away from the rest until
    none wants to.
    """
    traces = [_sample(curve) for curve in curves]
    places: dict[int, Array] = {}
    extents: dict[int, Array] = {}
    costs: dict[int, Array] = {}
    for i, (_, _, operation) in enumerate(graph.links):
        if operation is not None:
            places[i], extents[i] = traces[i][2:-2], np.array(sizes[operation])
            foreign = [trace for j, trace in enumerate(traces) if j != i]
            costs[i] = _place_costs(places[i], extents[i], nodes, foreign)
    chosen = {i: int(np.argmin(cost)) for i, cost in costs.items()}

    def total(i: int) -> Array:
        sums = costs[i].copy()
        for j in chosen:
            if j != i:
                reach = (extents[i] + extents[j]) / 2 + _CLEARANCE
                sums += _CLASH * _near(places[i], places[j][chosen[j]], reach)
        return sums

    for _ in range(10):
        before = dict(chosen)
        for i in chosen:
            chosen[i] = int(np.argmin(total(i)))
        if chosen == before:
            break
    cost = sum(float(total(i)[place]) for i, place in chosen.items())
    boxes = {
        i: Box(*places[i][place].round(4).tolist(), *extents[i].tolist())
        for i, place in chosen.items()
    }
    return boxes, cost


def _place_costs(
    places: Array, extent: Array, nodes: Sequence[Box], foreign: Sequence[Array]
) -> Array:
    """What a label covers at each place; among free ones the middle of the edge is cheapest."""
    costs: Array = 0.05 * np.abs(np.linspace(-1, 1, len(places)))
    for node in nodes:
        reach = np.add(extent, (node.width, node.height)) / 2 + HEAD_LENGTH + _CLEARANCE
        costs += _CLASH * _near(places, np.array([node.x, node.y]), reach)
    for trace in foreign:
        within = _near(places[:, None], trace, extent / 2 + _CLEARANCE)
        costs += _COVER * within.any(axis=-1)
    return costs


def _near(points: Array, others: Array, reach: Array) -> NDArray[np.bool_]:
    """Whether points are within ``reach`` of others in both coordinates."""
    near: NDArray[np.bool_] = np.abs(points - others) < reach
    return near[..., 0] & near[..., 1]


def _sample(curve: Array) -> Array:
    """Points along joined cubic Bézier curves."""
    t = np.linspace(0, 1, _SAMPLES, endpoint=False)[:, None]
    pieces = [
        (1 - t) ** 3 * curve[i]
        + 3 * (1 - t) ** 2 * t * curve[i + 1]
        + 3 * (1 - t) * t**2 * curve[i + 2]
        + t**3 * curve[i + 3]
        for i in range(0, len(curve) - 1, 3)
    ]
    return np.concatenate([*pieces, curve[-1:]])
