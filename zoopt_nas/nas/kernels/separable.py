"""Depthwise separable convolutions: fast weight gradients on a CPU, and little memory.

Two facts make these a module of their own. The CPU kernels of PyTorch have no fast path for the
weight gradient of a dilated depthwise convolution, nor for that of a 5x5 one on few pixels: it
takes up to 80 times as long as the forward pass. And nearly all memory of a supernet step holds the
outputs of depthwise convolutions, which cost less to compute again than to keep.
Measured in docs/performance.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to this height or width, a sum for each entry of a 5x5 kernel beats the CPU's kernels.
MAX_SIDE_OF_SUMS = 4


def separable_conv2d(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    stride: int = 1,
    dilation: int = 1,
    *,
    keep: bool = False,
) -> Tensor:
    """A depthwise convolution, padded to keep the size, and a 1x1 convolution of its output.

    Args:
        x: ``(batch, channels, height, width)``.
        depthwise: ``(channels, 1, k, k)``, k odd.
        pointwise: ``(out_channels, channels / groups, 1, 1)``.
        stride: of the depthwise convolution, 1 or 2; the size is rounded up.
        dilation: of the depthwise convolution, 1 or 2.
        keep: keep what lies between the two for the backward pass, where that has fast kernels;
            else it is computed again.
    """
    is_fast = dilation == 1 and depthwise.shape[-1] == 3
    if not torch.is_grad_enabled() or (keep and (is_fast or not has_slow_kernels(x))):
        between = _depthwise(x, depthwise, stride, dilation)
        return F.conv2d(between, pointwise, groups=_groups(between, pointwise))
    if torch.is_autocast_enabled(x.device.type):  # which does not see what a function saves
        dtype = torch.get_autocast_dtype(x.device.type)
        x, depthwise, pointwise = x.to(dtype), depthwise.to(dtype), pointwise.to(dtype)
    if stride == dilation > 1:
        # Every pixel that it reads is at a multiple of the stride.
        x, stride, dilation = x[:, :, ::stride, ::stride], 1, 1
    return _apply(x, depthwise, pointwise, stride, dilation)


def _apply(x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int) -> Tensor:
    # The form that transforms need takes longer to call: 90 microseconds, by what torch does for it
    # in Python. There is no public name for the question.
    is_transformed = torch._C._are_functorch_transforms_active()
    function = _TransformedSeparableConv if is_transformed else _SeparableConv
    out: Tensor = function.apply(x, depthwise, pointwise, stride, dilation)
    return out


def _forward(x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int) -> Tensor:
    between = _depthwise(x, depthwise, stride, dilation)
    return F.conv2d(between, pointwise, groups=_groups(between, pointwise))


class _SeparableConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(x, depthwise, pointwise)
        ctx.stride, ctx.dilation = stride, dilation
        return _forward(x, depthwise, pointwise, stride, dilation)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        # Only differentiable operations, so that second derivatives work.
        x, depthwise, pointwise = ctx.saved_tensors
        stride, dilation = ctx.stride, ctx.dilation
        between = _depthwise(x, depthwise, stride, dilation)
        needs_x, needs_depthwise, needs_pointwise = ctx.needs_input_grad[:3]
        between_grad, pointwise_grad = _conv_grads(
            between,
            pointwise,
            grad,
            (needs_x or needs_depthwise, needs_pointwise),
            _Settings(groups=_groups(between, pointwise)),
        )
        needs = (needs_x, needs_depthwise)
        if has_slow_kernels(x) and stride == 1:
            grads = _fast_grads(x, depthwise, between_grad, needs, dilation)
        else:
            settings = _settings(depthwise, stride, dilation)
            grads = _conv_grads(x, depthwise, between_grad, needs, settings)
        return *grads, pointwise_grad, None, None


class _TransformedSeparableConv(torch.autograd.Function):
    """The same function for ``torch.vmap``."""

    forward = staticmethod(_forward)
    backward = staticmethod(_SeparableConv.backward)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor
    ) -> None:
        *tensors, ctx.stride, ctx.dilation = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        depthwise: Tensor,
        pointwise: Tensor,
        stride: int,
        dilation: int,
    ) -> tuple[Tensor, int]:
        # n convolutions are one of n times as many channels, in n groups.
        n = info.batch_size
        out = _apply(
            _into_channels(x, in_dims[0], n, 1),
            _into_channels(depthwise, in_dims[1], n, 0),
            _into_channels(pointwise, in_dims[2], n, 0),
            stride,
            dilation,
        )
        return torch.unflatten(out, 1, (n, -1)), 1


def _into_channels(x: Tensor, batch_dim: int | None, n: int, dim: int) -> Tensor:
    """``x`` with its n batched tensors side by side in ``dim``; one that all share is repeated."""
    if batch_dim is None:
        x = x.unsqueeze(dim).expand(*x.shape[:dim], n, *x.shape[dim:])
    else:
        x = x.movedim(batch_dim, dim)
    if dim == 1 and x.stride(2) == 1:  # channels_last stays so
        return x.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
    return x.flatten(dim, dim + 1)


class _Settings(NamedTuple):
    """Arguments of a convolution behind its weight."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1


def _settings(weight: Tensor, stride: int, dilation: int) -> _Settings:
    return _Settings(stride, dilation * (weight.shape[-1] // 2), dilation, weight.shape[0])


def _groups(x: Tensor, weight: Tensor) -> int:
    return x.shape[1] // weight.shape[1]


def _depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    return F.conv2d(x, weight, None, *_settings(weight, stride, dilation))


def _conv_grads(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    needs: tuple[bool, bool],
    settings: _Settings,
) -> tuple[Any, Any]:
    """The gradients in input and weight of a convolution, or None for those not needed."""
    # The functions of torch.nn.grad make a stand-in for x that is not channels_last, and with it
    # take the slow kernels.
    stride, padding, dilation, groups = settings
    grads: tuple[Any, Any, Any] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups,
        [*needs, False],
    )  # fmt: skip
    return grads[:2]


def _fast_grads(
    x: Tensor, weight: Tensor, grad: Tensor, needs: tuple[bool, bool], dilation: int
) -> tuple[Any, Any]:
    """``_conv_grads`` of a depthwise convolution of stride 1, by what is fast on a CPU."""
    x_grad = weight_grad = None
    if needs[0]:  # a forward kernel
        x_grad = _depthwise(grad, weight.flip(2, 3), 1, dilation)
    if not needs[1]:
        return x_grad, None
    if weight.shape[-1] > 3 and min(x.shape[-2:]) <= MAX_SIDE_OF_SUMS * dilation:
        return x_grad, _sums(x, grad, weight.shape[-1], dilation)
    if dilation > 1:
        # A dilated convolution never mixes pixels of different parity: on the images of each
        # parity, side by side in the batch, it is a plain one.
        x, grad = _phases(x, dilation), _phases(grad, dilation)
    weight_grad = _conv_grads(x, weight, grad, (False, True), _settings(weight, 1, 1))[1]
    return x_grad, weight_grad


def has_slow_kernels(x: Tensor) -> bool:
    """Whether the device of ``x`` has no fast kernels for these weight gradients."""
    return x.device.type == "cpu"


def _phases(x: Tensor, n: int) -> Tensor:
    """``(batch, c, h, w)`` to ``(n² batch, c, ceil(h / n), ceil(w / n))``: every n-th pixel."""
    height, width = x.shape[-2:]
    if height % n or width % n:  # zeros add nothing to a sum of products
        x = F.pad(x, (0, -width % n, 0, -height % n))
    return torch.cat([x[:, :, i::n, j::n] for i in range(n) for j in range(n)])


def _sums(x: Tensor, grad: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """The weight gradient as what it is: a sum of products for each entry of the kernel."""
    height, width = x.shape[-2:]
    padding = dilation * (kernel_size // 2)
    padded = F.pad(x, (padding, padding, padding, padding))
    offsets = range(0, kernel_size * dilation, dilation)
    sums = [
        (padded[:, :, i : i + height, j : j + width] * grad).sum((0, 2, 3))
        for i in offsets
        for j in offsets
    ]
    return torch.stack(sums, dim=1).view(-1, 1, kernel_size, kernel_size)
