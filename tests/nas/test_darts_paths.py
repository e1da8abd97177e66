"""Single paths of the supernets of DARTS spaces."""

from __future__ import annotations

import pytest
import torch
from tiny_supernets import DARTS_SPACES, alpha_of, images, supernet_of, tiny
from torch import Tensor, nn

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.operations import (
    Noise,
    seed_noise,
)
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("space", DARTS_SPACES)
def test_a_path_is_a_one_hot_mixture(space: str, stem: str, training: bool, monkeypatch):
    def ones(noise: Noise, x: Tensor) -> Tensor:  # a mixture would draw more numbers
        return torch.ones_like(x[:, :, :: noise.stride, :: noise.stride])

    monkeypatch.setattr(Noise, "forward", ones)
    net, x = tiny(DARTS_SPACES[space], stem=stem), images(16 if stem == "imagenet" else 8, batch=4)
    net(x, alpha_of(net.space))  # so that running statistics are not those of the beginning
    net.train(training)
    for seed in (1, 2, 3):
        genotype = net.space.discretize(alpha_of(net.space, seed))
        table, path = net.space.edge_table(genotype).double(), net.space.path(genotype)
        assert sum(choice != UNUSED for choice in path) == int(table.sum()) == 16
        torch.testing.assert_close(net(x, path), net.mix(x, table), rtol=1e-8, atol=1e-9)


def test_paths_that_are_no_cells_are_refused():
    net = tiny(SPACES["s3"])
    path = list(net.space.path(net.space.discretize(alpha_of(net.space))))
    for wrong in (path[:-1], [*path, 0], []):
        message = f"path must have 28 entries in space s3, got {len(wrong)}"
        with pytest.raises(InvalidValueError, match=message):
            net(images(), tuple(wrong))
    path[:2] = UNUSED, UNUSED
    with pytest.raises(InvalidValueError, match="path must use an edge into node 2"):
        net(images(), tuple(path))
    partial = DartsSupernet(SPACES["s3"], 3, 4, 3, in_channels=2, partial_channels=2).double()
    path = partial.space.path(partial.space.discretize(alpha_of(partial.space)))
    with pytest.raises(InvalidValueError, match="a path needs partial_channels 1"):
        partial(images(), path)


def saved_bytes(net: nn.Module, alpha: Tensor | tuple[int, ...]) -> int:
    """The memory that a forward pass keeps for the gradient of the weights."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # alive as long as the graph, so its address is unique
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(images(), alpha).square().sum()
    assert loss.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize(
    ("space", "share"),
    # The two inputs of a cell and the stem are computed either way.
    [("s2", 1.0), ("s3", 1.0), ("s4", 1.0), ("darts", 0.4), ("nasbench201", 0.75)],
)
def test_a_path_keeps_less_memory_than_the_mixture(space: str, share: float):
    torch.manual_seed(0)
    net = supernet_of(SPACES[space], 3, 4, 3, in_channels=2).double()
    seed_noise(net, torch.Generator())
    mixed = saved_bytes(net, torch.zeros(net.space.dim, dtype=torch.float64))
    for seed in (1, 2, 3):
        path = net.space.path(net.space.discretize(alpha_of(net.space, seed)))
        assert saved_bytes(net, path) < share * mixed
