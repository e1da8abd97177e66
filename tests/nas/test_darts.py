"""The gradients of the baselines against exact and finite differences."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_supernets import NOISY, TINY, build, fixed_draw
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.search.methods import darts
from zoopt_nas.nas.search.methods.darts import first_order_gradient, second_order_gradient
from zoopt_nas.nas.search.objective import BilevelObjective, Draw


def exact_gradient(objective: BilevelObjective, alpha: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Differentiates L_val(omega'(alpha), alpha) through the step; and its first term alone."""
    net, group = (
        copy.deepcopy(objective.supernet).train(),
        objective._training._optimizer.param_groups[0],
    )
    alpha = alpha.clone().requires_grad_()
    names, weights = zip(*net.named_parameters(), strict=True)
    (images, labels), (val_images, val_labels) = draw.train[0], draw.val[0]
    loss = F.cross_entropy(net(images, alpha), labels)
    stepped = {}
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    for name, weight, gradient, main in zip(
        names, weights, gradients, objective.supernet.parameters(), strict=True
    ):
        buffer = objective._training._optimizer.state.get(main, {}).get("momentum_buffer", 0.0)
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
def test_second_order_gradient(space: DartsSpace, trained: bool, monkeypatch: pytest.MonkeyPatch):
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


@pytest.mark.usefixtures("no_kernels")  # where functions can be exchanged
def test_second_order_gradient_at_the_published_radius(monkeypatch: pytest.MonkeyPatch):
    """Without kinks (a smooth function for ReLU) radius 0.01 errs by O(0.01^2): 2 % is allowed."""
    smooth = DartsSpace(
        "smooth",
        normal=(("none", "skip_connect", "sep_conv_3x3"),) * 2,
        reduce=(("avg_pool_3x3", "dil_conv_3x3"), ("none", "sep_conv_3x3")),
        n_nodes=1,
    )
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.silu(x))
    objective, alpha = build(space=smooth)
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
            buffer = objective._training._optimizer.state[main]["momentum_buffer"]
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
    momenta = copy.deepcopy(objective._training._optimizer.state_dict())
    (second_order_gradient if second_order else first_order_gradient)(objective, alpha)
    for name, tensor in objective.supernet.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(p.grad is None or p.grad.shape == p.shape for p in objective.supernet.parameters())
    after = objective._training._optimizer.state_dict()
    for index, entry in momenta["state"].items():
        assert torch.equal(entry["momentum_buffer"], after["state"][index]["momentum_buffer"])
    assert torch.equal(alpha, before)
    assert not alpha.requires_grad


@pytest.mark.parametrize("inner", ["first", "sgd"])
def test_second_order_needs_the_one_unrolled_step(inner: str):
    objective, alpha = build(inner)
    with pytest.raises(InvalidValueError, match="second-order gradient needs inner='second'"):
        second_order_gradient(objective, alpha)
