"""Copy small tensors from the host to a device, asynchronously and in one transfer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes: at least the size of any number


def staging(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return an empty host tensor from which copies to ``device`` are asynchronous.

    CUDA requires pinned memory for it. PyTorch does not reuse that before the copy has ended.
    """
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return host tensors of any shapes and types on ``device``.

    For CUDA they are packed into one pinned buffer and copied asynchronously at once.
    """
    if device.type != "cuda" or not tensors:
        return [tensor.to(device, non_blocking=True) for tensor in tensors]
    ends = [0]
    for tensor in tensors:
        ends.append(ends[-1] + -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT)
    buffer = staging((ends[-1],), device)
    for part, tensor in zip(_parts(buffer, ends, tensors), tensors, strict=True):
        part.copy_(tensor)
    return _parts(buffer.to(device, non_blocking=True), ends, tensors)


def _parts(buffer: Tensor, ends: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of a buffer of bytes with the shapes and types of ``like``."""
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(ends[:-1], like, strict=True)
    ]
