"""Gradient methods that decide edges one by one during the search."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.space import UNUSED, SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.methods.darts import FirstOrderInSpace, first_order_gradient
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.settings.config import SearchConfig

# Alpha of a decided operation; the other entries of the edge are 0.
DECIDED = 10.0


class DecidedEdges(FirstOrderInSpace):
    """First-order DARTS in which some edges have one operation, or none.

    A decided operation has weight 1, a removed edge has weight 0, and alpha no longer moves there.
    A subclass decides in ``end_epoch``, by ``decide``.
    """

    def __init__(
        self, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> None:
        super().__init__(config, alpha, seed, space)
        self.n_epochs = config.epochs
        self.choices: dict[int, int] = {}  # of each decided edge, UNUSED if it is removed
        self.epoch = 0  # number of ended epochs
        self._hold()

    @classmethod
    def check_space(cls, config: SearchConfig, space: SearchSpace) -> None:
        """Refuse weights of edges, and edges that leave no choice."""
        if space.edge_normalization:
            raise InvalidValueError(
                f"edge_normalization must be false with {config.algo}, which decides edges, "
                "got true"
            )
        if min(space.sizes) < 2:
            raise InvalidValueError(
                f"space must have two candidates on each edge with {config.algo}, got {space.name}"
            )

    def weights(self, supernet: Supernet, alpha: Tensor) -> Tensor:
        """Return the weights of alpha on open edges, 1 for decided operations, 0 for others."""
        weights = supernet.edge_weights(alpha)
        fixed = F.pad(self._fixed, (0, weights.shape[1] - self._fixed.shape[1]))
        return torch.where(self._is_open[:, None], weights, fixed.to(weights.dtype))

    def gradient(self, objective: BilevelObjective) -> Tensor:
        """Return the first-order gradient; it is 0 on decided edges."""
        return first_order_gradient(objective, self.alpha, self.weights)

    def decide(self, choices: dict[int, int]) -> None:
        """Give edges an operation by position, or remove those that become ``UNUSED``."""
        self.choices |= choices
        self._hold()
        self._restore()

    def operations(self, edge: int) -> tuple[int, ...]:
        """Return the candidates of an edge that a cell may have, by position."""
        return next(
            group.choices[group.edges.index(edge)]
            for group in self.space.groups
            if edge in group.edges
        )

    def _hold(self) -> None:
        """Make the tensors of the decisions."""
        sizes, device = self.space.sizes, self._alpha.device
        fixed = torch.zeros(len(sizes), max(sizes))
        for edge, choice in self.choices.items():
            if choice != UNUSED:
                fixed[edge, choice] = 1.0
        is_open = torch.tensor([edge not in self.choices for edge in range(len(sizes))])
        entries = torch.tensor([edge for edge, _ in self.space.places])
        self._fixed, self._is_open = fixed.to(device), is_open.to(device)
        self._open_entries = is_open[entries].to(device)
        path = tuple(self.choices.get(edge, UNUSED) for edge in range(len(sizes)))
        self._held = DECIDED * self.space.one_hot(path, self.alpha)

    def _restore(self) -> None:
        """Set alpha on decided edges to the decision."""
        with torch.no_grad():
            self._alpha.copy_(torch.where(self._open_entries, self._alpha, self._held))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method, the decisions and the epoch."""
        return super().state_dict() | {"choices": dict(self.choices), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self.epoch = int(state["epoch"])
        self.choices = {int(edge): int(choice) for edge, choice in state["choices"].items()}
        self._hold()
