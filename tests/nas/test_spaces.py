"""Spaces: their tables, how alpha is cut, and the discretisation against a plain rewrite."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_supernets import DARTS_SPACES
from torch import Tensor

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.darts_space import DartsSpace, cell_edges
from zoopt_nas.nas.networks.spaces import SPACES, space_from_json

DIMS = {"s1": 56, "s2": 56, "s3": 84, "s4": 56, "darts": 196, "darts_none": 224}
DIMS["nasbench201"] = 30

# Zela et al. (2020): n = none, k = skip, m = max pool, a = average pool, s3 = sep_conv_3x3,
# d3, d5 = dil_conv_3x3, dil_conv_5x5; columns: source > node, normal, reduce.
S1_TABLE = """
0>2 k:d3 m:a
1>2 k:d5 m:d3
0>3 k:d5 m:a
1>3 k:s3 m:a
2>3 k:d3 k:d5
0>4 m:k m:a
1>4 k:s3 m:s3
2>4 k:s3 k:d3
3>4 k:d3 k:d5
0>5 k:s3 m:a
1>5 m:k m:a
2>5 k:d3 k:d5
3>5 d3:d5 k:d5
4>5 d3:d5 k:d5
"""
LETTERS = {
    "k": "skip_connect",
    "m": "max_pool_3x3",
    "a": "avg_pool_3x3",
    "s3": "sep_conv_3x3",
    "d3": "dil_conv_3x3",
    "d5": "dil_conv_5x5",
}

# Every edge has its own candidates, `none` on some edges only and at any place.
_LISTS = (
    ("none", "skip_connect"),
    ("sep_conv_3x3",),
    ("skip_connect", "none", "sep_conv_3x3"),
    ("max_pool_3x3", "avg_pool_3x3", "noise", "none"),
    ("dil_conv_3x3", "none"),
)
RAGGED = DartsSpace(
    "ragged",
    normal=tuple(_LISTS[i % 5] for i in range(14)),
    reduce=tuple(_LISTS[(3 * i + 1) % 5] for i in range(14)),
)
ALL = [*DARTS_SPACES.values(), RAGGED]


def plain_discretize(space: DartsSpace, alpha: list[float]) -> dict[str, list[tuple[str, int]]]:
    """Liu et al. (2019), section 2.4, on lists."""
    cells: dict[str, list[tuple[str, int]]] = {}
    position = 0
    for kind, table in (("normal", space.normal), ("reduce", space.reduce)):
        cells[kind] = []
        edge = 0
        for node in range(2, 2 + space.n_nodes):
            found = []
            for source in range(node):
                names = table[edge]
                row = alpha[position : position + len(names)]
                shifted = [math.exp(a - max(row)) for a in row]
                best_name, best = "", -1.0
                for name, share in zip(names, shifted, strict=True):
                    if name != "none" and share / sum(shifted) > best:
                        best_name, best = name, share / sum(shifted)
                found.append((best, source, best_name))
                position += len(names)
                edge += 1
            kept = sorted(found, key=lambda item: (-item[0], item[1]))[:2]
            cells[kind] += [(name, source) for _, source, name in kept]
    return cells


def test_edges_are_ordered_by_node_then_source():
    assert cell_edges() == (
        *((0, 2), (1, 2)),
        *((0, 3), (1, 3), (2, 3)),
        *((0, 4), (1, 4), (2, 4), (3, 4)),
        *((0, 5), (1, 5), (2, 5), (3, 5), (4, 5)),
    )
    assert cell_edges(1) == ((0, 2), (1, 2))


def test_dimensions():
    assert {name: space.dim for name, space in SPACES.items()} == DIMS
    assert all(space.name == name for name, space in SPACES.items())


def test_s1_table():
    lines = [line.split() for line in S1_TABLE.split("\n") if line]
    assert [line[0] for line in lines] == [f"{source}>{node}" for source, node in cell_edges()]
    for kind, column in (("normal", 1), ("reduce", 2)):
        expected = [tuple(LETTERS[key] for key in line[column].split(":")) for line in lines]
        assert list(SPACES["s1"].candidates(kind)) == expected


def test_uniform_tables():
    darts = (
        "max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5"
    )
    tables = {
        "s2": "skip_connect sep_conv_3x3",
        "s3": "none skip_connect sep_conv_3x3",
        "s4": "noise sep_conv_3x3",
        "darts": darts,
        "darts_none": f"none {darts}",
    }
    for name, row in tables.items():
        expected = (tuple(row.split()),) * 14
        assert SPACES[name].normal == SPACES[name].reduce == expected


def test_init_alpha():
    space = SPACES["darts"]
    alpha = space.init_alpha(rng=0)
    assert alpha.shape == (196,)
    assert alpha.dtype == torch.float32
    assert torch.equal(alpha, space.init_alpha(rng=0))
    assert not torch.equal(alpha, space.init_alpha(rng=1))
    expected = torch.randn(196, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert torch.equal(alpha, expected)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(space.init_alpha(rng=generator, scale=2.0), 2e3 * alpha)
    assert not torch.equal(space.init_alpha(rng=generator), alpha)  # it has moved on


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
@settings(deadline=None, derandomize=True, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_flatten_inverts_unflatten(space: DartsSpace, seed: int):
    alpha = torch.randn(space.dim, generator=torch.Generator().manual_seed(seed))
    parts = space.unflatten(alpha)
    for kind in ("normal", "reduce"):
        assert [len(part) for part in parts[kind]] == [len(c) for c in space.candidates(kind)]
    assert torch.equal(space.flatten(dict(parts)), alpha)
    assert torch.equal(parts["normal"][0], alpha[: len(space.normal[0])])
    assert torch.equal(parts["reduce"][-1], alpha[-len(space.reduce[-1]) :])


def test_weights_are_softmax_rows():
    alpha = torch.randn(RAGGED.dim, generator=torch.Generator().manual_seed(0)).double()
    weights = RAGGED.weights(alpha)
    position = 0
    for kind in ("normal", "reduce"):
        for row in weights[kind]:
            exponents = [math.exp(a) for a in alpha[position : position + len(row)].tolist()]
            expected = [e / sum(exponents) for e in exponents]
            torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))
            position += len(row)
    assert position == RAGGED.dim


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_discretize_against_a_plain_rewrite(space: DartsSpace):
    generator = torch.Generator().manual_seed(1)
    seen = set()
    for scale in (1e-3, 1.0, 5.0):
        for _ in range(20):
            alpha = scale * torch.randn(space.dim, generator=generator, dtype=torch.float64)
            genotype = space.discretize(alpha)
            expected = plain_discretize(space, alpha.tolist())
            assert list(genotype.normal) == expected["normal"]
            assert list(genotype.reduce) == expected["reduce"]
            assert genotype.normal_concat == genotype.reduce_concat == (2, 3, 4, 5)
            for kind in ("normal", "reduce"):
                edges = genotype.edges(kind)
                assert all(name != "none" for name, _ in edges)
                assert all(edges[i][1] != edges[i + 1][1] for i in range(0, 8, 2))
            seen.add(genotype)
    assert len(seen) > 50  # the alphas do matter


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_ties_go_to_the_earlier_source_and_candidate(space: DartsSpace):
    genotype = space.discretize(torch.zeros(space.dim))
    expected = plain_discretize(space, [0.0] * space.dim)
    assert list(genotype.normal) == expected["normal"]
    assert list(genotype.reduce) == expected["reduce"]


def test_ties_by_hand():
    genotype = SPACES["s3"].discretize(torch.zeros(84))
    assert genotype.normal == (("skip_connect", 0), ("skip_connect", 1)) * 4


def s3_alpha(rows: dict[tuple[str, int, int], list[float]]) -> Tensor:
    """Alpha of S3, zero but for the rows of the edges ``(kind, source, node)``."""
    table = torch.zeros(2, 14, 3)
    for (kind, source, node), row in rows.items():
        table[("normal", "reduce").index(kind), cell_edges().index((source, node))] = torch.tensor(
            row
        )
    return table.flatten()


def test_none_weakens_its_edge_but_is_never_chosen():
    # Node 2 has only two edges: both stay, however strong `none` is there.
    weak = s3_alpha({("normal", 0, 2): [9.0, 0.0, 1.0], ("normal", 0, 3): [2.0, 0.0, 1.0]})
    genotype = SPACES["s3"].discretize(weak)
    assert genotype.normal[:2] == (("skip_connect", 1), ("sep_conv_3x3", 0))
    assert genotype.normal[2:4] == (("skip_connect", 1), ("skip_connect", 2))
    assert genotype.reduce == (("skip_connect", 0), ("skip_connect", 1)) * 4


def test_the_stronger_edge_comes_first():
    rows = {("reduce", 4, 5): [0.0, 0.0, 3.0], ("reduce", 1, 5): [0.0, 2.0, 0.0]}
    genotype = SPACES["s3"].discretize(s3_alpha(rows))
    assert genotype.reduce[6:] == (("sep_conv_3x3", 4), ("skip_connect", 1))


def test_weights_may_be_zero():
    """Log weights of -inf: the candidate goes, and the others keep their weights."""
    alpha = s3_alpha(
        {
            ("normal", 0, 3): [0.0, 9.0, 0.0],
            ("normal", 1, 3): [0.0, 2.0, 0.0],
            ("normal", 2, 3): [0.0, 0.0, 0.5],
        }
    )
    space = SPACES["s3"]
    weights = space.log_weights(alpha)
    assert space.choose(weights) == space.discretize(alpha)
    assert space.choose(weights).normal[2:4] == (("skip_connect", 0), ("skip_connect", 1))
    weights["normal"][2][1] = -math.inf
    # With a sum of 1 the first edge would have 1/2, more than the 0.45 of the last.
    assert space.choose(weights).normal[2:4] == (("skip_connect", 1), ("sep_conv_3x3", 2))
    for edge in range(2, 5):
        weights["normal"][edge][1:] = -math.inf  # nothing is left but none
    assert space.choose(weights).normal[2:4] == (("skip_connect", 0), ("skip_connect", 1))


def test_discretize_reads_float32_and_leaves_alpha_alone():
    alpha = SPACES["s4"].init_alpha(rng=0).requires_grad_()
    before = alpha.detach().clone()
    genotype = SPACES["s4"].discretize(alpha)
    assert genotype == SPACES["s4"].discretize(before.double())
    assert torch.equal(alpha.detach(), before)


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_discretized_network_builds_and_runs(space: DartsSpace):
    alpha = torch.randn(space.dim, generator=torch.Generator().manual_seed(2))
    network = DartsNetwork(space.discretize(alpha), 5, 4, 3, in_channels=1)
    logits = network(torch.ones(2, 1, 8, 8))
    assert logits.shape == (2, 5)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("shape", [(83,), (85,), (1, 84), (84, 1), ()])
def test_alpha_of_the_wrong_shape_is_refused(shape: tuple[int, ...]):
    for use in (SPACES["s3"].unflatten, SPACES["s3"].weights, SPACES["s3"].discretize):
        with pytest.raises(InvalidValueError, match=r"alpha must have shape \(84,\) in space s3"):
            use(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_alpha_that_is_not_finite_has_no_genotype(value: float):
    alpha = torch.zeros(84)
    alpha[7] = value
    with pytest.raises(InvalidValueError, match="alpha must be finite"):
        SPACES["s3"].discretize(alpha)


def test_a_small_space_of_ones_own():
    space = DartsSpace(
        "mine", normal=(("skip_connect",),) * 5, reduce=(("noise", "none"),) * 5, n_nodes=2
    )
    assert space.dim == 15
    genotype = space.discretize(torch.zeros(15))
    assert genotype.normal_concat == (2, 3)
    assert genotype.reduce == (("noise", 0), ("noise", 1)) * 2
    with pytest.raises(InvalidValueError, match="normal must list candidates for 5 edges, got 4"):
        DartsSpace("bad", (("noise",),) * 4, (("noise",),) * 5, n_nodes=2)
    for empty in ((), ("none",), ("none", "none")):
        with pytest.raises(InvalidValueError, match="reduce edge 1 must have a candidate"):
            DartsSpace("bad", (("noise",),) * 2, (("noise",), empty), n_nodes=1)
    with pytest.raises(UnknownNameError, match="did you mean 'noise'"):
        DartsSpace("bad", (("noises",),) * 2, (("noise",),) * 2, n_nodes=1)


def test_unknown_space_suggests_one():
    with pytest.raises(UnknownNameError, match="unknown space 's33'; did you mean 's3'"):
        SPACES["s33"]


def test_discretize_agrees_on_permuted_candidates():
    """The choice depends on the values of alpha, not on the order of the columns."""
    order = ("sep_conv_3x3", "none", "skip_connect")
    permuted = DartsSpace("permuted", (order,) * 14, (order,) * 14)
    columns = [SPACES["s3"].normal[0].index(name) for name in order]
    draws = random.Random(0)
    for _ in range(20):
        alpha = torch.tensor([draws.gauss(0, 1) for _ in range(84)], dtype=torch.float64)
        moved = alpha.view(28, 3)[:, columns].flatten()
        assert permuted.discretize(moved) == SPACES["s3"].discretize(alpha)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_comes_back_from_json(name):
    space = dataclasses.replace(SPACES[name], edge_normalization=name == "s1")
    assert space_from_json(space.to_json()) == space


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_nodes": 2}, InvalidValueError, "normal must list candidates for 5 edges, got 14"),
        ({"n_nodes": True}, InvalidValueError, "a whole n_nodes"),
        ({"name": 3}, InvalidValueError, "must have a name"),
        ({"normal": [["none"], "x"]}, InvalidValueError, "normal must list the names"),
        ({"normal": [["skip"]] * 14}, UnknownNameError, "unknown operation 'skip'"),
        ({"more": 1}, InvalidValueError, "space must have the fields type, name, normal, reduce"),
    ],
)
def test_json_that_is_no_space_is_refused(change, error, message):
    fields = json.loads(SPACES["s2"].to_json()) | change
    with pytest.raises(error, match=message):
        space_from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{"])
def test_text_that_is_no_space_is_refused(text):
    with pytest.raises(InvalidValueError, match="space"):
        space_from_json(text)
