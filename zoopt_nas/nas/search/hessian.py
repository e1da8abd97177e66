"""The dominant eigenvalue of a Hessian in alpha, by the Lanczos method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

TOLERANCE = 1e-3  # relative; eigenvalues on different batches differ by far more


def hessian_product(loss: Callable[[Tensor], Tensor], alpha: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the map of ``v`` to ``H v``, H being the Hessian of ``loss`` at ``alpha`` ``(dim,)``.

    The loss is computed once; each product is a backward pass through its gradient.
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
    """Return the largest eigenvalue of the Hessian of ``loss`` at ``alpha`` (Zela et al., 2020).

    It has a relative accuracy of ``TOLERANCE``, and is NaN if the Hessian is not finite. ``seed``
    determines the initial vector.
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
    if not first.any():  # H is zero, since the vector is random
        return 0.0
    if dim > 2:
        operator = LinearOperator((dim, dim), host_product, dtype=np.float64)
        with contextlib.suppress(ArpackNoConvergence):
            return float(eigsh(operator, 1, which="LA", v0=start, tol=TOLERANCE)[0][0])
    matrix = np.stack([host_product(row) for row in np.eye(dim)])
    return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
