"""Fits of candidates that the supernet takes over in place of weight steps."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_supernets import (
    NOISY,
    TINY,
    PlainFit,
    Setup,
    fixed_draw,
    flat_momentum,
    flat_weights,
    plain_fit,
    setup,
)
from torch import Tensor

from zoopt_nas import GLD, MGS, Solver
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.search.reuse import Fits
from zoopt_nas.nas.search.updater import ZeroOrderUpdater

GLD_SEARCH = GLD(schedule="search", max_radius=2.0, min_radius=0.5)
MGS_PAPER = MGS(sigma=0.2, temperature=0.05, n_samples=3)


def plain_fits(made: Setup, alphas: Tensor, draw: Draw) -> list[PlainFit]:
    return [plain_fit(made.net, made.optimizer, alpha, draw) for alpha in alphas]


# --- What is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [TINY, NOISY], ids=lambda space: space.name)
@pytest.mark.parametrize("trained", [True, False], ids=["momentum", "fresh"])
def test_each_fit_is_where_its_candidate_ended(space, trained):
    made = setup(space, trained=trained)
    objective = made.objective(keep_fits=True)
    draw, alphas = objective.draw(), made.alphas(3)
    objective(alphas, draw)
    fits = objective.fits
    for k, plain in enumerate(plain_fits(made, alphas, draw)):
        assert torch.equal(fits.weights[k], plain.weights)
        assert torch.equal(fits.momentum[k], plain.momentum)
        assert torch.equal(fits.measured[k], plain.meter.sums)
    assert fits.measured[:, 2].tolist() == [18.0] * 3  # 3 batches of 6 images
    assert not torch.equal(fits.weights[0], fits.weights[1])


def test_keeping_fits_changes_no_value():
    made = setup()
    objective, keeping = made.objective(), made.objective(keep_fits=True)
    draw = objective.draw()
    assert torch.equal(objective(made.alphas(), draw), keeping(made.alphas(), draw))
    assert objective.fits is None


def test_without_momentum_there_is_none_to_take():
    made = setup(momentum=0.0)
    objective = made.objective(keep_fits=True)
    objective(made.alphas(2))
    assert objective.fits.momentum is None
    objective.fits.give(torch.tensor([0.0, 1.0]), made.net, made.optimizer)
    buffers = [state.get("momentum_buffer") for state in made.optimizer.state.values()]
    assert all(buffer is None for buffer in buffers)
    assert torch.equal(flat_weights(made.net), objective.fits.weights[1])


# --- What an update makes of them ----------------------------------------------------------------


def updated(
    made: Setup, solver: Solver, monkeypatch: pytest.MonkeyPatch, failed: tuple[int, ...] = ()
) -> tuple[BilevelObjective, ZeroOrderUpdater, Draw, dict[str, Tensor]]:
    """An update of alpha, in which the candidates ``failed`` end in NaN."""
    objective = made.objective(keep_fits=True)
    draw = fixed_draw(objective, monkeypatch)
    seen: dict[str, Tensor] = {}
    evaluate = BilevelObjective.__call__

    def recording(self, alphas: Tensor, draw: Draw | None = None) -> Tensor:
        alphas = alphas.clone()
        alphas[list(failed)] = math.nan
        seen["candidates"], seen["values"] = alphas, evaluate(self, alphas, draw)
        return seen["values"]

    monkeypatch.setattr(BilevelObjective, "__call__", recording)
    updater = ZeroOrderUpdater(solver, made.alphas(1)[0], seed=1, schedule="constant")
    updater.step(objective, 0.0)
    return objective, updater, draw, seen


@pytest.mark.parametrize("trained", [True, False], ids=["momentum", "fresh"])
def test_gld_gives_the_fit_of_the_candidate_that_it_chose(trained, monkeypatch):
    made = setup(trained=trained)
    objective, updater, draw, seen = updated(made, GLD_SEARCH, monkeypatch)
    best = int(seen["values"].argmin())
    assert best > 0  # it moved
    assert torch.equal(updater.alpha, seen["candidates"][best])
    assert updater.candidate_weights.tolist() == [float(k == best) for k in range(4)]
    plain = plain_fit(made.net, made.optimizer, updater.alpha, draw)
    measured = objective.fits.give(updater.candidate_weights, made.net, made.optimizer)
    assert torch.equal(flat_weights(made.net), plain.weights)
    assert torch.equal(flat_momentum(made.net, made.optimizer), plain.momentum)
    assert torch.equal(measured, plain.meter.sums)


@pytest.mark.parametrize("schedule", ["search", "fast", "adaptive"])
def test_where_gld_stays_its_own_fit_is_taken(schedule):
    solver = GLD(schedule=schedule)
    state = solver.init(torch.ones(4, dtype=torch.float64), rng=0)
    candidates = solver.ask(state)
    assert torch.equal(candidates[0], state.x)
    solver.tell(state, candidates, torch.arange(len(candidates), dtype=torch.float64))
    assert torch.equal(state.x, torch.ones(4, dtype=torch.float64))
    assert state.weights.tolist() == [1.0] + [0.0] * (len(candidates) - 1)


def test_an_iterate_that_was_not_evaluated_has_no_fit():
    solver = GLD(schedule="search", deterministic=True)
    state = solver.init(torch.ones(4), rng=0)
    for value in (0.0, 1.0):  # x is a row of the first batch only
        candidates = solver.ask(state)
        solver.tell(state, candidates, torch.full((len(candidates),), value))
    assert state.weights.tolist() == [0.0] * len(candidates)
    solver.tell(state, solver.ask(state), torch.full((len(candidates),), -1.0))
    assert state.weights.tolist() == [1.0] + [0.0] * (len(candidates) - 1)


def test_mgs_gives_the_mean_by_its_weights(monkeypatch):
    made = setup()
    objective, updater, draw, seen = updated(made, MGS_PAPER, monkeypatch)
    c = torch.softmax(-seen["values"] / 0.05, dim=0)  # Eq. 10 without q
    assert (c > 1e-3).all()  # each counts
    torch.testing.assert_close(updater.candidate_weights, c, rtol=1e-12, atol=0)
    torch.testing.assert_close(updater.alpha, c @ seen["candidates"], rtol=1e-12, atol=1e-12)
    plain = plain_fits(made, seen["candidates"], draw)
    measured = objective.fits.give(updater.candidate_weights, made.net, made.optimizer)
    for got, rows in (
        (flat_weights(made.net), [p.weights for p in plain]),
        (flat_momentum(made.net, made.optimizer), [p.momentum for p in plain]),
        (measured, [p.meter.sums for p in plain]),
    ):
        torch.testing.assert_close(got, c @ torch.stack(rows), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("solver", [GLD_SEARCH, MGS_PAPER], ids=lambda solver: solver.name)
def test_a_failed_fit_is_never_taken(solver, monkeypatch):
    made = setup()
    objective, updater, _, _ = updated(made, solver, monkeypatch, failed=(0, 2))
    assert not torch.isfinite(objective.fits.weights[[0, 2]]).all()
    weights = updater.candidate_weights
    assert weights[[0, 2]].tolist() == [0.0, 0.0]
    assert float(weights.sum()) == pytest.approx(1.0)
    fits = objective.fits
    alive = [k for k in range(len(weights)) if k not in (0, 2)]
    measured = fits.give(weights, made.net, made.optimizer)
    expected = weights[alive] @ fits.weights[alive]
    torch.testing.assert_close(flat_weights(made.net), expected, rtol=1e-11, atol=1e-13)
    assert torch.isfinite(flat_momentum(made.net, made.optimizer)).all()
    assert torch.isfinite(measured).all()


@pytest.mark.parametrize("solver", [GLD_SEARCH, MGS_PAPER], ids=lambda solver: solver.name)
def test_where_all_failed_no_candidate_has_a_share(solver, monkeypatch):
    everything = tuple(range(4 if solver is GLD_SEARCH else 3))
    _, updater, _, _ = updated(setup(), solver, monkeypatch, failed=everything)
    assert float(updater.candidate_weights.sum()) == 0


def test_the_mean_of_fits_is_the_fit_of_the_mean_up_to_second_order():
    made = setup()
    objective = made.objective(keep_fits=True, inner_lr=1e-3)
    draw, centre = objective.draw(), made.alphas(1)[0]
    directions = made.alphas(3, seed=1)
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    gaps = []
    for distance in (2e-5, 1e-5):  # so near that no ReLU switches between them
        alphas = centre + distance * directions
        objective(torch.cat([alphas, (shares @ alphas)[None]]), draw)
        rows = objective.fits.weights
        gaps.append(float(torch.linalg.vector_norm(shares @ rows[:3] - rows[3])))
        first_order = float(torch.linalg.vector_norm(rows[0] - rows[3]))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)
    assert gaps[1] < 1e-2 * first_order


def test_joined_fits_keep_their_order():
    rows = [torch.full((1, 2), float(k)) for k in range(3)]
    fits = Fits.join([Fits(row, -row, row.repeat(1, 2)[:, :3]) for row in rows])
    assert fits.weights.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert fits.momentum[2].tolist() == [-2, -2]
    assert fits.measured.shape == (3, 3)
