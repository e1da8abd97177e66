"""Both kinds of updates of alpha, step by step against what they should do."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_supernets import TINY, OnAnotherDevice, build, fixed_draw
from torch import Tensor

from zoopt_nas import SOLVERS, Solver
from zoopt_nas.nas.search.methods.darts import (
    FirstOrder,
    SecondOrder,
    first_order_gradient,
    second_order_gradient,
)
from zoopt_nas.nas.search.updater import AlphaUpdater
from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater
from zoopt_nas.nas.settings.config import SearchConfig

# --- Adam on alpha -------------------------------------------------------------------------------


@pytest.mark.parametrize("second_order", [True, False], ids=["second", "first"])
def test_gradient_updater_is_adam_with_weight_decay(
    second_order: bool, monkeypatch: pytest.MonkeyPatch
):
    lr, (beta1, beta2), decay = 0.01, (0.5, 0.999), 0.1
    objective, start = build("second" if second_order else "first")
    fixed_draw(objective, monkeypatch)
    config = SearchConfig(
        algo="darts1", alpha_lr=lr, alpha_betas=(beta1, beta2), alpha_weight_decay=decay
    )
    updater = (SecondOrder if second_order else FirstOrder)(config, start)
    gradient_of = second_order_gradient if second_order else first_order_gradient
    alpha, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t in range(1, 4):
        gradient = gradient_of(objective, alpha)
        metrics = updater.step(objective, 0.0)
        norm = math.sqrt(float((gradient**2).sum()))
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-9)
        g = gradient + decay * alpha
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        corrected = torch.sqrt(v / (1 - beta2**t)) + 1e-8
        alpha = alpha - lr * m / (1 - beta1**t) / corrected
        torch.testing.assert_close(updater.alpha, alpha, rtol=1e-9, atol=1e-12)
    assert not updater.alpha.requires_grad
    assert not torch.allclose(start, alpha)  # and the caller's alpha is its own


def quadratic_updaters(name: str) -> tuple[AlphaUpdater, AlphaUpdater]:
    """Two updaters of one kind at different places."""
    if name == "adam":
        config = SearchConfig(algo="darts1", alpha_lr=0.1)
        made = [
            FirstOrder(config, torch.full((TINY.dim,), value, dtype=torch.float64))
            for value in (0.1, 9.0)
        ]
        return made[0], made[1]
    zero = [
        ZeroOrderUpdater(
            SOLVERS[name](),
            torch.full((TINY.dim,), value, dtype=torch.float64),
            seed=seed,
            schedule="cosine",
        )
        for value, seed in ((0.1, 3), (9.0, 4))
    ]
    return zero[0], zero[1]


@pytest.mark.parametrize("through_a_file", [True, False], ids=["file", "memory"])
@pytest.mark.parametrize("name", ["adam", *SOLVERS])
def test_state_dict_goes_on_bit_for_bit(name: str, through_a_file: bool, tmp_path):
    updater, other = quadratic_updaters(name)
    objective = Quadratic(TINY.dim)
    for progress in (0.0, 0.25):
        updater.step(objective, progress)
    state = updater.state_dict()
    at = updater.alpha.clone()
    if through_a_file:
        torch.save(state, tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
    updater.step(objective, 0.5)
    updater.step(objective, 0.75)
    for _ in range(2):  # the state is not used up, and not changed by those who loaded it
        other.load_state_dict(state)
        assert torch.equal(other.alpha, at)
        other.step(objective, 0.5)
        other.step(objective, 0.75)
        assert torch.equal(other.alpha, updater.alpha)
    assert not torch.equal(at, updater.alpha)


# --- Zero-order updates --------------------------------------------------------------------------


class Quadratic:
    """Stands for a bilevel objective: |alpha - 1|^2, and what was asked of it."""

    single_path, known = False, None

    def __init__(self, dim: int) -> None:
        self.target = torch.ones(dim, dtype=torch.float64)
        self.calls: list[tuple[Tensor, object]] = []
        self.n_draws = self.n_gradients = 0

    def draw(self) -> str:
        self.n_draws += 1
        return f"draw {self.n_draws}"

    def alpha_gradient(self, alpha: Tensor, draw: object, weigh: object = None) -> Tensor:
        self.n_gradients += 1
        assert draw == f"draw {self.n_draws}"
        return 2 * (alpha - self.target)

    def __call__(self, alphas: Tensor, draw: object) -> Tensor:
        self.calls.append((alphas.clone(), draw))
        return ((alphas - self.target) ** 2).sum(dim=1)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_one_update_is_one_ask_and_one_tell(name: str):
    solver: Solver = SOLVERS[name]()
    start = torch.full((6,), 0.3, dtype=torch.float64)
    updater = ZeroOrderUpdater(solver, start, seed=11, schedule="constant")
    assert torch.equal(updater.alpha, start)
    objective, twin = Quadratic(6), solver.init(start, rng=11)
    for index in range(3):
        guide = -2 * (twin.x - objective.target) if solver.uses_guide else None
        candidates = solver.ask(twin, guide=guide).clone()
        metrics = updater.step(objective, 0.5)
        assert torch.equal(objective.calls[-1][0], candidates)
        assert objective.calls[-1][1] == f"draw {index + 1}"  # one draw for all of an update
        solver.tell(twin, candidates, ((candidates - objective.target) ** 2).sum(dim=1))
        assert torch.equal(updater.alpha, twin.x)
        for field in solver.annealed:  # MGS without a temperature adapts its sigma: 1 at first
            assert metrics[field] == getattr(solver, field) or getattr(solver, field) is None
            assert metrics[field] > 0
    assert objective.n_draws == 3
    assert objective.n_gradients == (3 if solver.uses_guide else 0)
    assert not torch.equal(updater.alpha, start)
    assert torch.equal(start, torch.full((6,), 0.3, dtype=torch.float64))


def test_sigma_schedule():
    mgs = SOLVERS["mgs"](sigma=0.2)
    start = torch.zeros(4, dtype=torch.float64)
    for schedule in ("cosine", "constant"):
        updater = ZeroOrderUpdater(mgs, start, seed=0, schedule=schedule)
        for progress in (0.0, 0.25, 0.5, 39 / 40):
            metrics = updater.step(Quadratic(4), progress)
            expected = 0.2 * (1 + math.cos(math.pi * progress)) / 2
            assert metrics["sigma"] == pytest.approx(expected if schedule == "cosine" else 0.2)
            assert 1 <= float(metrics["n_effective"]) <= 4 + 1e-9
    assert mgs.sigma == 0.2


def test_the_schedule_narrows_the_candidates():
    start = torch.zeros(50, dtype=torch.float64)
    widths = []
    for progress in (0.0, 0.5):
        updater = ZeroOrderUpdater(
            SOLVERS["mgs"](sigma=0.2, temperature=0.01, mixing=1.0),
            start,
            seed=0,
            schedule="cosine",
        )
        objective = Quadratic(50)
        updater.step(objective, progress)
        widths.append(objective.calls[0][0])
    torch.testing.assert_close(widths[1], widths[0] / 2)  # the same draws at half the width


def test_an_update_on_the_bilevel_objective_is_reproducible():
    results = []
    for _ in range(2):
        objective, alpha = build("sgd", lr=0.05)
        updater = ZeroOrderUpdater(
            SOLVERS["mgs"](temperature=0.01), alpha, seed=0, schedule="cosine"
        )
        updater.step(objective, 0.0)
        results.append(updater.alpha)
        assert objective.n_evaluations == 4
        assert not torch.equal(updater.alpha, alpha)
    assert torch.equal(results[0], results[1])


def test_zero_order_state_loads_from_a_gpu():
    updater, other = quadratic_updaters("gld")
    updater.step(Quadratic(TINY.dim), 0.0)
    state = updater.state_dict()
    arrays = {name: OnAnotherDevice(tensor) for name, tensor in state["arrays"].items()}
    other.load_state_dict(state | {"arrays": arrays})
    assert torch.equal(other.alpha, updater.alpha)
