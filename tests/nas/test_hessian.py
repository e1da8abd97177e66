"""Eigenvalues by products with vectors against the full matrix."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_supernets import NOISY, TINY, setup
from torch import Tensor

from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.hessian import (
    TOLERANCE,
    dominant_eigenvalue,
    hessian_product,
)


def symmetric(dim: int, seed: int = 0) -> Tensor:
    matrix = torch.randn(
        dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return matrix + matrix.T


def full_hessian(loss, alpha: Tensor) -> Tensor:
    product = hessian_product(loss, alpha)
    return torch.stack([product(row) for row in torch.eye(len(alpha)).to(alpha)])


@pytest.mark.parametrize("dim", [1, 2, 3, 40])
def test_a_quadratic_has_the_eigenvalues_of_its_matrix(dim: int):
    matrix = symmetric(dim)
    alpha = torch.ones(dim, dtype=torch.float64)

    def loss(alpha: Tensor) -> Tensor:
        return alpha @ matrix @ alpha / 2 + alpha.sum()

    torch.testing.assert_close(full_hessian(loss, alpha), matrix)
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    assert dominant_eigenvalue(loss, alpha) == pytest.approx(largest, rel=TOLERANCE)


def test_the_largest_eigenvalue_is_meant_and_not_that_of_the_largest_size():
    def loss(alpha: Tensor) -> Tensor:
        return (torch.tensor([-9.0, 2.0, 1.0, -3.0]).double() * alpha**2).sum() / 2

    assert dominant_eigenvalue(loss, torch.zeros(4).double()) == pytest.approx(2.0, rel=1e-3)


def test_a_linear_loss_is_flat():
    assert dominant_eigenvalue(lambda alpha: alpha.sum(), torch.ones(5)) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_none(bad: float):
    assert math.isnan(dominant_eigenvalue(lambda alpha: (bad * alpha**2).sum(), torch.ones(5)))


@pytest.mark.parametrize("space", [TINY, NOISY, SPACES["s1"]], ids=lambda space: space.name)
def test_the_hessian_of_a_supernet(space):
    """Products against differences of gradients, Lanczos against the full matrix."""
    made = setup(space)
    objective = made.objective(inner="first")
    draw, alpha = objective.draw(), made.alphas(1)[0]
    network = objective.start()

    def loss(alpha: Tensor) -> Tensor:
        return objective.val_loss(network, alpha, draw)

    matrix = full_hessian(loss, alpha)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-6, atol=1e-10)
    direction = made.alphas(1, seed=1)[0]
    step = 1e-4 * direction
    ahead, behind = (objective.alpha_gradient(alpha + s * step, draw) for s in (1, -1))
    product = hessian_product(loss, alpha)(direction)
    # The error of a central difference is of the order of the step squared.
    torch.testing.assert_close(product, (ahead - behind) / 2e-4, rtol=1e-4, atol=1e-7)
    largest = float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    assert largest > 1e-4
    assert dominant_eigenvalue(loss, alpha) == pytest.approx(largest, rel=2 * TOLERANCE)
