"""P-DARTS: its stages, what it drops, its dropout and its skip connections, against references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_supernets import TINY, OneBatch, slopes_of_weights, supernet_of

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.methods.progressive import (
    DROPPED,
    dropout_rate,
    stage_candidates,
    stage_cells,
)
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.search.updater import EpochEnd
from zoopt_nas.nas.settings.config import SearchConfig

RAGGED = DartsSpace(
    "ragged",
    normal=(("skip_connect",), ("none", "sep_conv_3x3", "skip_connect"), SPACES["darts"].normal[0])
    * 4
    + (("skip_connect", "dil_conv_3x3"),) * 2,
    reduce=(SPACES["darts_none"].reduce[0], ("avg_pool_3x3", "skip_connect")) * 7,
)
END = EpochEnd(None, False, 0.0, None, lambda: [])


def built(space: SearchSpace, epochs: int = 75, seed: int = 0, **fields):
    config = SearchConfig(dataset="cifar10", algo="p_darts", epochs=epochs, **fields)
    alpha = space.init_alpha(rng=seed).double()
    return METHODS["p_darts"].build(config, alpha, seed, space)


def go_on(updater, n_epochs: int) -> None:
    """End epochs as the loop does, with alpha as it is."""
    for _ in range(n_epochs):
        updater.end_epoch(END)
        if updater.epoch in {stage.first_epoch for stage in updater._stages}:
            updater.begin_stage()


# --- Stages --------------------------------------------------------------------------------------


def stages_of(space: str, **fields) -> list[tuple]:
    config = SearchConfig(algo="p_darts", space=space, **{"dataset": "cifar10", **fields})
    stages = METHODS["p_darts"].stages(config, SPACES[space])
    return [(s.first_epoch, s.n_epochs, s.n_cells, set(s.n_kept), s.drops_skips) for s in stages]


def test_the_stages_of_the_paper():
    assert stages_of("darts_none") == [
        (0, 25, 5, {8}, False),
        (25, 25, 11, {5}, True),
        (50, 25, 17, {3}, True),
    ]
    assert all(stage[-1] for stage in stages_of("darts_none", dataset="cifar100"))


def test_the_last_stage_in_nasbench201_has_the_cells_of_the_benchmark():
    assert stages_of("nasbench201") == [
        (0, 25, 3, {5}, False),
        (25, 25, 9, {4}, True),
        (50, 25, 15, {2}, True),
    ]


@pytest.mark.parametrize(
    ("n_cells", "multiple", "expected"),
    [
        *((1, 1, (1, 3, 5)), (2, 1, (2, 5, 8)), (3, 1, (3, 7, 11)), (5, 1, (5, 11, 17))),
        *((8, 1, (8, 18, 28)), (10, 1, (10, 22, 34)), (3, 3, (3, 9, 15)), (6, 3, (6, 15, 24))),
    ],
)
def test_stages_become_deeper(n_cells, multiple, expected):
    assert stage_cells(n_cells, multiple) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *((8, (8, 5, 3)), (7, (7, 5, 3)), (5, (5, 4, 2)), (4, (4, 3, 2)), (3, (3, 2, 2))),
        *((2, (2, 2, 2)), (1, (1, 1, 1)), (16, (16, 10, 6))),
    ],
)
def test_edges_of_any_size_lose_candidates(size, expected):
    assert stage_candidates(size) == expected


@pytest.mark.parametrize(
    ("epochs", "lengths"), [(75, [25, 25, 25]), (10, [3, 3, 4]), (5, [1, 2, 2]), (3, [1, 1, 1])]
)
def test_any_number_of_epochs_is_divided(epochs, lengths):
    stages = stages_of("s3", epochs=epochs, warmup_epochs=0)
    assert [stage[1] for stage in stages] == lengths
    assert [stage[0] for stage in stages] == [0, lengths[0], lengths[0] + lengths[1]]


# --- What is dropped -----------------------------------------------------------------------------


def softmax(row: np.ndarray) -> np.ndarray:
    parts = np.exp(row - row.max())
    return parts / parts.sum()


def without_weakest(row: np.ndarray, kept: list[int], n: int) -> list[int]:
    """Drop the candidate with the smallest probability, one after another, until n are left."""
    weights = dict(zip(kept, softmax(row[kept]), strict=True))
    while len(weights) > n:
        del weights[min(weights, key=weights.get)]
    return list(weights)


@pytest.mark.parametrize("space", [*SPACES.values(), RAGGED], ids=lambda space: space.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_weakest_candidates_of_each_edge_are_dropped(space, seed):
    updater = built(space, seed=seed)
    rng = np.random.default_rng(seed)
    splits = np.cumsum(space.sizes)[:-1]
    kept = [list(range(size)) for size in space.sizes]
    counts = {8: (5, 3), 7: (5, 3), 5: (4, 2), 3: (2, 2), 2: (2, 2), 1: (1, 1)}
    for stage in range(2):
        alpha = rng.normal(size=space.dim)
        updater.move_to(torch.tensor(alpha))
        go_on(updater, 25)
        rows = np.split(alpha, splits)
        kept = [
            without_weakest(row, choices, counts[len(row)][stage])
            for row, choices in zip(rows, kept, strict=True)
        ]
        assert updater.kept == tuple(map(tuple, kept))


def test_a_stage_begins_with_a_new_alpha_without_the_dropped_candidates():
    space = SPACES["darts_none"]
    updater = built(space)
    net = supernet_of(space, 3, 2, 1)
    seen = [updater.alpha.clone()]
    for n_kept in (5, 3):
        go_on(updater, 25)
        alpha = updater.alpha
        table = (alpha == DROPPED).view(28, 8)
        assert (table.sum(dim=1) == 8 - n_kept).all()
        left = alpha[alpha != DROPPED]
        assert 0 < left.abs().max() < 0.01  # 84 or 140 numbers with a deviation of 0.001
        assert not set(left.tolist()) & set(torch.cat(seen).tolist())
        seen.append(left)
        for exact in (alpha, alpha.float()):
            weights = net.edge_weights(exact)
            assert not weights[table].any()
            torch.testing.assert_close(weights.sum(dim=1), torch.ones(28).to(exact))
        found = space.path(space.discretize(alpha))
        assert all(choice in (-1, *updater.kept[edge]) for edge, choice in enumerate(found))


def test_alphas_of_stages_follow_from_the_seed():
    def third(seed: int) -> torch.Tensor:
        updater = built(SPACES["s2"], seed=seed)
        go_on(updater, 50)
        return updater.alpha

    assert third(0).equal(third(0))
    assert not third(0).equal(third(1))


def test_a_stage_begins_with_adam_at_rest_and_moves_only_what_is_left():
    """Two steps on a supernet of two candidates per edge, against Kingma and Ba (2015)."""
    updater = built(TINY)  # of 3, 3, 2 and 2 candidates
    torch.manual_seed(0)
    full = supernet_of(TINY, 3, 2, 3).double()
    optimizer = torch.optim.SGD(full.parameters(), lr=0.1)
    objective = BilevelObjective(full, optimizer, OneBatch(), OneBatch(), seed=0, inner="first")
    for _ in range(3):
        updater.step(objective, 0.0)
    go_on(updater, 25)
    net = supernet_of(TINY, 3, 2, 3, kept=updater.kept).double()
    objective = BilevelObjective(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        OneBatch(),
        OneBatch(),
        seed=0,
        inner="first",
    )
    places = [place for place in TINY.places if place[1] in updater.kept[place[0]]]
    assert len(places) == 8
    index = [TINY.places.index(place) for place in places]
    x = updater.alpha.numpy()[index]
    first, second, (b1, b2) = np.zeros(8), np.zeros(8), (0.5, 0.999)
    for t in (1, 2):
        rows = np.stack([softmax(row) for row in x.reshape(4, 2)])  # two of each edge
        table = np.zeros((4, 3))
        table[tuple(zip(*places, strict=True))] = rows.ravel()
        slope = slopes_of_weights(net, table)[tuple(zip(*places, strict=True))].reshape(4, 2)
        down = rows * (slope - (rows * slope).sum(axis=1, keepdims=True))
        g = down.ravel() + 1e-3 * x  # with weight decay
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
        x = x - 3e-4 * (first / (1 - b1**t)) / (np.sqrt(second / (1 - b2**t)) + 1e-8)
        updater.step(objective, 0.0)
        torch.testing.assert_close(updater.alpha[index], torch.tensor(x), rtol=1e-5, atol=1e-8)
    assert int((updater.alpha == DROPPED).sum()) == TINY.dim - 8


# --- Dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0.4, 0.7])
def test_the_rate_of_dropout_in_the_25_epochs_of_the_released_code(first):
    expected = [first * (25 - e - 1) / 25 for e in range(10)]
    expected += [first * math.exp(-0.2 * (e - 10)) for e in range(10, 25)]
    assert [dropout_rate(first, e, 25, 10) for e in range(25)] == pytest.approx(expected)


def test_the_rate_in_fewer_epochs():
    """It falls to the same fraction, exp(-3), at the end of any stage."""
    rates = [dropout_rate(0.5, e, 5, 2) for e in range(5)]
    expected = [0.5 * 4 / 5, 0.5 * 3 / 5, 0.5, 0.5 * math.exp(-1), 0.5 * math.exp(-2)]
    assert rates == pytest.approx(expected)
    assert dropout_rate(0.5, 0, 1, 0) == 0.5


def test_each_stage_has_a_rate_of_its_own():
    updater = built(SPACES["s3"], skip_dropout=(0.2, 0.4, 0.7))
    rates = []
    for _ in range(75):
        rates.append(updater.skip_dropout)
        go_on(updater, 1)
    expected = [dropout_rate(first, e, 25, 10) for first in (0.2, 0.4, 0.7) for e in range(25)]
    assert rates == pytest.approx(expected)


# --- The result -----------------------------------------------------------------------------------


def test_only_the_result_has_few_skip_connections():
    space = SPACES["s3"]
    updater = built(space, epochs=6, warmup_epochs=0)
    alpha = torch.zeros(28, 3).double()
    alpha[:, 1] = 1.0
    for _ in range(6):
        updater.move_to(alpha.flatten())
        assert updater.architecture(space).count("skip_connect") == 8
        go_on(updater, 1)
    assert updater.architecture(space).count("skip_connect") == 2
    assert updater.architecture(space).reduce == space.discretize(updater.alpha).reduce


# --- Settings ------------------------------------------------------------------------------------


def test_what_p_darts_is_defined_with():
    config = SearchConfig(algo="p_darts", dataset="cifar10")
    assert (config.epochs, config.n_cells, config.warmup_epochs) == (75, 5, 10)
    assert (config.skip_dropout, config.batch_size) == ((0.0, 0.4, 0.7), 64)
    assert SearchConfig(algo="p_darts", dataset="cifar100").skip_dropout == (0.1, 0.2, 0.3)
    assert SearchConfig(algo="darts1", dataset="cifar100").skip_dropout == (0.0, 0.0, 0.0)
    assert SearchConfig(algo="p_darts", dataset="cifar10", space="nasbench201").n_cells == 3
    digits = SearchConfig(algo="p_darts", dataset="digits")
    assert (digits.epochs, digits.n_cells, digits.warmup_epochs) == (12, 2, 1)
    assert SearchConfig(algo="p_darts", dataset="digits", space="nasbench201").n_cells == 3
    for preset in ("paper", "released"):
        own = SearchConfig.for_dataset("cifar10", "p_darts", preset=preset)
        assert (own.batch_size, own.lr, own.lr_min, own.alpha_lr) == (96, 0.025, 0.0, 6e-4)
        assert (own.epochs, own.warmup_epochs, own.drop_path, own.cutout) == (75, 10, 0.0, 0)
        assert (own.alpha_weight_decay, own.weight_decay) == (1e-3, 3e-4)
        assert (own.n_cells, own.init_channels, own.skip_dropout) == (5, 16, (0.0, 0.4, 0.7))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 2, "warmup_epochs": 0}, "epochs must be at least 3 with p_darts, .* got 2"),
        ({"epochs": 10, "warmup_epochs": 3}, r"warmup_epochs must be less than .* \(3\) .* got 3"),
        ({"relaxation": "sigmoid"}, "relaxation must be softmax with p_darts, got sigmoid"),
        ({"paths": "fair"}, "paths must be mixed with p_darts"),
        ({"space": "nasbench201", "n_cells": 2}, "n_cells must be a multiple of 3"),
    ],
)
def test_what_p_darts_refuses(fields, message, search_config):
    with pytest.raises(InvalidValueError, match=message) as caught:
        run_search(search_config("p_darts", **{"epochs": 3, "warmup_epochs": 0, **fields}))
    assert "\n" not in str(caught.value)


def test_only_p_darts_has_dropout_on_skip_connections(search_config):
    for algo in ("darts1", "gld"):
        with pytest.raises(InvalidValueError, match=f"skip_dropout must be 0, 0, 0 with {algo}"):
            run_search(search_config(algo, skip_dropout=(0.0, 0.0, 0.1)))
