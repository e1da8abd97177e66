"""The order of activations in memory, and operations whose gradients keep it.

Kernels that meet another order than the one they are written for take many times as long
(docs/performance.md), and gradients of slices lose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of ``(batch, c, h, w)`` are next to each other in memory."""
    return x.stride(1) == 1  # torch.vmap cannot be asked for a memory format


def channels_last(x: Tensor) -> Tensor:
    """``x`` in that memory format, by operations that ``torch.vmap`` knows."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def diagonal_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each 2x2 square of pixels the first and the last: ``(batch, c, h, w)`` to two halves.

    Odd sizes count as padded by zeros.
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
    """Slices, whose own backward pass is many times slower: it loses channels_last."""

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
    """``torch.cat(nodes, dim=1)`` with gradients that are contiguous, as slices are not."""
    if not torch.is_grad_enabled():
        return torch.cat(list(nodes), dim=1)
    joined: Tensor = _JoinedChannels.apply(*nodes)
    return joined


class _JoinedChannels(torch.autograd.Function):
    """Kernels that meet a slice of channels in channels_last memory take ten times as long."""

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
    """``x``, contiguous in the memory format of ``reference``."""
    return channels_last(x) if is_channels_last(reference) else x.contiguous()


def _copy_like(x: Tensor, reference: Tensor) -> Tensor:
    """``contiguous_like`` that is never ``x`` itself."""
    if is_channels_last(reference):
        rows = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        return rows.permute(0, 3, 1, 2)
    return x.clone(memory_format=torch.contiguous_format)
