"""Gradient baselines against exact and finite differences; both updaters step by step."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from zoopt_nas import SOLVERS, Solver
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas import darts
from zoopt_nas.nas.bilevel import BilevelObjective, Draw
from zoopt_nas.nas.darts import GradientUpdater, first_order_gradient, second_order_gradient
from zoopt_nas.nas.operations import seed_noise
from zoopt_nas.nas.spaces import SearchSpace
from zoopt_nas.nas.supernet import Supernet
from zoopt_nas.nas.training import weight_step
from zoopt_nas.nas.updaters import AlphaUpdater, ZeroOrderUpdater

TINY = SearchSpace(
    "tiny",
    normal=(("none", "skip_connect", "sep_conv_3x3"),) * 2,
    reduce=(("avg_pool_3x3", "dil_conv_3x3"), ("skip_connect", "sep_conv_3x3")),
    n_nodes=1,
)
NOISY = SearchSpace(
    "noisy",
    normal=(("noise", "sep_conv_3x3"),) * 2,
    reduce=(("noise", "sep_conv_3x3"),) * 2,
    n_nodes=1,
)


class FakeStream:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        images = torch.randn(8, 1, 6, 6, generator=self.generator, dtype=torch.float64)
        return images, torch.randint(3, (8,), generator=self.generator)


def build(
    inner: str = "second", *, space: SearchSpace = TINY, lr: float = 0.5, trained: bool = True
) -> tuple[BilevelObjective, Tensor]:
    """An objective on a tiny float64 supernet, with momentum in its optimizer, and an alpha."""
    torch.manual_seed(0)
    net = Supernet(space, 3, 4, 2, in_channels=1).double()
    seed_noise(net, torch.Generator().manual_seed(5))
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(1)
    alpha = torch.randn(space.dim, generator=generator, dtype=torch.float64)
    if trained:
        images, labels = FakeStream(9).next_batch()
        for _ in range(3):
            weight_step(F.cross_entropy(net(images, alpha), labels), net, sgd, 5.0)
    sgd.param_groups[0]["lr"] = lr
    return BilevelObjective(net, sgd, FakeStream(0), FakeStream(1), seed=0, inner=inner), alpha


def fixed_draw(objective: BilevelObjective, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """The draw that every later call of ``objective.draw`` gives."""
    draw = objective.draw()
    monkeypatch.setattr(objective, "draw", lambda: draw)
    return draw


def exact_gradient(objective: BilevelObjective, alpha: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Differentiates L_val(omega'(alpha), alpha) through the step; and its first term alone."""
    net, group = copy.deepcopy(objective.supernet).train(), objective._optimizer.param_groups[0]
    alpha = alpha.clone().requires_grad_()
    names, weights = zip(*net.named_parameters(), strict=True)
    (images, labels), (val_images, val_labels) = draw.train[0], draw.val[0]
    loss = F.cross_entropy(net(images, alpha), labels)
    stepped = {}
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    for name, weight, gradient, main in zip(
        names, weights, gradients, objective.supernet.parameters(), strict=True
    ):
        buffer = objective._optimizer.state.get(main, {}).get("momentum_buffer", 0.0)
        move = group["momentum"] * buffer + gradient + group["weight_decay"] * weight
        stepped[name] = weight - group["lr"] * move

    def at(values: dict[str, Tensor]) -> Tensor:
        loss = F.cross_entropy(functional_call(net, values, (val_images, alpha)), val_labels)
        return torch.autograd.grad(loss, alpha, retain_graph=True)[0]

    whole = at(stepped)
    return whole, at({name: value.detach() for name, value in stepped.items()})


def central_differences(objective: BilevelObjective, alpha: Tensor, draw: Draw) -> Tensor:
    step = 1e-5
    shifts = step * torch.eye(len(alpha), dtype=torch.float64)
    return (objective(alpha + shifts, draw) - objective(alpha - shifts, draw)) / (2 * step)


# --- Gradients -----------------------------------------------------------------------------------


def mixed_term(objective: BilevelObjective, alpha: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """The exact slopes of L_val(omega'(alpha), alpha), and what the second order adds to them."""
    slopes = central_differences(objective, alpha, draw)
    leaf = alpha.clone().requires_grad_()
    loss = objective.val_loss(objective.fit(alpha, draw), leaf, draw)
    return slopes, slopes - torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("space", [TINY, NOISY], ids=lambda space: space.name)
@pytest.mark.parametrize("trained", [True, False], ids=["momentum", "fresh"])
def test_second_order_gradient(space: SearchSpace, trained: bool, monkeypatch: pytest.MonkeyPatch):
    """Against central differences of the objective itself, L_val(omega'(alpha), alpha).

    Two finite differences meet. That in alpha has step 1e-5: truncation about 1e-10, rounding
    1e-16 / 1e-5 = 1e-11. That in the weights has error O(radius^2), about 1e-8 of the mixed term at
    radius 1e-5 (measured), as long as no rectifier passes its kink; at the published radius of 0.01
    some do, and on so few pixels they outweigh the term, hence the next two tests. The bound is
    relative to the mixed term, all of which a wrong sign, factor or learning rate would cost.
    """
    objective, alpha = build(space=space, trained=trained)
    draw = fixed_draw(objective, monkeypatch)
    slopes, term = mixed_term(objective, alpha, draw)
    assert float(term.norm()) > 0.05 * float(slopes.norm())
    monkeypatch.setattr(darts, "DIFFERENCE_RADIUS", 1e-5)
    error = second_order_gradient(objective, alpha) - slopes
    assert float(error.norm()) < 1e-4 * float(term.norm())


def test_second_order_gradient_at_the_published_radius(monkeypatch: pytest.MonkeyPatch):
    """Without kinks (a smooth function for ReLU) radius 0.01 errs by O(0.01^2): 2 % is allowed."""
    smooth = SearchSpace(
        "smooth",
        normal=(("none", "skip_connect", "sep_conv_3x3"),) * 2,
        reduce=(("avg_pool_3x3", "dil_conv_3x3"), ("none", "sep_conv_3x3")),
        n_nodes=1,
    )
    objective, alpha = build(space=smooth)
    for module in list(objective._scratch.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    draw = fixed_draw(objective, monkeypatch)
    slopes, term = mixed_term(objective, alpha, draw)
    error = second_order_gradient(objective, alpha) - slopes
    assert float(error.norm()) < 0.02 * float(term.norm())


def test_second_order_formula_at_the_published_radius(monkeypatch: pytest.MonkeyPatch):
    """Liu et al. (2019), Eq. 7 and 8, written out with separate networks, kinks and all."""
    objective, alpha = build()
    draw = fixed_draw(objective, monkeypatch)
    gradient = second_order_gradient(objective, alpha)
    (images, labels), (val_images, val_labels) = draw.train[0], draw.val[0]
    start, alpha = objective.supernet.train(), alpha.requires_grad_()

    fitted = copy.deepcopy(start)
    loss = F.cross_entropy(fitted(images, alpha), labels)
    gradients = torch.autograd.grad(loss, list(fitted.parameters()))
    with torch.no_grad():
        for weight, main, g in zip(fitted.parameters(), start.parameters(), gradients, strict=True):
            buffer = objective._optimizer.state[main]["momentum_buffer"]
            weight -= 0.5 * (0.9 * buffer + g + 1e-2 * weight)
    loss = F.cross_entropy(fitted(val_images, alpha), val_labels)
    direct, *v = torch.autograd.grad(loss, [alpha, *fitted.parameters()])
    epsilon = 0.01 / math.sqrt(sum(float((part**2).sum()) for part in v))
    sides = []
    for sign in (1, -1):
        shifted = copy.deepcopy(start)
        with torch.no_grad():
            for weight, part in zip(shifted.parameters(), v, strict=True):
                weight += sign * epsilon * part
        loss = F.cross_entropy(shifted(images, alpha), labels)
        sides.append(torch.autograd.grad(loss, alpha)[0])
    expected = direct - 0.5 * (sides[0] - sides[1]) / (2 * epsilon)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)


def test_second_order_gradient_against_differentiation_through_the_step(
    monkeypatch: pytest.MonkeyPatch,
):
    objective, alpha = build()
    draw = fixed_draw(objective, monkeypatch)
    exact, first_term = exact_gradient(objective, alpha, draw)
    torch.testing.assert_close(
        exact, central_differences(objective, alpha, draw), rtol=1e-5, atol=1e-8
    )
    monkeypatch.setattr(darts, "DIFFERENCE_RADIUS", 1e-6)
    gradient = second_order_gradient(objective, alpha)
    error = torch.linalg.vector_norm(gradient - exact)
    assert float(error) < 1e-3 * float(torch.linalg.vector_norm(exact - first_term))


def test_first_order_gradient(monkeypatch: pytest.MonkeyPatch):
    objective, alpha = build("first")
    draw = fixed_draw(objective, monkeypatch)
    gradient = first_order_gradient(objective, alpha)
    slopes = central_differences(objective, alpha, draw)
    torch.testing.assert_close(gradient, slopes, rtol=1e-5, atol=1e-8)
    assert float(gradient.abs().max()) > 1e-3


def test_second_order_becomes_first_order_as_lr_vanishes(monkeypatch: pytest.MonkeyPatch):
    distances = []
    for lr in (1e-2, 1e-4, 1e-12):
        objective, alpha = build(lr=lr)
        draw = fixed_draw(objective, monkeypatch)
        first = objective.alpha_gradient(alpha, draw)
        distance = torch.linalg.vector_norm(second_order_gradient(objective, alpha) - first)
        distances.append(float(distance))
    assert distances[0] > 1e-4
    assert distances[1] < 0.02 * distances[0]  # linear in lr
    assert distances[2] < 1e-9


@pytest.mark.parametrize("second_order", [True, False])
def test_gradients_leave_alpha_and_the_main_training_alone(second_order: bool):
    objective, alpha = build("second" if second_order else "first")
    state, before = copy.deepcopy(objective.supernet.state_dict()), alpha.clone()
    momenta = copy.deepcopy(objective._optimizer.state_dict())
    (second_order_gradient if second_order else first_order_gradient)(objective, alpha)
    for name, tensor in objective.supernet.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(p.grad is None or p.grad.shape == p.shape for p in objective.supernet.parameters())
    after = objective._optimizer.state_dict()
    for index, entry in momenta["state"].items():
        assert torch.equal(entry["momentum_buffer"], after["state"][index]["momentum_buffer"])
    assert torch.equal(alpha, before)
    assert not alpha.requires_grad


@pytest.mark.parametrize("inner", ["first", "sgd"])
def test_second_order_needs_the_one_unrolled_step(inner: str):
    objective, alpha = build(inner)
    with pytest.raises(InvalidValueError, match="second-order gradient needs inner='second'"):
        second_order_gradient(objective, alpha)


# --- Adam on alpha -------------------------------------------------------------------------------


@pytest.mark.parametrize("second_order", [True, False], ids=["second", "first"])
def test_gradient_updater_is_adam_with_weight_decay(
    second_order: bool, monkeypatch: pytest.MonkeyPatch
):
    lr, (beta1, beta2), decay = 0.01, (0.5, 0.999), 0.1
    objective, start = build("second" if second_order else "first")
    fixed_draw(objective, monkeypatch)
    updater = GradientUpdater(
        start, second_order=second_order, lr=lr, betas=(beta1, beta2), weight_decay=decay
    )
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
        made = [
            GradientUpdater(
                torch.full((TINY.dim,), value, dtype=torch.float64),
                second_order=False,
                lr=0.1,
                betas=(0.5, 0.999),
                weight_decay=1e-3,
            )
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

    def __init__(self, dim: int) -> None:
        self.target = torch.ones(dim, dtype=torch.float64)
        self.calls: list[tuple[Tensor, object]] = []
        self.n_draws = self.n_gradients = 0

    def draw(self) -> str:
        self.n_draws += 1
        return f"draw {self.n_draws}"

    def alpha_gradient(self, alpha: Tensor, draw: object) -> Tensor:
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
        for field in solver.annealed:
            assert metrics[field] == getattr(solver, field)
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
            SOLVERS["mgs"](sigma=0.2, mixing=1.0), start, seed=0, schedule="cosine"
        )
        objective = Quadratic(50)
        updater.step(objective, progress)
        widths.append(objective.calls[0][0])
    torch.testing.assert_close(widths[1], widths[0] / 2)  # the same draws at half the width


def test_an_update_on_the_bilevel_objective_is_reproducible():
    results = []
    for _ in range(2):
        objective, alpha = build("sgd", lr=0.05)
        updater = ZeroOrderUpdater(SOLVERS["mgs"](), alpha, seed=0, schedule="cosine")
        updater.step(objective, 0.0)
        results.append(updater.alpha)
        assert objective.n_evaluations == 4
        assert not torch.equal(updater.alpha, alpha)
    assert torch.equal(results[0], results[1])


class OnAnotherDevice:
    """Stands for a tensor of a checkpoint that was loaded onto a GPU: only a copy can be read."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def cpu(self) -> Tensor:
        return self._tensor


def test_zero_order_state_loads_from_a_gpu():
    updater, other = quadratic_updaters("gld")
    updater.step(Quadratic(TINY.dim), 0.0)
    state = updater.state_dict()
    arrays = {name: OnAnotherDevice(tensor) for name, tensor in state["arrays"].items()}
    other.load_state_dict(state | {"arrays": arrays})
    assert torch.equal(other.alpha, updater.alpha)
