"""The network of a genotype: published sizes, the forward pass, drop path, the auxiliary head."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks import counting
from zoopt_nas.nas.networks.counting import count_multiply_adds, count_parameters
from zoopt_nas.nas.networks.darts_network import AuxiliaryHead, DartsNetwork, drop_path
from zoopt_nas.nas.networks.genotype import GENOTYPES, Genotype
from zoopt_nas.nas.networks.operations import FactorizedReduce, Noise

SKIPS = Genotype(
    normal=(("skip_connect", 0), ("skip_connect", 1)) * 4,
    reduce=(("skip_connect", 0), ("skip_connect", 1)) * 4,
)
MIXED = Genotype(
    normal=(
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("none", 2),
        ("dil_conv_5x5", 0),
        ("max_pool_3x3", 3),
        ("skip_connect", 1),
    ),
    reduce=(("avg_pool_3x3", 1), ("skip_connect", 0), ("sep_conv_5x5", 2), ("noise", 0)),
    normal_concat=(4, 2),
    reduce_concat=(2, 3),
)


def network(genotype: Genotype = MIXED, n_cells: int = 4, **options) -> DartsNetwork:
    torch.manual_seed(0)
    return DartsNetwork(genotype, 3, 4, n_cells, in_channels=2, **options).double()


def images(size: int = 8, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 2, size, size, generator=generator, dtype=torch.float64)


def record_outputs(net: DartsNetwork) -> dict[int, Tensor]:
    """What each cell gives at the next forward pass, by its index."""
    outputs: dict[int, Tensor] = {}

    def hook(index: int):
        return lambda cell, inputs, out: outputs.update({index: out})

    for index, cell in enumerate(net.cells):
        cell.register_forward_hook(hook(index))
    return outputs


def test_published_parameter_counts():
    with torch.device("meta"):
        cifar = DartsNetwork(GENOTYPES["DARTS_V2"], 10, 36, 20, auxiliary=True)
        bare = DartsNetwork(GENOTYPES["DARTS_V2"], 10, 36, 20)
        imagenet = DartsNetwork(
            GENOTYPES["DARTS_V2"], 1000, 48, 14, stem="imagenet", auxiliary=True
        )
    assert count_parameters(cifar) == count_parameters(bare) == 3_349_342
    assert count_parameters(bare, with_auxiliary=True) == 3_349_342
    assert count_parameters(imagenet) == 4_718_752  # 4.7 M in Liu et al. (2019)
    channels = 4 * 36 * 4  # four nodes, after the second doubling
    head = channels * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 768 * 10 + 10
    assert count_parameters(cifar, with_auxiliary=True) - 3_349_342 == head


def plain_forward(net: DartsNetwork, x: Tensor) -> Tensor:
    first, second = net.stem(x)
    n_cells = len(net.cells)
    for index, cell in enumerate(net.cells):
        kind = "reduce" if index in (n_cells // 3, 2 * n_cells // 3) else "normal"
        edges = getattr(net.genotype, kind)
        nodes = {0: cell.preprocess.first(first), 1: cell.preprocess.second(second)}
        for i, (_, source) in enumerate(edges):
            node = 2 + i // 2
            nodes[node] = nodes.get(node, 0.0) + cell.operations[i](nodes[source])
        concat = getattr(net.genotype, f"{kind}_concat")
        first, second = second, torch.cat([nodes[node] for node in concat], dim=1)
    return net.head.classifier(second.mean(dim=3).mean(dim=2))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2", "mixed"])
def test_forward_against_a_plain_rewrite(name: str, training: bool):
    net = network(GENOTYPES.get(name, MIXED))
    net(images())
    net.train(training)
    twin = copy.deepcopy(net)
    net.set_generator(torch.Generator().manual_seed(1))
    twin.set_generator(torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(images()), plain_forward(twin, images()), rtol=1e-8, atol=1e-9)


def test_edges_pools_and_norms_have_their_retraining_form():
    net = network(GENOTYPES["DARTS_V2"])
    assert all(m.affine for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    for index, cell in enumerate(net.cells):
        pools = [op for op in cell.operations if type(op).__name__ == "Pool"]
        assert len(pools) == (5 if index in (1, 2) else 0)
        assert all(len(pool) == 1 for pool in pools)  # no norm behind
    reduce = net.cells[1].operations
    assert [reduce[i][0].stride for i in (0, 1, 3, 4, 7)] == [2] * 5
    assert isinstance(reduce[2], nn.Identity)  # from node 2: stride 1


@pytest.mark.parametrize("n_cells", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [16, 13])
def test_small_plans_build_and_run(n_cells: int, size: int):
    for stem in ("cifar", "imagenet"):
        net = network(n_cells=n_cells, stem=stem, auxiliary=True)
        outputs = record_outputs(net)
        logits, auxiliary = net.forward_with_auxiliary(images(size))
        assert logits.shape == auxiliary.shape == (4, 3)
        n_reductions = {1: 0, 2: 1, 3: 2, 5: 2}[n_cells]
        side = math.ceil(size / (1 if stem == "cifar" else 8) / 2**n_reductions)
        assert outputs[n_cells - 1].shape == (4, 2 * 4 * 2**n_reductions, side, side)


# --- Drop path -----------------------------------------------------------------------------------


def test_drop_path_values():
    x = 1.0 + torch.rand(20_000, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    out = drop_path(x, 0.3, torch.Generator().manual_seed(1))
    kept = out[:, 0, 0, 0] != 0
    # A sample is dropped as a whole or kept as a whole, and then scaled by 1 / 0.7.
    torch.testing.assert_close(out[kept], x[kept] / 0.7)
    assert torch.equal(out[~kept], torch.zeros_like(out[~kept]))
    standard_error = math.sqrt(0.3 * 0.7 / 20_000)
    assert abs(float(kept.double().mean()) - 0.7) < 5 * standard_error
    assert torch.equal(out, drop_path(x, 0.3, torch.Generator().manual_seed(1)))
    assert not torch.equal(out, drop_path(x, 0.3, torch.Generator().manual_seed(2)))
    assert torch.equal(drop_path(x, 0.0, None), x)


def test_drop_path_draws_from_torchs_generator_unless_given_one():
    x = torch.ones(50, 1, 1, 1)
    torch.manual_seed(4)
    first = drop_path(x, 0.5, None)
    torch.manual_seed(4)
    assert torch.equal(first, drop_path(x, 0.5, None))


def test_drop_path_spares_the_identity_and_evaluation():
    net = network(SKIPS, n_cells=1)  # a normal cell of identities only
    plain = net(images())
    net.drop_path_probability = 0.9
    assert torch.equal(net(images()), plain)

    net = network(SKIPS, n_cells=2)  # the second cell reduces: its strided skips are convolutions
    assert isinstance(net.cells[1].operations[0], FactorizedReduce)
    net.set_generator(torch.Generator().manual_seed(0))
    plain = net(images())
    net.drop_path_probability = 0.9
    assert not torch.allclose(net(images()), plain)
    net.eval()
    with_probability = net(images())
    net.drop_path_probability = 0.0
    assert torch.equal(net(images()), with_probability)


def test_drop_path_follows_the_generator():
    net = network(GENOTYPES["DARTS_V2"])
    net.drop_path_probability = 0.5
    outputs = []
    for seed in (0, 0, 1):
        net.set_generator(torch.Generator().manual_seed(seed))
        outputs.append(net(images()))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


def test_set_generator_reaches_noise():
    net, generator = network(), torch.Generator()
    net.set_generator(generator)
    noises = [module for module in net.modules() if isinstance(module, Noise)]
    assert len(noises) == 2  # one in each of the two reduction cells
    assert all(noise.generator is generator for noise in noises)


# --- The auxiliary head --------------------------------------------------------------------------


def plain_auxiliary(head: AuxiliaryHead, pooled: Tensor, norm_after: bool) -> Tensor:
    def normed(x: Tensor) -> Tensor:
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5)

    first, second = (m.weight for m in head.features if isinstance(m, nn.Conv2d))
    x = torch.relu(normed(torch.einsum("nchw,oc->nohw", pooled, first[:, :, 0, 0])))
    x = torch.einsum("nchw,ochw->no", x, second)[:, :, None, None]
    x = torch.relu(normed(x) if norm_after else x)[:, :, 0, 0]
    return x @ head.classifier.weight.T + head.classifier.bias


@pytest.mark.parametrize(("stem", "size", "stride"), [("cifar", 8, 3), ("imagenet", 7, 2)])
def test_auxiliary_head_on_published_sizes(stem: str, size: int, stride: int):
    torch.manual_seed(0)
    head = AuxiliaryHead(2, 3, stem).double()
    x = images(size)
    pooled = torch.zeros(4, 2, 2, 2, dtype=torch.float64)
    for i in range(2):
        for j in range(2):
            rows, columns = slice(stride * i, stride * i + 5), slice(stride * j, stride * j + 5)
            pooled[:, :, i, j] = x.clamp_min(0)[:, :, rows, columns].mean(dim=(2, 3))
    torch.testing.assert_close(head(x), plain_auxiliary(head, pooled, stem == "cifar"))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in head.modules()) == 1 + (stem == "cifar")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_auxiliary_head_on_small_sizes(size: int):
    torch.manual_seed(0)
    head = AuxiliaryHead(2, 3, "cifar").double()
    x = images(size)
    rectified = x.clamp_min(0)
    if size == 1:
        pooled = rectified.repeat(1, 1, 2, 2)
    elif size == 2:
        pooled = rectified
    else:
        pooled = (
            rectified[:, :, ::2, ::2]
            + rectified[:, :, ::2, 1::2]
            + rectified[:, :, 1::2, ::2]
            + rectified[:, :, 1::2, 1::2]
        ) / 4
    torch.testing.assert_close(head(x), plain_auxiliary(head, pooled, True))


def test_auxiliary_head_sits_at_two_thirds_and_leaves_the_logits_alone():
    for n_cells, at in ((1, 0), (2, 1), (3, 2), (8, 5), (20, 13)):
        net = network(SKIPS, n_cells=n_cells, auxiliary=True)
        outputs = record_outputs(net)
        with_auxiliary, auxiliary = net.forward_with_auxiliary(images())
        assert net.auxiliary is not None
        torch.testing.assert_close(auxiliary, net.auxiliary(outputs[at]))
        assert torch.equal(net(images()), with_auxiliary)


def test_auxiliary_head_feeds_gradients_back_and_must_be_asked_for():
    net = network(auxiliary=True)
    _, auxiliary = net.forward_with_auxiliary(images())
    F.cross_entropy(auxiliary, torch.tensor([0, 1, 2, 0])).backward()
    assert float(net.stem.conv.weight.grad.abs().max()) > 0
    assert net.head.classifier.weight.grad is None
    with pytest.raises(InvalidValueError, match="auxiliary must be True"):
        network().forward_with_auxiliary(images())


# --- Multiply-adds -------------------------------------------------------------------------------

IMAGENET = {"n_classes": 1000, "init_channels": 48, "n_cells": 14, "stem": "imagenet"}
# The multiply-adds of ImageNet networks in millions, as Chen et al. (2019) and Xu et al. (2020)
# publish them.
PUBLISHED = {"PDARTS": 557, "PCDARTS": 586, "PCDARTS_IMAGENET": 597}


class Everything(counting._MultiplyAdds):
    """Counts as some papers do: also two for a number in BatchNorm, and one in ReLU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.overloadpacket is torch.ops.aten.native_batch_norm:
            self.total += 2 * out[0].numel()
        elif func.overloadpacket in (torch.ops.aten.relu, torch.ops.aten.relu_):
            self.total += out.numel()
        return out


class OwnReLU(nn.Module):
    """An operation that shares its ReLU with no other, as in the published networks."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(x)


def test_multiply_adds_by_hand():
    """One cell of skip connections, 4 channels, 8x8 pixels, 2 image channels, 3 classes."""
    net = network(SKIPS, 1)
    stem = 9 * 2 * 12 * 64  # 3x3, 2 -> 12 channels
    preprocess = 2 * 12 * 4 * 64  # two of 1x1, 12 -> 4 channels
    assert count_multiply_adds(net, 8, in_channels=2) == stem + preprocess + 16 * 3
    with_head = network(SKIPS, 1, auxiliary=True)
    assert count_multiply_adds(with_head, 8, in_channels=2) == stem + preprocess + 16 * 3
    # A separable convolution is two pairs of a depthwise 3x3 and a pointwise one.
    convolved = Genotype((("sep_conv_3x3", 0), ("skip_connect", 1)) * 4, SKIPS.reduce)
    more = count_multiply_adds(network(convolved, 1), 8, in_channels=2)
    assert more - (stem + preprocess + 16 * 3) == 4 * 2 * (9 * 4 + 4 * 4) * 64


def test_counting_leaves_the_network_as_it_was():
    net = network(MIXED, auxiliary=True).train()
    net.set_generator(torch.Generator().manual_seed(3))
    before = copy.deepcopy(net.state_dict())
    state = net._generator.get_state()
    count_multiply_adds(net, 8, in_channels=2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net._generator.get_state(), state)
    assert net.training


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_published_multiply_adds(name: str, published: int, monkeypatch):
    net = DartsNetwork(GENOTYPES[name], **IMAGENET)
    own = count_multiply_adds(net, 224)
    assert own == pytest.approx(published * 1e6, rel=0.03)
    for cell in net.cells:
        cell.operations = nn.ModuleList(OwnReLU(operation) for operation in cell.operations)
    monkeypatch.setattr(counting, "_MultiplyAdds", Everything)
    assert abs(count_multiply_adds(net, 224) / 1e6 - published) < 0.5


def test_multiply_adds_of_darts():
    """DARTS itself prints 574 M for its ImageNet network of 4.7 M parameters, 8 % more."""
    net = DartsNetwork(GENOTYPES["DARTS_V2"], **IMAGENET)
    assert count_parameters(net) == 4_718_752
    assert count_multiply_adds(net, 224) == 529_911_552
    assert count_multiply_adds(DartsNetwork(GENOTYPES["DARTS_V2"], 10), 32) == 528_359_040
