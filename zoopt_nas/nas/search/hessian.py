"""The dominant eigenvalue of a Hessian in alpha, by products with vectors (Lanczos)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

# Relative accuracy of an eigenvalue; L_val on another batch differs by far more.
TOLERANCE = 1e-3


def hessian_product(loss: Callable[[Tensor], Tensor], alpha: Tensor) -> Callable[[Tensor], Tensor]:
    """``v`` to ``H v``, H the Hessian of ``loss`` at ``alpha``.

    The loss is computed once; each product is a backward pass through its gradient.

    Args:
        loss: of alpha ``(dim,)``, twice differentiable.
        alpha: ``(dim,)``.
    """
    alpha = alpha.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(alpha), alpha, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        if not gradient.requires_grad:  # a linear loss
            return torch.zeros_like(vector)
        (result,) = torch.autograd.grad(
            gradient, alpha, vector, retain_graph=True, materialize_grads=True
        )
        return result

    return product


def dominant_eigenvalue(loss: Callable[[Tensor], Tensor], alpha: Tensor, *, seed: int = 0) -> float:
    """The largest eigenvalue of the Hessian of ``loss`` at ``alpha`` (Zela et al., 2020).

    Args:
        loss: of alpha ``(dim,)``, twice differentiable.
        alpha: ``(dim,)``.
        seed: of the vector that the iteration starts from.

    Returns:
        To a relative accuracy of ``TOLERANCE``; NaN where the loss has no finite second derivative.
    """
    product = hessian_product(loss, alpha)
    dim = len(alpha)

    def host_product(vector: np.ndarray) -> np.ndarray:
        result = product(torch.from_numpy(vector.ravel()).to(alpha))
        return result.detach().to("cpu", torch.float64).numpy()

    start = np.random.default_rng(seed).standard_normal(dim)
    first = host_product(start)
    if not np.isfinite(first).all():
        return float("nan")
    if not first.any():  # of a random vector: there is no curvature at all
        return 0.0
    if dim > 2:
        operator = LinearOperator((dim, dim), host_product, dtype=np.float64)
        try:
            found = eigsh(operator, 1, which="LA", v0=start, tol=TOLERANCE)[0]
            return float(found[0])
        except ArpackNoConvergence:
            pass
    matrix = np.stack([host_product(row) for row in np.eye(dim)])
    return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
