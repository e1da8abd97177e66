"""Skeleton and supernet: plan, sizes, published parameter counts, and the forward pass itself."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_supernets import DARTS_SPACES, alpha_of, images, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.counting import count_parameters
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet, NodeOutput
from zoopt_nas.nas.networks.joined_edges import Node, join_edges
from zoopt_nas.nas.networks.operations import (
    OPERATIONS,
    AfterReLU,
    FactorizedReduce,
    Pool,
    seed_noise,
)
from zoopt_nas.nas.networks.skeleton import ReLUConvBN, build_head, plan_cells
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.networks.standalone_darts import CifarStem, ImageNetStem

RAGGED = DartsSpace(
    "ragged",
    normal=tuple(
        (("skip_connect",), ("none", "sep_conv_3x3"), ("max_pool_3x3", "none", "dil_conv_3x3"))[
            i % 3
        ]
        for i in range(14)
    ),
    reduce=tuple((("dil_conv_5x5", "none"), ("avg_pool_3x3",))[i % 2] for i in range(14)),
)
EDGES = [(source, node) for node in range(2, 6) for source in range(node)]


# --- The plan of the cells -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_cells", "reductions"),
    [
        (8, [2, 5]),
        (20, [6, 13]),
        (14, [4, 9]),
        (1, []),
        (2, [1]),
        (3, [1, 2]),
        (4, [1, 2]),
        (5, [1, 3]),
    ],
)
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_plan(n_cells: int, reductions: list[int], stem: str):
    plans = list(plan_cells(n_cells, 16, (4, 3), stem))
    assert [i for i, plan in enumerate(plans) if plan.kind == "reduce"] == reductions
    assert len(plans) == n_cells
    stem_width = 48 if stem == "cifar" else 16
    outputs = [stem_width, stem_width]
    for index, plan in enumerate(plans):
        assert plan.channels == 16 * 2 ** sum(at <= index for at in reductions)
        assert plan.in_channels == (outputs[-2], outputs[-1])
        after_stem = stem == "imagenet" and index == 0
        assert plan.halve_first_input == (index - 1 in reductions or after_stem)
        outputs.append((3 if index in reductions else 4) * plan.channels)
        strides = [plan.stride(source) for source in range(5)]
        assert strides == ([2, 2, 1, 1, 1] if index in reductions else [1] * 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 16, "cifar"), "n_cells must be a positive integer, got 0"),
        ((8, 0, "cifar"), "init_channels must be a positive integer, got 0"),
        ((8, 1, "imagenet"), "init_channels must be at least 2 with the imagenet stem, got 1"),
        ((8, 16, "imagenets"), "did you mean 'imagenet'"),
    ],
)
def test_impossible_plans_are_refused(arguments: tuple[int, int, str], message: str):
    n_cells, channels, stem = arguments
    with pytest.raises((InvalidValueError, UnknownNameError), match=message):
        DartsSupernet(SPACES["s2"], 10, channels, n_cells, stem=stem)


def test_head():
    head = build_head(6, 4).double()
    x = torch.randn(3, 6, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x.mean(dim=3).mean(dim=2) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(x), expected)
    with pytest.raises(InvalidValueError, match="n_classes must be a positive integer, got 0"):
        build_head(6, 0)


# --- Stems and sizes -----------------------------------------------------------------------------


def test_cifar_stem_has_no_relu():
    stem = CifarStem(2, 4).double()
    x = images()
    first, second = stem(x)
    assert first is second
    convolved = F.conv2d(x, stem.conv.weight, padding=1)
    mean = convolved.mean(dim=(0, 2, 3), keepdim=True)
    variance = convolved.var(dim=(0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(first, (convolved - mean) / torch.sqrt(variance + 1e-5))
    assert first.shape == (3, 12, 8, 8)
    assert float(first.detach().min()) < 0
    assert stem.conv.bias is None
    assert stem.norm.affine


@pytest.mark.parametrize("size", [32, 64])
def test_imagenet_stem_sizes(size: int):
    stem = ImageNetStem(2, 6).double()
    quarter, eighth = stem(images(size))
    assert quarter.shape == (3, 6, size // 4, size // 4)
    assert eighth.shape == (3, 6, size // 8, size // 8)
    assert float(quarter.detach().min()) < 0  # the rectifier belongs to the second part
    convolutions = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(2, 3), (3, 6), (6, 6)]
    assert all(c.bias is None and c.stride == (2, 2) for c in convolutions)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("size", [32, 27])
@pytest.mark.parametrize("n_cells", [1, 2, 5])
def test_sizes_of_cell_outputs(n_cells: int, size: int, stem: str):
    net = tiny(SPACES["s2"], n_cells, stem)
    seen: list[tuple[int, ...]] = []
    for cell in net.cells:
        cell.register_forward_hook(lambda cell, inputs, out: seen.append(tuple(out.shape)))
    assert net(images(size), alpha_of(SPACES["s2"])).shape == (3, 3)
    reductions = {1: [], 2: [1], 5: [1, 3]}[n_cells]
    current = size if stem == "cifar" else math.ceil(size / 8)
    channels = 4
    for index, shape in enumerate(seen):
        if index in reductions:
            current, channels = math.ceil(current / 2), 2 * channels
        assert shape == (3, 4 * channels, current, current)


def test_preprocessing_and_strides():
    net = tiny(SPACES["s2"], 5)
    for index, cell in enumerate(net.cells):
        after_reduction = index - 1 in (1, 3)
        assert isinstance(cell.preprocess.first, FactorizedReduce) == after_reduction
        assert isinstance(cell.preprocess.second, ReLUConvBN)
        for (source, _), edge in zip(EDGES, cell.edges, strict=True):
            strided = {c.stride for c in edge.modules() if isinstance(c, nn.Conv2d)}
            assert ((2, 2) in strided) == (index in (1, 3) and source < 2)


def test_norms_are_affine_in_the_stem_only():
    net = tiny(SPACES["darts"])
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.affine == name.startswith("stem."), name


# --- Parameter counts ----------------------------------------------------------------------------


def weights_of(name: str, channels: int, stride: int) -> int:
    """Weights of an operation in the supernet: no biases, no affine norms."""
    if name.startswith("sep_conv"):
        return 2 * (channels * int(name[-1]) ** 2 + channels**2)
    if name.startswith("dil_conv"):
        return channels * int(name[-1]) ** 2 + channels**2
    return channels**2 if name == "skip_connect" and stride == 2 else 0


def weights_of_supernet(
    space: DartsSpace, channels: int, n_cells: int, n_classes: int, in_channels: int
) -> int:
    total = 9 * in_channels * 3 * channels + 2 * 3 * channels  # stem: convolution, affine norm
    before, previous, width = 3 * channels, 3 * channels, channels
    for index in range(n_cells):
        reduction = index in (n_cells // 3, 2 * n_cells // 3)
        width *= 2 if reduction else 1
        total += before * width + previous * width  # the same for a FactorizedReduce
        table = space.reduce if reduction else space.normal
        for (source, _), names in zip(EDGES, table, strict=True):
            stride = 2 if reduction and source < 2 else 1
            total += sum(weights_of(name, width, stride) for name in names)
        before, previous = previous, 4 * width
    return total + previous * n_classes + n_classes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("s1", 405_146),  # this and the next four: the published logs
        ("s2", 665_466),
        ("s3", 665_466),
        ("darts", 1_930_618),
        ("darts_none", 1_930_618),
        ("s4", 624_506),  # by weights_of_supernet
    ],
)
def test_published_parameter_counts(name: str, count: int):
    with torch.device("meta"):  # counted, not filled
        net = DartsSupernet(SPACES[name], 10, 16, 8)
    assert count_parameters(net) == count
    assert weights_of_supernet(SPACES[name], 16, 8, 10, 3) == count


@pytest.mark.parametrize("name", ["s1", "s2", "s3", "s4", "darts", "darts_none"])
@pytest.mark.parametrize("sizes", [(4, 3, 10, 1), (6, 5, 7, 3), (10, 4, 100, 2)], ids=str)
def test_parameter_counts_of_other_sizes(name: str, sizes: tuple[int, int, int, int]):
    channels, n_cells, n_classes, in_channels = sizes
    with torch.device("meta"):
        net = DartsSupernet(SPACES[name], n_classes, channels, n_cells, in_channels=in_channels)
    assert count_parameters(net) == weights_of_supernet(SPACES[name], *sizes)


# --- The forward pass ----------------------------------------------------------------------------


def plain_forward(net: DartsSupernet, x: Tensor, alpha: Tensor) -> Tensor:
    """The same modules, but edge by edge and with `none` really added as zeros."""
    values = alpha.tolist()
    shares: dict[str, list[list[float]]] = {"normal": [], "reduce": []}
    for kind in ("normal", "reduce"):
        for names in net.space.candidates(kind):
            row, values = values[: len(names)], values[len(names) :]
            exponents = [math.exp(a) for a in row]
            shares[kind].append([e / sum(exponents) for e in exponents])
    assert values == []
    first, second = net.stem(x)
    n_cells = len(net.cells)
    for index, cell in enumerate(net.cells):
        kind = "reduce" if index in (n_cells // 3, 2 * n_cells // 3) else "normal"
        nodes = [cell.preprocess.first(first), cell.preprocess.second(second)]
        for node in range(2, 6):
            total = torch.zeros((), dtype=torch.float64)
            for edge, (source, destination) in enumerate(EDGES):
                if destination != node:
                    continue
                names = net.space.candidates(kind)[edge]
                for position, name in enumerate(names):
                    operation = cell.edges[edge].candidates[position]
                    share = shares[kind][edge][position]
                    if name == "none":
                        stride = 2 if kind == "reduce" and source < 2 else 1
                        out = 0.0 * nodes[source][:, :, ::stride, ::stride]
                    else:
                        out = operation(nodes[source])
                    total = total + share * out
            nodes.append(total)
        first, second = second, torch.cat(nodes[2:], dim=1)
    return net.head.classifier(second.mean(dim=3).mean(dim=2))


@pytest.mark.parametrize(
    ("stem", "training"), [("cifar", True), ("cifar", False), ("imagenet", True)]
)
@pytest.mark.parametrize(
    "space",
    [*(space for name, space in DARTS_SPACES.items() if name != "darts"), RAGGED],
    ids=lambda space: space.name,
)
def test_forward_against_a_plain_rewrite(space: DartsSpace, stem: str, training: bool):
    net = tiny(space, stem=stem)
    x, alpha = images(16 if stem == "imagenet" else 8, batch=4), alpha_of(space)
    net(x, alpha)  # so that running statistics are not those of the beginning
    twin = copy.deepcopy(net) if space.name != "s4" else tiny(space, stem=stem)
    if space.name == "s4":  # a generator cannot be copied
        twin.load_state_dict(net.state_dict())
    for cell in twin.cells:  # a pool for each edge
        for edge in cell.edges:
            for i, candidate in enumerate(edge.candidates):
                if isinstance(candidate, Pool):
                    edge.candidates[i] = copy.deepcopy(candidate)
    for model in (net, twin):
        model.train(training)
        seed_noise(model, torch.Generator().manual_seed(9))
    # Rounding: sums in another order, float64, amplified by norms over few pixels.
    torch.testing.assert_close(net(x, alpha), plain_forward(twin, x, alpha), rtol=1e-8, atol=1e-9)
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("space", [SPACES["s3"], SPACES["s1"], RAGGED], ids=lambda s: s.name)
def test_gradient_in_alpha_against_finite_differences(space: DartsSpace):
    net, x = tiny(space), images()
    labels = torch.tensor([0, 1, 2])
    alpha = alpha_of(space).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(x, alpha), labels), alpha)
    step = 1e-5
    generator = torch.Generator().manual_seed(3)
    picked = torch.randperm(space.dim, generator=generator)[:15].tolist()
    with torch.no_grad():
        for i in picked:
            shift = torch.zeros_like(alpha)
            shift[i] = step
            losses = [F.cross_entropy(net(x, alpha + s * shift), labels) for s in (1, -1)]
            slope = float(losses[0] - losses[1]) / (2 * step)
            # Truncation is O(step^2); a rectifier's kink inside the step costs O(step).
            assert float(gradient[i]) == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert float(gradient.abs().max()) > 1e-3


def test_none_takes_weight_but_adds_nothing():
    """With `none` at weight w, the edge is (1 - w) times what it is without."""
    torch.manual_seed(0)
    candidates = [OPERATIONS[name](4, 1, True) for name in ("none", "skip_connect")]
    x = images(batch=2)[:, :1].repeat(1, 4, 1, 1)
    weights = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    fan = join_edges({}, (1, 2))
    out = NodeOutput(Node(x), fan, weights, torch.zeros(0)).add_edge(None, 0, candidates)
    assert torch.equal(out, 0.25 * x)


class Gate(AfterReLU):
    """An operation of a third party, whose backward pass needs its output."""

    def after_relu(self, x, scale=None):
        return torch.sigmoid(x * scale)


@pytest.mark.parametrize("edges", [1, 2])
def test_what_an_operation_keeps_is_not_overwritten(edges):
    x = images(batch=2)[:, :1].repeat(1, 4, 1, 1).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    weights = torch.full((edges, 2), 0.5, dtype=torch.float64)
    convolution = OPERATIONS["sep_conv_3x3"](4, 1, True).double()
    # Both on one edge, or the convolution on the next edge into the node.
    candidates = [[Gate(), convolution]] if edges == 1 else [[Gate()], [convolution]]
    source = NodeOutput(Node(x), join_edges({}, (edges, 2)), weights, torch.zeros(0))
    total = None
    for edge, own in enumerate(candidates):
        total = source.add_edge(total, edge, own)
    wanted = torch.sigmoid(x.relu() * 0.5) + 0.5 * convolution(x)
    torch.testing.assert_close(total, wanted)
    got, expected = (torch.autograd.grad(out.square().sum(), x)[0] for out in (total, wanted))
    torch.testing.assert_close(got, expected)


def test_alpha_is_an_argument_only():
    net = tiny(SPACES["s3"])
    x = images()
    first = net(x, alpha_of(SPACES["s3"], 0))
    assert not torch.allclose(net(x, alpha_of(SPACES["s3"], 1)), first)
    assert torch.equal(net(x, alpha_of(SPACES["s3"], 0)), first)
    assert not any("alpha" in name for name, _ in net.named_parameters())
    assert not any("mask" in name for name in net.state_dict())
    shifted = alpha_of(SPACES["s3"], 0) + 7.0  # a softmax does not see a common shift
    torch.testing.assert_close(net(x, shifted), first)


@pytest.mark.parametrize("shape", [(83,), (85,), (1, 84), (28, 3), ()])
def test_alpha_of_the_wrong_shape_is_refused(shape: tuple[int, ...]):
    net = tiny(SPACES["s3"])
    with pytest.raises(InvalidValueError, match=r"alpha must have shape \(84,\) in space s3"):
        net(images(), torch.zeros(shape, dtype=torch.float64))


# --- Paths ---------------------------------------------------------------------------------------
