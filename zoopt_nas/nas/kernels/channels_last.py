"""The channels-last memory format, and operations whose gradients preserve it.

Kernels are several times slower for tensors in another format (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def is_channels_last(x: Tensor) -> bool:
    """Whether ``(batch, c, h, w)`` has adjacent channels in memory."""
    return x.stride(1) == 1  # torch.vmap does not support memory formats


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` in the channels-last format, by operations that ``torch.vmap`` supports."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def diagonal_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last pixel of each 2x2 square of ``(batch, c, h, w)``.

    Odd sizes are padded with zeros.
    """
    if not torch.is_grad_enabled():
        return _diagonal_pixels(x)
    even, odd = _DiagonalPixels.apply(x)
    return even, odd


def _diagonal_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    height, width = x.shape[-2:]
    odd = F.pad(x[:, :, 1::2, 1::2], (0, width % 2, 0, height % 2))
    return _copy_like(x[:, :, ::2, ::2], x), odd


class _DiagonalPixels(torch.autograd.Function):
    """Slices with a backward pass that preserves channels_last, which makes it much faster."""

    generate_vmap_rule = True

    forward = staticmethod(_diagonal_pixels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        (x,) = inputs
        ctx.shape, ctx.is_last = x.shape, is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, even: Tensor, odd: Tensor) -> Tensor:
        batch, channels, height, width = ctx.shape
        if ctx.is_last:
            grad = even.new_zeros(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            grad = even.new_zeros(ctx.shape)
        grad[:, :, ::2, ::2] = even
        grad[:, :, 1::2, 1::2] = odd[:, :, : height // 2, : width // 2]
        return grad


def join_channels(nodes: Sequence[Tensor]) -> Tensor:
    """Return ``torch.cat(nodes, dim=1)``, with contiguous gradients."""
    if not torch.is_grad_enabled():
        return torch.cat(list(nodes), dim=1)
    joined: Tensor = _JoinedChannels.apply(*nodes)
    return joined


class _JoinedChannels(torch.autograd.Function):
    """Concatenation with contiguous gradients, because kernels are slow for slices of channels."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*nodes: Tensor) -> Tensor:
        return torch.cat(nodes, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.sizes = [node.shape[1] for node in inputs]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        parts = torch.split(grad, ctx.sizes, dim=1)
        return tuple(contiguous_like(part, grad) for part in parts)


def contiguous_like(x: Tensor, reference: Tensor) -> Tensor:
    """Return ``x``, contiguous in the memory format of ``reference``."""
    return channels_last(x) if is_channels_last(reference) else x.contiguous()


def _copy_like(x: Tensor, reference: Tensor) -> Tensor:
    """Return a copy of ``x``, contiguous in the memory format of ``reference``."""
    if is_channels_last(reference):
        rows = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        return rows.permute(0, 3, 1, 2)
    return x.clone(memory_format=torch.contiguous_format)
