"""What is done to whole edges: drop path, shares, and the table of a genotype."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from tiny_supernets import setup

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.skeleton import drop_path
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search import algorithm as search
from zoopt_nas.nas.search.run import run_search


def test_drop_path_grows_over_the_epochs_in_the_supernet_and_the_candidates(search_config):
    seen = []
    plain = search.Search.train_step

    def train_step(self):
        seen.append(
            (
                self.epoch,
                self.supernet.drop_path_probability,
                self._objective.start().drop_path_probability,
            )
        )
        return plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.Search, "train_step", train_step)
        run_search(search_config("dp", epochs=3, drop_path=0.4))
    assert {epoch: own for epoch, own, _ in seen} == {0: 0.0, 1: 0.2, 2: 0.4}
    assert all(own == other for _, own, other in seen)


def test_dropped_paths_keep_the_mean_of_an_edge():
    torch.manual_seed(0)
    made = setup()
    cell = made.net.cells[0]
    weights = made.net.edge_weights(made.alphas(1)[0])[:2].detach()
    x = torch.randn(4000, 6, 3, 3, dtype=torch.float64)
    cell.train()
    with torch.no_grad():
        clean = cell(x, x, weights)
    made.net.drop_path_probability = 0.25
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        dropped = cell(x, x, weights, partial(drop_path, probability=0.25, generator=generator))
    ratio = (dropped * clean).sum(dim=(1, 2, 3)) / (clean * clean).sum(dim=(1, 2, 3))
    # Of two edges into the node, each is kept with 3/4: both are lost in 1/16 of the samples.
    lost = (dropped.abs().amax(dim=(1, 2, 3)) == 0).double().mean()
    assert abs(float(lost) - 1 / 16) < 5 * math.sqrt(1 / 16 * 15 / 16 / 4000)
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(4000)


def test_without_training_nothing_is_dropped():
    made = setup()
    images, alpha = torch.randn(3, 1, 6, 6, dtype=torch.float64), made.alphas(1)[0]
    made.net.eval()
    plain = made.net(images, alpha)
    made.net.drop_path_probability = 0.9
    assert torch.equal(made.net(images, alpha), plain)


def test_edge_normalization_weighs_the_edges_into_each_node():
    space = dataclasses.replace(SPACES["s3"], edge_normalization=True)
    plain = SPACES["s3"]
    assert space.dim == plain.dim + 28
    alpha = space.init_alpha(rng=0, scale=1.0).double()
    shares = space.edge_factors(alpha)
    betas = alpha[plain.dim :]
    # Nodes have 2, 3, 4 and 5 incoming edges.
    torch.testing.assert_close(shares[2:5], torch.softmax(betas[2:5], dim=0))
    torch.testing.assert_close(shares[14:16], torch.softmax(betas[14:16], dim=0))
    assert float(shares.sum()) == pytest.approx(8.0)
    parts = plain.weights(alpha[: plain.dim])
    unshared = (*parts["normal"], *parts["reduce"])
    expected = [weights * share for weights, share in zip(unshared, shares, strict=True)]
    got = space.weights(alpha)
    for one, two in zip((*got["normal"], *got["reduce"]), expected, strict=True):
        torch.testing.assert_close(one, two)
    assert torch.equal(plain.edge_factors(alpha[: plain.dim]), torch.ones(28).double())


def test_a_strong_edge_is_kept_by_its_share():
    space = dataclasses.replace(SPACES["s3"], edge_normalization=True)
    alpha = torch.zeros(space.dim)
    alpha[SPACES["s3"].dim + 4] = 3.0  # of the third edge into the second node
    edges = space.discretize(alpha).edges("normal")
    assert [source for _, source in edges[2:4]] == [2, 0]
    edges = space.discretize(torch.zeros(space.dim)).edges("normal")
    assert [source for _, source in edges[2:4]] == [0, 1]


def test_the_table_of_a_genotype():
    space = SPACES["s1"]
    alpha = space.init_alpha(rng=3)
    genotype = space.discretize(alpha)
    table = space.edge_table(genotype)
    assert table.shape == (28, 2)
    assert table.sum() == 16
    back = torch.cat([row[:n] for row, n in zip(table, space.sizes, strict=True)])
    # Where all are as strong, the order of a node's two edges is that of their sources.
    for kind in ("normal", "reduce"):
        pairs = [space.discretize(back).edges(kind), genotype.edges(kind)]
        for start in range(0, 8, 2):
            assert len({frozenset(edges[start : start + 2]) for edges in pairs}) == 1
    with pytest.raises(InvalidValueError, match="must be one of skip_connect, sep_conv_3x3 in"):
        SPACES["s2"].edge_table(genotype)
