"""Cells measured once on the same batches: equivalent ones, checks on the way, early stops."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_supernets import NOISY, FakeStream, alpha_of, setup

from zoopt_nas.nas.networks.nasbench201 import NasBench201Space
from zoopt_nas.nas.networks.nasbench201_cell import EDGES
from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.candidates import CandidateBatches
from zoopt_nas.nas.search.evaluation import Draw, Evaluation, Measured
from zoopt_nas.nas.search.known_cells import KnownCells
from zoopt_nas.nas.search.objective import BilevelObjective

NB201 = SPACES["nasbench201"]
NONE = 0
# All ways from the input to the output of a cell, as edges.
ROUTES = [
    [EDGES.index(edge) for edge in itertools.pairwise((0, *inner, 3))]
    for inner in ((), (1,), (2,), (1, 2))
]
PATHS = st.tuples(*[st.integers(0, 4)] * 6)


# --- Equivalent cells ----------------------------------------------------------------------------


@given(PATHS)
def test_only_edges_on_a_route_without_none_keep_their_operation(path):
    live = {edge for route in ROUTES if all(path[e] != NONE for e in route) for edge in route}
    expected = tuple(op if edge in live else NONE for edge, op in enumerate(path))
    assert NB201.canonical(path) == expected


def test_without_none_every_cell_is_its_own():
    space = NasBench201Space("no_none", ("skip_connect", "nor_conv_1x1"))
    for path in itertools.product(range(2), repeat=6):
        assert space.canonical(path) == path
    assert SPACES["s3"].canonical((0, None)) == (0, None)


def test_an_operation_that_ignores_its_input_counts_behind_a_node_without_input():
    space = NasBench201Space("noisy", ("none", "nor_conv_1x1", "noise"))
    path = (0, 1, 0, 0, 2, 0)  # noise from node 1, which has no input; node 2 leads nowhere
    assert space.canonical(path) == (0, 0, 0, 0, 2, 0)


@pytest.mark.parametrize("path", [(3, 2, 3, 1, 0, 0), (0, 3, 4, 2, 3, 0), (0, 3, 4, 2, 3, 1)])
def test_the_supernet_computes_the_same_along_both(path):
    made = setup(NB201, trained=False)
    images, _ = FakeStream(5).next_batch()
    canonical = NB201.canonical(path)
    assert canonical != path
    with torch.no_grad():
        out, same = (made.net.follow(images, one) for one in (path, canonical))
    torch.testing.assert_close(out, same, rtol=1e-12, atol=1e-12)
    assert float(out.std()) > 1e-3


def objective_on(made, n_steps: int, **options) -> BilevelObjective:
    objective = made.objective(single_path=True, inner_steps=n_steps, **options)
    stream = FakeStream(3)
    batches = [stream.next_batch() for _ in range(n_steps + 2)]
    objective.hold_still(batches[:n_steps], batches[n_steps:])
    return objective


def test_equivalent_cells_are_trained_once():
    objective = objective_on(setup(NB201, trained=False), 3)
    one, other = objective.measure((3, 2, 3, 1, 0, 0)), objective.measure((0, 4, 1, 1, 0, 0))
    assert one is other
    assert objective.n_evaluations == 1
    assert list(objective.known) == [(0, 0, 0, 1, 0, 0)]


# --- Checks on the way ---------------------------------------------------------------------------


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("space", [NB201, NOISY], ids=lambda space: space.name)
def test_a_stage_is_what_a_training_of_so_many_steps_gives(space, average):
    made = setup(space, trained=False)
    objective = made.objective(single_path=True, inner_steps=8, inner_average=average)
    path = space.path(space.discretize(alpha_of(space, seed=2)))
    draw = objective.draw()
    training = objective._training
    expected = {
        n: [w.detach().clone() for w in training.fit(path, draw.train[:n], 4).parameters()]
        for n in (2, 4, 8)
    }
    seen = []
    for n, network in zip((2, 4, 8), training.stages(path, draw.train, 4, (2, 4, 8)), strict=True):
        for weight, other in zip(network.parameters(), expected[n], strict=True):
            assert weight.equal(other)
        torch.rand(3, generator=made.noise)  # a score may use the generator
        seen.append(n)
    assert seen == [2, 4, 8]


# --- Extrapolation -------------------------------------------------------------------------------


class Curves:
    """Stands for the training of cells whose loss after some steps is known."""

    def __init__(self, curves):
        self.curves, self.n_steps = curves, 0

    def stages(self, path, batches, noise_seed, ends):
        self.n_steps += len(batches)
        for n in ends:
            loss = self.curves[path](n)
            # The cross-entropy of logits (0, x) for the first class is log(1 + exp(x)).
            logits = torch.tensor([[0.0, math.log(math.expm1(loss))]], dtype=torch.float64)
            yield lambda images, path, logits=logits: logits


def cells_of(curves, *, n_steps=16, **options) -> tuple[KnownCells, Curves]:
    training = Curves(curves)
    batch = (torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    draw = Draw([batch] * n_steps, [batch], noise_seed=0)
    evaluation = Evaluation(
        training, CandidateBatches(None), torch.Generator(), score="loss", **options
    )
    return KnownCells(SPACES["s3"], partial(evaluation.measure, draw=draw)), training


def measured(cells: KnownCells, path: Path) -> Measured:
    return cells.measure([path])[0]


@given(
    start=st.floats(2.0, 3.0), slope=st.floats(0.05, 0.2), n_steps=st.sampled_from([2, 16, 1024])
)
def test_a_curve_that_is_straight_in_log_steps_is_extrapolated_exactly(start, slope, n_steps):
    def loss(n):
        return start - slope * math.log2(n)

    cells, training = cells_of({(0,): loss}, n_steps=n_steps, extrapolates=True)
    found = measured(cells, (0,))
    assert float(found.value) == pytest.approx(loss(2 * n_steps))
    assert float(found.loss) == pytest.approx(loss(n_steps))
    assert training.n_steps == n_steps


def test_a_slow_learner_may_win():
    """It is worse after all steps, and improves more in the second half of them."""
    curves = {(0,): {8: 1.0, 16: 0.9}.get, (1,): {8: 1.5, 16: 1.0}.get}
    values = {}
    for extrapolates in (False, True):
        cells, _ = cells_of(curves, extrapolates=extrapolates)
        values[extrapolates] = [float(cell.value) for cell in cells.measure(list(curves))]
    assert values == {False: pytest.approx([0.9, 1.0]), True: pytest.approx([0.8, 0.5])}


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_cell_that_diverges_has_no_finite_value(at, bad):
    cells, _ = cells_of({(0,): lambda n: bad if n >= at else 1.0}, extrapolates=True)
    assert not math.isfinite(float(measured(cells, (0,)).value))


def test_what_is_known_survives_a_checkpoint():
    curves = {(k,): {8: 3.0 + k, 16: 1.0 + k * k}.get for k in range(7)}
    cells, _ = cells_of(curves, extrapolates=True)
    cells.measure(list(curves))
    again, training = cells_of(curves, extrapolates=True)
    again.load_state_dict(cells.state_dict(), torch.device("cpu"))
    assert again.found == cells.found
    assert [float(measured(again, (k,)).value) for k in range(7)] == pytest.approx(
        [2 * (1 + k * k) - 3 - k for k in range(7)]
    )
    assert training.n_steps == 0
