"""ROME: the distribution of its cells, its gradient in float64 without autograd, its result."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch
from stopping import StopAt
from tiny_supernets import OneBatch, supernet_of
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas import SearchConfig, resume_search, run_search
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.methods.gdas import temperature
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.paths import PathStep
from zoopt_nas.nas.steps.execution import Execution

# Edges with other numbers of candidates, so that the table of all edges is padded.
UNEVEN = DartsSpace(
    "uneven",
    normal=(("none", "skip_connect", "sep_conv_3x3"),) * 2
    + (("avg_pool_3x3", "dil_conv_3x3"),) * 3,
    reduce=(("skip_connect", "sep_conv_3x3"),) * 2
    + (("max_pool_3x3", "none", "skip_connect"),) * 3,
    n_nodes=2,
)


def built(space, **fields):
    torch.manual_seed(0)
    space = dataclasses.replace(space, edge_normalization=True)
    supernet = supernet_of(space, 3, 2, 3, in_channels=3).double()
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05)
    objective = BilevelObjective(supernet, optimizer, OneBatch(), OneBatch(), seed=0, inner="first")
    alpha = torch.randn(space.dim, generator=torch.Generator().manual_seed(1)).double()
    updater = METHODS["rome"].build(SearchConfig(algo="rome", **fields), alpha, 3, space)
    return space, supernet, objective, updater


def groups_of(space) -> list[list[int]]:
    """The edges of a space by their target, over all cells."""
    n = len(space.edges)
    return [
        [kind * n + i for i, (_, target) in enumerate(space.edges) if target == node]
        for kind in range(len(space.kinds))
        for node in sorted({target for _, target in space.edges})
    ]


# --- Samples -------------------------------------------------------------------------------------


def sampled(space, updater, n: int) -> list[tuple[int, ...]]:
    return [path for _ in range(n // 7) for path in updater.training_paths(space, 0.3)]


def test_two_edges_of_a_node_are_drawn_without_replacement():
    """Section 3.5: p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j) for the edges i and j."""
    space, _, _, updater = built(SPACES["s3"])
    paths, beta = sampled(space, updater, 4200), updater.alpha[sum(space.sizes) :]
    n_pairs = 0
    for edges in groups_of(space):
        pairs = Counter(tuple(e for e in edges if path[e] != UNUSED) for path in paths)
        assert {len(pair) for pair in pairs} == {2}
        p = dict(zip(edges, torch.softmax(beta[edges], 0).tolist(), strict=True))
        for i, j in itertools.combinations(edges, 2):
            share = min(p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])), 1.0)
            # Binomial counts; 2 * (1 + 3 + 6 + 10) of them, two-sided, at 1e-6 in all.
            bound = 5.7 * math.sqrt(len(paths) * share * (1 - share))
            assert abs(pairs[i, j] - len(paths) * share) <= bound + 1e-9
            n_pairs += 1
    assert n_pairs == 40


def test_operations_of_sampled_edges_follow_the_softmax_of_alpha():
    space, _, _, updater = built(SPACES["s3"])
    paths = sampled(space, updater, 4200)
    for edge, part in enumerate(space.unflatten(updater.alpha)["reduce"]):
        counts = Counter(path[14 + edge] for path in paths)
        n = len(paths) - counts[UNUSED]
        for choice, p in enumerate(torch.softmax(part, 0).tolist()):
            # Binomial counts; 42 of them, two-sided, at 1e-6 in all.
            assert abs(counts[choice] - n * p) < 5.7 * math.sqrt(n * p * (1 - p))


def test_a_cell_that_keeps_all_edges_has_no_topology():
    space, _, objective, updater = built(SPACES["nasbench201"])
    assert all(UNUSED not in path for path in sampled(space, updater, 70))
    assert not updater.gradient(objective)[30:].any()


# --- The gradient --------------------------------------------------------------------------------


def expected_gradient(space, supernet, alpha, noise, tau):
    """Eq. 3, 7 and 8 written out, with dL/dh of the kept edges from central differences."""
    n_entries = sum(space.sizes)
    of_alpha = torch.split(alpha[:n_entries], list(space.sizes))
    of_noise = torch.split(noise[:n_entries], list(space.sizes))
    beta, edge_noise = alpha[n_entries:], noise[n_entries:]
    sums = [a.log_softmax(0) + g for a, g in zip(of_alpha, of_noise, strict=True)]
    path, shares = [UNUSED] * len(sums), torch.zeros(len(sums)).double()
    for edges in groups_of(space):
        logits = beta[edges].log_softmax(0) + edge_noise[edges]
        shares[edges] = torch.softmax(logits / tau, 0)
        for i in logits.argsort(descending=True)[:2].tolist():
            path[edges[i]] = int(sums[edges[i]].argmax())
    images, labels = OneBatch().batch
    network = copy.deepcopy(supernet).train()
    slopes = torch.zeros(len(sums)).double()
    for edge, choice in enumerate(path):
        if choice != UNUSED:
            step = torch.zeros(len(sums)).double()
            step[edge] = 1e-6
            with torch.no_grad():
                sides = [
                    F.cross_entropy(network.follow(images, tuple(path), 1 + sign * step), labels)
                    for sign in (1, -1)
                ]
            slopes[edge] = (sides[0] - sides[1]) / 2e-6
    by_operation = []
    for values, choice, slope in zip(sums, path, slopes, strict=True):
        soft = torch.softmax(values / tau, 0)
        one_hot = torch.zeros_like(soft)
        one_hot[choice] = 1.0
        by_operation.append(slope * soft[choice] * (one_hot - soft) / tau)
    by_edge = torch.zeros(len(sums)).double()
    for edges in groups_of(space):
        part = shares[edges]
        jacobian = (torch.diag(part) - torch.outer(part, part)) / tau
        by_edge[edges] = jacobian @ slopes[edges]
    return torch.cat([*by_operation, by_edge])


@pytest.mark.parametrize("space", [SPACES["s3"], UNEVEN], ids=lambda space: space.name)
@pytest.mark.parametrize(("progress", "n_paths"), [(0.0, 1), (0.9, 3)])
def test_the_gradient_is_the_mean_of_straight_through_gradients(space, progress, n_paths):
    space, supernet, objective, updater = built(space, sampled_paths=n_paths)
    twin = torch.Generator()
    twin.set_state(updater._generator.get_state())
    updater._progress = progress
    gradient = updater.gradient(objective)
    uniform = torch.empty(n_paths, space.dim).exponential_(generator=twin)
    tau = temperature(progress)
    expected = [
        expected_gradient(space, supernet, updater.alpha, -row.log().double(), tau)
        for row in uniform
    ]
    # The differences have an error of about 1e-10, with a kink of a rectifier within 1e-6 more.
    torch.testing.assert_close(gradient, sum(expected) / n_paths, rtol=1e-5, atol=1e-8)
    assert gradient[sum(space.sizes) :].any()


def test_a_step_is_adam_on_the_gradient():
    _, _, objective, updater = built(SPACES["s3"])
    state, before = updater._generator.get_state().clone(), updater.alpha.clone()
    row = updater.step(objective, 0.25)
    assert row["temperature"] == temperature(0.25)
    after = updater.alpha.clone()
    updater._generator.set_state(state)
    updater.move_to(before)
    reference = before.clone().requires_grad_()
    reference.grad = updater.gradient(objective)
    torch.optim.Adam([reference], 3e-4, (0.5, 0.999), weight_decay=1e-3).step()
    torch.testing.assert_close(after, reference.detach())


def test_a_weight_step_sums_the_gradients_of_new_cells():
    """Eq. 12: theta - lr * (the sum over K cells of the gradient of L_train)."""
    space, supernet, _, updater = built(SPACES["s3"])
    paths = updater.training_paths(space, 0.2)
    assert len(set(paths)) == 7
    images, labels = OneBatch().batch
    expected = {name: weight.detach().clone() for name, weight in supernet.named_parameters()}
    for path in paths:
        network = copy.deepcopy(supernet).train()
        F.cross_entropy(network.follow(images, path), labels).backward()
        for name, weight in network.named_parameters():
            if weight.grad is not None:
                expected[name] -= 0.05 * weight.grad
    step = PathStep(
        supernet.train(),
        torch.optim.SGD(supernet.parameters(), lr=0.05),
        None,
        Execution(torch.device("cpu")),
    )
    step(images, labels, paths)
    for name, weight in supernet.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-9, atol=1e-12)


# --- The search ----------------------------------------------------------------------------------


def test_the_result_is_the_most_probable_cell():
    """Eq. 9: the product over the kept edges of p(edge; beta) p(operation | edge; alpha)."""
    space = dataclasses.replace(SPACES["s3"], edge_normalization=True)
    n, names = sum(space.sizes), SPACES["s3"].candidates("normal")[0]
    for seed in range(20):
        alpha = torch.randn(space.dim, generator=torch.Generator().manual_seed(seed)).double()
        genotype = space.discretize(alpha)
        parts = [part.softmax(0) for part in space.unflatten(alpha)["normal"]]
        for node, edges in enumerate(groups_of(space)[:4]):
            of_edge = alpha[n:][edges].softmax(0)
            probability = {
                frozenset([(names[a], i), (names[b], j)]): float(
                    of_edge[i] * parts[edges[i]][a] * of_edge[j] * parts[edges[j]][b]
                )
                for i, j in itertools.combinations(range(len(edges)), 2)
                for a, b in itertools.product((1, 2), repeat=2)  # without none
            }
            chosen = genotype.edges("normal")[2 * node : 2 * node + 2]
            assert frozenset(chosen) == max(probability, key=probability.__getitem__)


@pytest.mark.parametrize("space", ["nasbench201", "s3", "s4"])
def test_a_search_resumes_bit_for_bit(space, tmp_path, without_seconds):
    sizes = {"init_channels": 2, "n_cells": 3, "n_train": 96, "batch_size": 16, "threads": 1}
    config = SearchConfig(dataset="digits", space=space, algo="rome", epochs=2, **sizes)
    whole = run_search(config.replace(sampled_paths=3))
    with pytest.raises(RunInterrupted):
        run_search(config.replace(sampled_paths=3), run_dir=tmp_path / "run", observer=StopAt(4))
    rest = resume_search(tmp_path / "run")
    assert rest.alpha.equal(whole.alpha)
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)
    assert [row["temperature"] for row in whole.metrics] == pytest.approx([10.0, 5.05])


def test_the_settings_of_the_paper():
    config = SearchConfig(dataset="cifar10", algo="rome", space="darts")
    assert (config.sampled_paths, config.edge_normalization, config.alpha_lr) == (7, True, 3e-4)
    assert (config.epochs, config.n_cells, config.init_channels) == (50, 8, 16)
    assert SearchConfig.for_dataset("cifar10", "rome", preset="paper").lr == 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"edge_normalization": False}, "edge_normalization must be true with rome, which samples"),
        ({"relaxation": "dirichlet"}, "relaxation must be softmax with rome, got dirichlet"),
        ({"partial_channels": 2}, "partial_channels must be 1 with rome, which trains single"),
    ],
)
def test_what_it_cannot_have(fields, message, search_config):
    with pytest.raises(InvalidValueError, match=message) as caught:
        run_search(search_config("rome", **fields))
    assert "\n" not in str(caught.value)
