"""NAS-Bench-201: its space and strings, its sizes as published, and the forward pass by hand."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.architectures import architecture_from_json, load_architecture
from zoopt_nas.nas.networks.build import make_network
from zoopt_nas.nas.networks.counting import count_multiply_adds, count_parameters
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.networks.nasbench201 import NasBench201Genotype, NasBench201Space
from zoopt_nas.nas.networks.nasbench201_modules import (
    NasBench201Supernet,
    reduction_indices,
)
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES, space_from_json

SPACE = SPACES["nasbench201"]
# The published order of the candidates, and the edges (source, node).
NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

RESNET = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
MIXED = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"  # noqa: E501
FIRST = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"  # noqa: E501
LARGE = "|skip_connect~0|+|none~0|nor_conv_3x3~1|+|avg_pool_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"

operations = st.tuples(*[st.sampled_from(NAMES)] * 6)


def uniform(name: str) -> str:
    return f"|{name}~0|+|{name}~0|{name}~1|+|{name}~0|{name}~1|{name}~2|"


# --- Sizes as published --------------------------------------------------------------------------

# The network of the paper: 15 cells, 16 channels. Parameters and "FLOPs" in millions, as rounded
# where they were published. Sources: issues 18, 24 and 36 of NATS-Bench (arch indices 1, 0 and
# the one of issue 36 after 12 epochs); the visualization of AutoDL-Projects (RESNET, index 11472).
PUBLISHED = [
    (MIXED, "cifar10", "0.802", "113.95"),
    (MIXED, "cifar100", "0.808", "113.96"),
    (MIXED, "imagenet16", "0.810", "28.50"),
    (FIRST, "cifar10", "0.129306", "15.64737"),
    (FIRST, "cifar100", None, "15.65322"),
    (FIRST, "imagenet16", None, "3.91948"),
    (LARGE, "cifar10", "0.802426", "113.95137"),
    (RESNET, "cifar10", "0.559", "78.56"),
    (uniform("nor_conv_3x3"), "cifar10", "1.531546", "220.12"),
    (uniform("skip_connect"), "cifar10", "0.073306", "7.78"),
]
CLASSES_AND_SIDE = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet16": (120, 16)}


@pytest.mark.parametrize(("cell", "dataset", "parameters", "flops"), PUBLISHED)
def test_published_sizes(cell: str, dataset: str, parameters: str | None, flops: str):
    n_classes, side = CLASSES_AND_SIDE[dataset]
    network = make_network(load_architecture(cell), n_classes, 16, 15)
    if parameters is not None:
        digits = len(parameters.split(".")[1])
        assert f"{count_parameters(network) / 1e6:.{digits}f}" == parameters
    # The published count has the bias of the classifier, one operation per class.
    counted = count_multiply_adds(network, side) + n_classes
    assert f"{counted / 1e6:.{len(flops.split('.')[1])}f}" == flops


def test_parameters_of_the_supernet():
    with torch.device("meta"):
        net = NasBench201Supernet(SPACE, 10, 16, 15)
    stem, head = 9 * 3 * 16 + 2 * 16, 2 * 64 + 64 * 10 + 10
    cells = sum(5 * 6 * (9 + 1) * width**2 for width in (16, 32, 64))
    blocks = sum((9 + 1) * c * 2 * c + 9 * (2 * c) ** 2 + 4 * 2 * c for c in (16, 32))
    assert count_parameters(net) == stem + cells + blocks + head == 1_686_106


@pytest.mark.parametrize(("n_cells", "indices"), [(3, (1, 2)), (6, (2, 4)), (15, (5, 10))])
def test_blocks_stand_before_the_second_and_third_stage(n_cells: int, indices: tuple[int, ...]):
    assert reduction_indices(n_cells) == indices
    for net in (
        NasBench201Supernet(SPACE, 3, 2, n_cells),
        make_network(load_architecture(RESNET), 3, 2, n_cells),
    ):
        assert list(net.blocks) == list(map(str, indices))
        shapes: list[torch.Size] = []
        for cell in net.cells:
            cell.register_forward_hook(
                lambda cell, inputs, out, shapes=shapes: shapes.append(out.shape[1:])
            )
        net(*(torch.zeros(2, 3, 7, 7), torch.zeros(30))[: 1 + isinstance(net, NasBench201Supernet)])
        sizes = [(2, 7, 7), (4, 4, 4), (8, 2, 2)]  # odd sizes are rounded up
        assert [tuple(shape) for shape in shapes] == [
            sizes[i // (n_cells // 3)] for i in range(n_cells)
        ]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 2, 4), "n_cells must be a multiple of 3 in nasbench201, got 4"),
        ((3, 2, 0), "n_cells must be a multiple of 3 in nasbench201, got 0"),
        ((3, 0, 3), "init_channels must be a positive integer, got 0"),
        ((0, 2, 3), "n_classes must be a positive integer, got 0"),
    ],
)
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int], message: str):
    with pytest.raises(InvalidValueError, match=message):
        NasBench201Supernet(SPACE, *sizes)
    with pytest.raises(InvalidValueError, match=message):
        make_network(load_architecture(RESNET), *sizes)


def test_there_is_no_auxiliary_head():
    with pytest.raises(InvalidValueError, match="auxiliary must be False with a cell of nasbench"):
        make_network(load_architecture(RESNET), 3, 2, 3, auxiliary=True)
    network = make_network(load_architecture(RESNET), 3, 2, 3)
    with pytest.raises(InvalidValueError, match="auxiliary must be True to use"):
        network.forward_with_auxiliary(torch.zeros(2, 3, 8, 8))


# --- Strings and files ---------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(names=operations)
def test_a_cell_comes_back_from_all_its_forms(names: tuple[str, ...]):
    cell = NasBench201Genotype(names)
    n = dict(enumerate(names))
    assert str(cell) == f"|{n[0]}~0|+|{n[1]}~0|{n[2]}~1|+|{n[3]}~0|{n[4]}~1|{n[5]}~2|"
    for back in (
        NasBench201Genotype.from_string(str(cell)),
        NasBench201Genotype.from_dict(cell.to_dict()),
        load_architecture(str(cell)),
        load_architecture(cell.to_json()),
        architecture_from_json(cell.to_json()),
        SPACE.discretize(SPACE.edge_table(cell).flatten()),
    ):
        assert back == cell
    assert [(name, *edge) for name, edge in zip(names, EDGES, strict=True)] == list(
        cell.cells["cell"].edges
    )
    for name in NAMES:
        assert cell.count(name) == cell.count(name, "cell") == names.count(name)
    assert [NAMES[choice] for choice in SPACE.path(cell)] == list(names)


def test_the_graph_of_a_cell():
    graph = NasBench201Genotype.from_string(RESNET).cells["cell"]
    assert (graph.title, graph.nodes, graph.n_inputs, graph.outputs) == (
        *("cell", ("0", "1", "2", "3"), 1),
        (3,),
    )


DARTS_V1 = str(GENOTYPES["DARTS_V1"])


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        (f"epoch 1: {MIXED}\nepoch 2: {RESNET} (val 71.2)\nnext: |none~0|+|none~0|", RESNET),
        (f"{DARTS_V1}\n{RESNET}", RESNET),
        (f"{RESNET}\n{DARTS_V1}", DARTS_V1),
        (f"{RESNET}\n{GENOTYPES['DARTS_V1'].to_json()}", DARTS_V1),
        # Escaped quotes, which are shorter once they are read.
        (r"\"alpha\" " * 50 + f"{RESNET}\n{DARTS_V1}", DARTS_V1),
        (f"\u200b\u200b {DARTS_V1}\n" + r"\"a\"" * 50 + RESNET, RESNET),
        ("{" + f'"genotype": {{"nasbench201": "{MIXED}"}}' + "}", MIXED),
    ],
)
def test_the_last_architecture_of_a_log_counts(log: str, wanted: str, tmp_path):
    assert str(load_architecture(log)) == wanted
    path = tmp_path / "log.txt"
    path.write_text(log, encoding="utf-8")
    assert str(load_architecture(path)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|none~0|+|none~0|none~1|",  # a node too few
        "|none~0|+|none~0|none~1|+|none~0|none~2|none~1|",
        "|none~1|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2",
        uniform("none") + "+|none~0|none~1|none~2|none~3|",  # a cell of another space
        "init_node~1+" + uniform("none"),
        uniform(""),
    ],
)
def test_text_without_a_cell_is_refused(text: str):
    with pytest.raises(InvalidValueError, match=r"cell must read \|op~0\|\+\|op~0\|op~1\|\+"):
        NasBench201Genotype.from_string(text)
    with pytest.raises((InvalidValueError, UnknownNameError)):
        load_architecture(text)


def test_cells_with_the_wrong_operations_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'nor_conv_3x3'"):
        load_architecture(RESNET.replace("nor_conv_3x3", "nor_conv_5x3"))
    for names in ((), ("none",) * 5, ("none",) * 7):
        with pytest.raises(InvalidValueError, match=f"must have 6 names, got {len(names)}"):
            NasBench201Genotype(names)
    for text in ('{"nasbench201": "none"}', '{"nasbench201": 3}', '{"nasbench201": null}'):
        with pytest.raises(InvalidValueError, match="cell must read"):
            architecture_from_json(text)
    with pytest.raises(InvalidValueError, match="genotype is not valid JSON"):
        architecture_from_json("{")
    with pytest.raises(InvalidValueError, match="genotype must have the fields"):
        architecture_from_json(json.dumps({"nasbench201": RESNET, "more": 1}))


# --- The space -----------------------------------------------------------------------------------


def test_the_space():
    assert (SPACE.dim, SPACE.kinds, SPACE.edges) == (30, ("cell",), EDGES)
    assert SPACE.candidates("cell") == (NAMES,) * 6
    assert [tuple(group) for group in SPACE.groups] == [
        ((edge,), ((0, 1, 2, 3, 4),), 1) for edge in range(6)
    ]
    with_shares = dataclasses.replace(SPACE, edge_normalization=True)
    assert with_shares.dim == 36
    alpha = torch.cat([torch.zeros(30), torch.tensor([5.0, 1.0, 2.0, 1.0, 0.0, -1.0])]).double()
    shares = with_shares.edge_factors(alpha)
    for edges in ([0], [1, 2], [3, 4, 5]):
        torch.testing.assert_close(shares[edges], torch.softmax(alpha[30:][edges], dim=0))


@settings(deadline=None, derandomize=True)
@given(values=st.lists(st.integers(-3, 3), min_size=36, max_size=36))
def test_discretize_takes_the_first_best_candidate_of_each_edge(values: list[int]):
    alpha = torch.tensor(values, dtype=torch.float64)  # of a few integers, with many ties
    rows = [values[5 * edge : 5 * edge + 5] for edge in range(6)]
    expected = NasBench201Genotype(tuple(NAMES[row.index(max(row))] for row in rows))
    assert SPACE.discretize(alpha[:30]) == SPACE.discretize(alpha[:30].float()) == expected
    weights = SPACE.log_weights(alpha[:30])
    assert SPACE.choose(weights) == expected
    weights["cell"][2][:] = torch.tensor([-math.inf, -9.0, -math.inf, -8.0, -9.0])
    operations = (*expected.operations[:2], NAMES[3], *expected.operations[3:])
    assert SPACE.choose(weights) == NasBench201Genotype(operations)
    # The shares of edges change no choice, because every edge stays.
    assert dataclasses.replace(SPACE, edge_normalization=True).discretize(alpha) == expected


def test_what_is_no_alpha_or_path_is_refused():
    with pytest.raises(InvalidValueError, match=r"shape \(30,\) in space nasbench201, got \(31,\)"):
        SPACE.discretize(torch.zeros(31))
    with pytest.raises(InvalidValueError, match="alpha must be finite"):
        SPACE.discretize(torch.full((30,), math.nan))
    other = NasBench201Genotype(("none", "none", "max_pool_3x3", "none", "none", "none"))
    with pytest.raises(
        InvalidValueError, match=r"cell edge 2 must be one of none, .* got max_pool"
    ):
        SPACE.path(other)
    net, images = NasBench201Supernet(SPACE, 3, 2, 3), torch.zeros(2, 3, 8, 8)
    for path in ((0,) * 5, (0,) * 7, ()):
        with pytest.raises(InvalidValueError, match=f"path must have 6 entries .* got {len(path)}"):
            net(images, path)
    with pytest.raises(InvalidValueError, match="path must have an operation on every edge"):
        net(images, (0, 1, 2, UNUSED, 4, 0))
    partial = NasBench201Supernet(SPACE, 3, 2, 3, partial_channels=2)
    with pytest.raises(InvalidValueError, match="a path needs partial_channels 1"):
        partial(images, (1,) * 6)


OWN = NasBench201Space("own", ("sep_conv_3x3", "max_pool_3x3", "noise"))


@pytest.mark.parametrize(
    "space", [SPACE, OWN, dataclasses.replace(OWN, edge_normalization=True)], ids=str
)
def test_a_space_comes_back_from_json(space: NasBench201Space):
    assert space_from_json(space.to_json()) == space


def test_a_space_of_ones_own_builds_and_runs():
    net = NasBench201Supernet(OWN, 3, 4, 3).double()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    assert bool(torch.isfinite(net(images, torch.zeros(OWN.dim).double())).all())
    found = OWN.discretize(torch.tensor([0.0, 1.0, 0.0] * 6))
    assert found == NasBench201Genotype(("max_pool_3x3",) * 6)
    assert make_network(found, 3, 4, 3).double()(images).shape == (4, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"operations": []}, InvalidValueError, "operations must have a candidate, got none"),
        ({"operations": "none"}, InvalidValueError, "must have a name, a list of operations"),
        ({"operations": [1]}, InvalidValueError, "must have a name, a list of operations"),
        ({"operations": ["skip"]}, UnknownNameError, "unknown operation 'skip'"),
        ({"edge_normalization": 1}, InvalidValueError, "and a switch"),
        ({"name": None}, InvalidValueError, "must have a name"),
        ({"n_nodes": 4}, InvalidValueError, "must have the fields type, name, operations, edge"),
        ({"type": "DartsSpace"}, InvalidValueError, "must have the fields type, name, normal"),
        ({"type": "Space"}, InvalidValueError, "of type DartsSpace or NasBench201Space, got 'Sp"),
    ],
)
def test_json_that_is_no_space_is_refused(change, error, message):
    fields = json.loads(SPACE.to_json()) | change
    with pytest.raises(error, match=message):
        space_from_json(json.dumps(fields))


# --- The forward pass ----------------------------------------------------------------------------
