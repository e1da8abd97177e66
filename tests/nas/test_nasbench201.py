"""NAS-Bench-201: its space and strings, its sizes as published, and the forward pass by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.architectures import architecture_from_json, load_architecture
from zoopt_nas.nas.networks.build import make_network
from zoopt_nas.nas.networks.counting import count_multiply_adds, count_parameters
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.networks.nasbench201 import NasBench201Genotype, NasBench201Space
from zoopt_nas.nas.networks.nasbench201_modules import (
    NasBench201Network,
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


def plain_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    def across(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1)

    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
    out = (x - across(mean)) / torch.sqrt(across(variance) + 1e-5)
    return out * across(norm.weight) + across(norm.bias) if norm.affine else out


def plain_operation(name: str, module: nn.Module, x: Tensor) -> Tensor:
    if name == "none":
        return torch.zeros_like(x)
    if name == "skip_connect":
        return x
    if name == "avg_pool_3x3":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    padding = int(name[-1]) // 2
    assert module.conv.weight.shape[-1] == int(name[-1])
    return plain_norm(module.norm, F.conv2d(x.relu(), module.conv.weight, padding=padding))


def plain_block(block: nn.Module, x: Tensor) -> Tensor:
    """Dong and Yang (2020), section 2.1: the basic residual block with stride 2."""
    _, first, first_norm, _, second, second_norm = block.convolutions
    out = plain_norm(first_norm, F.conv2d(x.relu(), first.weight, stride=2, padding=1))
    out = plain_norm(second_norm, F.conv2d(out.relu(), second.weight, padding=1))
    return out + F.conv2d(F.avg_pool2d(x, 2), block.shortcut[1].weight)


def plain_cell(cell: nn.Module, x: Tensor, table: Tensor, n_parts: int, shares: Tensor) -> Tensor:
    """Every edge mixes; with parts the other channels pass it, and all are shuffled."""
    nodes = {0: x}
    for edge, (source, node) in enumerate(EDGES):
        width = x.shape[1] // n_parts
        own, others = nodes[source][:, :width], nodes[source][:, width:]
        mixed = sum(
            weight * plain_operation(name, module, own)
            for name, module, weight in zip(NAMES, cell.edges[edge], table[edge], strict=True)
        )
        out = torch.cat([mixed, others], dim=1)
        order = [g * width + i for i in range(width) for g in range(n_parts)]
        nodes[node] = nodes.get(node, 0) + shares[edge] * out[:, order]
    return nodes[3]


def plain_forward(net: nn.Module, images: Tensor, cell_of) -> Tensor:
    """The skeleton; ``cell_of(cell, x)`` computes a cell."""
    x = plain_norm(net.stem[1], F.conv2d(images, net.stem[0].weight, padding=1))
    n_cells = len(net.cells)
    for i, cell in enumerate(net.cells):
        if i in (n_cells // 3, 2 * n_cells // 3):
            x = plain_block(net.blocks[str(i)], x)
        x = cell_of(cell, x)
    x = plain_norm(net.head.norm, x).relu().mean(dim=(2, 3))
    return x @ net.head.classifier.weight.T + net.head.classifier.bias


def spread(model: nn.Module) -> None:
    """Gives every norm statistics and factors that cannot be left out."""
    random = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            if module.affine:
                module.weight.data.uniform_(0.5, 2, generator=random)
                module.bias.data.normal_(0, 0.5, generator=random)


def supernet(space: NasBench201Space = SPACE, **options) -> NasBench201Supernet:
    torch.manual_seed(0)
    net = NasBench201Supernet(space, 3, 4, 6, in_channels=2, **options).double()
    spread(net)
    return net


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def one_hot(path: tuple[int, ...]) -> Tensor:
    return F.one_hot(torch.tensor(path), 5).double()


IMAGES = draw(4, 2, 8, 8, seed=5)
LABELS = torch.tensor([0, 1, 2, 1])
# The same sums in another order; norms over few pixels amplify their rounding.
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
ISOLATED = (1, 3, 2, 0, 0, 0)  # nothing reaches node 3
PATHS = {
    "resnet": (3, 0, 3, 1, 0, 1),
    "isolated": ISOLATED,
    "all none": (0,) * 6,
    "idle node 1": (0, 3, 4, 1, 2, 3),
    "all convolutions": (3, 2, 3, 2, 3, 2),
    "pools": (4, 4, 1, 4, 1, 4),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_mixed_supernet_is_its_definition(training: bool, channels_last: bool):
    net = supernet().train(training)
    net.channels_last = channels_last
    alpha, ones = draw(30).requires_grad_(), torch.ones(6).double()

    def by_hand(images: Tensor, alpha: Tensor) -> Tensor:
        table = torch.softmax(alpha.view(6, 5), dim=1)
        return plain_forward(net, images, lambda cell, x: plain_cell(cell, x, table, 1, ones))

    results = []
    for forward in (by_hand, net):  # by hand no statistics move
        logits = forward(IMAGES, alpha)
        loss = F.cross_entropy(logits, LABELS)
        results.append([logits.detach(), *torch.autograd.grad(loss, [alpha, *net.parameters()])])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)
    assert float(results[0][1].abs().max()) > 1e-3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_its_definition_and_a_one_hot_mixture(path, training, channels_last):
    net, table, ones = supernet().train(training), one_hot(PATHS[path]), torch.ones(6).double()
    net.channels_last = channels_last
    by_hand = plain_forward(net, IMAGES, lambda cell, x: plain_cell(cell, x, table, 1, ones))
    statistics = [buffer.clone() for buffer in net.buffers()]
    torch.testing.assert_close(net(IMAGES, PATHS[path]), by_hand, **CLOSE)
    for buffer, before in zip(net.buffers(), statistics, strict=True):
        buffer.copy_(before)
    torch.testing.assert_close(net.mix(IMAGES, table), by_hand, **CLOSE)
    spread_of_images = float(by_hand.detach().std(dim=0).max())
    assert (spread_of_images < 1e-6) == (path in ("isolated", "all none"))


@settings(deadline=None, derandomize=True, max_examples=15)
@given(path=st.tuples(*[st.integers(0, 4)] * 6))
def test_any_path_is_a_one_hot_mixture(path: tuple[int, ...]):
    net = supernet()
    followed = net(IMAGES, path)
    torch.testing.assert_close(supernet().mix(IMAGES, one_hot(path)), followed, **CLOSE)


def test_a_path_leaves_the_other_operations_alone():
    net, path = supernet(), PATHS["resnet"]
    F.cross_entropy(net(IMAGES, path), LABELS).backward()
    for cell in net.cells:
        for edge, choice in enumerate(path):
            for position, operation in enumerate(cell.edges[edge]):
                used = position == choice
                assert all((p.grad is not None) == used for p in operation.parameters())
                for module in operation.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        assert int(module.num_batches_tracked) == used


def test_the_gradient_in_alpha_against_finite_differences():
    net, alpha, step = supernet(), draw(30).requires_grad_(), 1e-5
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(IMAGES, alpha), LABELS), alpha)
    with torch.no_grad():
        for i in range(30):
            shift = step * one_hot((0,) * 6).new_zeros(30).index_fill(0, torch.tensor(i), 1.0)
            losses = [F.cross_entropy(net(IMAGES, alpha + s * shift), LABELS) for s in (1, -1)]
            slope = float(losses[0] - losses[1]) / (2 * step)
            # Truncation is O(step^2); a rectifier's kink inside the step costs O(step).
            assert float(gradient[i]) == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert float(gradient.abs().max()) > 1e-3


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("n_parts", [2, 4])
def test_partial_channels_are_their_definition(n_parts, normalized, channels_last):
    space = dataclasses.replace(SPACE, edge_normalization=normalized)
    net = supernet(space, partial_channels=n_parts)
    net.channels_last = channels_last
    alpha = draw(space.dim).requires_grad_()

    def by_hand(images: Tensor, alpha: Tensor) -> Tensor:
        table, shares = torch.softmax(alpha[:30].view(6, 5), dim=1), torch.ones(6).double()
        if normalized:
            shares = torch.cat([torch.softmax(part, 0) for part in alpha[30:].split([1, 2, 3])])
        return plain_forward(
            net, images, lambda cell, x: plain_cell(cell, x, table, n_parts, shares)
        )

    results = []
    for forward in (by_hand, net):
        logits = forward(IMAGES, alpha)
        loss = F.cross_entropy(logits, LABELS)
        results.append([logits.detach(), *torch.autograd.grad(loss, [alpha, *net.parameters()])])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("n_parts", [0, 3])
def test_parts_that_do_not_divide_the_width_are_refused(n_parts: int):
    with pytest.raises(InvalidValueError, match=rf"partial_channels .* got {n_parts} for a cell"):
        supernet(partial_channels=n_parts)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_the_network_is_its_definition(path, training, channels_last):
    names = tuple(NAMES[choice] for choice in PATHS[path])
    torch.manual_seed(0)
    network = NasBench201Network(NasBench201Genotype(names), 3, 4, 6, in_channels=2).double()
    network.channels_last = channels_last
    spread(network.train(training))

    def cell_of(cell: nn.Module, x: Tensor) -> Tensor:
        nodes = {0: x}
        for name, module, (source, node) in zip(names, cell.operations, EDGES, strict=True):
            nodes[node] = nodes.get(node, 0) + plain_operation(name, module, nodes[source])
        return nodes[3]

    by_hand = plain_forward(network, IMAGES, cell_of)
    torch.testing.assert_close(network(IMAGES), by_hand, **CLOSE)
    loss = F.cross_entropy(network(IMAGES), LABELS)
    assert float(sum(g.abs().sum() for g in torch.autograd.grad(
        loss, list(network.parameters()), allow_unused=True) if g is not None)) > 0  # fmt: skip


def test_norms_have_factors_but_in_the_candidates():
    for name, module in supernet().named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.affine != name.startswith("cells."), name
    network = make_network(load_architecture(MIXED), 3, 4, 3)
    assert all(m.affine for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    # Pools have no norm, and so no weights, in both.
    assert not list(supernet().cells[0].edges[0][4].buffers())


# --- Drop path -----------------------------------------------------------------------------------

N_SAMPLES, PROBABILITY = 4000, 0.3


def single_cell(model: nn.Module) -> nn.Module:
    """Only the first cell of a model, from images to node 3."""
    model.stem, model.head, model.blocks = nn.Identity(), nn.Identity(), nn.ModuleDict()
    model.cells = model.cells[:1]
    model.drop_path_probability = PROBABILITY
    return model.train()


def check_statistics(outputs: Tensor) -> None:
    """Compare node 3 with all its values and their probabilities; all edges are the identity."""
    keep = 1 - PROBABILITY
    found: dict[float, float] = {}
    for kept in product((0, 1), repeat=6):
        nodes = {0: 1.0}
        for factor, (source, node) in zip(kept, EDGES, strict=True):
            nodes[node] = nodes.get(node, 0.0) + factor / keep * nodes[source]
        value = round(nodes[3], 6)
        chance = math.prod(keep if factor else PROBABILITY for factor in kept)
        found[value] = found.get(value, 0.0) + chance
    assert sum(value * chance for value, chance in found.items()) == pytest.approx(4.0)  # unbiased
    values = outputs[:, 0, 0, 0]
    torch.testing.assert_close(outputs, values.view(-1, 1, 1, 1).expand_as(outputs))
    assert set(values.double().round(decimals=4).tolist()) <= {round(v, 4) for v in found}
    for value, chance in found.items():
        share = float(((values - value).abs() < 1e-4).double().mean())
        # Five standard errors; the share of a rare value is not normally distributed.
        if chance * N_SAMPLES >= 20:
            assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / N_SAMPLES), value


def test_drop_path_drops_each_edge_by_itself():
    ones = torch.ones(N_SAMPLES, 2, 3, 3, dtype=torch.float64)
    net = single_cell(NasBench201Supernet(SPACE, 3, 2, 3, in_channels=2).double())
    for path in ((1,) * 6, (4,) * 6):  # skips; pools, which leave constant images alone
        net.generator = torch.Generator().manual_seed(3)
        followed = net(ones, path)
        check_statistics(followed)
        net.generator = torch.Generator().manual_seed(3)
        torch.testing.assert_close(net.mix(ones, one_hot(path)), followed)
    torch.testing.assert_close(net.eval()(ones, (1,) * 6), 4 * ones)


def test_drop_path_of_a_network_spares_skip_connections():
    ones = torch.ones(N_SAMPLES, 2, 3, 3, dtype=torch.float64)
    cell = load_architecture(uniform("avg_pool_3x3"))
    network = single_cell(NasBench201Network(cell, 3, 2, 3, in_channels=2).double())
    network.set_generator(torch.Generator().manual_seed(3))
    check_statistics(network(ones))
    torch.testing.assert_close(network.eval()(ones), 4 * ones)
    skips = load_architecture(uniform("skip_connect"))
    network = single_cell(NasBench201Network(skips, 3, 2, 3, in_channels=2).double())
    assert torch.equal(network(ones), 4 * ones)
