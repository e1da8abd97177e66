"""GDAS: the distribution of its paths, and its gradient against an independent reference."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from stopping import StopAt
from tiny_supernets import OneBatch
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas import SearchConfig, resume_search, run_search
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.nasbench201_modules import NasBench201Supernet
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.methods.gdas import GumbelPaths, temperature
from zoopt_nas.nas.search.objective import BilevelObjective


def built(name: str, n_paths: int = 1):
    torch.manual_seed(0)
    space = SPACES[name]
    build = NasBench201Supernet if name == "nasbench201" else DartsSupernet
    supernet = build(space, 3, 2, 3).double()
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05)
    objective = BilevelObjective(supernet, optimizer, OneBatch(), OneBatch(), seed=0, inner="first")
    alpha = torch.randn(space.dim, generator=torch.Generator().manual_seed(1)).double()
    config = SearchConfig(algo="gdas", sampled_paths=n_paths)
    return space, supernet, objective, GumbelPaths(config, alpha, seed=3)


def test_the_temperature_falls_linearly_from_10_to_a_tenth():
    assert [temperature(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([10.0, 5.05, 0.1])


def test_operations_are_sampled_from_the_softmax_of_alpha():
    space, _, _, updater = built("nasbench201")
    n = 4000
    counts = Counter(
        token for _ in range(n) for token in enumerate(updater.training_paths(space, 0.3)[0])
    )
    for edge, part in enumerate(torch.split(updater.alpha, list(space.sizes))):
        for choice, p in enumerate(torch.softmax(part, 0).tolist()):
            # A binomial count; 30 of them, two-sided, at 1e-6 in all.
            assert abs(counts[edge, choice] - n * p) < 5.6 * math.sqrt(n * p * (1 - p))


def straight_through(space, supernet, alpha, uniform, tau):
    """The straight-through gradient, written out: dL/dh_e times the derivative of the softmax."""
    gumbel = torch.split(-uniform.log().double(), list(space.sizes))
    parts = torch.split(alpha, list(space.sizes))
    logits = [torch.log_softmax(a, 0) + g for a, g in zip(parts, gumbel, strict=True)]
    path = tuple(int(values.argmax()) for values in logits)
    images, labels = OneBatch().batch
    network = copy.deepcopy(supernet).train()

    def loss(scales):
        return F.cross_entropy(network.follow(images, path, scales), labels)

    expected = []
    for edge, (values, choice) in enumerate(zip(logits, path, strict=True)):
        step = torch.zeros(len(path), dtype=torch.float64)
        step[edge] = 1e-5
        with torch.no_grad():
            slope = (loss(1 + step) - loss(1 - step)) / 2e-5
        soft = torch.softmax(values / tau, 0)
        # d log_softmax_j / d alpha_k = (j == k) - softmax_k, and the rows of soft sum to 1,
        # so the normalization of the log-softmax drops out.
        one_hot = F.one_hot(torch.tensor(choice), len(values))
        expected.append(slope * soft[choice] * (one_hot - soft) / tau)
    return torch.cat(expected)


@pytest.mark.parametrize("name", ["nasbench201", "s3"])
@pytest.mark.parametrize(("progress", "n_paths"), [(0.0, 1), (0.9, 1), (0.9, 3)])
def test_the_gradient_flows_through_the_sampled_operations_only(name, progress, n_paths):
    space, supernet, objective, updater = built(name, n_paths)
    updater._progress = progress
    generator = torch.Generator()
    generator.set_state(updater._generator.get_state())
    gradient = updater.gradient(objective)
    uniform = torch.empty(n_paths, sum(space.sizes)).exponential_(generator=generator)
    tau = temperature(progress)
    of_paths = [straight_through(space, supernet, updater.alpha, row, tau) for row in uniform]
    torch.testing.assert_close(gradient, sum(of_paths) / n_paths, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("n_paths", [1, 4])
def test_a_weight_step_trains_new_paths(n_paths):
    space, _, _, updater = built("s3", n_paths)
    first, second = (updater.training_paths(space, 0.5) for _ in range(2))
    assert len(first) == n_paths
    assert len({*first, *second}) == 2 * n_paths


@pytest.mark.parametrize("algo", ["darts1", "random_ws", "mgs"])
def test_methods_that_sample_no_paths_refuse_their_number(algo, search_config):
    message = f"sampled_paths must be 1 with {algo}, which samples none, got 2"
    with pytest.raises(InvalidValueError, match=message):
        run_search(search_config(algo, sampled_paths=2))


@pytest.mark.parametrize("live", [(), (0,), (4, 5)])  # edges with an operation; none reaches an end
def test_a_path_that_connects_nothing_has_no_gradient(live):
    space, _, objective, updater = built("nasbench201")
    none, conv = (space.operations.index(name) for name in ("none", "nor_conv_3x3"))
    path = tuple(conv if edge in live else none for edge in range(6))
    updater.move_to(100 * space.one_hot(path, updater.alpha))  # certain, whatever the noise
    assert updater.training_paths(space, 0.5) == [path]
    gradient = updater.gradient(objective)
    assert gradient.equal(torch.zeros(space.dim, dtype=torch.float64))
    objective.single_path = True
    trained = objective.fit(path, objective.draw()._replace(train=[OneBatch().batch] * 2))
    assert all(torch.isfinite(weight).all() for weight in trained.parameters())


def test_a_step_is_adam_on_the_gradient():
    _, _, objective, updater = built("nasbench201")
    twin = copy.deepcopy(updater._generator.get_state())
    before = updater.alpha.clone()
    row = updater.step(objective, 0.25)
    assert row["temperature"] == temperature(0.25)
    after = updater.alpha.clone()

    updater._generator.set_state(twin)
    updater.move_to(before)
    reference = before.clone().requires_grad_()
    reference.grad = updater.gradient(objective)
    torch.optim.Adam([reference], 3e-4, (0.5, 0.999), weight_decay=1e-3).step()
    torch.testing.assert_close(after, reference.detach())


@pytest.mark.parametrize("space", ["nasbench201", "s3", "s4"])  # s4 draws noise
def test_a_search_resumes_bit_for_bit(space, tmp_path, without_seconds):
    sizes = {"init_channels": 2, "n_cells": 3, "n_train": 96, "batch_size": 16, "threads": 1}
    config = SearchConfig(dataset="digits", space=space, algo="gdas", epochs=2, **sizes)
    whole = run_search(config)
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=StopAt(4))
    rest = resume_search(tmp_path / "run")
    assert rest.alpha.equal(whole.alpha)
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)
    assert [row["temperature"] for row in whole.metrics] == pytest.approx([10.0, 5.05])
