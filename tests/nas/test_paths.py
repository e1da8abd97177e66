"""Single-path supernets: the sampler, the weight step, and the value of a candidate."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stopping import StopAt
from tiny_supernets import OneBatch
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas import SearchConfig, resume_search, run_search
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.nasbench201_modules import NasBench201Supernet
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.paths import PathSampler, PathStep
from zoopt_nas.nas.search.streams import Replayed
from zoopt_nas.nas.steps.execution import Execution

NB201 = SPACES["nasbench201"]
ALL_SPACES = [SPACES[name] for name in ("nasbench201", "s1", "s2", "s3", "s4", "darts")]


def sampler(space, is_fair: bool, seed: int = 0) -> PathSampler:
    return PathSampler(space, is_fair=is_fair, generator=torch.Generator().manual_seed(seed))


def tiny(seed: int = 0) -> NasBench201Supernet:
    torch.manual_seed(seed)
    return NasBench201Supernet(NB201, 3, 2, 3).double()


@pytest.mark.parametrize("is_fair", [False, True])
@pytest.mark.parametrize("space", ALL_SPACES, ids=lambda space: space.name)
def test_a_path_is_a_discrete_cell(space, is_fair):
    draws = sampler(space, is_fair)
    for path in (path for _ in range(20) for path in draws.next_paths()):
        for group in space.groups:
            kept = [i for i, edge in enumerate(group.edges) if path[edge] != UNUSED]
            assert len(kept) == group.n_kept
            assert all(path[group.edges[i]] in group.choices[i] for i in kept)
        assert sum(choice != UNUSED for choice in path) == sum(g.n_kept for g in space.groups)


def test_a_fair_step_trains_each_operation_of_each_edge_once():
    draws = sampler(NB201, True)
    for _ in range(7):
        paths = draws.next_paths()
        assert len(paths) == 5
        for edge in range(6):
            assert sorted(path[edge] for path in paths) == [0, 1, 2, 3, 4]


@given(seed=st.integers(0, 2**32), name=st.sampled_from(["s1", "s3", "darts"]))
def test_no_operation_of_a_node_is_drawn_twice_before_all_are_drawn(seed, name):
    space = SPACES[name]
    draws, counts = sampler(space, True, seed), Counter()
    for _ in range(15):
        for path in draws.next_paths():
            counts.update((e, c) for e, c in enumerate(path) if c != UNUSED)
        for group in space.groups:
            tokens = [
                counts[edge, choice]
                for edge, choices in zip(group.edges, group.choices, strict=True)
                for choice in choices
            ]
            # A deck that ends with operations of one edge only leaves them for the next path.
            assert max(tokens) - min(tokens) <= 2


def test_uniform_paths_have_equal_frequencies():
    draws, n = sampler(NB201, False), 4000
    counts = Counter(token for _ in range(n) for token in enumerate(draws.next_paths()[0]))
    # Each count is binomial (n, 1/5); 30 of them, two-sided, at 1e-6 in all: 5.6 deviations.
    deviation = math.sqrt(n * 0.2 * 0.8)
    assert set(counts) == {(edge, choice) for edge in range(6) for choice in range(5)}
    assert all(abs(count - n / 5) < 5.6 * deviation for count in counts.values())


def test_uniform_paths_keep_each_pair_of_edges_equally_often():
    draws, n = sampler(SPACES["s2"], False), 3000
    last = SPACES["s2"].groups[3]  # node 5 of the normal cell: ten pairs of five edges
    pairs = Counter(
        tuple(edge for edge in last.edges if path[edge] != UNUSED)
        for path in (draws.next_paths()[0] for _ in range(n))
    )
    assert len(pairs) == 10
    deviation = math.sqrt(n * 0.1 * 0.9)
    assert all(abs(count - n / 10) < 5.4 * deviation for count in pairs.values())


@pytest.mark.parametrize("is_fair", [False, True])
def test_the_sampler_goes_on_where_it_was(is_fair):
    draws = sampler(SPACES["darts"], is_fair)
    for _ in range(3):
        draws.next_paths()
    state = copy.deepcopy(draws.state_dict())
    expected = [draws.next_paths() for _ in range(5)]
    other = sampler(SPACES["darts"], is_fair, seed=1)
    other.load_state_dict(state)
    assert [other.next_paths() for _ in range(5)] == expected


def test_a_step_takes_the_summed_gradient_of_its_paths():
    supernet, images = tiny(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    paths = sampler(NB201, True).next_paths()
    expected = copy.deepcopy(supernet)
    losses = [F.cross_entropy(expected.follow(images, path), labels) for path in paths]
    torch.stack(losses).sum().backward()
    with torch.no_grad():
        for weight in expected.parameters():
            weight -= 0.1 * (torch.zeros_like(weight) if weight.grad is None else weight.grad)

    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1)
    step = PathStep(supernet, optimizer, None, Execution(torch.device("cpu")))
    loss, logits, repeated = step(images, labels, paths)
    torch.testing.assert_close(loss, torch.stack(losses).mean().detach())
    assert logits.shape == (20, 3)
    assert repeated.tolist() == 5 * [0, 1, 2, 0]
    for weight, reference in zip(supernet.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, reference)


def test_a_step_trains_only_the_weights_of_its_path():
    supernet, images = tiny(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before = {name: weight.detach().clone() for name, weight in supernet.named_parameters()}
    step = PathStep(
        supernet,
        torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        None,
        Execution(torch.device("cpu")),
    )
    step(images, torch.tensor([0, 1, 2, 0]), [(3, 1, 1, 1, 1, 1)])  # one convolution per cell
    changed = {
        name for name, weight in supernet.named_parameters() if not weight.equal(before[name])
    }
    in_cells = {name for name in changed if name.startswith("cells.")}
    assert in_cells == {f"cells.{cell}.edges.0.3.conv.weight" for cell in range(3)}


@pytest.mark.parametrize("score", ["loss", "accuracy"])
def test_a_candidate_has_the_value_of_its_discrete_cell(score):
    supernet = tiny()
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    objective = BilevelObjective(
        supernet,
        optimizer,
        OneBatch(),
        OneBatch(),
        seed=0,
        inner_steps=2,
        single_path=True,
        score=score,
    )
    alphas = torch.randn(3, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alphas = torch.cat([alphas, alphas[:1] * 1.5])  # another alpha, the same cell
    values = objective(alphas)
    assert values[0] == values[3]
    assert objective.n_evaluations == 3

    images, labels = OneBatch().batch
    for alpha, value in zip(alphas, values, strict=True):
        net = copy.deepcopy(supernet).train()
        sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        path = NB201.path(NB201.discretize(alpha))
        for _ in range(2):
            sgd.zero_grad()
            F.cross_entropy(net.follow(images, path), labels).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            sgd.step()
        logits = net.follow(images, path).detach()
        loss = F.cross_entropy(logits, labels)
        if score == "accuracy":
            loss = ((logits.argmax(1) != labels).sum() + loss / (1 + loss)) / 6
        torch.testing.assert_close(value, loss, check_dtype=False)


def config(**settings) -> SearchConfig:
    fields = {"dataset": "digits", "space": "nasbench201", "epochs": 3, "warmup_epochs": 1}
    sizes = {
        "init_channels": 2,
        "n_train": 128,
        "batch_size": 16,
        "inner_steps": 1,
        "n_cells": 3,
        "threads": 1,
    }
    return SearchConfig(**{**fields, **sizes, "paths": "fair", **settings})


@pytest.mark.parametrize("space", ["nasbench201", "s3", "s4"])
@pytest.mark.parametrize("paths", ["uniform", "fair"])
def test_a_search_on_paths_resumes_bit_for_bit(space, paths, tmp_path, without_seconds):
    settings = config(space=space, paths=paths, algo="gld", score="accuracy")
    whole = run_search(settings)
    with pytest.raises(RunInterrupted):
        run_search(settings, run_dir=tmp_path / "run", observer=StopAt(3))
    rest = resume_search(tmp_path / "run")
    assert rest.alpha.equal(whole.alpha)
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)
    assert whole.metrics[-1]["evaluations"] > 0


def test_the_noise_of_the_validation_does_not_depend_on_what_was_evaluated_before(
    tmp_path, without_seconds
):
    """The resumed search evaluates no candidate between its start and the end of the epoch."""
    settings = config(space="s4", paths="uniform", algo="gld", update_period=4, epochs=2, n_cells=1)
    whole = run_search(settings)
    with pytest.raises(RunInterrupted):
        run_search(settings, run_dir=tmp_path / "run", observer=StopAt(7))
    rest = resume_search(tmp_path / "run")
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)
    assert whole.metrics[-1]["evaluations"] > 0


@pytest.mark.parametrize("algo", ["darts1", "darts2", "gdas", "sdarts_rs", "es"])
def test_methods_that_need_the_mixed_supernet_refuse_paths(algo):
    with pytest.raises(InvalidValueError, match=f"paths must be mixed with {algo}, which needs"):
        run_search(config(algo=algo))


def test_paths_refuse_what_they_cannot_have():
    message = "paths must be mixed with partial_channels 2, got fair"
    with pytest.raises(InvalidValueError, match=message):
        config(algo="gld", partial_channels=2)
    with pytest.raises(InvalidValueError, match="edge_normalization True, got uniform"):
        config(algo="gld", edge_normalization=True, paths="uniform")


def test_the_space_of_two_cells_shares_no_edge():
    space = SPACES["s3"]
    assert isinstance(space, DartsSpace)
    edges = [edge for group in space.groups for edge in group.edges]
    assert sorted(edges) == list(range(28))


def fresh(**settings) -> SearchConfig:
    return config(**{"weights": "fresh", "algo": "gld", "inner_steps": 2, **settings})


def test_fresh_weights_are_trained_from_the_initial_ones_with_a_decaying_rate():
    supernet = tiny()
    initial = copy.deepcopy(supernet)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    objective = BilevelObjective(
        supernet,
        optimizer,
        OneBatch(),
        OneBatch(),
        seed=0,
        inner_steps=3,
        inner_lr=0.1,
        inner_lr_end=0.02,
        single_path=True,
    )
    objective.hold_still([OneBatch().batch] * 3, [OneBatch().batch])
    alpha = torch.randn(1, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value = objective(alpha)[0]

    images, labels = OneBatch().batch
    net = copy.deepcopy(initial).train()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    path = NB201.path(NB201.discretize(alpha[0]))
    # Half a cosine from 0.1 to 0.02 in three steps.
    for lr in (0.1, 0.08, 0.04):
        sgd.param_groups[0]["lr"] = lr
        sgd.zero_grad()
        F.cross_entropy(net.follow(images, path), labels).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        sgd.step()
    torch.testing.assert_close(value, F.cross_entropy(net.follow(images, path), labels).detach())
    for weight, before in zip(supernet.parameters(), initial.parameters(), strict=True):
        assert weight.equal(before)


def test_with_fresh_weights_a_cell_is_evaluated_once_and_keeps_its_value():
    stream = CountingStream()
    supernet = tiny()
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05)
    objective = BilevelObjective(
        supernet, optimizer, stream, OneBatch(), seed=0, inner_steps=2, single_path=True
    )
    objective.hold_still(Replayed(stream, 2), [OneBatch().batch])
    alphas = torch.randn(3, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = objective(alphas), objective(alphas.flip(0))
    assert first.equal(second.flip(0))
    assert objective.n_evaluations == 3
    assert stream.n == 2 * 3  # the same two batches for each cell

    other = BilevelObjective(
        supernet, optimizer, CountingStream(), OneBatch(), seed=0, inner_steps=2, single_path=True
    )
    other.hold_still([OneBatch().batch] * 2, [OneBatch().batch])
    other.load_state_dict(objective.state_dict())
    assert other(alphas).equal(first)
    assert other.n_evaluations == 3


class CountingStream(OneBatch):
    """Counts the batches that are taken."""

    n = 0

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def next_batch(self):
        self.n += 1
        return super().next_batch()


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("gld", {}),
        ("adaptive_gld", {}),
        (
            "gld",
            {"inner_average": 0.9, "extrapolate": True, "inner_steps": 4, "augment": False},
        ),
    ],
    ids=["gld", "adaptive_gld", "stopping"],
)
def test_a_search_with_fresh_weights_resumes_bit_for_bit(algo, more, tmp_path, without_seconds):
    settings = fresh(algo=algo, epochs=4, warmup_epochs=0, update_period=2, **more)
    whole = run_search(settings)
    with pytest.raises(RunInterrupted):
        run_search(settings, run_dir=tmp_path / "run", observer=StopAt(3))
    rest = resume_search(tmp_path / "run")
    assert rest.alpha.equal(whole.alpha)
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)
    assert [row["train_loss"] for row in whole.metrics] == [None] * 4
    assert whole.metrics[-1]["updates"] == 2  # four batches an epoch, an update for every two


def test_an_epoch_with_fresh_weights_reports_the_accuracy_of_the_trained_cell():
    settings = fresh(algo="gld", epochs=1, warmup_epochs=0, inner_steps=150, lr=0.1)
    row = run_search(settings).metrics[-1]
    untrained = run_search(settings.replace(inner_lr=1e-9)).metrics[-1]
    assert row["val_loss"] < untrained["val_loss"] - 0.1


def test_fresh_weights_refuse_what_they_cannot_have():
    with pytest.raises(InvalidValueError, match="weights must be shared with darts1, which needs"):
        run_search(fresh(algo="darts1", paths="mixed"))
    with pytest.raises(InvalidValueError, match="weights must be shared with random_ws"):
        run_search(fresh(algo="random_ws"))
    with pytest.raises(InvalidValueError, match="inner must be sgd with at least 1 inner_steps"):
        fresh(inner="first")
    with pytest.raises(InvalidValueError, match="got sgd with 0"):
        fresh(inner_steps=0)


def test_fresh_weights_need_no_warm_up():
    assert fresh().warmup_epochs == 1  # as given
    searched = SearchConfig(algo="gld", weights="fresh", epochs=50)
    assert searched.warmup_epochs == 0
    assert SearchConfig(algo="gld", epochs=50).warmup_epochs == 10


def test_an_update_of_a_mixture_with_fresh_weights_evaluates_its_candidates_once():
    settings = fresh(algo="gld", paths="mixed", epochs=2, warmup_epochs=0)
    for row in run_search(settings).metrics:
        assert (row["updates"], row["evaluations"] / (row["epoch"] + 1)) == (2, 10)
