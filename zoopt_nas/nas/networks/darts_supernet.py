"""The supernet of spaces with a normal and a reduction cell (Liu et al., DARTS, 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.kernels.channels_last import join_channels
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.fused import Fused
from zoopt_nas.nas.networks.genotype import CELL_KINDS, N_INPUTS
from zoopt_nas.nas.networks.joined_edges import JoinedEdges, Node, Place, join_edges
from zoopt_nas.nas.networks.merged_kernels import (
    MergedConvolution,
    SharedKernel,
    build_candidates,
)
from zoopt_nas.nas.networks.operations import (
    AfterReLU,
    FactorizedReduce,
    OperationBuilder,
    Pool,
    Separable,
)
from zoopt_nas.nas.networks.partial_channels import merge_parts, part_width, split_parts
from zoopt_nas.nas.networks.skeleton import (
    CellPlan,
    Preprocess,
    build_head,
    build_stem,
    plan_cells,
)
from zoopt_nas.nas.networks.space import UNUSED, Kept, Path
from zoopt_nas.nas.networks.standalone import Zero
from zoopt_nas.nas.networks.supernet import Drop, Supernet


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
        fused: list[tuple[Fused, Tensor]] = []
        merged: dict[SharedKernel, list[Tensor]] = {}
        identity: Tensor | None = None
        for position, operation in enumerate(candidates):
            # ``none`` adds zeros; only its weight counts, in the softmax.
            if (index, position) in self._done or isinstance(operation, Zero):
                continue
            weight = self._weights[index, position]
            if isinstance(operation, MergedConvolution):
                merged.setdefault(operation.kernel, []).append(weight)
            elif isinstance(operation, Separable) and operation.can_fuse(x):
                fused.append((operation, weight))
            elif isinstance(operation, nn.Identity):
                identity = weight if identity is None else identity + weight
            elif isinstance(operation, AfterReLU):
                out = self._after_relu(operation, weight)
                total = out if total is None else total + out
            else:
                out = self._node.pooled(operation) if isinstance(operation, Pool) else operation(x)
                total = _add_product(total, out, weight)
        for kernel, weights in merged.items():
            if kernel.can_fuse(x):
                fused.append((kernel, torch.stack(weights)))
            else:
                out = kernel.mixture(self._node.relu, torch.stack(weights))
                total = out if total is None else total + out
        if identity is not None and not fused:
            total = _add_product(total, x, identity)
        for module, weight in fused:  # the kernels add ``total`` and the identity at no cost
            total = module.fused(x, weight, total, identity)
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
    """A cell with all its edges. A node is the sum of its edges; the output joins all nodes.

    ``builders`` build the operations of each edge, and ``table_width`` is the largest number of
    them in the cells of all kinds.
    See `DartsSupernet` for ``merge_kernels``.
    """

    def __init__(
        self,
        space: DartsSpace,
        plan: CellPlan,
        builders: Sequence[Sequence[OperationBuilder]],
        table_width: int,
        n_parts: int = 1,
        merge_kernels: bool = False,
    ) -> None:
        super().__init__()
        self.kind = plan.kind
        self._edges = space.edges
        self._n_nodes, self._n_parts = space.n_nodes, n_parts
        self._weighs_edges = space.edge_normalization
        self._strides = [plan.stride(node) for node in range(N_INPUTS + space.n_nodes)]
        width = part_width(plan.channels, n_parts)
        self.preprocess = Preprocess(plan, affine=False)
        # A pool has no weights, so all edges from a node share one module.
        pools: dict[tuple[int, OperationBuilder], nn.Module] = {}
        self.edges = nn.ModuleList()
        for (source, _), of_edge in zip(self._edges, builders, strict=True):
            built = build_candidates(of_edge, width, plan.stride(source), merge_kernels)
            shared = [
                pools.setdefault((source, build), op) if isinstance(op, Pool) else op
                for build, op in zip(of_edge, built, strict=True)
            ]
            self.edges.append(MixedOp(shared))
        self._joined_edges = [
            join_edges(self._outgoing(node), (len(self._edges), table_width))
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
        drop: Drop | None = None,
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

    def follow(
        self,
        first: Tensor,
        second: Tensor,
        path: Path,
        scales: Sequence[Tensor] | None = None,
        drop: Drop | None = None,
    ) -> Tensor:
        """Return the joined nodes along a path; the arguments are as for ``forward``.

        Raises:
            InvalidValueError: The supernet has partial channels, or a node has no edge.
        """
        if self._n_parts > 1:
            raise InvalidValueError("a path needs partial_channels 1, since cells use all channels")
        nodes: list[Tensor] = list(self.preprocess(first, second))
        for node in range(N_INPUTS, N_INPUTS + self._n_nodes):
            outputs = []
            for edge, (source, target) in enumerate(self._edges):
                if target == node and path[edge] != UNUSED:
                    out = self._candidates(edge)[path[edge]](nodes[source])
                    out = out if scales is None else out * scales[edge]
                    outputs.append(out if drop is None else drop(out))
            if not outputs:
                raise InvalidValueError(f"path must use an edge into node {node}, got {path}")
            nodes.append(sum(outputs[1:], start=outputs[0]))
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


class DartsSupernet(Supernet):
    """The supernet of a space of normal and reduction cells.

    Args:
        space: The search space.
        n_classes: Number of classes.
        init_channels: Width of the first cell (16 in the papers).
        n_cells: Number of cells (8 in the papers).
        in_channels: Channels of the images.
        stem: ``"cifar"`` or ``"imagenet"``.
        partial_channels: K: the operations use 1/K of the channels; see ``partial_channels.py``.
        auxiliary_skip, kept, drops_skips, merge_kernels: See ``Supernet``.
    """

    space: DartsSpace

    def __init__(
        self,
        space: DartsSpace,
        n_classes: int,
        init_channels: int = 16,
        n_cells: int = 8,
        *,
        in_channels: int = 3,
        stem: str = "cifar",
        partial_channels: int = 1,
        auxiliary_skip: bool = False,
        kept: Kept | None = None,
        drops_skips: bool = False,
        merge_kernels: bool = False,
    ) -> None:
        super().__init__(space, auxiliary_skip, kept, drops_skips, merge_kernels)
        plans = list(plan_cells(n_cells, init_channels, (space.n_nodes,) * 2, stem))
        self.stem = build_stem(stem, in_channels, init_channels)
        self.stem_channels = plans[0].in_channels[0]
        builders = {
            kind: [
                self._builders(k * len(space.edges) + edge, names)
                for edge, names in enumerate(space.candidates(kind))
            ]
            for k, kind in enumerate(CELL_KINDS)
        }
        form = self.table_width, partial_channels, merge_kernels
        self.cells = nn.ModuleList(
            SearchCell(space, plan, builders[plan.kind], *form) for plan in plans
        )
        self.head = build_head(space.n_nodes * plans[-1].channels, n_classes)

    def mix(self, images: Tensor, weights: Tensor) -> Tensor:
        """See ``Supernet.mix``."""
        cell_weights = dict(zip(CELL_KINDS, weights.chunk(len(CELL_KINDS)), strict=True))
        drop = self._drop()
        return self._run(
            images,
            lambda cell, first, second: cell(first, second, cell_weights[cell.kind], drop),
        )

    def follow(self, images: Tensor, path: Path, scales: Tensor | None = None) -> Tensor:
        """See ``Supernet.follow``."""
        self._check_path(path)
        n_edges = len(self.space.edges)
        parts = {"normal": slice(n_edges), "reduce": slice(n_edges, None)}
        drop, scale = self._drop(), None if scales is None else scales.unbind()

        def apply(cell: SearchCell, first: Tensor, second: Tensor) -> Tensor:
            part = parts[cell.kind]
            scaled = None if scale is None else scale[part]
            return cell.follow(first, second, path[part], scaled, drop)

        return self._run(images, apply)

    def _run(self, images: Tensor, apply: Callable[[SearchCell, Tensor, Tensor], Tensor]) -> Tensor:
        first, second = self.stem(self._in_format(images))
        # The stem loses the format if images have one channel.
        first, second = self._in_format(first), self._in_format(second)
        for cell in self.cells:
            first, second = second, apply(cast(SearchCell, cell), first, second)
        logits: Tensor = self.head(second)
        return logits
