"""What alpha means: the weights of candidates, the architecture, and auxiliary skip connections."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_supernets import TINY, alpha_of, images, supernet_of

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.networks.relaxation import RELAXATIONS
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.networks.spaces import SPACES, space_from_json, space_of
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.settings.config import RELAXATIONS as NAMES
from zoopt_nas.nas.settings.config import SearchConfig


def by_hand(name: str, row: list[float]) -> list[float]:
    """The weights of a row, without torch."""
    if name == "sigmoid":
        return [1 / (1 + math.exp(-a)) for a in row]
    parts = [math.exp(a) if name == "softmax" or a < 0 else 1 + a for a in row]
    return [part / sum(parts) for part in parts]


def test_the_settings_name_every_relaxation():
    assert tuple(RELAXATIONS) == NAMES


@pytest.mark.parametrize("name", RELAXATIONS)
@settings(deadline=None, derandomize=True, max_examples=50)
@given(row=st.lists(st.floats(-30, 30), min_size=1, max_size=5))
def test_weights_are_those_of_the_formula(name: str, row: list[float]):
    expected = torch.tensor(by_hand(name, row), dtype=torch.float64)
    padded = torch.tensor([*row, -math.inf], dtype=torch.float64, requires_grad=True)
    weights = RELAXATIONS[name].weights(padded)
    torch.testing.assert_close(weights[:-1].detach(), expected, rtol=1e-9, atol=1e-15)
    assert weights[-1] == 0
    (slope,) = torch.autograd.grad(weights.square().sum(), padded)
    assert torch.isfinite(slope).all()
    assert slope[-1] == 0
    logs = RELAXATIONS[name].log_weights(torch.tensor(row, dtype=torch.float64))
    torch.testing.assert_close(logs, expected.log(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_a_supernet_weighs_by_the_relaxation_of_its_space(name: str):
    space = dataclasses.replace(TINY, relaxation=name)
    net = supernet_of(space, 3, 2, 1, in_channels=2).double()
    alpha = alpha_of(space)
    rows = [part.tolist() for kind in space.kinds for part in space.unflatten(alpha)[kind]]
    for weights, row in zip(net.edge_weights(alpha), rows, strict=True):
        torch.testing.assert_close(weights[: len(row)].tolist(), by_hand(name, row))
        assert not weights[len(row) :].any()


def test_edges_are_ranked_by_the_weights_of_the_relaxation():
    """A switch does not care for the others: its edge wins although another candidate is close."""
    s2 = SPACES["s2"]
    parts = torch.zeros(28, 2, dtype=torch.float64)
    parts[:, :] = -3.0
    parts[0] = torch.tensor([2.0, 1.9])  # two good candidates
    parts[1] = torch.tensor([0.5, -3.0])
    # Into node 3: edges 2, 3, 4 from nodes 0, 1, 2.
    parts[2] = torch.tensor([2.0, 1.9])
    parts[3] = torch.tensor([0.5, -3.0])
    parts[4] = torch.tensor([0.4, -3.0])

    def sources(space: SearchSpace) -> list[int]:
        return [source for _, source in space.discretize(parts.flatten()).edges("normal")[2:4]]

    assert sources(s2) == [1, 2]  # softmax: 0.52 loses to 0.97 and 0.97
    assert sources(dataclasses.replace(s2, relaxation="sigmoid")) == [0, 1]  # 0.88, 0.62, 0.60


def test_a_space_with_a_relaxation_comes_back_from_json():
    space = dataclasses.replace(SPACES["s1"], relaxation="dirichlet")
    assert space_from_json(space.to_json()) == space
    with pytest.raises(UnknownNameError, match="unknown relaxation 'sigmod'; did you mean 'sigmoi"):
        dataclasses.replace(SPACES["s1"], relaxation="sigmod")


def test_the_space_of_a_config_has_its_meaning_of_alpha():
    config = SearchConfig(algo="fair_darts", space="s2")
    assert space_of(config) == dataclasses.replace(SPACES["s2"], relaxation="sigmoid")
    pc = SearchConfig(algo="pc", space="s2")
    assert space_of(pc).edge_normalization


@pytest.mark.parametrize(
    ("algo", "fields", "message"),
    [
        ("gld", {"relaxation": "sigmoid", "edge_normalization": True}, "softmax or dirichlet with"),
        ("gld", {"auxiliary_skip": 1.0, "edge_normalization": True}, "auxiliary_skip must be 0"),
        ("gld", {"auxiliary_skip": 1.0, "paths": "fair"}, "mixed with auxiliary_skip 1.0"),
        ("gld", {"alpha_penalty": 1.0}, "alpha_penalty must be 0 with gld"),
        ("auto", {"alpha_penalty": 1.0}, "alpha_penalty must be 0 with"),
        ("darts2", {"alpha_penalty": 1.0}, "alpha_penalty must be 0 with darts2"),
        ("gdas", {"relaxation": "sigmoid"}, "relaxation must be softmax with gdas, got sigmoid"),
        ("gdas", {"auxiliary_skip": 1.0}, "auxiliary_skip must be 0 with gdas"),
        ("sdarts_rs", {"relaxation": "dirichlet"}, "relaxation must be softmax with sdarts_rs"),
        ("drnas", {"relaxation": "softmax"}, "relaxation must be dirichlet with drnas"),
        ("fair_darts", {"relaxation": "softmax"}, "relaxation must be sigmoid with fair_darts"),
    ],
)
def test_settings_without_a_meaning_are_refused(algo, fields, message, search_config):
    with pytest.raises(InvalidValueError, match=message):
        run_search(search_config(algo, **fields))


def test_any_method_can_use_another_relaxation(search_config):
    plain = run_search(search_config("mgs", epochs=2))
    switched = run_search(search_config("mgs", epochs=2, relaxation="sigmoid"))
    assert not torch.equal(plain.alpha, switched.alpha)


# --- Auxiliary skip connections ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s3", "nasbench201"])
def test_an_auxiliary_skip_connection_adds_its_weight_to_the_candidate(name: str):
    """At stride 1 both are the identity, so their weights add up."""
    space = SPACES[name]
    n_cells = 3 if name == "nasbench201" else 1
    size = {"in_channels": 2}
    torch.manual_seed(0)
    plain = supernet_of(space, 3, 4, n_cells, **size).double()
    torch.manual_seed(0)
    net = supernet_of(space, 3, 4, n_cells, **size, auxiliary_skip=True).double()
    assert net.state_dict().keys() == plain.state_dict().keys()  # an identity has no weights
    net.load_state_dict(plain.state_dict())
    alpha = alpha_of(space)
    torch.testing.assert_close(net(images(), alpha), plain(images(), alpha))
    net.auxiliary_weight.fill_(0.7)
    weights = plain.edge_weights(alpha)
    weights[:, space.candidates(space.kinds[0])[0].index("skip_connect")] += 0.7
    torch.testing.assert_close(net(images(), alpha), plain.mix(images(), weights))
    assert not torch.allclose(net(images(), alpha), plain(images(), alpha))


def test_the_auxiliary_skip_connection_of_a_reduction_has_weights_of_its_own():
    torch.manual_seed(0)
    net = supernet_of(TINY, 3, 4, 3, in_channels=2, auxiliary_skip=True).double().train()
    cell = net.cells[1]
    assert cell.kind == "reduce"
    first, second = (torch.randn(3, n, 8, 8, dtype=torch.float64) for n in (12, 4))
    alpha = alpha_of(TINY)
    outs = []
    for weight in (0.0, 0.6):
        net.auxiliary_weight.fill_(weight)
        outs.append(cell(first, second, net.edge_weights(alpha)[2:]))
    inputs = cell.preprocess(first, second)
    skipped = [edge.candidates[-1](x) for edge, x in zip(cell.edges, inputs, strict=True)]
    torch.testing.assert_close(outs[1] - outs[0], 0.6 * sum(skipped))
    assert float((outs[1] - outs[0]).detach().abs().max()) > 0.1


@pytest.mark.parametrize("name", ["s2", "s4"])  # with a candidate skip connection, and without
def test_kernels_compute_auxiliary_skip_connections(name: str):
    torch.manual_seed(0)
    net = supernet_of(SPACES[name], 3, 4, 3, in_channels=2, auxiliary_skip=True).train()
    generator = torch.Generator()
    seed_noise(net, generator)
    net.auxiliary_weight.fill_(0.5)
    alpha, x = alpha_of(SPACES[name]).float(), images().float()
    outs = []
    for is_on in (False, True):
        generator.manual_seed(1)
        enable_kernels(net, is_on)
        outs.append(net(x, alpha))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("algo", ["darts_minus", "gld"])
def test_the_auxiliary_weight_falls_to_0_everywhere(algo, search_config):
    config = search_config(algo, epochs=4, auxiliary_skip=0.8)
    search = Search(config, prepare(config))
    for epoch in range(4):
        search.epoch = epoch
        search.begin_epoch()
        for network in (search.supernet, search._objective.start()):
            assert float(network.auxiliary_weight) == pytest.approx(0.8 * (1 - epoch / 4))
