"""How alpha becomes weights of the candidates of an edge, by name.

The weights of a row depend on its entries only. An entry of -inf stands for no candidate: its
weight is 0 and has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.errors import UnknownNameError


class Relaxation(NamedTuple):
    """The map from alpha to weights in [0, 1], and its logarithm, along the last dimension."""

    weights: Callable[[Tensor], Tensor]
    log_weights: Callable[[Tensor], Tensor]


def concentration(alpha: Tensor) -> Tensor:
    """Return the parameters elu(alpha) + 1 of a Dirichlet distribution (DrNAS)."""
    # As elu(alpha) + 1, without cancellation where it is small.
    return torch.where(alpha > 0, alpha + 1, alpha.clamp_max(0).exp())


def _log_concentration(alpha: Tensor) -> Tensor:
    """Return ``log(concentration(alpha))``, also where the concentration underflows."""
    return torch.where(alpha > 0, torch.log1p(alpha.clamp_min(0)), alpha)


def _dirichlet_mean(alpha: Tensor) -> Tensor:
    beta = concentration(alpha)
    return beta / beta.sum(dim=-1, keepdim=True)


def _log_dirichlet_mean(alpha: Tensor) -> Tensor:
    return torch.log_softmax(_log_concentration(alpha), dim=-1)


RELAXATIONS = {
    # DARTS (Liu et al., 2019): candidates compete, weights sum to 1.
    "softmax": Relaxation(
        lambda alpha: torch.softmax(alpha, dim=-1), lambda alpha: torch.log_softmax(alpha, dim=-1)
    ),
    # FairDARTS (Chu et al., 2020): each candidate has a switch of its own.
    "sigmoid": Relaxation(torch.sigmoid, F.logsigmoid),
    # DrNAS (Chen et al., 2021): the mean of a Dirichlet distribution.
    "dirichlet": Relaxation(_dirichlet_mean, _log_dirichlet_mean),
}


def check_relaxation(name: str) -> None:
    """Raise UnknownNameError unless there is such a relaxation."""
    if name not in RELAXATIONS:
        raise UnknownNameError("relaxation", str(name), RELAXATIONS)
