"""Partial channel connections (Xu et al., PC-DARTS, ICLR 2020): a cheaper, different supernet.

On every edge only the first 1/K of a node's channels goes through the candidate operations; the
others pass by, max-pooled where the edge has stride 2. The channels of the sum are then shuffled,
so that others are first in the next node. Operations of 1/K of the width take about 1/K of the
memory. The edge weights that PC-DARTS adds (its "edge normalization") are a separate setting,
``SearchSpace.edge_normalization``; they weigh the whole edge, the channels that pass by included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.kernels.channels_last import contiguous_like, is_channels_last


def part_width(channels: int, n_parts: int) -> int:
    """How many of a node's channels go through the operations.

    Raises:
        InvalidValueError: ``n_parts`` does not divide the width.
    """
    if n_parts < 1 or channels % n_parts:
        raise InvalidValueError(
            "partial_channels must divide init_channels and be positive, "
            f"got {n_parts} for a cell of {channels} channels"
        )
    return channels // n_parts


def split_parts(x: Tensor, n_parts: int, stride: int) -> tuple[Tensor, Tensor]:
    """The first 1/n_parts of the channels, and the others at the size of an edge's output."""
    width = x.shape[1] // n_parts
    part, others = torch.split(x, [width, x.shape[1] - width], dim=1)
    if stride == 2:
        others = F.max_pool2d(others, 2, ceil_mode=True)
    return contiguous_like(part, x), others


def merge_parts(part: Tensor, others: Tensor, n_parts: int) -> Tensor:
    """Both groups of channels as one node, shuffled: first the first of each n_parts-th."""
    # In the order of memory, so that the copy is the only one.
    if is_channels_last(part):
        rows = torch.cat([channels.permute(0, 2, 3, 1) for channels in (part, others)], dim=3)
        shuffled = torch.unflatten(rows, 3, (n_parts, -1)).transpose(3, 4).flatten(3)
        return shuffled.permute(0, 3, 1, 2)
    joined = torch.cat([part, others], dim=1)
    return torch.unflatten(joined, 1, (n_parts, -1)).transpose(1, 2).flatten(1, 2)
