"""ROME (Wang et al., ICCV 2023): sampled cells, with topology apart from operations."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.space import UNUSED, SearchSpace
from zoopt_nas.nas.search.methods.gdas import GumbelPaths, sampled_operations, straight_through
from zoopt_nas.nas.settings.config import SearchConfig


def sampled_edges(
    space: SearchSpace, beta: Tensor, noise: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sample the edges of each node by Gumbel-Top2 (Eq. 7 and 8).

    A node keeps the edges with the largest ``log softmax(beta) + noise``, which is a sample without
    replacement.

    Args:
        space: The search space.
        beta: The importance of each edge, ``(n_edges,)``.
        noise: Gumbel noise, ``(n, n_edges)``.
        temperature: tau.

    Returns:
        Which edges are kept, and the weights of kept edges: 1, with the gradient of the softmax of
        this sum over tau. Each ``(n, n_edges)``.
    """
    groups = space.groups  # in the order of the edges
    sizes = [len(group.edges) for group in groups]
    parts = zip(groups, torch.split(beta, sizes), torch.split(noise, sizes, dim=1), strict=True)
    kept, weights = [], []
    for group, part, gumbel in parts:
        logits = torch.log_softmax(part, dim=0) + gumbel
        best = logits.topk(group.n_kept, dim=1).indices
        kept.append(torch.zeros_like(logits, dtype=torch.bool).scatter(1, best, True))
        weights.append(straight_through(torch.softmax(logits / temperature, dim=1)))
    return torch.cat(kept, dim=1), torch.cat(weights, dim=1)


class GumbelCells(GumbelPaths):
    """ROME: discrete cells, whose edges and operations are sampled apart.

    It is ROME-v2. Alpha has the importance beta of each edge as well (``edge_normalization``). A
    sampled path has two edges into each node, by beta, and an operation on each of them, by the
    other entries of alpha. A weight step sums the gradients of K paths, an update of alpha averages
    those of K others (``sampled_paths``). Where a cell keeps all edges, beta has no effect.
    """

    on_every_edge = False

    @classmethod
    def check_space(cls, config: SearchConfig, space: SearchSpace) -> None:
        """Refuse an alpha without the importance of edges."""
        if not space.edge_normalization:
            raise InvalidValueError(
                f"edge_normalization must be true with {config.algo}, which samples edges by their "
                "weights, got false"
            )

    def _choose(
        self, space: SearchSpace, alpha: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        n_entries, n_edges = sum(space.sizes), len(space.sizes)
        noise = self._noise(n_entries + n_edges, alpha)
        of_operations, of_edges = torch.split(noise, [n_entries, n_edges], dim=1)
        choices, scales = sampled_operations(space, alpha[:n_entries], of_operations, temperature)
        is_kept, weights = sampled_edges(space, alpha[n_entries:], of_edges, temperature)
        return torch.where(is_kept, choices, UNUSED), scales * weights
