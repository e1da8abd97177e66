"""The weight-sharing supernet: all candidate operations of a space, weighted by alpha."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.kernels.channels_last import channels_last, join_channels
from zoopt_nas.nas.networks.genotype import CELL_KINDS, N_INPUTS
from zoopt_nas.nas.networks.joined_edges import JoinedEdges, Node, Place, join_edges
from zoopt_nas.nas.networks.operations import (
    OPERATIONS,
    AfterReLU,
    FactorizedReduce,
    Pool,
    Separable,
    Stochastic,
)
from zoopt_nas.nas.networks.partial_channels import merge_parts, part_width, split_parts
from zoopt_nas.nas.networks.skeleton import (
    CellPlan,
    Preprocess,
    build_head,
    build_stem,
    drop_path,
    plan_cells,
)
from zoopt_nas.nas.networks.spaces import SearchSpace, cell_edges
from zoopt_nas.nas.networks.standalone import Zero


class NodeOutput:
    """The source node of edges, with the joined candidates on these.

    ``weights`` (n_edges, n_candidates) are the architecture weights of the cell, and ``scales`` the
    same at ``joined.scale_index``.
    """

    def __init__(self, node: Node, joined: JoinedEdges, weights: Tensor, scales: Tensor) -> None:
        self._node, self._weights = node, weights
        joins = joined.is_worthwhile(node.x)
        self._joined = joined.outputs(node, scales) if joins else {}
        self._done = joined.places if joins else set()

    def add_edge(self, total: Tensor | None, index: int, candidates: Sequence[nn.Module]) -> Tensor:
        """Return ``total`` plus the weighted candidates of edge ``index``.

        The result may overwrite ``total``. None stands for zero.
        """
        x, joined = self._node.x, self._joined.get(index)
        if joined is not None:
            total = joined if total is None else total + joined
        fused = []
        identity: Tensor | None = None
        for position, operation in enumerate(candidates):
            # ``none`` adds zeros; only its weight counts, in the softmax.
            if (index, position) in self._done or isinstance(operation, Zero):
                continue
            weight = self._weights[index, position]
            if isinstance(operation, Separable) and operation.can_fuse(x):
                fused.append((operation, weight))
            elif isinstance(operation, nn.Identity):
                identity = weight
            elif isinstance(operation, AfterReLU):
                out = self._after_relu(operation, weight)
                total = out if total is None else total + out
            else:
                out = self._node.pooled(operation) if isinstance(operation, Pool) else operation(x)
                total = _add_product(total, out, weight)
        if identity is not None and not fused:
            total = _add_product(total, x, identity)
        for separable, weight in fused:  # the kernels add ``total`` and the identity at no cost
            total = separable.fused(x, weight, total, identity)
            identity = None
        return cast(Tensor, total)

    def _after_relu(self, operation: AfterReLU, weight: Tensor) -> Tensor:
        if isinstance(operation, FactorizedReduce):
            return operation.after_halving(*self._node.diagonal, weight)
        out = operation.after_relu(self._node.relu, weight)
        # The sum may be overwritten, but an operation of another package may keep its output.
        return out if isinstance(operation, Separable) else out.clone()


def _add_product(total: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
    return x * weight if total is None else torch.addcmul(total, x, weight)


def _weighted_sum(terms: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for term, weight in zip(terms, weights, strict=True):
        total = _add_product(total, term, weight)
    return cast(Tensor, total)


class MixedOp(nn.Module):
    """The candidates of one edge; ``NodeOutput`` computes them with those of other edges."""

    def __init__(self, candidates: Sequence[nn.Module]) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(candidates)


class SearchCell(nn.Module):
    """A cell with all its edges. A node is the sum of its edges; the output joins all nodes."""

    def __init__(self, space: SearchSpace, plan: CellPlan, n_parts: int = 1) -> None:
        super().__init__()
        self.kind = plan.kind
        self._edges = cell_edges(space.n_nodes)
        self._n_nodes, self._n_parts = space.n_nodes, n_parts
        self._weighs_edges = space.edge_normalization
        self._strides = [plan.stride(node) for node in range(N_INPUTS + space.n_nodes)]
        width = part_width(plan.channels, n_parts)
        self.preprocess = Preprocess(plan, affine=False)
        # A pool has no weights, so all edges from a node share one module.
        pools: dict[tuple[int, str], nn.Module] = {}
        self.edges = nn.ModuleList()
        for (source, _), names in zip(self._edges, space.candidates(plan.kind), strict=True):
            built = [OPERATIONS[name](width, plan.stride(source), True) for name in names]
            shared = [
                pools.setdefault((source, name), op) if isinstance(op, Pool) else op
                for name, op in zip(names, built, strict=True)
            ]
            self.edges.append(MixedOp(shared))
        self._joined_edges = [
            join_edges(self._outgoing(node), (len(self._edges), max(space.sizes)))
            for node in range(N_INPUTS + space.n_nodes)
        ]
        index = [i for joined in self._joined_edges for i in joined.scale_index]
        self._scale_index: Tensor
        self.register_buffer("_scale_index", torch.tensor(index), persistent=False)

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        weights: Tensor,
        drop: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the joined nodes of the cell.

        Args:
            first: Output of the cell before the previous one.
            second: Output of the previous cell.
            weights: ``(n_edges, n_candidates)``. With edge normalization the sum of a row is the
                edge's factor, which also scales the channels that skip the operations.
            drop: Drop path, applied to the sum of each edge.
        """
        nodes: list[Tensor] = list(self.preprocess(first, second))
        # A single gather for all scales of the cell.
        table = F.pad(weights.flatten(), (0, 1))[self._scale_index]
        scales = torch.split(table, [len(joined.scale_index) for joined in self._joined_edges])
        sources: list[NodeOutput] = []
        skipping: list[Tensor] = []  # the channels of each node that skip the operations
        factors = weights.sum(dim=1).unbind() if self._weighs_edges and self._n_parts > 1 else None
        others: Tensor | None = None  # their sum
        edge = 0
        for node in range(N_INPUTS, N_INPUTS + self._n_nodes):
            for source in range(len(sources), node):
                x = nodes[source]
                if self._n_parts > 1:
                    x, aside = split_parts(x, self._n_parts, self._strides[source])
                    if factors is not None:
                        skipping.append(aside)
                    else:
                        others = aside if others is None else others + aside
                sources.append(
                    NodeOutput(Node(x), self._joined_edges[source], weights, scales[source])
                )
            if factors is not None:
                others = _weighted_sum(skipping, factors[edge : edge + node])
            total: Tensor | None = None
            for source_node in sources:
                candidates = self._candidates(edge)
                if drop is None:
                    total = source_node.add_edge(total, edge, candidates)
                else:
                    out = drop(source_node.add_edge(None, edge, candidates))
                    total = out if total is None else total + out
                edge += 1
            assert total is not None
            if others is not None:
                total = merge_parts(total, others, self._n_parts)
            nodes.append(total)
        return join_channels(nodes[N_INPUTS:])

    def _outgoing(self, node: int) -> dict[Place, nn.Module]:
        return {
            Place(index, position): operation
            for index, (source, _) in enumerate(self._edges)
            if source == node
            for position, operation in enumerate(self._candidates(index))
        }

    def _candidates(self, edge: int) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], cast(MixedOp, self.edges[edge]).candidates)


class Supernet(Stochastic):
    """The supernet of a search space. Alpha is an argument of ``forward``, never an attribute.

    Args:
        space: The search space.
        n_classes: Number of classes.
        init_channels: Width of the first cell (16 in the papers).
        n_cells: Number of cells (8 in the papers).
        in_channels: Channels of the images.
        stem: ``"cifar"`` or ``"imagenet"``.
        partial_channels: K: the operations use 1/K of the channels; see ``partial_channels.py``.

    Attributes:
        drop_path_probability: Probability in [0, 1) to drop a sample on an edge in training mode
            (Zela et al., 2020).
        stem_channels: Output channels of the stem.
        channels_last: Whether to compute in the channels-last memory format.
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
        partial_channels: int = 1,
    ) -> None:
        super().__init__()
        self.space = space
        self.channels_last = True
        self.drop_path_probability = 0.0
        plans = list(plan_cells(n_cells, init_channels, (space.n_nodes,) * 2, stem))
        self.stem = build_stem(stem, in_channels, init_channels)
        self.stem_channels = plans[0].in_channels[0]
        self.cells = nn.ModuleList(SearchCell(space, plan, partial_channels) for plan in plans)
        self.head = build_head(space.n_nodes * plans[-1].channels, n_classes)
        # Positions of alpha's entries in a table with a row per edge, padded to the longest edge.
        sizes = torch.tensor(space.sizes)
        columns = torch.arange(max(space.sizes))
        self._mask: Tensor
        self._places: Tensor
        places = [(row, column) for row, size in enumerate(space.sizes) for column in range(size)]
        self.register_buffer("_mask", columns < sizes[:, None], persistent=False)
        self.register_buffer("_places", torch.tensor(places).T, persistent=False)

    def forward(self, images: Tensor, alpha: Tensor) -> Tensor:
        """Return the logits ``(batch, n_classes)``.

        Args:
            images: Normalised images, (batch, in_channels, h, w).
            alpha: Architecture parameters ``(dim,)``, on the device of the images.

        Raises:
            InvalidValueError: Alpha has another shape.
        """
        return self.mix(images, self.edge_weights(alpha))

    def mix(self, images: Tensor, weights: Tensor) -> Tensor:
        """Return the logits for architecture weights ``(2 n_edges, max candidates)``.

        A row need not sum to 1. With edge normalization its sum is the edge's factor.
        """
        cell_weights = dict(zip(CELL_KINDS, weights.chunk(len(CELL_KINDS)), strict=True))
        if self.channels_last:  # faster depthwise convolutions and pools
            images = channels_last(images)
        first, second = self.stem(images)
        if self.channels_last:  # lost in the stem if images have one channel
            first, second = channels_last(first), channels_last(second)
        drop = None
        if self.training and self.drop_path_probability > 0:
            drop = partial(
                drop_path, probability=self.drop_path_probability, generator=self.generator
            )
        for cell in self.cells:
            kind = cast(SearchCell, cell).kind
            first, second = second, cell(first, second, cell_weights[kind], drop)
        logits: Tensor = self.head(second)
        return logits

    def edge_weights(self, alpha: Tensor) -> Tensor:
        """Return the architecture weights at alpha ``(dim,)``: ``(2 n_edges, max candidates)``.

        The normal cell comes first. Rows are padded with 0.

        Raises:
            InvalidValueError: Alpha has another shape.
        """
        weights = self.operation_weights(alpha)
        if self.space.edge_normalization:
            weights = weights * self.space.edge_factors(alpha)[:, None]
        return weights

    def operation_weights(self, alpha: Tensor) -> Tensor:
        """Return ``edge_weights`` without edge normalization: each row is a softmax."""
        self.space.check_shape(alpha)
        table = alpha.new_full(self._mask.shape, -torch.inf)
        # torch.vmap has no masked_scatter.
        table = table.index_put(tuple(self._places), alpha[: self._places.shape[1]])
        return torch.softmax(table, dim=1)
