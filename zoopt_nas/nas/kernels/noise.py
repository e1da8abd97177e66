"""Standard normal noise by the kernels of noise.c: drawn where it is used, and never stored."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.kernels.channels_last import channels_last
from zoopt_nas.nas.kernels.library import compiled


def draw_noise(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """The noise itself, channels_last.

    Args:
        shape: ``(batch, channels, h, w)``.
        dtype: float32 or float64.
        seed: in [0, 2^63).
    """
    batch, channels, height, width = shape
    zeros = torch.zeros(batch, height, width, channels, dtype=dtype).permute(0, 3, 1, 2)
    return _added(zeros, 1.0, seed)


def add_noise(base: Tensor, scale: Tensor, seed: int) -> Tensor:
    """``base + scale * noise``.

    Args:
        base: ``(batch, channels, h, w)`` that is on a CPU and of float32 or float64.
        scale: ``()``.
        seed: of the noise, in [0, 2^63).
    """
    out: Tensor = _AddNoise.apply(base, scale, seed)
    return out


class _AddNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, scale: Tensor, seed: int) -> Tensor:
        ctx.seed = seed
        return _added(channels_last(base), float(scale), seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if not ctx.needs_input_grad[1]:
            return grad, None, None
        rows = channels_last(grad)
        if torch.is_grad_enabled():  # a graph of the gradient itself is wanted
            return grad, (rows * draw_noise(rows.shape, rows.dtype, ctx.seed)).sum(), None
        product = compiled(grad.dtype).noise_product(*_arguments(rows, ctx.seed), _pointer(rows))
        return grad, grad.new_tensor(product), None


def _added(base: Tensor, scale: float, seed: int) -> Tensor:
    out = torch.empty_like(base)
    number = ctypes.c_double(scale)
    compiled(base.dtype).add_noise(*_arguments(base, seed), number, _pointer(base), _pointer(out))
    return out


def _arguments(x: Tensor, seed: int) -> tuple[ctypes.c_int64, ctypes.c_uint64]:
    # By the shape: ``numel`` says something else where memory is estimated.
    return ctypes.c_int64(math.prod(x.shape)), ctypes.c_uint64(seed)


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())
