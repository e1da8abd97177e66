"""The weight-sharing supernet: every candidate operation of a space at once, weighted by alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.genotype import CELL_KINDS, N_INPUTS
from zoopt_nas.nas.operations import OPERATIONS, Zero
from zoopt_nas.nas.skeleton import CellPlan, Head, Preprocess, build_stem, plan_cells
from zoopt_nas.nas.spaces import SearchSpace, cell_edges


class MixedOp(nn.Module):
    """One edge: the sum of its candidates, each times its architecture weight."""

    def __init__(self, names: Sequence[str], channels: int, stride: int) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(OPERATIONS[name](channels, stride, True) for name in names)
        # `none` adds zeros, so it is not computed; its weight still counts in the softmax.
        self._live = [i for i, op in enumerate(self.candidates) if not isinstance(op, Zero)]

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """``x`` (batch, channels, height, width), ``weights`` (n_candidates,) or longer."""
        first, *rest = self._live
        total: Tensor = self.candidates[first](x) * weights[first]
        for i in rest:
            total = torch.addcmul(total, self.candidates[i](x), weights[i])
        return total


class SearchCell(nn.Module):
    """A cell with all its edges; a node is the sum of its edges, the output joins all nodes."""

    def __init__(self, space: SearchSpace, plan: CellPlan) -> None:
        super().__init__()
        self.kind = plan.kind
        self._edges = cell_edges(space.n_nodes)
        self.preprocess = Preprocess(plan, affine=False)
        self.edges = nn.ModuleList(
            MixedOp(names, plan.channels, plan.stride(source))
            for (source, _), names in zip(self._edges, space.candidates(plan.kind), strict=True)
        )

    def forward(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """``weights`` (n_edges, n_candidates): row e belongs to edge e."""
        nodes: list[Tensor] = list(self.preprocess(first, second))
        for index, (source, node) in enumerate(self._edges):
            out = self.edges[index](nodes[source], weights[index])
            if node == len(nodes):
                nodes.append(out)
            else:
                nodes[node] = nodes[node] + out
        return torch.cat(nodes[N_INPUTS:], dim=1)


class Supernet(nn.Module):
    """The supernet of a search space. Alpha is an argument of ``forward``, never an attribute.

    Args:
        space: which operations compete where.
        n_classes: number of classes.
        init_channels: width of the first cell (16 in the papers).
        n_cells: number of cells (8 in the papers).
        in_channels: channels of the images.
        stem: ``"cifar"`` or ``"imagenet"``.
    """

    def __init__(
        self,
        space: SearchSpace,
        n_classes: int,
        init_channels: int = 16,
        n_cells: int = 8,
        *,
        in_channels: int = 3,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        self.space = space
        plans = list(plan_cells(n_cells, init_channels, (space.n_nodes,) * 2, stem))
        self.stem = build_stem(stem, in_channels, init_channels)
        self.cells = nn.ModuleList(SearchCell(space, plan) for plan in plans)
        self.head = Head(space.n_nodes * plans[-1].channels, n_classes)
        # Where alpha's entries go in a table with one row an edge, padded to the longest edge.
        sizes = torch.tensor(space.sizes)
        columns = torch.arange(max(space.sizes))
        self._mask: Tensor
        self.register_buffer("_mask", columns < sizes[:, None], persistent=False)

    def forward(self, images: Tensor, alpha: Tensor) -> Tensor:
        """Logits ``(batch, n_classes)`` of ``images`` (batch, in_channels, h, w).

        Args:
            images: normalised images.
            alpha: architecture parameters ``(dim,)``, on the device of the images.

        Raises:
            InvalidValueError: alpha has another shape.
        """
        weights = self._edge_weights(alpha)
        first, second = self.stem(images)
        for cell in self.cells:
            first, second = second, cell(first, second, weights[cast(SearchCell, cell).kind])
        logits: Tensor = self.head(second)
        return logits

    def _edge_weights(self, alpha: Tensor) -> dict[str, Tensor]:
        """The softmax of alpha on each edge: ``(n_edges, max candidates)`` for each cell kind."""
        if alpha.shape != (self.space.dim,):
            raise InvalidValueError(
                f"alpha must have shape ({self.space.dim},) in space {self.space.name}, "
                f"got {tuple(alpha.shape)}"
            )
        table = alpha.new_full(self._mask.shape, -torch.inf).masked_scatter(self._mask, alpha)
        halves = torch.softmax(table, dim=1).chunk(2)
        return dict(zip(CELL_KINDS, halves, strict=True))
