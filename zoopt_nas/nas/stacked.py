"""The convolutions on all edges from one node as one convolution: fewer and wider operators.

Operators of the same kind on several edges read the same input. Their weights are joined into one
depthwise convolution of all channels, one grouped 1x1 convolution and one BatchNorm, which also
takes the architecture weights as its scale. The numbers are those of the operators one by one; what
is saved is the time to launch each, which on a GPU, and for small images on a CPU, is most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.operations import DilConv, SepConv
from zoopt_nas.nas.separable import separable_conv2d

# Above this many numbers in an operator's input a CPU takes longer for the joined form: its grouped
# convolutions are slower than as many plain ones, and launching no longer counts.
MAX_NUMBERS_ON_CPU = 2**17


class Place(NamedTuple):
    """Where a candidate stands."""

    edge: int
    position: int


class Stage(NamedTuple):
    """A separable convolution of one operation, behind its ReLU."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d


@dataclass
class ConvStack:
    """Convolutions of one kind on edges from one node.

    Attributes:
        operations: the stages of each operation.
        places: where each operation stands.
    """

    operations: list[list[Stage]]
    places: list[Place]

    @property
    def edges(self) -> tuple[int, ...]:
        return tuple(place.edge for place in self.places)

    def apply(self, x: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n * channels, h, w)``: the output of each operation times its weight.

        Args:
            x: the node behind its ReLU, ``(batch, n * channels, h, w)``, repeated n times.
            weights: architecture weights of the cell, ``(n_edges, n_candidates)``.
        """
        *first, last = zip(*self.operations, strict=True)
        for stage in first:
            x = F.relu(_apply_stage(x, stage, None))
        own = torch.stack([weights[place] for place in self.places])
        channels = x.shape[1] // len(self.places)
        return _apply_stage(x, last, own[:, None].expand(-1, channels).flatten())


class Fan:
    """The stacks of the edges that leave a node; what has no partner is in none of them."""

    def __init__(self, stacks: Sequence[ConvStack]) -> None:
        self._stacks = [stack for stack in stacks if len(stack.operations) > 1]
        self.places = {place for stack in self._stacks for place in stack.places}

    def pays(self, x: Tensor) -> bool:
        """Whether to join the convolutions of node ``x``, ``(batch, channels, h, w)``."""
        return bool(self._stacks) and (x.device.type != "cpu" or x.numel() <= MAX_NUMBERS_ON_CPU)

    def outputs(self, x: Tensor, weights: Tensor) -> dict[int, Tensor]:
        """For each edge the weighted sum of its convolutions that are in a stack.

        Args:
            x: the node behind its ReLU, ``(batch, channels, h, w)``.
            weights: architecture weights of the cell, ``(n_edges, n_candidates)``.
        """
        repeated: dict[int, Tensor] = {}
        totals: dict[tuple[int, ...], Tensor] = {}
        for stack in self._stacks:
            edges, n = stack.edges, len(stack.edges)
            if n not in repeated:
                repeated[n] = _repeat(x, n)
            out = stack.apply(repeated[n], weights)
            totals[edges] = totals[edges] + out if edges in totals else out
        result: dict[int, Tensor] = {}
        for edges, total in totals.items():
            parts = torch.unflatten(total, 1, (len(edges), -1)).unbind(1)
            for edge, part in zip(edges, parts, strict=True):
                result[edge] = result[edge] + part if edge in result else part
        return result


def make_fan(candidates: dict[Place, nn.Module]) -> Fan:
    """The stacks of the candidates on the edges from one node."""
    stacks: dict[tuple[type, int], ConvStack] = {}
    for place, operation in candidates.items():
        if isinstance(operation, SepConv | DilConv):
            stages = _stages(operation)
            key = (type(operation), stages[0].depthwise.kernel_size[0])
            stack = stacks.setdefault(key, ConvStack([], []))
            stack.operations.append(stages)
            stack.places.append(place)
    return Fan(list(stacks.values()))


def _stages(operation: nn.Sequential) -> list[Stage]:
    modules = list(operation)
    return [Stage(*cast(list[Any], modules[i + 1 : i + 4])) for i in range(0, len(modules), 4)]


def _apply_stage(x: Tensor, stage: Sequence[Stage], scale: Tensor | None) -> Tensor:
    depthwise = torch.cat([part.depthwise.weight for part in stage])
    pointwise = torch.cat([part.pointwise.weight for part in stage])
    settings = stage[0].depthwise
    out = separable_conv2d(x, depthwise, pointwise, settings.stride[0], settings.dilation[0])
    return _apply_norms(out, [part.norm for part in stage], scale)


def _apply_norms(x: Tensor, norms: Sequence[nn.BatchNorm2d], scale: Tensor | None) -> Tensor:
    """BatchNorms without affine parameters, each on its share of the channels, times ``scale``."""
    first = norms[0]
    if first.running_mean is None:
        return F.batch_norm(x, None, None, scale, None, True, 0.0, first.eps)
    statistics = [cast(Tensor, norm.running_mean) for norm in norms]
    statistics += [cast(Tensor, norm.running_var) for norm in norms]
    joined = torch.cat(statistics)
    mean, variance = joined.chunk(2)
    momentum = cast(float, first.momentum)
    out = F.batch_norm(x, mean, variance, scale, None, first.training, momentum, first.eps)
    if first.training:
        with torch.no_grad():
            torch._foreach_copy_(statistics, list(joined.chunk(len(statistics))))
            torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)
    return out


def _repeat(x: Tensor, n: int) -> Tensor:
    """``x.repeat(1, n, 1, 1)`` in the memory format of ``x``."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return x.repeat(1, n, 1, 1)
    return x.permute(0, 2, 3, 1).repeat(1, 1, 1, n).permute(0, 3, 1, 2)
