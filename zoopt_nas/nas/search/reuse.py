"""Fitted weights of candidates, kept so that the supernet can take them over (``reuse_fits``).

An update of alpha fits a copy of the weights for each candidate, by M steps from the same weights
on the same batches, and Algorithm 1 throws the copies away. Where the new alpha is one of the
candidates, its fit is what M weight steps at that alpha give on those batches. Where it is a
weighted mean of them, the mean of the fits, with the same weights, is that up to terms of second
order in the distances between the candidates, as long as no ReLU switches between them. A step of
SGD with momentum is linear in weights, momentum and gradient, so the momentum is averaged like the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.meter import Meter
from zoopt_nas.solvers import SOLVERS, Solver

# The running mean of BatchNorm at its momentum of 0.1 is as exact as that of (2 - 0.1) / 0.1
# batches, and unlike that is behind the weights.
STATISTICS_BATCHES = 19


def check_reuse(config: SearchConfig, solver: Solver | None) -> None:
    """Checks that a search with ``reuse_fits`` will have fits to reuse.

    Args:
        config: of the search.
        solver: the one that moves alpha; None where its gradient does.

    Raises:
        InvalidValueError: the solver does not say which candidates its step is made of, or nothing
            is fitted.
    """
    if not config.reuse_fits:
        return
    if solver is None or not solver.weighs_candidates:
        able = ", ".join(name for name in SOLVERS if SOLVERS[name].weighs_candidates)
        raise InvalidValueError(
            f"reuse_fits needs a solver that chooses or weighs its candidates ({able}), "
            f"got {config.algo}"
        )
    if config.inner != "sgd" or config.inner_steps < 1:
        raise InvalidValueError(
            "reuse_fits needs inner = sgd and inner_steps of at least 1, "
            f"got {config.inner} and {config.inner_steps}"
        )
    if config.update_period not in (None, config.inner_steps):
        raise InvalidValueError(
            "reuse_fits needs an update_period of inner_steps, whose steps the fits stand for, "
            f"got {config.update_period} and {config.inner_steps}"
        )


class Fits(NamedTuple):
    """Where n fits have led; weights are flat, in the order of the network's parameters.

    Attributes:
        weights: ``(n, n_weights)``.
        momentum: ``(n, n_weights)``; None if the optimizer has none.
        measured: ``(n, 3)``, what the steps of each fit measured: see ``Meter.sums``.
    """

    weights: Tensor
    momentum: Tensor | None
    measured: Tensor

    @classmethod
    def of(cls, network: Supernet, optimizer: torch.optim.SGD, meter: Meter) -> Fits:
        """The fit that ``optimizer`` has just made of ``network``, as a copy: n = 1."""
        parameters = list(network.parameters())
        buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]
        momentum = None
        if any(buffer is not None for buffer in buffers):
            momentum = flat(
                torch.zeros_like(p) if buffer is None else buffer
                for p, buffer in zip(parameters, buffers, strict=True)
            )[None]
        weights = flat(p.detach() for p in parameters)[None]
        return cls(weights, momentum, meter.sums.clone()[None])

    def clone(self) -> Fits:
        """A copy."""
        momentum = None if self.momentum is None else self.momentum.clone()
        return Fits(self.weights.clone(), momentum, self.measured.clone())

    @classmethod
    def join(cls, fits: Sequence[Fits]) -> Fits:
        """All of them in one."""
        momenta = [fit.momentum for fit in fits if fit.momentum is not None]
        return cls(
            torch.cat([fit.weights for fit in fits]),
            torch.cat(momenta) if momenta else None,
            torch.cat([fit.measured for fit in fits]),
        )

    def give(self, shares: Tensor, network: Supernet, optimizer: torch.optim.SGD) -> Tensor:
        """Gives ``network`` the mean of the weights, and ``optimizer`` that of the momentum.

        BatchNorm's running statistics stay as they are: ``renew_statistics`` brings them up to
        date.

        Args:
            shares: ``(n,)``, the weight of each fit; their sum is 1. One whose share is 0 may hold
                anything.
            network: its parameters are written in place.
            optimizer: trains them.

        Returns:
            The mean of ``measured``, ``(3,)``.
        """
        parameters: list[Tensor] = list(network.parameters())
        with torch.no_grad():
            torch._foreach_copy_(parameters, _parts(_mean(self.weights, shares), parameters))
            if self.momentum is not None:
                for parameter in parameters:
                    state = optimizer.state[parameter]
                    if state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.empty_like(parameter)
                buffers = [optimizer.state[p]["momentum_buffer"] for p in parameters]
                torch._foreach_copy_(buffers, _parts(_mean(self.momentum, shares), parameters))
            return _mean(self.measured, shares)


def renew_statistics(
    network: nn.Module,
    forward: Callable[[Tensor], object],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Sets BatchNorm's running statistics to their mean over ``batches`` at the present weights.

    Args:
        network: comes out in training mode, with its other state as it was.
        forward: runs ``network`` on images.
        batches: ``(images, labels)``, each counts alike.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    network.train()
    with torch.no_grad():
        for k, (images, _) in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (k + 1)  # the first batch overwrites what was there
            forward(images)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """``(n,)``: the numbers of all tensors."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _parts(numbers: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``flat``, as views."""
    sizes = [tensor.numel() for tensor in like]
    return [part.view(t.shape) for part, t in zip(torch.split(numbers, sizes), like, strict=True)]


def _mean(rows: Tensor, shares: Tensor) -> Tensor:
    own = shares.to(rows.dtype)[:, None]
    # 0 times infinity is not 0, hence where.
    return torch.where(own > 0, own * rows, 0).sum(dim=0)
