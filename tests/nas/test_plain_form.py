"""Supernet and network against the published per-operation form, values and gradients."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_supernets import DARTS_SPACES
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.kernels.library import library
from zoopt_nas.nas.networks import joined_edges
from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.fused import enable_kernels, separable_conv2d
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.networks.spaces import SPACES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load_plain_form():
    spec = importlib.util.spec_from_file_location(
        "plain_supernet", BENCHMARKS / "plain_supernet.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain_form = load_plain_form()
# Sums in another order; norms over few pixels amplify their rounding.
TOLERANCES = {torch.float64: (1e-8, 1e-10), torch.float32: (2e-3, 2e-5)}


def plain_separable(
    x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int
) -> Tensor:
    padding = dilation * (depthwise.shape[-1] // 2)
    between = F.conv2d(x, depthwise, None, stride, padding, dilation, x.shape[1])
    return F.conv2d(between, pointwise)


def separable_case(side: int, kernel_size: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side + kernel_size)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(batch, 3, side, side + 1).contiguous(memory_format=torch.channels_last)
    inputs = x, draw(3, 1, kernel_size, kernel_size), draw(4, 3, 1, 1)
    return tuple(tensor.requires_grad_() for tensor in inputs)


@pytest.mark.parametrize("side", [2, 4, 5, 8, 11])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_separable_convolution(kernel_size, stride, dilation, side):
    inputs = separable_case(side, kernel_size)
    out = separable_conv2d(*inputs, stride, dilation)
    expected = plain_separable(*inputs, stride, dilation)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).double()
    got = torch.autograd.grad((out * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def values_and_gradients(model: nn.Module, images: Tensor, alpha: Tensor) -> list[Tensor]:
    alpha = alpha.clone().requires_grad_()
    labels = torch.arange(images.shape[0]) % 3
    logits = model(images, alpha)
    gradients = torch.autograd.grad(
        F.cross_entropy(logits, labels), [alpha, *model.parameters()], allow_unused=True
    )
    return [logits.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("form", ["cpu_kernels", "joined", "one by one"])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("space", DARTS_SPACES)
def test_a_supernet_equals_its_plain_form(space, training, dtype, form, monkeypatch):
    if form == "cpu_kernels" and library(dtype) is None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(joined_edges, "MAX_NUMBERS_ON_CPU", 2**17 if form == "joined" else 0)
    torch.manual_seed(0)
    net = DartsSupernet(SPACES[space], 3, 4, 3, in_channels=2).to(dtype)
    enable_kernels(net, form == "cpu_kernels")
    images = torch.randn(6, 2, 16, 16, dtype=dtype)
    alpha = torch.randn(SPACES[space].dim, dtype=dtype)
    plain = plain_form.PlainSupernet(net)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in net.named_parameters()]
    for model in (net, plain):
        seed_noise(model, torch.Generator().manual_seed(1))
        model(images, alpha)  # so that running statistics are not those of the beginning
        model.train(training)
    rtol, atol = TOLERANCES[dtype]
    got = values_and_gradients(net, images, alpha)
    wanted = values_and_gradients(plain, images, alpha)
    assert len(got) == len(wanted) > 10
    for one, two in zip(got, wanted, strict=True):
        scale = float(two.abs().max())
        torch.testing.assert_close(one, two, rtol=rtol, atol=atol * max(scale, 1.0))
    state = plain.state_dict()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("cpu_kernels", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_network_equals_its_plain_form(training, cpu_kernels):
    torch.manual_seed(0)
    net = DartsNetwork(GENOTYPES["DARTS_V2"], 3, 4, 3, in_channels=2).double().train(training)
    enable_kernels(net, cpu_kernels)
    plain = plain_form.plain_network(net)
    images, labels = torch.randn(6, 2, 16, 16, dtype=torch.float64), torch.arange(6) % 3
    results = []
    for model in (net, plain):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        results.append([logits, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


def test_plain_forms_compute_in_the_default_memory_order():
    """With three image channels; from one channel alone the order cannot be told."""
    images = torch.randn(2, 3, 8, 8)
    alpha = torch.zeros(SPACES["s3"].dim)
    network, supernet = (
        DartsNetwork(GENOTYPES["DARTS_V2"], 3, 4, 1),
        DartsSupernet(SPACES["s3"], 3, 4, 1),
    )
    forms = [
        (network, (images,), torch.channels_last),
        (plain_form.plain_network(network), (images,), torch.contiguous_format),
        (supernet, (images, alpha), torch.channels_last),
    ]
    for model, inputs, order in forms:
        seen: list[Tensor] = []
        model.cells[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))  # noqa: B023
        model(*inputs)
        assert seen[0].is_contiguous(memory_format=order)
        assert not seen[0].is_contiguous(
            memory_format=torch.channels_last
            if order is torch.contiguous_format
            else torch.contiguous_format
        )


@pytest.mark.parametrize("n_calls", [1, 3])
def test_the_scratch_network_joins_without_running_statistics(n_calls):
    """As in the bilevel objective: batch statistics, none kept, also in a deep copy."""
    torch.manual_seed(0)
    net = DartsSupernet(SPACES["s3"], 3, 4, 3, in_channels=2).double()
    images, alpha = torch.randn(4, 2, 8, 8).double(), torch.randn(SPACES["s3"].dim).double()
    expected = net(images, alpha)
    scratch = copy.deepcopy(net)
    for module in scratch.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    for _ in range(n_calls):
        torch.testing.assert_close(scratch(images, alpha), expected, rtol=1e-9, atol=1e-10)
    with torch.no_grad():  # the copy's joined convolutions are its own
        for parameter in net.parameters():
            parameter.zero_()
    torch.testing.assert_close(scratch(images, alpha), expected, rtol=1e-9, atol=1e-10)


def test_edges_from_a_node_share_its_pools():
    net = DartsSupernet(SPACES["darts"], 3, 4, 1)
    pools = {
        (source, name): edge.candidates[i]
        for (source, _), edge, names in zip(
            net.cells[0]._edges, net.cells[0].edges, SPACES["darts"].normal, strict=True
        )
        for i, name in enumerate(names)
        if "pool" in name
    }
    modules = {id(module) for edge in net.cells[0].edges for module in edge.candidates}
    assert len(pools) == 2 * 5
    assert all(id(pool) in modules for pool in pools.values())
    twin = copy.deepcopy(net)
    edges = twin.cells[0].edges
    assert edges[0].candidates[0] is edges[2].candidates[0]  # both from node 0
    assert edges[0].candidates[0] is not edges[1].candidates[0]
