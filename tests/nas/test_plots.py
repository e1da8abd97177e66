"""Figures hold the right boxes, arrows, curves and numbers, and nothing covers anything."""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.text import Text

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.drawing.cell_layout import Box, lay_out_cell
from zoopt_nas.nas.drawing.plots import draw_cell, draw_curves, draw_genotype
from zoopt_nas.nas.networks.architecture import Architecture, CellGraph
from zoopt_nas.nas.networks.genotype import CELL_KINDS, GENOTYPES, Genotype
from zoopt_nas.nas.networks.nasbench201 import NasBench201Genotype
from zoopt_nas.nas.networks.spaces import SPACES

V1, V2 = GENOTYPES["DARTS_V1"], GENOTYPES["DARTS_V2"]
# Everything from the inputs, which is dense; and a chain with parallel edges and an idle input.
FAN = tuple((op, i) for _ in range(4) for i, op in enumerate(("sep_conv_3x3", "max_pool_3x3")))
CHAIN = (
    ("sep_conv_3x3", 0),
    ("noise", 0),
    ("skip_connect", 2),
    ("skip_connect", 2),
    ("dil_conv_5x5", 3),
    ("skip_connect", 0),
    ("avg_pool_3x3", 4),
    ("sep_conv_3x3", 4),
)
EXTREME = Genotype(FAN, CHAIN, (2, 3, 4, 5), (5,))

# Of the single cell of NAS-Bench-201.
EDGES_201 = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def found(space: str, seed: int) -> Architecture:
    return SPACES[space].discretize(SPACES[space].init_alpha(rng=seed))


CASES = {
    "v1": V1,
    "v2": V2,
    "extreme": EXTREME,
    **{f"{space}-{seed}": found(space, seed) for space in SPACES for seed in (0, 1)},
}


@cache
def drawn(name: str, kind: str | None = None) -> Figure:
    """A figure of one cell or of both, shared by tests that only look."""
    return draw_cell(CASES[name], kind) if kind else draw_genotype(CASES[name])


def by_id(figure: Figure, pattern: str) -> dict[str, object]:
    """The artists whose whole id matches, by id."""
    artists = figure.findobj(lambda artist: re.fullmatch(pattern, artist.get_gid() or ""))
    return {artist.get_gid(): artist for artist in artists}


def boxes(figure: Figure, pattern: str) -> dict[str, Box]:
    extents = {gid: patch.get_bbox() for gid, patch in by_id(figure, pattern).items()}
    return {
        gid: Box((b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2, b.width, b.height)
        for gid, b in extents.items()
    }


def curve_points(line: PathPatch) -> np.ndarray:
    """Points along a curve, closer than a fiftieth of an inch to each other."""
    pieces = [piece for piece, code in line.get_path().iter_bezier() if code == Path.CURVE4]
    points = np.concatenate([piece(np.linspace(0, 1, 400)) for piece in pieces])
    assert np.hypot(*np.diff(points, axis=0).T).max() < 0.02
    return points


def edges_of(genotype: Architecture, kind: str) -> list[tuple[int, int]]:
    """(source, target) of every arrow: the genotype's, then those into the output."""
    if isinstance(genotype, NasBench201Genotype):
        return [*EDGES_201, (3, 4)]
    edges = genotype.edges(kind)
    inner = [(source, 2 + i // 2) for i, (_, source) in enumerate(edges)]
    return inner + [(node, 2 + len(edges) // 2) for node in genotype.concat(kind)]


# --- cells


@pytest.mark.parametrize("kind", CELL_KINDS)
@pytest.mark.parametrize("name", ["v1", "extreme"])
def test_cell_shows_every_node_edge_and_operation(name, kind):
    genotype = CASES[name]
    figure = drawn(name, kind)
    n_arrows = len(genotype.edges(kind)) + len(genotype.concat(kind))
    assert len(by_id(figure, rf"{kind}-node-\d")) == 7
    assert len(by_id(figure, rf"{kind}-edge-\d+")) == n_arrows
    assert len(by_id(figure, rf"{kind}-edge-\d+-head")) == n_arrows
    labels = by_id(figure, rf"{kind}-edge-\d+-label-text")
    assert {gid: text.get_text() for gid, text in labels.items()} == {
        f"{kind}-edge-{i}-label-text": op for i, (op, _) in enumerate(genotype.edges(kind))
    }
    names = by_id(figure, rf"{kind}-node-\d-text").values()
    assert [text.get_text() for text in names] == [
        "$c_{k-2}$", "$c_{k-1}$", "0", "1", "2", "3", "$c_{k}$",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", CELL_KINDS)
@pytest.mark.parametrize("name", ["v1", "extreme"])
def test_arrows_join_their_nodes_from_left_to_right(name, kind):
    figure = drawn(name, kind)
    nodes = boxes(figure, rf"{kind}-node-\d")
    for i, (source, target) in enumerate(edges_of(CASES[name], kind)):
        (line,) = by_id(figure, f"{kind}-edge-{i}").values()
        (head,) = by_id(figure, f"{kind}-edge-{i}-head").values()
        start, tip = line.get_path().vertices[0], head.get_xy()[0]
        a, b = nodes[f"{kind}-node-{source}"], nodes[f"{kind}-node-{target}"]
        assert start[0] == pytest.approx(a.x + a.width / 2)
        assert abs(start[1] - a.y) < a.height / 2
        assert tip[0] == pytest.approx(b.x - b.width / 2)
        assert abs(tip[1] - b.y) < b.height / 2
        assert start[0] < tip[0]
        # The line ends inside the head.
        assert head.get_xy()[1][0] <= line.get_path().vertices[-1][0] < tip[0]


@pytest.mark.parametrize("name", CASES)
def test_nothing_overlaps(name):
    figure = drawn(name)
    labels = boxes(figure, r"\w+-edge-\d+-label")
    nodes = boxes(figure, r"\w+-node-\d")
    is_201 = isinstance(CASES[name], NasBench201Genotype)
    assert (len(labels), len(nodes)) == ((6, 5) if is_201 else (16, 14))
    for a, b in combinations([*labels.items(), *nodes.items()], 2):
        assert not a[1].overlaps(b[1]), (a, b)
    width, height = figure.get_size_inches()
    for box in [*labels.values(), *nodes.values()]:
        assert box.width / 2 < box.x < width - box.width / 2
        assert box.height / 2 < box.y < height - box.height / 2
    # Curves: none under the label of another, none through a node that it does not join.
    for kind in ("cell",) if is_201 else CELL_KINDS:
        lines = by_id(figure, rf"{kind}-edge-\d+")
        for i, (source, target) in enumerate(edges_of(CASES[name], kind)):
            mine = {f"{kind}-edge-{i}-label", f"{kind}-node-{source}", f"{kind}-node-{target}"}
            others = [box for gid, box in {**labels, **nodes}.items() if gid not in mine]
            centres = np.array([[(box.x, box.y)] for box in others])
            halves = np.array([[(box.width, box.height)] for box in others]) / 2
            within = np.abs(curve_points(lines[f"{kind}-edge-{i}"]) - centres) < halves
            assert not within.all(axis=-1).any(), (kind, i)


def test_texts_fit_into_their_boxes_and_labels_lie_on_their_curve():
    figure = drawn("extreme")
    renderer = FigureCanvasAgg(figure).get_renderer()
    patches = by_id(figure, r"\w+-(edge-\d+-label|node-\d)")
    assert len(patches) == 30
    for gid, patch in patches.items():
        (text,) = by_id(figure, f"{gid}-text").values()
        inner, outer = text.get_window_extent(renderer), patch.get_window_extent(renderer)
        assert outer.x0 <= inner.x0 < inner.x1 <= outer.x1, gid
        assert outer.y0 <= inner.y0 < inner.y1 <= outer.y1, gid
    for kind in CELL_KINDS:
        labels = boxes(figure, rf"{kind}-edge-\d+-label")
        for i in range(8):
            label = labels[f"{kind}-edge-{i}-label"]
            x, y = curve_points(by_id(figure, f"{kind}-edge-{i}")[f"{kind}-edge-{i}"]).T
            under = np.abs(x - label.x) < label.width / 2
            assert under.any()
            np.testing.assert_allclose(y[under], label.y, rtol=0, atol=1e-9)


def test_columns_follow_the_longest_path():
    figure = drawn("v1", "reduce")
    x = [box.x for box in boxes(figure, r"reduce-node-\d").values()]
    assert x[0] == x[1] < x[2] < x[3] == x[4] == x[5] < x[6]  # 1, 2, 3 all read node 0


@pytest.mark.parametrize("n_nodes", [1, 2, 6])
def test_cells_of_other_sizes(n_nodes):
    edges = tuple(
        ("sep_conv_3x3", source, 2 + node) for node in range(n_nodes) for source in (node, node + 1)
    )
    names, outputs = tuple(map(str, range(2 + n_nodes))), tuple(range(2, 2 + n_nodes))
    drawing = lay_out_cell(CellGraph("cell", names, 2, edges, outputs), lambda text: 0.9)
    assert len(drawing.nodes) == n_nodes + 3
    labels = [arrow.label for arrow in drawing.arrows if arrow.label]
    assert len(labels) == 2 * n_nodes
    assert not any(a.overlaps(b) for a, b in combinations([*labels, *drawing.nodes], 2))


def test_an_edge_without_an_operation_is_faint_and_dotted():
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "none")
    figure = draw_cell(NasBench201Genotype(names), "cell")
    lines = [by_id(figure, f"cell-edge-{i}")[f"cell-edge-{i}"] for i in range(7)]
    heads = [by_id(figure, f"cell-edge-{i}-head")[f"cell-edge-{i}-head"] for i in range(7)]
    for i in (0, 5):
        assert lines[i].get_alpha() == heads[i].get_alpha() < 0.6
        assert lines[i].get_linewidth() < min(line.get_linewidth() for line in lines[1:5])
        styles = {str(line.get_linestyle()) for line in (*lines[1:5], lines[6])}
        assert str(lines[i].get_linestyle()) not in styles
        (label,) = by_id(figure, f"cell-edge-{i}-label-text").values()
        assert (label.get_text(), label.get_alpha()) == ("none", None)  # it reads well
    assert {artist.get_alpha() for artist in (*lines[1:5], lines[6], *heads[1:5])} == {None}


def test_families_differ_in_colour_and_line_and_read_well_on_white():
    figure = drawn("extreme", "reduce")
    lines = [by_id(figure, f"reduce-edge-{i}")[f"reduce-edge-{i}"] for i in (0, 1, 2, 6)]
    assert len({line.get_edgecolor() for line in lines}) == 4
    assert len({str(line.get_linestyle()) for line in lines}) == 4
    for text in by_id(figure, r"reduce-edge-\d+-label-text").values():
        rgb = np.array(to_rgb(text.get_color()))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (linear @ (0.2126, 0.7152, 0.0722) + 0.05) > 4.5  # WCAG AA


def test_unknown_kind_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'reduce'"):
        draw_cell(V1, "reduction")


def test_genotype_has_the_normal_cell_above_the_reduction_cell():
    figure = drawn("v1")
    titles = {
        text.get_text(): text.get_position()[1]
        for text in figure.findobj(Text)
        if text.get_text().endswith("cell")
    }
    normal = [box.y for box in boxes(figure, r"normal-node-\d").values()]
    reduce = [box.y for box in boxes(figure, r"reduce-node-\d").values()]
    assert titles["Normal cell"] > max(normal)
    assert min(normal) > titles["Reduction cell"] > max(reduce)


# --- curves

ROWS = [
    {
        "epoch": i,
        "train_loss": 2.0 - 0.1 * i,
        "val_loss": None if i == 3 else 2.5 - 0.1 * i,
        "train_accuracy": 0.05 * i,
        "val_accuracy": 0.04 * i,
        "n_effective": 3.5,
        "sigma": 0.5 - 0.02 * i,
        "skip_connections": i // 4,
        "lr": 0.025,
    }
    for i in range(15)
]


def panels(figure: Figure) -> dict[str, dict[str, np.ndarray]]:
    return {
        axes.get_title(): {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        for axes in figure.axes
    }


def test_curves_show_the_rows():
    figure = draw_curves(ROWS)
    shown = panels(figure)
    assert list(shown) == [
        "Loss", "Accuracy", "Effective samples $N_e$", "Sampling width σ", "Skip connections",
    ]  # fmt: skip
    assert list(shown["Loss"]) == list(shown["Accuracy"]) == ["train", "val"]
    np.testing.assert_allclose(shown["Loss"]["train"], [row["train_loss"] for row in ROWS])
    val = shown["Loss"]["val"]
    assert np.isnan(val).nonzero()[0].tolist() == [3]  # a gap, not a zero
    assert val[14] == pytest.approx(1.1)
    (skips,) = figure.axes[4].get_lines()
    assert skips.get_ydata().tolist() == [i // 4 for i in range(15)]
    assert skips.get_xdata().tolist() == list(range(1, 16))
    assert figure.axes[4].get_ylim()[0] == 0
    assert all(figure.axes[0].get_shared_x_axes().joined(figure.axes[0], a) for a in figure.axes)


def test_curves_leave_out_panels_without_a_number():
    rows = [{"epoch": 0, "train_loss": 1.0, "sigma": None}, {"epoch": 1, "test_accuracy": 0.5}]
    shown = panels(draw_curves(rows))
    assert {title: list(lines) for title, lines in shown.items()} == {
        "Loss": ["train"],
        "Accuracy": ["test"],
    }


def test_a_lone_number_is_a_point():
    rows = [{"epoch": None, "train_loss": float(i), "sigma": 1.0 if i == 5 else None}
            for i in range(30)]  # fmt: skip
    loss, sigma = draw_curves(rows).axes
    assert loss.get_lines()[0].get_marker() == ""
    assert sigma.get_lines()[0].get_marker() == "o"
    assert list(loss.get_lines()[0].get_xdata()) == list(range(1, 31))


@pytest.mark.parametrize("rows", [[], [{"epoch": 0}], [{"epoch": 0, "train_loss": None}]])
def test_curves_without_a_number_are_refused(rows):
    with pytest.raises(InvalidValueError, match=f"got {len(rows)} rows without one"):
        draw_curves(rows)


# --- alpha
