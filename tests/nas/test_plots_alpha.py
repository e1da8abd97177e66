"""The heat map of alpha."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.drawing.plots import draw_alpha
from zoopt_nas.nas.networks.darts_space import cell_edges
from zoopt_nas.nas.networks.genotype import CELL_KINDS
from zoopt_nas.nas.networks.spaces import SPACES

# Of the single cell of NAS-Bench-201.
EDGES_201 = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


@pytest.mark.parametrize("name", SPACES)
def test_heat_map_holds_the_softmax(name):
    space = SPACES[name]
    alpha = space.init_alpha(rng=4, scale=1.0)
    figure = draw_alpha(space, alpha)
    kinds, edges = (("cell",), EDGES_201) if name == "nasbench201" else (CELL_KINDS, cell_edges())
    for axes, kind in zip(figure.axes[: len(kinds)], kinds, strict=True):
        operations = [label.get_text() for label in axes.get_xticklabels()]
        assert set(operations) == {op for ops in space.candidates(kind) for op in ops}
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            f"{source}→{node}" for source, node in edges
        ]
        mesh = np.ma.filled(axes.collections[0].get_array(), np.nan)
        printed = {text.get_position(): text.get_text() for text in axes.texts}
        for row, part in enumerate(space.unflatten(alpha)[kind]):
            expected = np.full(len(operations), np.nan)
            exp = np.exp(part.numpy().astype(float))
            for op, weight in zip(space.candidates(kind)[row], exp / exp.sum(), strict=True):
                expected[operations.index(op)] = weight
                assert printed[operations.index(op), row] == f"{weight:.2f}"
            np.testing.assert_allclose(mesh[row], expected, rtol=1e-6)
        assert len(printed) == sum(map(len, space.candidates(kind)))
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # edge 0 on top
        hatched = [p for p in axes.patches if p.get_gid().startswith("blank")]
        assert len(hatched) == np.isnan(mesh).sum()
        assert all(patch.get_hatch() for patch in hatched)


@pytest.mark.parametrize("with_row", [False, True])
def test_heat_map_frames_what_the_genotype_keeps(with_row: bool):
    space = SPACES["s1"]
    alpha = space.init_alpha(rng=4, scale=1.0)
    genotype = space.discretize(-alpha if with_row else alpha)
    row = {"alpha": alpha.tolist(), "genotype": genotype.to_dict()}
    figure = draw_alpha(space, [row] if with_row else alpha)
    edges = cell_edges()
    for axes, kind in zip(figure.axes[:2], CELL_KINDS, strict=True):
        operations = [label.get_text() for label in axes.get_xticklabels()]
        framed = set()
        for patch in axes.patches:
            if patch.get_gid().startswith(f"{kind}-chosen"):
                column, row = np.round(patch.get_center()).astype(int)
                framed.add((operations[column], *edges[row]))
        assert framed == {
            (op, source, 2 + i // 2) for i, (op, source) in enumerate(genotype.edges(kind))
        }


def test_heat_map_of_the_single_cell_of_nasbench201():
    space = SPACES["nasbench201"]
    alpha = torch.zeros(6, 5)
    best = (0, 4, 3, 2, 1, 0)
    alpha[range(6), best] = 1.0
    figure = draw_alpha(space, alpha.flatten())
    panel, colorbar = figure.axes
    assert panel.get_title() == "Cell"
    assert panel.get_ylabel() == "edge (node 0 is the input)"
    assert colorbar.get_ylabel() == "softmax weight"
    shown = [label.get_text() for label in panel.get_xticklabels()]
    assert shown == ["none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3"]
    framed = {
        tuple(np.round(patch.get_center()).astype(int))
        for patch in panel.patches
        if patch.get_gid().startswith("cell-chosen")
    }
    assert framed == {
        (shown.index(space.operations[choice]), row) for row, choice in enumerate(best)
    }


def test_heat_map_takes_rows_and_lists():
    space = SPACES["s2"]
    first, last = space.init_alpha(rng=0), space.init_alpha(rng=1, scale=1.0)
    rows = [{"epoch": i, "alpha": a.tolist()} for i, a in enumerate((first, last))]
    meshes = [
        np.asarray(draw_alpha(space, each).axes[0].collections[0].get_array())
        for each in (last, last.tolist(), rows, first)
    ]
    np.testing.assert_allclose(meshes[0], meshes[1])
    np.testing.assert_allclose(meshes[0], meshes[2])
    assert not np.allclose(meshes[0], meshes[3])


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        ([], "empty sequence"),
        ([{"epoch": 0}], "must have the field alpha"),
        ([0.0, 1.0], r"must have shape \(56,\) in space s2, got \(2,\)"),
        (torch.full((56,), torch.nan), "must be finite"),
    ],
)
def test_heat_map_refuses_what_is_no_alpha(alpha, message):
    with pytest.raises(InvalidValueError, match=message):
        draw_alpha(SPACES["s2"], alpha)
