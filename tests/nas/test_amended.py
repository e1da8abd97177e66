"""Amended-DARTS against exact second derivatives in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_supernets import build, fixed_draw
from torch.nn import functional as F

from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.search.methods import darts
from zoopt_nas.nas.search.methods.amended import AMENDING, AmendedGradient, amended_gradient
from zoopt_nas.nas.settings.config import SearchConfig

SMOOTH = DartsSpace(
    "smooth",
    normal=(("none", "skip_connect", "sep_conv_3x3"),) * 2,
    reduce=(("avg_pool_3x3", "dil_conv_3x3"), ("none", "sep_conv_3x3")),
    n_nodes=1,
)


@pytest.fixture
def smooth(monkeypatch, no_kernels):
    """Without kinks a difference has an error of the square of its radius."""
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.silu(x))
    objective, alpha = build(space=SMOOTH)
    return objective, alpha, fixed_draw(objective, monkeypatch)


def exact(objective, alpha, draw):
    """The direct gradient, and M H v by differentiating twice."""
    net = copy.deepcopy(objective.supernet).train()
    alpha, weights = alpha.clone().requires_grad_(), list(net.parameters())
    (images, labels), (val_images, val_labels) = draw.train[0], draw.val[0]
    val_loss = F.cross_entropy(net(val_images, alpha), val_labels)
    direct, *v = torch.autograd.grad(val_loss, [alpha, *weights])

    def along(direction):
        loss = F.cross_entropy(net(images, alpha), labels)
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        product = sum((a * b).sum() for a, b in zip(slopes, direction, strict=True))
        return torch.autograd.grad(product, [alpha, *weights], allow_unused=True)

    curvature = [
        torch.zeros_like(weight) if part is None else part
        for weight, part in zip(weights, along(v)[1:], strict=True)
    ]
    return direct, along(curvature)[0]


def test_the_amended_term_has_the_hessian_once(smooth, monkeypatch):
    objective, alpha, draw = smooth
    direct, product = exact(objective, alpha, draw)
    # Radius 1e-4: truncation of 1e-8, rounding of 1e-16 / 1e-4, each relative to the term.
    monkeypatch.setattr(darts, "DIFFERENCE_RADIUS", 1e-4)
    term = amended_gradient(objective, alpha) - direct
    assert float(term.norm()) > 1e-3 * float(direct.norm())
    error = term + AMENDING * product
    assert float(error.norm()) < 1e-4 * float(term.norm())


def test_the_published_radius_is_near_on_a_smooth_network(smooth):
    objective, alpha, draw = smooth
    direct, product = exact(objective, alpha, draw)
    error = amended_gradient(objective, alpha) - direct + AMENDING * product
    assert float(error.norm()) < 0.05 * AMENDING * float(product.norm())


def test_a_step_is_adam_on_the_amended_gradient(smooth):
    objective, alpha, _ = smooth
    updater = AmendedGradient(SearchConfig(algo="amended_darts"), alpha)
    reference = alpha.clone().requires_grad_()
    reference.grad = amended_gradient(objective, alpha)
    torch.optim.Adam([reference], 3e-4, (0.5, 0.999), weight_decay=1e-3).step()
    updater.step(objective, 0.0)
    torch.testing.assert_close(updater.alpha, reference.detach())
