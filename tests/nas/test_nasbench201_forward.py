"""Supernet and network of NAS-Bench-201 against a rewrite in plain operators."""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.architectures import load_architecture
from zoopt_nas.nas.networks.build import make_network
from zoopt_nas.nas.networks.nasbench201 import NasBench201Genotype, NasBench201Space
from zoopt_nas.nas.networks.nasbench201_modules import (
    NasBench201Network,
    NasBench201Supernet,
)
from zoopt_nas.nas.networks.spaces import SPACES

SPACE = SPACES["nasbench201"]


# The published order of the candidates, and the edges (source, node).
NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


MIXED = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"  # noqa: E501


def uniform(name: str) -> str:
    return f"|{name}~0|+|{name}~0|{name}~1|+|{name}~0|{name}~1|{name}~2|"


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
