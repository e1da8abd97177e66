"""SGAS: its decisions against the paper's criteria in NumPy, and what follows from a decision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_supernets import OneBatch, supernet_of
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.methods.sgas import decision_epoch
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.search.updater import EpochEnd
from zoopt_nas.nas.settings.config import SearchConfig

NODES = [(0, 1), (2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12, 13)]  # edges into each node


def built(algo: str, space: str, n_epochs: int = 50):
    config = SearchConfig(algo=algo, space=space, epochs=n_epochs)
    return METHODS[algo].build(config, SPACES[space].init_alpha(rng=0).double(), 0, SPACES[space])


def ended(is_last: bool = False) -> EpochEnd:
    return EpochEnd(None, is_last, 0.0, None, lambda: [])


def normalized(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)


class Reference:
    """Algorithm 1 of Li et al. (2020) for one cell, on tables of alpha ``(14, k)``."""

    def __init__(self, has_none: bool, looks_back: bool) -> None:
        self.has_none, self.looks_back = has_none, looks_back
        self.decided: dict[int, int] = {}
        self.removed: set[int] = set()
        self.frozen: dict[int, np.ndarray] = {}
        self.history: list[np.ndarray] = []

    def epoch(self, alpha: np.ndarray, epoch: int) -> None:
        rows = np.exp(alpha) / np.exp(alpha).sum(axis=1, keepdims=True)
        for edge, row in self.frozen.items():
            rows[edge] = row
        kept = rows[:, 1:] if self.has_none else rows
        importance = kept.sum(axis=1)
        shares = kept / importance[:, None]
        entropy = -(shares * np.log(shares)).sum(axis=1) / np.log(shares.shape[1])
        score = normalized(1 - entropy)
        if self.has_none:
            score = score * normalized(importance)
        if self.looks_back and self.history:
            overlap = [np.minimum(shares, earlier).sum(axis=1) for earlier in self.history]
            score = score * normalized(np.mean(overlap, axis=0))
        self.history = [*self.history, shares][-4:]
        if epoch >= 9 and (epoch - 9) % 5 == 0 and len(self.decided) < 8:
            is_open = [edge not in self.frozen for edge in range(14)]
            edge = int(np.where(is_open, score, -1).argmax())
            self.decided[edge] = int(shares[edge].argmax()) + self.has_none
            node = next(edges for edges in NODES if edge in edges)
            self.frozen[edge] = rows[edge]
            if sum(other in self.decided for other in node) == 2:
                for other in set(node) - set(self.decided):
                    self.removed.add(other)
                    self.frozen[other] = rows[other]


@pytest.mark.parametrize("space", ["s2", "s3", "darts"])
@pytest.mark.parametrize("algo", ["sgas", "sgas2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_edges_are_decided_as_in_the_paper(algo: str, space: str, seed: int):
    """50 epochs in which alpha is given."""
    updater = built(algo, space)
    k = SPACES[space].sizes[0]
    cells = [Reference(space == "s3", algo == "sgas2") for _ in range(2)]
    rng = np.random.default_rng(seed)
    alpha = np.zeros((2, 14, k))
    for epoch in range(50):
        alpha += rng.normal(size=alpha.shape) * 0.3
        updater.move_to(torch.tensor(alpha.reshape(-1)))
        updater.end_epoch(ended(epoch == 49))
        for kind, cell in enumerate(cells):
            cell.epoch(alpha[kind], epoch)
            choices = {
                edge - 14 * kind: choice
                for edge, choice in updater.choices.items()
                if edge // 14 == kind
            }
            assert {e: c for e, c in choices.items() if c != UNUSED} == cell.decided, epoch
            assert {e for e, c in choices.items() if c == UNUSED} == cell.removed, epoch
    path = SPACES[space].path(SPACES[space].discretize(updater.alpha))
    assert {e: c for e, c in enumerate(path) if c != UNUSED} == {
        14 * kind + edge: choice
        for kind, cell in enumerate(cells)
        for edge, choice in cell.decided.items()
    }


def test_when_edges_are_decided():
    assert [decision_epoch(k, 8, 50) for k in range(8)] == [9, 14, 19, 24, 29, 34, 39, 44]
    assert [decision_epoch(k, 4, 10) for k in range(4)] == [1, 3, 5, 7]


def test_a_decision_holds():
    space = SPACES["s3"]
    updater = built("sgas", "s3", n_epochs=1)  # all decisions after one epoch
    alpha = updater.alpha.clone()
    updater.end_epoch(ended(is_last=True))
    decided = updater.alpha.clone()
    assert not torch.equal(decided, alpha)
    path = space.path(space.discretize(decided))
    assert sum(choice != UNUSED for choice in path) == 16
    torch.manual_seed(0)
    net = supernet_of(space, 3, 2, 3).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    objective = BilevelObjective(net, optimizer, OneBatch(), OneBatch(), seed=0, inner="first")
    torch.testing.assert_close(
        updater.weights(net, updater.alpha), space.edge_table(space.discretize(decided)).double()
    )
    # Along the path the same network is computed.
    images, _ = OneBatch().batch
    weights = updater.weights(net, updater.alpha)
    torch.testing.assert_close(net.train().mix(images, weights), net.follow(images, path))
    assert not updater.gradient(objective).any()
    updater.step(objective, 0.0)
    assert torch.equal(updater.alpha, decided)  # despite weight decay


def test_open_edges_have_the_gradient_of_the_partly_decided_supernet():
    space = SPACES["s2"]
    updater = built("sgas", "s2", n_epochs=8)
    for _ in range(4):
        updater.end_epoch(ended())
    assert 0 < len(updater.choices) < 28
    torch.manual_seed(0)
    net = supernet_of(space, 3, 2, 3).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    objective = BilevelObjective(net, optimizer, OneBatch(), OneBatch(), seed=0, inner="first")
    got = updater.gradient(objective).view(28, 2)
    images, labels = OneBatch().batch
    reference = copy.deepcopy(net).train()
    alpha = updater.alpha.view(28, 2)
    for edge in (0, 5, 13, 20):
        sides = []
        for sign in (1, -1):
            table = torch.softmax(alpha, dim=1)
            row = alpha[edge].clone()
            row[0] += sign * 1e-7
            table[edge] = torch.softmax(row, dim=0)
            for decided, choice in updater.choices.items():
                table[decided] = 0.0
                if choice != UNUSED:
                    table[decided, choice] = 1.0
            with torch.no_grad():
                sides.append(float(F.cross_entropy(reference.mix(images, table), labels)))
        slope = (sides[0] - sides[1]) / 2e-7
        assert float(got[edge, 0]) == pytest.approx(slope, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": "nasbench201", "n_cells": 3}, "keep some of their edges with sgas, got nasben"),
        ({"edge_normalization": True}, "edge_normalization must be false with sgas"),
        ({"relaxation": "sigmoid"}, "relaxation must be softmax with sgas"),
    ],
)
def test_where_no_edge_can_be_decided(fields, message, search_config):
    with pytest.raises(InvalidValueError, match=message):
        run_search(search_config("sgas", **fields))
