"""The result of P-DARTS has few skip connections: against a reference, and with any weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.methods.progressive import DROPPED, with_few_skips

NODES = [(0, 1), (2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12, 13)]  # edges into each node


def softmax(row: np.ndarray) -> np.ndarray:
    parts = np.exp(row - row.max())
    return parts / parts.sum()


def reference_cell(weights: np.ndarray, skip: int, n_most: int) -> dict[int, int]:
    """The edges of a cell with their candidates; ``weights`` (14, k) of ``none`` are 0."""
    weights = weights.copy()
    while True:
        cell = {}
        for node in NODES:
            strengths = {edge: weights[edge].max() for edge in node}
            for edge in sorted(strengths, key=strengths.get)[-2:]:
                cell[edge] = int(weights[edge].argmax())
        skips = {edge: weights[edge, skip] for edge, choice in cell.items() if choice == skip}
        if len(skips) <= n_most:
            return cell
        weights[min(skips, key=skips.get), skip] = 0.0


@pytest.mark.parametrize("seed", range(40))
def test_the_weakest_skip_connections_go_until_two_are_left(seed):
    space = SPACES["darts_none"]
    skip = space.normal[0].index("skip_connect")
    rng = np.random.default_rng(seed)
    alpha = np.full((28, 8), DROPPED)
    for edge in range(28):
        kept = rng.permutation(8)[:3]
        alpha[edge, kept] = rng.normal(size=3)
        # As after a collapse; some more than others.
        alpha[edge, skip] = rng.normal() + seed % 4
    found = with_few_skips(space, space.log_weights(torch.tensor(alpha.ravel())), 2)
    plain = space.discretize(torch.tensor(alpha.ravel()))
    assert found.reduce == plain.reduce
    weights = np.stack([softmax(row) for row in alpha])
    weights[:, 0] = 0.0  # none
    expected = reference_cell(weights[:14], skip, 2)
    path = space.path(found)
    assert {edge: choice for edge, choice in enumerate(path[:14]) if choice != -1} == expected
    if plain.count("skip_connect") <= 2:
        assert found == plain
    else:
        assert found.count("skip_connect") <= 2


def test_collapsed_cells_are_among_those():
    """The seeds above start from cells with up to eight skip connections."""
    space = SPACES["darts_none"]
    alpha = torch.zeros(28, 8)
    alpha[:, 3] = 1.0
    assert space.discretize(alpha.flatten()).count("skip_connect") == 8
    assert with_few_skips(space, space.log_weights(alpha.flatten()), 2).count("skip_connect") == 2


FEW = {name: SPACES[name] for name in ("s1", "s3", "darts", "nasbench201")}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    name=st.sampled_from(sorted(FEW)),
    values=st.lists(st.integers(-40, 40), min_size=224, max_size=224),
    push=st.integers(0, 60),
)
def test_never_more_than_two_where_every_edge_has_another_candidate(name, values, push):
    """Any weights, with many ties, and skip connections pushed up as in a collapse."""
    space = FEW[name]
    kind = space.kinds[0]
    names = [n for one in space.kinds for edge in space.candidates(one) for n in edge]
    alpha = torch.tensor(
        [v / 8 + push / 8 * (n == "skip_connect") for v, n in zip(values, names, strict=False)],
        dtype=torch.float64,
    )
    found = with_few_skips(space, space.log_weights(alpha), 2)
    plain = space.discretize(alpha)
    assert found.count("skip_connect") <= 2
    if plain.count("skip_connect") <= 2:
        assert found == plain
    for other in space.kinds[1:]:
        assert found.cells[other] == plain.cells[other]
    space.path(found)  # it is an architecture of the space
    # A node without skip connections stays as it was.
    nodes = {target for op, _, target in plain.cells[kind].edges if op == "skip_connect"}
    for node in {edge[1] for edge in space.edges} - nodes:
        before, after = (
            [edge for edge in one.cells[kind].edges if edge[2] == node] for one in (plain, found)
        )
        assert before == after


def test_edges_without_another_candidate_keep_their_skip_connections():
    normal = (("none", "skip_connect"),) * 9 + (("skip_connect", "sep_conv_3x3"),) * 5
    space = DartsSpace("narrow", normal, normal)
    weights = space.log_weights(torch.linspace(0.0, 1.0, 56).sin().double())
    found = with_few_skips(space, weights, 2)
    assert [name for name, _ in found.normal] == ["skip_connect"] * 6 + ["sep_conv_3x3"] * 2


def test_a_dropped_candidate_comes_back_where_nothing_else_is_left():
    """The first one other than none; an edge with it is the weakest of its node."""
    space = SPACES["darts"]
    alpha = torch.full((28, 7), DROPPED).double()
    alpha[:, 2] = 1.0  # skip_connect
    alpha[5, 6] = 0.0  # dil_conv_5x5, on the edge from node 0 to node 4
    found = with_few_skips(space, space.log_weights(alpha.flatten()), 0)
    assert found.normal == (
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)) * 2,
        *(("dil_conv_5x5", 0), ("max_pool_3x3", 1)),
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)),
    )
