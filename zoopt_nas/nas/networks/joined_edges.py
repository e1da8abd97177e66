"""Compute the operations on all edges from one node together, by fewer and wider operators.

Operations of one kind on several edges read the same node. They are joined into one depthwise
convolution, one grouped 1x1 convolution and one BatchNorm, whose scale is the architecture weights.
Pools and skip connections become one matrix product. The results are the same; fewer launches save
time on a GPU and, for small images, on a CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.kernels.channels_last import diagonal_pixels, is_channels_last
from zoopt_nas.nas.networks.fused import normalize, separable_conv2d
from zoopt_nas.nas.networks.operations import FactorizedReduce, Pool, Separable, Stage

# For larger inputs a CPU is slower with the joined form, because grouped convolutions are slow.
MAX_NUMBERS_ON_CPU = 2**17


class Node:
    """A node ``x`` (batch, channels, height, width), with cached results for its edges."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._repeated: dict[int, Tensor] = {}
        self._pooled: dict[nn.Module, Tensor] = {}

    @cached_property
    def relu(self) -> Tensor:
        """The positive part."""
        return F.relu(self.x)

    @cached_property
    def diagonal(self) -> tuple[Tensor, Tensor]:
        """The ``diagonal_pixels`` of ``relu``."""
        return diagonal_pixels(self.relu)

    def repeated(self, n: int) -> Tensor:
        """Return ``relu`` repeated n times: ``(batch, n * channels, height, width)``."""
        if n not in self._repeated:
            self._repeated[n] = _repeat(self.relu, n)
        return self._repeated[n]

    def pooled(self, pool: nn.Module) -> Tensor:
        """Return ``pool(x)``."""
        if pool not in self._pooled:
            self._pooled[pool] = pool(self.x)
        return self._pooled[pool]


class Place(NamedTuple):
    """The edge of a candidate, and its position among the edge's candidates."""

    edge: int
    position: int


@dataclass
class JoinedSeparables:
    """``SepConv`` or ``DilConv`` of one kernel size on edges from one node.

    Attributes:
        operations: The stages of each operation.
        places: The place of each operation.
    """

    operations: list[list[Stage]]
    places: list[Place]

    def convolutions(self) -> list[list[nn.Conv2d]]:
        """Return the groups of convolutions to join, in the order in which ``apply`` uses them."""
        stages = zip(*self.operations, strict=True)
        pairs = [([s.depthwise for s in stage], [s.pointwise for s in stage]) for stage in stages]
        return [convolutions for pair in pairs for convolutions in pair]

    def norms(self) -> list[list[nn.BatchNorm2d]]:
        """Return the groups of BatchNorms to join; they have no affine parameters."""
        return [[part.norm for part in stage] for stage in zip(*self.operations, strict=True)]

    def apply(self, node: Node, weights: Iterator[Tensor], norms: _Norms, scale: Tensor) -> Tensor:
        """Return the outputs of all operations, ``(batch, n * channels, h, w)``, times ``scale``.

        It takes one of ``weights`` for each group of ``convolutions``, and likewise of ``norms``.
        """
        x = node.repeated(len(self.places))
        *first, last = self.operations[0]
        for stage in first:
            x = F.relu(norms.apply(_convolve(x, stage, weights), None), inplace=True)  # see SepConv
        return norms.apply(_convolve(x, last, weights), scale)


@dataclass
class JoinedReductions:
    """Skip connections with stride 2, with the methods of `JoinedSeparables`."""

    operations: list[FactorizedReduce]
    places: list[Place]

    def convolutions(self) -> list[list[nn.Conv2d]]:
        """Return the convolutions of the even and of the odd pixels."""
        return [[op.conv_even for op in self.operations], [op.conv_odd for op in self.operations]]

    def norms(self) -> list[list[nn.BatchNorm2d]]:
        """Return the BatchNorms as one group."""
        return [[op.norm for op in self.operations]]

    def apply(self, node: Node, weights: Iterator[Tensor], norms: _Norms, scale: Tensor) -> Tensor:
        """See ``JoinedSeparables.apply``."""
        n = len(self.places)
        # In each operation the channels of the even pixels come first.
        halves = [
            torch.unflatten(F.conv2d(x, weight), 1, (n, -1))
            for x, weight in zip(node.diagonal, weights, strict=False)
        ]
        return norms.apply(torch.cat(halves, dim=2).flatten(1, 2), scale)


@dataclass
class SharedTerms:
    """Pools and skip connections, whose outputs are equal on all edges from a node.

    Attributes:
        operations: The distinct operations.
        places: The places of each operation.
    """

    operations: list[nn.Module]
    places: list[list[Place]]

    @property
    def edges(self) -> list[int]:
        """The edges with such an operation, in order."""
        return sorted({place.edge for places in self.places for place in places})

    def outputs(self, node: Node, table: Tensor) -> dict[int, Tensor]:
        """Return the weighted sum on each edge; ``table`` has a weight per edge and operation."""
        outs = [node.pooled(op) if isinstance(op, Pool) else node.x for op in self.operations]
        is_last = is_channels_last(node.x)
        if is_last:
            outs = [out.permute(0, 2, 3, 1) for out in outs]
        terms = torch.stack(outs) if len(outs) > 1 else outs[0][None]
        sums = (table.view(-1, len(outs)) @ terms.flatten(1)).view(-1, *terms.shape[1:])
        if is_last:
            sums = sums.permute(0, 1, 4, 2, 3)
        return dict(zip(self.edges, sums.unbind(), strict=True))


class JoinedEdges:
    """The candidates on the edges from a node: groups of joined operations, and shared terms.

    Args:
        groups: The joined operations.
        shared: The pools and skip connections.
        weight_shape: Shape of the cell's architecture weights, ``(n_edges, n_candidates)``.
        separable: One of the joined separable convolutions, if any.

    Attributes:
        places: Places of the candidates that it computes.
        scale_index: Indices into the flattened architecture weights, followed by a zero: the scale
            of every channel of every group, then of every edge and shared operation.
    """

    def __init__(
        self,
        groups: Sequence[JoinedSeparables | JoinedReductions],
        shared: SharedTerms,
        weight_shape: tuple[int, int],
        separable: Separable | None = None,
    ) -> None:
        self._groups, self._shared, self._separable = groups, shared, separable
        places = [list(group.places) for group in groups] + shared.places
        self.places = {place for group in places for place in group}
        n_edges, width = weight_shape
        self.scale_index: list[int] = []
        self._scale_sizes: list[int] = []
        for group in groups:
            norms = group.norms()[-1]
            index = [
                place.edge * width + place.position
                for place, norm in zip(group.places, norms, strict=True)
                for _ in range(norm.num_features)
            ]
            self.scale_index += index
            self._scale_sizes.append(len(index))
        zero = n_edges * width
        positions = [dict(places) for places in shared.places]
        table = [
            edge * width + position[edge] if edge in position else zero
            for edge in shared.edges
            for position in positions
        ]
        self.scale_index += table
        self._scale_sizes.append(len(table))

    def is_worthwhile(self, x: Tensor) -> bool:
        """Whether joining is faster for node ``x``, ``(batch, channels, h, w)``."""
        if x.device.type == "cpu":
            # The CPU kernels are faster than PyTorch's joined operators.
            is_fused = self._separable is not None and self._separable.can_fuse(x)
            if is_fused or x.numel() > MAX_NUMBERS_ON_CPU:
                return False
        return bool(self.places)

    def outputs(self, node: Node, scales: Tensor) -> dict[int, Tensor]:
        """Return for each edge the weighted sum of its candidates in ``places``.

        ``scales`` are the architecture weights at ``scale_index``.
        """
        *scale, table = torch.split(scales, self._scale_sizes)
        result = self._shared.outputs(node, table) if self._shared.places else {}
        for edges, total in self._convolved(node, scale).items():
            parts = torch.unflatten(total, 1, (len(edges), -1)).unbind(1)
            for edge, part in zip(edges, parts, strict=True):
                result[edge] = result[edge] + part if edge in result else part
        return result

    def _convolved(self, node: Node, scales: Sequence[Tensor]) -> dict[tuple[int, ...], Tensor]:
        """Sum the groups with the same edges, to ``(batch, n_edges * channels, h, w)``."""
        if not self._groups:
            return {}
        weights = _join_weights([convs for group in self._groups for convs in group.convolutions()])
        norms = _Norms([norms for group in self._groups for norms in group.norms()])
        totals: dict[tuple[int, ...], Tensor] = {}
        for group, scale in zip(self._groups, scales, strict=True):
            edges = tuple(place.edge for place in group.places)
            out = group.apply(node, weights, norms, scale)
            totals[edges] = totals[edges] + out if edges in totals else out
        norms.write_back()
        return totals


def join_edges(candidates: dict[Place, nn.Module], weight_shape: tuple[int, int]) -> JoinedEdges:
    """Join the candidates on the edges from one node; see `JoinedEdges`."""
    groups: dict[object, JoinedSeparables | JoinedReductions] = {}
    shared: dict[object, tuple[nn.Module, list[Place]]] = {}
    n_identities = Counter[int]()
    for place, operation in candidates.items():
        if isinstance(operation, Separable):
            stages = operation.stages
            key = (type(operation), stages[0].depthwise.kernel_size[0])
            convs = cast(JoinedSeparables, groups.setdefault(key, JoinedSeparables([], [])))
            convs.operations.append(stages)
            convs.places.append(place)
        elif isinstance(operation, FactorizedReduce):
            reduces = cast(
                JoinedReductions, groups.setdefault(FactorizedReduce, JoinedReductions([], []))
            )
            reduces.operations.append(operation)
            reduces.places.append(place)
        elif isinstance(operation, Pool | nn.Identity):
            # All edges share one module for each pool. All identities are equal, but an edge may
            # have two: a candidate and an auxiliary skip connection.
            same: object = operation
            if isinstance(operation, nn.Identity):
                n_identities[place.edge] += 1
                same = n_identities[place.edge]
            shared.setdefault(same, (operation, []))[1].append(place)
    operations = [operation for operation, _ in shared.values()]
    terms = SharedTerms(operations, [places for _, places in shared.values()])
    separable = next((op for op in candidates.values() if isinstance(op, Separable)), None)
    return JoinedEdges(list(groups.values()), terms, weight_shape, separable)


def _convolve(x: Tensor, stage: Stage, weights: Iterator[Tensor]) -> Tensor:
    stride, dilation = stage.depthwise.stride[0], stage.depthwise.dilation[0]
    return separable_conv2d(x, next(weights), next(weights), stride, dilation)


def _join_weights(groups: Sequence[Sequence[nn.Conv2d]]) -> Iterator[Tensor]:
    """Concatenate the weights of each group along the output channels, in a single copy."""
    flat = torch.cat([conv.weight.flatten() for group in groups for conv in group])
    sizes = [sum(conv.weight.numel() for conv in group) for group in groups]
    for part, group in zip(torch.split(flat, sizes), groups, strict=True):
        yield part.view(-1, *group[0].weight.shape[1:])


class _Norms:
    """Joined BatchNorms without affine parameters, with joined copies of their statistics."""

    def __init__(self, groups: Sequence[Sequence[nn.BatchNorm2d]]) -> None:
        self._norms = [norm for group in groups for norm in group]
        self._first = self._norms[0]
        self._statistics: list[Tensor] = []
        self._views: Iterator[tuple[Tensor | None, Tensor | None]]
        if self._first.running_mean is None:
            self._views = iter([(None, None)] * len(groups))
            return
        self._statistics = [cast(Tensor, norm.running_mean) for norm in self._norms]
        self._statistics += [cast(Tensor, norm.running_var) for norm in self._norms]
        self._joined = torch.cat(self._statistics)
        sizes = [sum(norm.num_features for norm in group) for group in groups]
        means, variances = (torch.split(half, sizes) for half in self._joined.chunk(2))
        self._views = zip(means, variances, strict=True)

    def apply(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Apply the next group to ``x`` and multiply by ``scale``."""
        return normalize(x, self._first, *next(self._views), scale)

    def write_back(self) -> None:
        """Store the running statistics after all groups have been applied."""
        if self._statistics and self._first.training:
            sizes = [statistic.numel() for statistic in self._statistics]
            with torch.no_grad():
                torch._foreach_copy_(self._statistics, list(torch.split(self._joined, sizes)))
                counts = [cast(Tensor, norm.num_batches_tracked) for norm in self._norms]
                torch._foreach_add_(counts, 1)


def _repeat(x: Tensor, n: int) -> Tensor:
    """Return ``x.repeat(1, n, 1, 1)`` in the memory format of ``x``."""
    if n == 1:
        return x
    if not is_channels_last(x):
        return x.unsqueeze(1).expand(-1, n, -1, -1, -1).flatten(1, 2)
    repeated = x.permute(0, 2, 3, 1).unsqueeze(3).expand(-1, -1, -1, n, -1)
    return repeated.flatten(3).permute(0, 3, 1, 2)
