"""Supernet and network of NAS-Bench-201 (Dong and Yang, ICLR 2020).

Three stages of equal cells; a residual block before the second and the third stage halves height
and width and doubles the width. Cells have stride 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.merged_kernels import (
    MergedConvolution,
    SharedKernel,
    build_candidate,
    build_candidates,
)
from zoopt_nas.nas.networks.nasbench201 import CELL, NasBench201Genotype, NasBench201Space
from zoopt_nas.nas.networks.nasbench201_cell import EDGES
from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.networks.operations import OPERATIONS, AfterReLU, OperationBuilder, Pool
from zoopt_nas.nas.networks.partial_channels import merge_parts, part_width, split_parts
from zoopt_nas.nas.networks.skeleton import drop_path
from zoopt_nas.nas.networks.space import UNUSED, Kept, Path
from zoopt_nas.nas.networks.standalone import Zero
from zoopt_nas.nas.networks.standalone_nasbench201 import Head, ResidualBlock, Stem
from zoopt_nas.nas.networks.supernet import Drop, Supernet

N_STAGES = NasBench201Space.cell_multiple
_INCOMING = [
    list(edges) for _, edges in groupby(range(len(EDGES)), key=lambda edge: EDGES[edge][1])
]


def reduction_indices(n_cells: int) -> tuple[int, ...]:
    """Return the cells before which a residual block stands."""
    return tuple(n_cells // N_STAGES * stage for stage in range(1, N_STAGES))


def _widths(n_cells: int, init_channels: int) -> list[int]:
    """Return the width of each cell."""
    if n_cells < 1 or n_cells % N_STAGES:
        raise InvalidValueError(
            f"n_cells must be a multiple of {N_STAGES} in nasbench201, got {n_cells}"
        )
    if init_channels < 1:
        raise InvalidValueError(f"init_channels must be a positive integer, got {init_channels}")
    return [init_channels * 2 ** (i // (n_cells // N_STAGES)) for i in range(n_cells)]


def _build_blocks(widths: list[int]) -> nn.ModuleDict:
    """Return the residual blocks by the index of the cell behind them."""
    return nn.ModuleDict(
        {
            str(index): ResidualBlock(widths[index - 1], widths[index])
            for index in reduction_indices(len(widths))
        }
    )


def _build_head(in_channels: int, n_classes: int) -> nn.Module:
    if n_classes < 1:
        raise InvalidValueError(f"n_classes must be a positive integer, got {n_classes}")
    return Head(in_channels, n_classes)


def _sum(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0])


class SearchCell(nn.Module):
    """The cell with all candidates on each edge."""

    def __init__(
        self,
        space: NasBench201Space,
        channels: int,
        builders: Sequence[Sequence[OperationBuilder]],
        n_parts: int = 1,
        merge_kernels: bool = False,
    ) -> None:
        super().__init__()
        self._n_parts, self._weighs_edges = n_parts, space.edge_normalization
        width = part_width(channels, n_parts)
        self.edges = nn.ModuleList(
            nn.ModuleList(build_candidates(of_edge, width, 1, merge_kernels, _build_candidate))
            for of_edge in builders
        )

    def forward(self, x: Tensor, weights: Tensor, drop: Drop | None) -> Tensor:
        """Return node 3 for architecture weights ``(n_edges, n_candidates)``.

        With edge normalization the sum of a row is the edge's factor, which also scales the
        channels that skip the operations.
        """
        factors = weights.sum(dim=1)
        parts: list[Tensor] = []  # of each node, for the operations
        positive: list[Tensor] = []  # their ReLU, which edges share
        skipping: list[Tensor] = []  # the channels of each node that skip the operations
        node = x
        for incoming in _INCOMING:
            if self._n_parts > 1:
                part, others = split_parts(node, self._n_parts, 1)
                skipping.append(others)
            else:
                part = node
            parts.append(part)
            positive.append(F.relu(part))
            outputs = [
                self._mixed(edge, parts[source], positive[source], weights[edge])
                for source, edge in enumerate(incoming)
            ]
            node = _sum(outputs if drop is None else [drop(output) for output in outputs])
            if self._n_parts > 1:
                passed = [
                    others * factors[edge] if self._weighs_edges else others
                    for edge, others in zip(incoming, skipping, strict=True)
                ]
                node = merge_parts(node, _sum(passed), self._n_parts)
        return node

    def follow(
        self, x: Tensor, path: Path, scales: Sequence[Tensor] | None, drop: Drop | None
    ) -> Tensor:
        """Return node 3 along a path.

        Raises:
            InvalidValueError: The supernet has partial channels.
        """
        if self._n_parts > 1:
            raise InvalidValueError("a path needs partial_channels 1, since cells use all channels")
        nodes = [x]
        for incoming in _INCOMING:
            outputs = []
            for source, edge in enumerate(incoming):
                operation = self._candidates(edge)[path[edge]]
                if not isinstance(operation, Zero):
                    out = operation(nodes[source])
                    out = out if scales is None else out * scales[edge]
                    outputs.append(out if drop is None else drop(out))
            nodes.append(_sum(outputs) if outputs else torch.zeros_like(x))
        return nodes[-1]

    def _mixed(self, edge: int, x: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted candidates of an edge from a node ``x`` with ReLU ``positive``."""
        total: Tensor | None = None
        merged: dict[SharedKernel, list[Tensor]] = {}
        for operation, weight in zip(self._candidates(edge), weights, strict=True):
            if isinstance(operation, Zero):  # only its weight counts, in the softmax
                continue
            if isinstance(operation, MergedConvolution):
                merged.setdefault(operation.kernel, []).append(weight)
                continue
            if isinstance(operation, AfterReLU):
                term = operation.after_relu(positive, weight)
            else:
                term = operation(x) * weight
            total = term if total is None else total + term
        for kernel, of_kernel in merged.items():
            term = kernel.mixture(positive, torch.stack(of_kernel))
            total = term if total is None else total + term
        return torch.zeros_like(x) if total is None else total

    def _candidates(self, edge: int) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self.edges[edge])


def _build_candidate(builder: OperationBuilder, channels: int, stride: int) -> nn.Module:
    """Return a candidate of the supernet; the pools of this space have no BatchNorm."""
    operation = build_candidate(builder, channels, stride)
    return builder(channels, stride, False) if isinstance(operation, Pool) else operation


class NasBench201Supernet(Supernet):
    """The supernet of NAS-Bench-201.

    Args:
        space: The search space.
        n_classes: Number of classes.
        init_channels: Width of the first stage (16 in the paper).
        n_cells: Number of cells, a multiple of 3 (15 in the paper).
        in_channels: Channels of the images.
        partial_channels: K: the operations use 1/K of the channels; see ``partial_channels.py``.
        auxiliary_skip, kept, drops_skips, merge_kernels: See ``Supernet``.

    Raises:
        InvalidValueError: A number is out of range.
    """

    space: NasBench201Space

    def __init__(
        self,
        space: NasBench201Space,
        n_classes: int,
        init_channels: int = 16,
        n_cells: int = 15,
        *,
        in_channels: int = 3,
        partial_channels: int = 1,
        auxiliary_skip: bool = False,
        kept: Kept | None = None,
        drops_skips: bool = False,
        merge_kernels: bool = False,
    ) -> None:
        super().__init__(space, auxiliary_skip, kept, drops_skips, merge_kernels)
        widths = _widths(n_cells, init_channels)
        self.stem = Stem(in_channels, init_channels)
        self.stem_channels = init_channels
        builders = [self._builders(*edge) for edge in enumerate(space.candidates(CELL))]
        self.cells = nn.ModuleList(
            SearchCell(space, width, builders, partial_channels, merge_kernels) for width in widths
        )
        self.blocks = _build_blocks(widths)
        self.head = _build_head(widths[-1], n_classes)

    def mix(self, images: Tensor, weights: Tensor) -> Tensor:
        """See ``Supernet.mix``."""
        drop = self._drop()
        return self._run(images, lambda cell, x: cell(x, weights, drop))

    def follow(self, images: Tensor, path: Path, scales: Tensor | None = None) -> Tensor:
        """See ``Supernet.follow``."""
        self._check_path(path)
        if UNUSED in path:
            raise InvalidValueError(f"path must have an operation on every edge, got {path}")
        drop, scale = self._drop(), None if scales is None else scales.unbind()
        return self._run(images, lambda cell, x: cell.follow(x, path, scale, drop))

    def _run(self, images: Tensor, apply: Callable[[SearchCell, Tensor], Tensor]) -> Tensor:
        # The stem loses the format if images have one channel.
        x = self._in_format(self.stem(self._in_format(images)))
        for index, cell in enumerate(self.cells):
            if str(index) in self.blocks:
                x = self.blocks[str(index)](x)
            x = apply(cast(SearchCell, cell), x)
        logits: Tensor = self.head(x)
        return logits


class FixedCell(nn.Module):
    """A discrete cell."""

    def __init__(self, genotype: NasBench201Genotype, channels: int) -> None:
        super().__init__()
        self.operations = nn.ModuleList(
            OPERATIONS[name](channels, 1, False) for name in genotype.operations
        )

    def forward(self, x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
        """Return node 3; ``probability`` is that of drop path."""
        nodes = [x]
        for incoming in _INCOMING:
            outputs = []
            for source, edge in enumerate(incoming):
                operation = self.operations[edge]
                out = operation(nodes[source])
                if probability > 0.0 and not isinstance(operation, nn.Identity):
                    out = drop_path(out, probability, generator)
                outputs.append(out)
            nodes.append(_sum(outputs))
        return nodes[-1]


class NasBench201Network(Network):
    """A trainable network of a NAS-Bench-201 cell.

    Args:
        genotype: The cell.
        n_classes: Number of classes.
        init_channels: Width of the first stage (16 in the paper).
        n_cells: Number of cells, a multiple of 3 (15 in the paper).
        in_channels: Channels of the images.

    Raises:
        InvalidValueError: A number is out of range.
    """

    genotype: NasBench201Genotype

    def __init__(
        self,
        genotype: NasBench201Genotype,
        n_classes: int,
        init_channels: int = 16,
        n_cells: int = 15,
        *,
        in_channels: int = 3,
    ) -> None:
        super().__init__(genotype)
        widths = _widths(n_cells, init_channels)
        self.stem = Stem(in_channels, init_channels)
        self.cells = nn.ModuleList(FixedCell(genotype, width) for width in widths)
        self.blocks = _build_blocks(widths)
        self.head = _build_head(widths[-1], n_classes)
        self.auxiliary = None

    def _run(self, images: Tensor, auxiliary: nn.Module | None) -> tuple[Tensor, Tensor | None]:
        probability = self.drop_path_probability if self.training else 0.0
        x = self._in_format(self.stem(self._in_format(images)))
        for index, cell in enumerate(self.cells):
            if str(index) in self.blocks:
                x = self.blocks[str(index)](x)
            x = cell(x, probability, self._generator)
        return self.head(x), None
