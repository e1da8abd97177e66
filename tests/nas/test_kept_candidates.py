"""Supernets with some of the candidates, and dropout on their skip connections."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_supernets import TINY, alpha_of, images, supernet_of
from torch import nn

from zoopt_nas.nas.networks.counting import count_parameters
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.operations import (
    FactorizedReduce,
    SkipDropout,
    seed_noise,
    skip_with_dropout,
)
from zoopt_nas.nas.networks.space import Kept, SearchSpace
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.networks.standalone import Zero
from zoopt_nas.nas.networks.supernet import Supernet

NAMES = ("darts_none", "s1", "nasbench201")


def built(space: SearchSpace, **options) -> Supernet:
    torch.manual_seed(0)
    net = supernet_of(space, 3, 4, 3, in_channels=2, **options).double()
    seed_noise(net, torch.Generator().manual_seed(1))
    return net


def some(space: SearchSpace) -> Kept:
    """About half of the candidates of each edge, at random, with one other than ``none``."""
    generator = torch.Generator().manual_seed(3)
    names = [names for kind in space.kinds for names in space.candidates(kind)]
    found = []
    for of_edge in names:
        order = torch.randperm(len(of_edge), generator=generator).tolist()
        order.sort(key=lambda choice: of_edge[choice] == "none")
        found.append(tuple(sorted(order[: len(order) // 2])))
    return tuple(found)


def without_others(space: SearchSpace, kept: Kept, alpha: torch.Tensor) -> torch.Tensor:
    is_kept = torch.tensor([choice in kept[edge] for edge, choice in space.places])
    return torch.where(is_kept, alpha, -1000.0)


# --- Some of the candidates ----------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_without_some_candidates_it_is_the_full_supernet_where_they_weigh_nothing(name, kernels):
    space = SPACES[name]
    kept = some(space)
    full, part = built(space), built(space, kept=kept)
    part.load_state_dict({key: full.state_dict()[key] for key in part.state_dict()})
    for net in (full, part):
        enable_kernels(net, kernels)
    alpha = without_others(space, kept, alpha_of(space)).requires_grad_()
    x = images()
    found = {}
    for net in (full, part):
        logits = net(x, alpha)
        found[net] = logits, torch.autograd.grad(logits.square().sum(), alpha)[0]
    torch.testing.assert_close(found[part], found[full])
    assert not found[part][1][alpha.detach() == -1000].any()
    path = space.path(space.discretize(alpha))
    torch.testing.assert_close(part(x, path), full(x, path))


@pytest.mark.parametrize("name", NAMES)
def test_candidates_that_are_left_out_have_no_weights(name):
    space = SPACES[name]
    kept = some(space)
    full, part = built(space), built(space, kept=kept)
    kinds = list(space.kinds)
    left_out = 0
    for whole, cell in zip(full.cells, part.cells, strict=True):
        first = kinds.index(getattr(cell, "kind", "cell")) * len(space.edges)
        for edge, pair in enumerate(zip(whole.edges, cell.edges, strict=True), start=first):
            before, after = (getattr(one, "candidates", one) for one in pair)
            for choice in set(range(space.sizes[edge])) - set(kept[edge]):
                left_out += count_parameters(before[choice])
                assert isinstance(after[choice], Zero)
    assert left_out > 0
    assert count_parameters(part) == count_parameters(full) - left_out


# --- Dropout -------------------------------------------------------------------------------------


def dropout(rate: float, seed: int = 0) -> SkipDropout:
    operation = SkipDropout()
    operation.rate.fill_(rate)
    seed_noise(operation, torch.Generator().manual_seed(seed))
    return operation


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7])
def test_numbers_are_lost_with_the_rate_and_the_mean_stays(rate):
    x = images(size=40, batch=5).requires_grad_()
    out = dropout(rate)(x)
    is_lost = out == 0
    n = x.numel()
    assert abs(int(is_lost.sum()) - rate * n) <= 5 * math.sqrt(rate * (1 - rate) * n)
    # The rate is a number of float32.
    expected = torch.where(is_lost, 0.0, x / (1 - rate))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(out.sum(), x)
    kept = torch.where(is_lost, 0.0, torch.tensor(1 / (1 - rate), dtype=torch.float64))
    torch.testing.assert_close(slope, kept, rtol=1e-6, atol=0)
    # Channels, rows and columns are lost one by one.
    if rate:
        for dims in ((1,), (2,), (3,), (2, 3)):
            shares = is_lost.double().mean(dim=dims)
            assert not ((shares == 0) | (shares == 1)).all()


def test_the_generator_alone_decides_what_is_lost():
    x = images()
    first = dropout(0.5)(x)
    assert torch.equal(dropout(0.5)(x), first)
    assert not torch.equal(dropout(0.5, seed=1)(x), first)
    operation = dropout(0.5)
    assert not torch.equal(operation(x), operation(x))
    last = x.contiguous(memory_format=torch.channels_last)
    again = dropout(0.5)(last)
    assert torch.equal(again, first)
    assert again.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_lost_outside_training():
    operation, x = dropout(0.9).eval(), images()
    assert operation(x) is x


def test_a_skip_connection_with_stride_2_has_no_dropout():
    assert isinstance(skip_with_dropout(4, 1, True), SkipDropout)
    assert isinstance(skip_with_dropout(4, 2, True), FactorizedReduce)


@pytest.mark.parametrize("name", ["s3", "nasbench201"])
def test_every_skip_connection_of_a_supernet_has_dropout_of_its_own(name):
    space = SPACES[name]
    plain, net = built(space), built(space, drops_skips=True)
    names = [type(module).__name__ for module in plain.cells.modules()]
    n_skips = names.count("Identity")
    assert n_skips > 0
    dropouts = [module for module in net.modules() if isinstance(module, SkipDropout)]
    assert len(dropouts) == n_skips
    assert not any(isinstance(module, nn.Identity) for module in net.cells.modules())
    assert plain.state_dict().keys() == net.state_dict().keys()

    x, alpha = images(), alpha_of(space)
    torch.testing.assert_close(net(x, alpha), plain(x, alpha))  # the rate is 0
    net.set_skips(0.0, dropout=0.5)
    assert {float(module.rate) for module in dropouts} == {0.5}
    masks = []
    hooks = [
        module.register_forward_hook(lambda _, args, out: masks.append((out == 0) & (args[0] != 0)))
        for module in dropouts
    ]
    assert not torch.allclose(net(x, alpha), plain(x, alpha))
    for hook in hooks:
        hook.remove()
    assert len(masks) == n_skips
    assert len({mask.numpy().tobytes() for mask in masks}) == n_skips
    net.load_state_dict(plain.state_dict())  # running statistics, too
    torch.testing.assert_close(net.eval()(x, alpha), plain.eval()(x, alpha))


def test_an_auxiliary_skip_connection_has_none():
    net = built(TINY, drops_skips=True, auxiliary_skip=True)
    # none, skip_connect, sep_conv_3x3 and the auxiliary one.
    kinds = [type(module).__name__ for module in net.cells[0].edges[0].candidates]
    assert kinds == ["Zero", "SkipDropout", "SepConv", "Identity"]
