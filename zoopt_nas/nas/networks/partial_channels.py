"""Partial channel connections (Xu et al., PC-DARTS, ICLR 2020), with about 1/K of the memory.

On every edge the candidate operations use only the first 1/K of a node's channels. The other
channels skip them, max-pooled on an edge with stride 2. The channels of the sum are then shuffled,
so that other channels come first in the next node. Edge normalization is a separate setting of
`SearchSpace` and also scales the channels that skip the operations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.kernels.channels_last import contiguous_like, is_channels_last


def part_width(channels: int, n_parts: int) -> int:
    """Return the number of channels for the operations.

    Raises:
        InvalidValueError: ``n_parts`` does not divide ``channels``.
    """
    if n_parts < 1 or channels % n_parts:
        raise InvalidValueError(
            "partial_channels must divide init_channels and be positive, "
            f"got {n_parts} for a cell of {channels} channels"
        )
    return channels // n_parts


def split_parts(x: Tensor, n_parts: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return the first 1/n_parts of the channels, and the others in the size of the output."""
    width = x.shape[1] // n_parts
    part, others = torch.split(x, [width, x.shape[1] - width], dim=1)
    if stride == 2:
        others = F.max_pool2d(others, 2, ceil_mode=True)
    return contiguous_like(part, x), others


def merge_parts(part: Tensor, others: Tensor, n_parts: int) -> Tensor:
    """Join and shuffle the channels: first the first channel of each of the n_parts parts, ..."""
    # In the memory format of ``part``, to copy only once.
    if is_channels_last(part):
        rows = torch.cat([channels.permute(0, 2, 3, 1) for channels in (part, others)], dim=3)
        shuffled = torch.unflatten(rows, 3, (n_parts, -1)).transpose(3, 4).flatten(3)
        return shuffled.permute(0, 3, 1, 2)
    joined = torch.cat([part, others], dim=1)
    return torch.unflatten(joined, 1, (n_parts, -1)).transpose(1, 2).flatten(1, 2)
