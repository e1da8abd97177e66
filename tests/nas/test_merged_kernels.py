"""Merged kernels against one masked convolution for each candidate, in float64, with gradients."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_supernets import OneBatch, Setup, alpha_of, images, supernet_of
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas import SearchConfig, run_search
from zoopt_nas.nas.networks import joined_edges
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.merged_kernels import (
    MergedConvolution,
    SharedKernel,
    build_candidates,
    merges,
)
from zoopt_nas.nas.networks.nasbench201 import NasBench201Space
from zoopt_nas.nas.networks.nasbench201_cell import EDGES
from zoopt_nas.nas.networks.operations import OPERATIONS, OperationBuilder, seed_noise
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.networks.standalone import Zero, separable
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.objective import BilevelObjective

# Kernel size and dilation.
SEPARABLE = {
    "sep_conv_3x3": (3, 1),
    "sep_conv_5x5": (5, 1),
    "dil_conv_3x3": (3, 2),
    "dil_conv_5x5": (5, 2),
    "sep_conv_7x7": (7, 1),
}
NORMAL = {"nor_conv_1x1": (1, 1), "nor_conv_3x3": (3, 1)}
ALL = SEPARABLE | NORMAL
FOUR = list(SEPARABLE)[:4]
# One intermediate node, all kinds of candidates, an edge with one convolution.
TINY = DartsSpace(
    "tiny_merged",
    normal=(("none", "skip_connect", *FOUR), ("dil_conv_3x3", "max_pool_3x3", "dil_conv_5x5")),
    reduce=(("avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5"), ("skip_connect", "sep_conv_3x3")),
    n_nodes=1,
)
MERGED_SPACES = {name: SPACES[name] for name in ("s1", "darts", "darts_none", "nasbench201")}


def mask_of(name: str, side: int) -> Tensor:
    """1 where a convolution of this size and dilation reads around the middle of a kernel."""
    size, dilation = ALL[name]
    middle = side // 2
    reach = [
        abs(i - middle) <= dilation * (size // 2) and (i - middle) % dilation == 0
        for i in range(side)
    ]
    return torch.tensor([[float(a and b) for b in reach] for a in reach], dtype=torch.float64)


def builders_of(names: list[str]) -> list[OperationBuilder]:
    return [OPERATIONS[name] for name in names]


def kernel_of(names: list[str], channels: int, stride: int) -> SharedKernel:
    built = build_candidates(builders_of(names), channels, stride, merge_kernels=True)
    (kernel,) = {candidate.kernel for candidate in built}
    return kernel.double()


def reference(x: Tensor, kernel: SharedKernel, names: list[str], weights: Tensor) -> Tensor:
    """The sum of all masked convolutions, then a 1x1 convolution (if any) and BatchNorm."""
    whole, *between, _ = kernel
    side, stride = whole.kernel_size[0], whole.stride
    positive = x.clamp(min=0)
    total = torch.zeros(())
    for name, weight in zip(names, weights, strict=True):
        masked = whole.weight * mask_of(name, side)
        if between:  # one channel after the other
            outs = [
                F.conv2d(positive[:, c : c + 1], masked[c : c + 1], None, stride, side // 2)
                for c in range(x.shape[1])
            ]
            total = total + weight * torch.cat(outs, dim=1)
        else:
            total = total + weight * F.conv2d(positive, masked, None, stride, side // 2)
    if between:
        total = torch.einsum("bchw,oc->bohw", total, between[0].weight[:, :, 0, 0])
    mean = total.mean(dim=(0, 2, 3), keepdim=True)
    variance = (total - mean).square().mean(dim=(0, 2, 3), keepdim=True)
    return (total - mean) / (variance + 1e-5).sqrt()


# --- One edge ------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    names=st.one_of(
        st.lists(st.sampled_from(list(SEPARABLE)), min_size=2, max_size=5, unique=True),
        st.permutations(list(NORMAL)),
    ),
    channels=st.integers(1, 3),
    stride=st.sampled_from((1, 2)),
    sides=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    seed=st.integers(0, 2**16),
)
def test_a_mixture_is_the_sum_of_masked_convolutions(names, channels, stride, sides, seed):
    generator = torch.Generator().manual_seed(seed)
    kernel = kernel_of(names, channels, stride)
    for weight in kernel.parameters():
        weight.data.normal_(generator=generator)
    x = torch.randn(4, channels, *sides, generator=generator, dtype=torch.float64)
    weights = torch.rand(len(names), generator=generator, dtype=torch.float64) + 0.1
    slope = torch.randn(4, channels, 9, 9, generator=generator, dtype=torch.float64)
    inputs = [x.requires_grad_(), weights.requires_grad_(), *kernel.parameters()]
    results = []
    for form in (lambda: reference(x, kernel, names, weights), lambda: whole(x, kernel, weights)):
        out = form()
        cut = slope[:, :, : out.shape[2], : out.shape[3]]
        results.append([out, *torch.autograd.grad((out * cut).sum(), inputs)])
    for got, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8)


def whole(x: Tensor, kernel: SharedKernel, weights: Tensor) -> Tensor:
    return kernel.mixture(F.relu(x), weights)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("skip", [None, 0.3])
def test_the_cpu_kernels_compute_the_same_mixture(stride, skip):
    generator = torch.Generator().manual_seed(3)
    kernel = kernel_of(FOUR, 4, stride)
    x = torch.randn(3, 4, 7, 8, generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    if not kernel.can_fuse(x):
        pytest.skip("no C compiler")
    skip = None if skip is None or stride == 2 else torch.tensor(skip, dtype=torch.float64)
    weights = torch.rand(4, generator=generator, dtype=torch.float64)
    inputs = [x.requires_grad_(), weights.requires_grad_(), *kernel.parameters()]
    results = []
    for fused in (True, False):
        base = torch.ones(3, 4, -(-7 // stride), 8 // stride, dtype=torch.float64)
        if fused:
            out = kernel.fused(x, weights, base, skip)
        else:
            out = whole(x, kernel, weights) + base + (0 if skip is None else skip * x)
        results.append([out, *torch.autograd.grad(out.pow(3).sum(), inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("names", [FOUR, list(NORMAL)], ids=["separable", "normal"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernels", [True, False])
def test_a_weight_of_1_is_the_operation_itself(names, stride, kernels):
    """With the entries copied; of a separable convolution it is one stage, as published."""
    kernel = kernel_of(names, 4, stride)
    whole_kernel, *between, _ = kernel
    kernel.cpu_kernels = kernels
    side = whole_kernel.kernel_size[0]
    x = images(7)[:, :1].repeat(1, 4, 1, 1) + torch.arange(4.0)[:, None, None]
    x = x.contiguous(memory_format=torch.channels_last)
    for number, name in enumerate(names):
        size, dilation = ALL[name]
        if name.startswith("sep"):
            alone = torch.nn.Sequential(*separable(4, size, stride, affine=False)).double()
            modules = list(alone)
        else:
            alone = OPERATIONS[name](4, stride, True).double()
            modules = list(alone.children())
        convs = [module for module in modules if isinstance(module, torch.nn.Conv2d)]
        first = side // 2 - dilation * (size // 2)
        with torch.no_grad():
            for i, j in itertools.product(range(size), repeat=2):
                entry = whole_kernel.weight[:, :, first + dilation * i, first + dilation * j]
                convs[0].weight[:, :, i, j] = entry
            if between:
                convs[1].weight.copy_(between[0].weight)
        one_hot = F.one_hot(torch.tensor(number), len(names)).double()
        torch.testing.assert_close(kernel.mixture(F.relu(x), one_hot), alone(x))
        candidate = MergedConvolution(kernel, number)
        torch.testing.assert_close(candidate(x), alone(x))
        scaled = candidate.after_relu(F.relu(x), torch.tensor(0.3).double())
        torch.testing.assert_close(scaled, 0.3 * alone(x))


def test_only_the_ratios_of_the_weights_matter_between_convolutions():
    """BatchNorm removes their sum, except where the variance is near its epsilon."""
    kernel = kernel_of(FOUR, 2, 1)
    x, weights = torch.randn(4, 2, 8, 8).double() * 100, torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    one, tenth = (kernel.mixture(F.relu(x), factor * weights) for factor in (1.0, 0.1))
    torch.testing.assert_close(one, tenth, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(one, kernel.mixture(F.relu(x), weights.flip(0)), atol=0.1)


def test_which_candidates_share_a_kernel():
    names = ["none", "sep_conv_3x3", "nor_conv_1x1", "skip_connect", "dil_conv_5x5", "nor_conv_3x3"]
    built = build_candidates(builders_of(names), 4, 1, merge_kernels=True)
    assert [isinstance(one, MergedConvolution) for one in built] == [False, True, True, False] + [
        True
    ] * 2
    assert built[1].kernel is built[4].kernel
    assert built[2].kernel is built[5].kernel
    assert built[1].kernel.conv.weight.shape == (4, 1, 9, 9)
    assert built[2].kernel.conv.weight.shape == (4, 4, 3, 3)
    assert [merges([names[i]]) for i in range(6)] == [False] * 6
    alone = build_candidates(
        builders_of(["sep_conv_3x3", "nor_conv_3x3", "none"]), 4, 1, merge_kernels=True
    )
    assert not any(isinstance(one, MergedConvolution) for one in alone)


# --- The supernet --------------------------------------------------------------------------------


def mixed(candidates, names, x: Tensor, weights: Tensor) -> Tensor:
    """An edge, candidate by candidate; ``none`` adds zeros."""
    kernels: dict[SharedKernel, list[int]] = {}
    terms = [torch.zeros(())]
    for place, operation in enumerate(candidates):
        if isinstance(operation, MergedConvolution):
            kernels.setdefault(operation.kernel, []).append(place)
        elif not isinstance(operation, Zero):
            terms.append(weights[place] * operation(x))
    for kernel, places in kernels.items():
        of_places = weights[places]
        terms.append(reference(x, kernel, [names[place] for place in places], of_places))
    return sum(terms[1:], start=terms[0])


def edge_by_edge(net, images: Tensor, alpha: Tensor) -> Tensor:
    space = net.space
    rows = {
        kind: [F.softmax(part, dim=0) for part in parts]
        for kind, parts in space.unflatten(alpha).items()
    }
    if isinstance(space, NasBench201Space):
        x = net.stem(images)
        for index, cell in enumerate(net.cells):
            x = net.blocks[str(index)](x) if str(index) in net.blocks else x
            nodes = [x]
            for edge, (source, node) in enumerate(EDGES):
                out = mixed(cell.edges[edge], space.operations, nodes[source], rows["cell"][edge])
                nodes[node:] = [nodes[node] + out] if len(nodes) > node else [out]
            x = nodes[-1]
        return net.head(x)
    first, second = net.stem(images)
    for cell in net.cells:
        nodes = list(cell.preprocess(first, second))
        names = space.candidates(cell.kind)
        for edge, (source, node) in enumerate(space.edges):
            candidates = cell.edges[edge].candidates
            out = mixed(candidates, names[edge], nodes[source], rows[cell.kind][edge])
            nodes[node:] = [nodes[node] + out] if len(nodes) > node else [out]
        first, second = second, torch.cat(nodes[2:], dim=1)
    return net.head(second)


def built(space, **options):
    torch.manual_seed(0)
    net = supernet_of(space, 3, 4, 3, in_channels=2, merge_kernels=True, **options).double()
    seed_noise(net, torch.Generator())
    return net


@pytest.mark.parametrize("form", ["cpu_kernels", "joined", "one by one"])
@pytest.mark.parametrize("space", [*MERGED_SPACES.values(), TINY], ids=lambda space: space.name)
@pytest.mark.parametrize("side", [8, 11])
def test_a_supernet_equals_its_definition(space, form, side, monkeypatch):
    monkeypatch.setattr(joined_edges, "MAX_NUMBERS_ON_CPU", 2**17 if form == "joined" else 0)
    net = built(space)
    enable_kernels(net, form == "cpu_kernels")
    alpha, x = alpha_of(space).requires_grad_(), images(side)
    results = []
    for forward in (net, lambda *inputs: edge_by_edge(net, *inputs)):
        logits = forward(x, alpha)
        loss = F.cross_entropy(logits, torch.arange(3))
        results.append([logits.detach(), *torch.autograd.grad(loss, [alpha, *net.parameters()])])
    for got, expected in zip(*results, strict=True):
        scale = max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9 * scale)


@pytest.mark.parametrize("space", [*MERGED_SPACES.values(), TINY], ids=lambda space: space.name)
@pytest.mark.parametrize("kernels", [True, False])
def test_a_path_is_the_mixture_with_weights_of_1_and_0(space, kernels):
    net = built(space)
    enable_kernels(net, kernels)
    for seed in range(3):
        path = space.path(space.discretize(alpha_of(space, seed)))
        table = torch.zeros(len(path), net.table_width, dtype=torch.float64)
        for edge, choice in enumerate(path):
            if choice != UNUSED:
                table[edge, choice] = 1.0
        torch.testing.assert_close(net.follow(images(), path), net.mix(images(), table))
        half = torch.full((len(path),), 0.5, dtype=torch.float64)
        assert not torch.allclose(net.follow(images(), path, half), net.follow(images(), path))


@pytest.mark.parametrize("space", [SPACES["nasbench201"], TINY], ids=lambda space: space.name)
def test_candidates_at_once_are_those_one_by_one(space):
    torch.manual_seed(0)
    net = supernet_of(space, 3, 2, 3, in_channels=1, merge_kernels=True).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    made = Setup(net, optimizer, torch.Generator())
    made.train()
    alphas = made.alphas(3)
    objectives = [made.objective(candidates_per_batch=n) for n in (1, 3)]
    for some in (alphas, alphas[:1]):  # the first call leaves the weights of the module in place
        values = [objective(some) for objective in objectives]
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-11)
        assert len(set(values[0].tolist())) == len(some)


def test_the_kernel_takes_the_place_of_the_weights_of_four_convolutions():
    """A 9x9 and a 1x1 convolution on each of 14 edges."""
    full, merged = (
        DartsSupernet(SPACES["darts"], 10, 4, 1, merge_kernels=merges) for merges in (False, True)
    )
    counts = [
        sum(p.numel() for name, p in net.named_parameters() if ".edges." in name)
        for net in (full, merged)
    ]
    one_by_one = 2 * (9 * 4 + 16) + 2 * (25 * 4 + 16) + (9 * 4 + 16) + (25 * 4 + 16)
    assert counts == [14 * one_by_one, 14 * (81 * 4 + 16)]


@pytest.mark.parametrize("space", ["s2", "s3", "s4"])
def test_a_space_without_two_such_convolutions_on_an_edge_is_refused(space, search_config):
    message = f"merge_kernels must be false in space {space}, where no edge has two convolutions"
    for algo in ("merge_nas", "gld"):
        with pytest.raises(InvalidValueError, match=message) as caught:
            run_search(search_config(algo, space=space, merge_kernels=True))
        assert "\n" not in str(caught.value)


# --- MergeNAS ------------------------------------------------------------------------------------


def test_the_gradient_in_alpha_flows_through_the_weights_of_the_masks():
    """Central differences of the definition in float64; steps of 1e-6, errors of about 1e-9."""
    torch.manual_seed(0)
    net = supernet_of(TINY, 3, 2, 3, in_channels=3, merge_kernels=True).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    objective = BilevelObjective(net, optimizer, OneBatch(), OneBatch(), seed=0, inner="first")
    alpha = alpha_of(TINY)
    updater = METHODS["merge_nas"].build(SearchConfig(algo="merge_nas"), alpha, 0, TINY)
    x, labels = OneBatch().batch
    network = copy.deepcopy(net).train()
    expected = []
    with torch.no_grad():
        for k in range(len(alpha)):
            step = 1e-6 * F.one_hot(torch.tensor(k), len(alpha)).double()
            sides = [
                F.cross_entropy(edge_by_edge(network, x, alpha + sign * step), labels)
                for sign in (1, -1)
            ]
            expected.append((sides[0] - sides[1]) / 2e-6)
    gradient = updater.gradient(objective)
    torch.testing.assert_close(gradient, torch.stack(expected), rtol=1e-5, atol=1e-8)
    reference = alpha.clone().requires_grad_()
    reference.grad = gradient
    torch.optim.Adam([reference], 3e-4, (0.5, 0.999), weight_decay=1e-3).step()
    updater.step(objective, 0.0)
    torch.testing.assert_close(updater.alpha, reference.detach())


def test_the_settings_of_the_method():
    config = SearchConfig(dataset="cifar10", algo="merge_nas", space="darts")
    assert config.merge_kernels
    assert not SearchConfig(algo="darts1").merge_kernels
    published = SearchConfig.for_dataset("cifar10", "merge_nas", preset="released", space="darts")
    assert published == config
    assert (config.epochs, config.batch_size, config.lr, config.lr_min) == (50, 64, 0.025, 0.001)
    assert (config.alpha_lr, config.alpha_betas) == (3e-4, (0.5, 0.999))


@pytest.mark.parametrize(
    ("algo", "fields", "message"),
    [
        ("merge_nas", {"merge_kernels": False}, "merge_kernels must be true with merge_nas"),
        ("gld", {"merge_kernels": True, "edge_normalization": True}, "with edge_normalization"),
    ],
)
def test_what_does_not_go_together(algo, fields, message, search_config):
    with pytest.raises(InvalidValueError, match=message) as caught:
        run_search(search_config(algo, space="s1", **fields))
    assert "\n" not in str(caught.value)
