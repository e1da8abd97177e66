"""Small tensors of the host on a device: one copy for all of them, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes: at least the size of any number


def staging(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.uint8) -> Tensor:
    """An empty tensor on the host, from which a copy to ``device`` is not waited for.

    CUDA copies in the background from pinned memory only. PyTorch keeps pinned memory for the next
    batch, and does not reuse it before a copy from it has ended.
    """
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on ``device``; on the CPU themselves.

    For CUDA they are packed into one pinned buffer, so that there is one copy, in the background.

    Args:
        tensors: of any shapes and types.
        device: where they go.
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
    """Views of a buffer of bytes, with the shapes and types of ``like``."""
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(ends[:-1], like, strict=True)
    ]
