"""Figures of cells, training curves and architecture weights.

Every function returns a matplotlib ``Figure`` for ``figures.save``, without a window or pyplot
state. The colours are safe for colour-blind readers; line styles differ in greyscale print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.drawing import cell_layout
from zoopt_nas.nas.drawing.cell_layout import HEAD_LENGTH, Array, Arrow, Box, CellDrawing
from zoopt_nas.nas.drawing.figures import STYLE
from zoopt_nas.nas.networks.architecture import Architecture, CellGraph
from zoopt_nas.nas.networks.architectures import architecture_from_dict
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.nas.networks.space import SearchSpace

# Okabe and Ito's colours, darkened so that text is legible on white; line style by family.
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#0A66A8", "#B84A00", "#00755A", "#8E3B7A", "#666666"
_FAMILIES: dict[str, tuple[str, Any]] = {
    "conv": (_BLUE, "-"),
    "pool": (_ORANGE, (0, (6, 1.2, 1.2, 1.2))),
    "skip": (_GREEN, (0, (4, 1.5))),
    "noise": (_PURPLE, (0, (1.2, 1.2))),
    "none": (_GREY, (0, (1, 3))),
}
_FAINT = 0.5  # opacity of an edge that passes nothing on
_MARGIN = 0.12  # inches around a cell
_TITLE_HEIGHT = 0.34

# Panel title to (key of metrics.jsonl, name in the legend) of each line.
_SPLITS = ("train", "val", "test")
_SKIPS = "Skip connections"
_PANELS: dict[str, list[tuple[str, str]]] = {
    "Loss": [(f"{split}_loss", split) for split in _SPLITS],
    "Accuracy": [(f"{split}_accuracy", split) for split in _SPLITS],
    "True accuracy (NAS-Bench-201)": [("true_cifar10", "CIFAR-10"), ("true_cifar100", "CIFAR-100")],
    "Effective samples $N_e$": [("n_effective", "")],
    "Sampling width σ": [("sigma", "")],
    _SKIPS: [("skip_connections", "")],
}
_LINES = {
    **{"train": (_BLUE, "-"), "val": (_ORANGE, "--"), "test": (_GREEN, ":"), "": (_BLUE, "-")},
    **{"CIFAR-10": (_BLUE, "-"), "CIFAR-100": (_ORANGE, "--")},
}


@matplotlib.rc_context(STYLE)
def draw_cell(genotype: Architecture, kind: str) -> Figure:
    """Draw one cell as a graph: inputs on the left, output on the right, one arrow per edge.

    ``kind`` is a key of ``genotype.cells``, such as ``"normal"``. An SVG file keeps the ids of the
    artists: ``normal-node-2``; ``normal-edge-0`` (its position in the genotype), also with
    ``-head`` and ``-label``.

    Raises:
        UnknownNameError: there is no such kind of cell.
    """
    if kind not in genotype.cells:
        raise UnknownNameError("kind of cell", kind, genotype.cells)
    graph = genotype.cells[kind]
    drawing = cell_layout.lay_out_cell(graph, _label_width)
    figure, axes = _canvas(drawing.width + 2 * _MARGIN, drawing.height + 2 * _MARGIN)
    _ink_cell(axes, drawing, graph, kind, (_MARGIN, _MARGIN))
    return figure


@matplotlib.rc_context(STYLE)
def draw_genotype(genotype: Architecture) -> Figure:
    """Draw all cells, one above the other."""
    graphs = genotype.cells
    drawings = {
        kind: cell_layout.lay_out_cell(graph, _label_width) for kind, graph in graphs.items()
    }
    width = max(drawing.width for drawing in drawings.values()) + 2 * _MARGIN
    heights = [drawing.height + _TITLE_HEIGHT + 2 * _MARGIN for drawing in drawings.values()]
    figure, axes = _canvas(width, sum(heights))
    top = sum(heights)
    for (kind, drawing), height in zip(drawings.items(), heights, strict=True):
        title = graphs[kind].title.capitalize()
        axes.text(width / 2, top - _MARGIN, title, ha="center", va="top", fontsize=11)
        top -= height
        _ink_cell(axes, drawing, graphs[kind], kind, ((width - drawing.width) / 2, top + _MARGIN))
    return figure


@matplotlib.rc_context(STYLE)
def draw_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw losses, accuracies, N_e, sigma and skip connections against the epoch, counted from 1.

    ``rows`` come from ``metrics.jsonl``. A curve has a gap where a row lacks its number; a panel
    without any number is left out, and without any panel it raises InvalidValueError.
    """
    panels = {
        title: known
        for title, lines in _PANELS.items()
        if (known := [line for line in lines if np.isfinite(_column(rows, line[0])).any()])
    }
    if not panels:
        raise InvalidValueError(
            f"rows must hold a number to draw, such as train_loss; got {len(rows)} rows without one"
        )
    numbers = [row.get("epoch") for row in rows]
    epochs = [1 + int(i if number is None else number) for i, number in enumerate(numbers)]
    n_columns = 2 if len(panels) == 4 else min(len(panels), 3)
    n_lines = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(2.9 * n_columns, 2.1 * n_lines + 0.15), layout="constrained")
    grid = figure.add_gridspec(n_lines, n_columns)
    first: Axes | None = None
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[divmod(i, n_columns)], sharex=first)
        first = first or axes
        axes.set_title(title)
        _ink_curves(axes, epochs, rows, lines)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if title == _SKIPS:  # integers, from 0
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_ylim(0, max(axes.get_ylim()[1], 1))
        if i + n_columns < len(panels):
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("epoch")
    return figure


@matplotlib.rc_context(STYLE)
def draw_alpha(
    space: SearchSpace, alpha: Tensor | Sequence[float] | Sequence[Mapping[str, Any]]
) -> Figure:
    """Draw the weights of every edge as a heat map; frames mark the edges of the genotype.

    Rows are edges ``source→node``, numbered as in the genotype; columns are operations, hatched
    where an edge does not have them. ``alpha`` is ``(dim,)``, whose genotype is framed, or the rows
    of ``architectures.jsonl``, of which the last is drawn, with its genotype.

    Raises:
        InvalidValueError: alpha has the wrong shape or is not finite, or there is no row.
    """
    vector = _alpha_vector(alpha)
    genotype = _genotype_of(alpha) or space.discretize(vector)
    weights = space.weights(vector)
    highest = max(float(part.max()) for parts in weights.values() for part in parts)
    columns = {
        kind: [name for name in OPERATIONS if any(name in edge for edge in space.candidates(kind))]
        for kind in space.kinds
    }
    edges = space.edges
    widths = [len(names) for names in columns.values()]
    size = (0.44 * sum(widths) + 2.6, 0.235 * len(edges) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for axes, (kind, names) in zip(panels, columns.items(), strict=True):
        matrix = np.full((len(edges), len(names)), np.nan)  # NaN: the edge lacks the operation
        for row, (candidates, part) in enumerate(
            zip(space.candidates(kind), weights[kind], strict=True)
        ):
            matrix[row, [names.index(name) for name in candidates]] = part.numpy()
        borders = np.arange(len(names) + 1) - 0.5, np.arange(len(edges) + 1) - 0.5
        mesh = axes.pcolormesh(*borders, matrix, cmap="Blues", vmin=0, vmax=highest)
        axes.invert_yaxis()
        _ink_weights(axes, matrix, highest)
        graph = genotype.cells[kind]
        _frame_chosen(axes, edges, graph, kind, names)
        axes.set_title(graph.title.capitalize())
        turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), names, **turned)
        axes.set_yticks(range(len(edges)), [f"{source}→{node}" for source, node in edges])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    n_inputs = next(iter(genotype.cells.values())).n_inputs
    inputs = "nodes 0 and 1 are the inputs" if n_inputs > 1 else "node 0 is the input"
    panels[0].set_ylabel(f"edge ({inputs})")
    label = f"{space.relaxation} weight"
    figure.colorbar(mesh, ax=list(panels), label=label, fraction=0.04, pad=0.02)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure whose axes measure inches from its lower left corner."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def _label_width(text: str) -> float:
    size = matplotlib.rcParams["font.size"]
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 + 0.09


def _ink_cell(
    axes: Axes, drawing: CellDrawing, graph: CellGraph, kind: str, offset: tuple[float, float]
) -> None:
    for i, arrow in enumerate(drawing.arrows):
        _ink_arrow(axes, arrow, offset, f"{kind}-edge-{i}")
    names = [f"${name}$" if name.startswith("c_") else name for name in (*graph.nodes, "c_{k}")]
    fills = dict.fromkeys(range(graph.n_inputs), "#DDEBDC") | {len(graph.nodes): "#F8EBC4"}
    for node, (text, box) in enumerate(zip(names, drawing.nodes, strict=True)):
        fill = fills.get(node, "#DCE8F4")
        _ink_box(axes, box, offset, text, f"{kind}-node-{node}", fc=fill, ec="#333333", lw=0.9)
    for i, arrow in enumerate(drawing.arrows):
        if arrow.label is not None and arrow.operation is not None:
            color, _ = _family(arrow.operation)
            gid = f"{kind}-edge-{i}-label"
            _ink_box(axes, arrow.label, offset, arrow.operation, gid, color, fc="white", ec="none")


def _ink_box(
    axes: Axes,
    box: Box,
    offset: tuple[float, float],
    text: str,
    gid: str,
    color: str = "#111111",
    **style: Any,
) -> None:
    """Draw a rounded box of exactly the size of ``box`` with a centred text."""
    x, y = box.x + offset[0], box.y + offset[1]
    corner = (x - box.width / 2, y - box.height / 2)
    shape = "round,pad=0,rounding_size=0.07"
    patch = FancyBboxPatch(corner, box.width, box.height, boxstyle=shape, zorder=3, **style)
    patch.set_gid(gid)
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", color=color, zorder=4).set_gid(f"{gid}-text")


def _ink_arrow(axes: Axes, arrow: Arrow, offset: tuple[float, float], gid: str) -> None:
    """Draw the curve up to the arrow head, and the head, which is horizontal."""
    color, style = _family(arrow.operation)
    alpha = _FAINT if arrow.operation == "none" else None
    curve = arrow.curve + offset
    tip = curve[-1].copy()
    curve[-1, 0] -= 0.8 * HEAD_LENGTH
    codes = [Path.MOVETO, *[Path.CURVE4] * (len(curve) - 1)]
    width = 0.8 if arrow.operation in (None, "none") else 1.3
    look: dict[str, Any] = {"ec": color, "ls": style, "lw": width, "alpha": alpha}
    line = PathPatch(Path(curve, codes), fill=False, zorder=1, **look)
    line.set_gid(gid)
    axes.add_patch(line)
    back, half = tip[0] - HEAD_LENGTH, 0.38 * HEAD_LENGTH
    corners = [tip, (back, tip[1] + half), (back, tip[1] - half)]
    head = Polygon(corners, color=color, lw=0, alpha=alpha, zorder=2)
    head.set_gid(f"{gid}-head")
    axes.add_patch(head)


def _family(operation: str | None) -> tuple[str, Any]:
    """Return colour and line style of an operation's family; None is an edge into the output."""
    parts = (operation or "").split("_")
    return next((_FAMILIES[part] for part in parts if part in _FAMILIES), (_GREY, "-"))


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> Array:
    values = [row.get(key) for row in rows]
    return np.array([np.nan if value is None else float(value) for value in values])


def _ink_curves(
    axes: Axes,
    epochs: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[tuple[str, str]],
) -> None:
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for key, name in lines:
        color, style = _LINES[name]
        values = _column(rows, key)
        marker = "o" if np.isfinite(values).sum() <= 12 else ""  # a lone point has no line
        axes.plot(epochs, values, style, color=color, marker=marker, ms=3, lw=1.4, label=name)
    if any(name for _, name in lines):
        axes.legend(frameon=False, fontsize=8)


def _alpha_vector(alpha: Tensor | Sequence[float] | Sequence[Mapping[str, Any]]) -> Tensor:
    if isinstance(alpha, Tensor):
        return alpha.detach().to("cpu", torch.float64)
    if not alpha:
        raise InvalidValueError("alpha must be a vector or rows with one, got an empty sequence")
    last = alpha[-1]
    values: Any = last.get("alpha") if isinstance(last, Mapping) else alpha
    if values is None:
        raise InvalidValueError("the last row must have the field alpha, got none")
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _genotype_of(
    alpha: Tensor | Sequence[float] | Sequence[Mapping[str, Any]],
) -> Architecture | None:
    """Return the genotype in the last row; None if there is none."""
    last = None if isinstance(alpha, Tensor) else alpha[-1]
    fields = last.get("genotype") if isinstance(last, Mapping) else None
    return None if fields is None else architecture_from_dict(fields)


def _ink_weights(axes: Axes, matrix: Array, highest: float) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isnan(value):
            corner = (column - 0.5, row - 0.5)
            blank = Rectangle(corner, 1, 1, fc="#F4F4F4", ec="#C8C8C8", hatch="////", lw=0)
            blank.set_gid(f"blank-{row}-{column}")
            axes.add_patch(blank)
        else:
            color = "white" if value > 0.62 * highest else "#222222"
            axes.text(column, row, f"{value:.2f}", color=color, size=7, ha="center", va="center")


def _frame_chosen(
    axes: Axes,
    edges: Sequence[tuple[int, int]],
    graph: CellGraph,
    kind: str,
    names: Sequence[str],
) -> None:
    for i, (operation, source, target) in enumerate(graph.edges):
        row = edges.index((source, target))
        corner = (names.index(operation) - 0.44, row - 0.4)
        frame = Rectangle(corner, 0.88, 0.8, fill=False, ec=_ORANGE, lw=1.6, zorder=3)
        frame.set_path_effects([withStroke(linewidth=3.2, foreground="white")])
        frame.set_gid(f"{kind}-chosen-{i}")
        axes.add_patch(frame)
