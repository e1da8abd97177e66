"""DrNAS (Chen et al., ICLR 2021): architecture weights are samples of a Dirichlet distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.networks.relaxation import concentration
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.methods.darts import FirstOrder, first_order_gradient
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.settings.config import DIRICHLET, SearchConfig
from zoopt_nas.nas.steps.seeds import restore


class _Sample(torch.autograd.Function):
    """A sample ``(n, k)`` of Dirichlet distributions, with its pathwise derivative.

    ``torch.distributions`` has the same one, but draws from the generator of the process.
    """

    @staticmethod
    def forward(ctx: Any, beta: Tensor, generator: torch.Generator) -> Tensor:
        x = torch._sample_dirichlet(beta, generator=generator)
        ctx.save_for_backward(x, beta)
        return x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        x, beta = ctx.saved_tensors
        total = beta.sum(dim=-1, keepdim=True).expand_as(beta)
        # To first order a larger beta_k moves x towards the corner k.
        towards = slope - (x * slope).sum(dim=-1, keepdim=True)
        return torch._dirichlet_grad(x, beta, total) * towards, None


def _concentrations(supernet: Supernet, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return beta, 1 where there is no candidate, and where there is one, ``(n_edges, width)``."""
    table = supernet.alpha_table(alpha)
    is_candidate = table > -torch.inf
    return torch.where(is_candidate, concentration(table), 1.0), is_candidate


def sample_weights(supernet: Supernet, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Return operation weights ``(n_edges, width)``, a sample of Dir(elu(alpha) + 1) on each edge.

    The generator is on the device of alpha. Gradients flow to alpha.
    """
    beta, is_candidate = _concentrations(supernet, alpha)
    drawn: Tensor = _Sample.apply(beta, generator)
    # Some entries of a sample, divided by their sum, are a sample of the distribution of these.
    drawn = drawn * is_candidate
    return drawn / drawn.sum(dim=1, keepdim=True).clamp_min(torch.finfo(drawn.dtype).tiny)


def divergence(supernet: Supernet, alpha: Tensor) -> Tensor:
    """Return the sum over edges of KL(Dir(elu(alpha) + 1) || Dir(1, ..., 1)), ()."""
    beta, is_candidate = _concentrations(supernet, alpha)
    total, size = (beta * is_candidate).sum(dim=1), is_candidate.sum(dim=1).to(beta.dtype)
    of_edge = torch.lgamma(total) - torch.lgamma(size) - torch.lgamma(beta).sum(dim=1)
    slopes = torch.digamma(beta) - torch.digamma(total)[:, None]
    return (of_edge + ((beta - 1) * slopes).sum(dim=1)).sum()


class DirichletSamples(FirstOrder):
    """DrNAS: weights and alpha trained at samples of Dir(elu(alpha) + 1).

    Every weight step and every update of alpha draws new architecture weights. The gradient in
    alpha is the pathwise derivative of the sample. The weight decay of alpha keeps the distribution
    near the uniform one, as in the released code; ``alpha_penalty`` weighs a divergence from it.
    The mean of the distribution gives the architecture.
    """

    relaxations = (DIRICHLET,)
    has_penalty = True

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None:
        super().__init__(config, alpha, seed)
        self._penalty = config.alpha_penalty
        self._generator = torch.Generator(alpha.device).manual_seed(seed)

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        """Return a sample of the architecture weights."""
        with torch.no_grad():
            return self._drawn(supernet, self.alpha)

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the gradient of L_val at a sample, with the penalty's."""
        gradient = first_order_gradient(objective, self.alpha, self._drawn)
        if self._penalty:
            alpha = self.alpha.requires_grad_()
            (slope,) = torch.autograd.grad(divergence(objective.supernet, alpha), alpha)
            gradient = gradient + self._penalty * slope
        return gradient

    def _drawn(self, supernet: Supernet, alpha: Tensor) -> Tensor:
        return supernet.with_edges(sample_weights(supernet, alpha, self._generator), alpha)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method and the generator."""
        return super().state_dict() | {"samples": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        restore(self._generator, state["samples"])
