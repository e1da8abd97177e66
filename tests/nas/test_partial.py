"""Partial channel connections against their definition, edge by edge."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_supernets import DARTS_SPACES
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks import joined_edges
from zoopt_nas.nas.networks.darts_space import cell_edges
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.networks.partial_channels import merge_parts, split_parts
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.networks.standalone import Zero
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.settings.config import SearchConfig


def shuffled(x: Tensor, n_groups: int) -> Tensor:
    """Channel i of group g goes to place i * n_groups + g."""
    width = x.shape[1] // n_groups
    order = [g * width + i for i in range(width) for g in range(n_groups)]
    return x[:, order]


def edge_by_edge(net: DartsSupernet, images: Tensor, alpha: Tensor, n_parts: int) -> Tensor:
    """Xu et al., section 3.1 and the published code: each edge mixes, joins and shuffles.

    With edge normalization (Eq. 3) a node is the sum of its whole edges, each times its share.
    """
    n_edges = len(cell_edges(net.space.n_nodes))
    rows = {
        kind: [F.softmax(part, dim=0) for part in parts]
        for kind, parts in net.space.unflatten(alpha).items()
    }
    shares = dict.fromkeys(rows, torch.ones(n_edges).double())
    if net.space.edge_normalization:
        betas = alpha[-2 * n_edges :].split([2, 3, 4, 5] * 2)
        softmaxes = [F.softmax(part, dim=0) for part in betas]
        shares = {"normal": torch.cat(softmaxes[:4]), "reduce": torch.cat(softmaxes[4:])}
    first, second = net.stem(images)
    for cell in net.cells:
        nodes = list(cell.preprocess(first, second))
        for edge, (source, node) in enumerate(cell_edges(net.space.n_nodes)):
            x = nodes[source]
            width = x.shape[1] // n_parts
            candidates = cell.edges[edge].candidates
            mixed = sum(
                weight * operation(x[:, :width])
                for weight, operation in zip(rows[cell.kind][edge], candidates, strict=True)
                if not isinstance(operation, Zero)
            )
            others = x[:, width:]
            if others.shape[-1] != mixed.shape[-1]:
                others = F.max_pool2d(others, 2, ceil_mode=True)
            out = shuffled(torch.cat([mixed, others], dim=1), n_parts) * shares[cell.kind][edge]
            if node == len(nodes):
                nodes.append(out)
            else:
                nodes[node] = nodes[node] + out
        first, second = second, torch.cat(nodes[2:], dim=1)
    return net.head(second)


@pytest.mark.parametrize("n_parts", [2, 4])
@pytest.mark.parametrize("form", ["cpu_kernels", "joined", "one by one"])
@pytest.mark.parametrize("space", DARTS_SPACES)
@pytest.mark.parametrize("side", [8, 11])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_partial_supernet_equals_its_definition(
    space, form, n_parts, side, normalized, monkeypatch
):
    monkeypatch.setattr(joined_edges, "MAX_NUMBERS_ON_CPU", 2**17 if form == "joined" else 0)
    torch.manual_seed(0)
    space = dataclasses.replace(SPACES[space], edge_normalization=normalized)
    net = DartsSupernet(space, 3, 8, 3, in_channels=2, partial_channels=n_parts).double()
    enable_kernels(net, form == "cpu_kernels")
    images = torch.randn(5, 2, side, side).double()
    alpha = torch.randn(space.dim).double().requires_grad_()
    results = []
    for forward in (net, lambda *inputs: edge_by_edge(net, *inputs, n_parts)):
        seed_noise(net, torch.Generator().manual_seed(1))
        logits = forward(images, alpha)
        loss = F.cross_entropy(logits, torch.arange(5) % 3)
        results.append([logits.detach(), *torch.autograd.grad(loss, [alpha, *net.parameters()])])
    for one, two in zip(*results, strict=True):
        scale = max(float(two.abs().max()), 1.0)
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10 * scale)


def test_candidates_at_once_weigh_their_own_edges():
    """Under ``torch.vmap`` each candidate has shares of its own."""
    space = dataclasses.replace(SPACES["s2"], edge_normalization=True)
    torch.manual_seed(0)
    net = DartsSupernet(space, 3, 4, 2, in_channels=1, partial_channels=2).double()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    enable_kernels(net, False)
    images, alphas = torch.randn(3, 1, 6, 6).double(), torch.randn(4, space.dim).double()
    together = torch.vmap(lambda alpha: net(images, alpha))(alphas)
    alone = torch.stack([edge_by_edge(net, images, alpha, 2) for alpha in alphas])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)
    # A share that goes to 0 takes the whole edge away.
    gone = alphas[0].clone()
    gone[sum(space.sizes)] = -800.0  # of the first edge into the first normal node
    cell, weights = net.cells[0], net.edge_weights(gone)[:14]
    first, second = torch.randn(2, 3, 12, 6, 6).double()
    out = cell(first, second, weights)[:, :4]
    torch.testing.assert_close(out, cell(first + 1.0, second, weights)[:, :4])
    assert not torch.allclose(out, cell(first, second + torch.randn(6).double(), weights)[:, :4])


@pytest.mark.parametrize("channels_last", [True, False])
def test_split_and_merge(channels_last):
    x = torch.arange(2 * 8 * 3 * 5, dtype=torch.float64).view(2, 8, 3, 5)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    own, others = split_parts(x, 4, 1)
    assert torch.equal(own, x[:, :2])
    assert torch.equal(others, x[:, 2:])
    merged = merge_parts(own, others, 4)
    assert torch.equal(merged, shuffled(x, 4))
    assert torch.equal(merged, F.channel_shuffle(x.contiguous(), 4))
    assert merged.is_contiguous(memory_format=torch.channels_last) == channels_last
    _, pooled = split_parts(x, 4, 2)
    assert torch.equal(pooled, F.max_pool2d(x[:, 2:], 2, ceil_mode=True))


def test_it_has_fewer_weights_and_the_same_alpha():
    space = SPACES["darts"]
    full, partial = (DartsSupernet(space, 10, 16, 8, partial_channels=k) for k in (1, 4))
    edges = [
        sum(p.numel() for name, p in net.named_parameters() if ".edges." in name)
        for net in (full, partial)
    ]
    # 1x1 convolutions have a 16th, depthwise ones a quarter of the weights.
    assert edges[0] / 16 < edges[1] < edges[0] / 4
    assert partial(torch.randn(2, 3, 8, 8), torch.zeros(space.dim)).shape == (2, 10)


@pytest.mark.parametrize("n_parts", [0, -1, 3, 5])
def test_a_share_that_does_not_divide_the_width_is_refused(n_parts):
    with pytest.raises(InvalidValueError, match=rf"partial_channels .* got {n_parts} for a cell"):
        DartsSupernet(SPACES["s3"], 10, 4, 3, partial_channels=n_parts)


@pytest.mark.parametrize("algo", ["gld", "darts2"])
def test_every_kind_of_method_searches_with_it(algo):
    config = SearchConfig.for_dataset(
        "digits",
        algo,
        epochs=1,
        warmup_epochs=0,
        n_train=64,
        batch_size=16,
        inner_steps=1,
        partial_channels=2,
    )
    result = run_search(config)
    assert result.metrics[0]["updates"] > 0
    assert not torch.equal(result.alpha, run_search(config.replace(partial_channels=1)).alpha)
