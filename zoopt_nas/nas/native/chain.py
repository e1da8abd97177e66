"""Depthwise separable convolutions with their ReLU and BatchNorm, by the kernels of separable.c.

``separable_chain`` is one or more of them as one function of autograd. It keeps its input and what
each 1x1 convolution puts out, and computes everything else again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.native.library import call, compiled, library
from zoopt_nas.nas.separable import channels_last, has_slow_kernels


@dataclass(frozen=True)
class Settings:
    """Of one stage: ReLU, depthwise convolution, 1x1 convolution, BatchNorm.

    Attributes:
        stride, dilation: of the depthwise convolution.
        training: whether BatchNorm takes the statistics of the batch.
        momentum, eps: of BatchNorm.
        mean, variance: running statistics, ``(out_channels,)``, updated in training; None = none.
    """

    stride: int
    dilation: int
    training: bool
    momentum: float
    eps: float
    mean: Tensor | None = None
    variance: Tensor | None = None


class Weights(NamedTuple):
    """Of one stage.

    Attributes:
        depthwise: ``(channels, 1, k, k)``, k odd.
        pointwise: ``(out_channels, channels, 1, 1)``.
        scale: of BatchNorm, ``(out_channels,)`` or ``()``; None = 1.
        shift: of BatchNorm, ``(out_channels,)``; None = 0.
    """

    depthwise: Tensor
    pointwise: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


N_WEIGHTS = len(Weights._fields)


def can_chain(x: Tensor) -> bool:
    """Whether ``separable_chain`` takes ``x``, ``(batch, channels, h, w)``, here and now."""
    return (
        has_slow_kernels(x)
        and x.shape[0] > 1  # the kernels share out images; PyTorch refuses to normalize one pixel
        and x.permute(0, 2, 3, 1).is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and library(x.dtype) is not None
    )


def separable_chain(
    x: Tensor, stages: Sequence[tuple[Settings, Weights]], base: Tensor | None = None
) -> Tensor:
    """``base`` + the stages, one behind the other.

    Args:
        x: ``(batch, channels, height, width)`` that ``can_chain``.
        stages: at least one.
        base: of the shape of the output; None = 0.

    Raises:
        MemoryError: there is no memory for the buffers of the kernels.
    """
    settings = [own for own, _ in stages]
    # Contiguous here, so that what the kernels get pointers of stays alive.
    weights = [
        None if tensor is None else tensor.contiguous() for _, own in stages for tensor in own
    ]
    out: Tensor = _SeparableChain.apply(x, base, settings, *weights)
    return out


class _SeparableChain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: Tensor | None, settings: Sequence[Settings], *flat: Tensor | None
    ) -> Tensor:
        source, norm = x, None
        results: list[Tensor] = []
        for own, weights in zip(settings, _grouped(flat), strict=True):
            source, norm = _run_forward(source, norm, own, weights)
            results += [source, norm]
        ctx.settings, ctx.n_flat = settings, len(flat)
        ctx.save_for_backward(x, *flat, *results)
        out = torch.empty_like(source)
        base = None if base is None else channels_last(base)
        compiled(x.dtype).add_normalized(
            *_pixels(source), *map(_pointer, (source, norm, base, out))
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        flat, results = saved[: ctx.n_flat], saved[ctx.n_flat :]
        needs_x, needs_base, _, *needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a graph of the gradient itself is wanted
            grads = _graph_of_gradients((x, *flat), ctx.settings, grad, (needs_x, *needs))
            return grads[0], grad if needs_base else None, None, *grads[1:]
        stages = list(zip(ctx.settings, _grouped(flat), _grouped(needs), strict=True))
        in_norm, sums = channels_last(grad), None
        weight_grads: list[Tensor | None] = []
        for i in reversed(range(len(stages))):
            source, norm = (results[2 * i - 2], results[2 * i - 1]) if i else (x, None)
            stage = _Backward(source, norm, *stages[i], *results[2 * i : 2 * i + 2])
            needs_source = needs_x or any(needs[: i * N_WEIGHTS])
            in_norm, sums, own = stage.run(in_norm, sums, needs_source)
            weight_grads[:0] = own
        return in_norm, grad if needs_base else None, None, *weight_grads


class _Stage(ctypes.Structure):
    """``Stage`` of separable.c."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "channels", "out_channels", "height", "width")),
        *((name, c_int64) for name in ("out_height", "out_width", "kernel", "stride", "dilation")),
        *((name, c_void_p) for name in ("x", "x_norm", "depthwise", "pointwise", "y", "norm")),
        *((name, c_void_p) for name in ("grad", "grad_sums", "x_grad", "x_sums")),
        *((name, c_void_p) for name in ("depthwise_grad", "pointwise_grad")),
    ]


def _stage(
    x: Tensor, x_norm: Tensor | None, settings: Settings, weights: Weights, y: Tensor
) -> _Stage:
    batch, channels, height, width = x.shape
    kernel = weights.depthwise.shape[-1]
    sizes = (batch, channels, y.shape[1], height, width, *y.shape[2:], kernel)
    tensors = (x, x_norm, weights.depthwise, weights.pointwise, y)
    return _Stage(*sizes, settings.stride, settings.dilation, *map(_address, tensors))


def _run_forward(
    x: Tensor, x_norm: Tensor | None, settings: Settings, weights: Weights
) -> tuple[Tensor, Tensor]:
    """What the 1x1 convolution puts out, channels_last, and the norm behind it.

    A norm is ``(y - mean) * multiplier + shift``, with rows mean, 1 / standard deviation,
    multiplier and shift: ``(4, channels)``.
    """
    n = weights.pointwise.shape[0]
    size = [-(-side // settings.stride) for side in x.shape[2:]]
    y = x.new_empty(x.shape[0], *size, n).permute(0, 3, 1, 2)
    norm = x.new_zeros(4, n)
    stage = _stage(x, x_norm, settings, weights, y)
    statistics = x.new_empty(2, n) if settings.training else None
    call(compiled(x.dtype).separable_forward, ctypes.byref(stage), _pointer(statistics))
    if statistics is not None:
        mean, variance = statistics
        _keep_running(settings, mean, variance, y.numel() // n)
    else:
        mean, variance = cast(Tensor, settings.mean), cast(Tensor, settings.variance)
    norm[0] = mean
    torch.rsqrt(variance + settings.eps, out=norm[1])
    norm[2] = norm[1] if weights.scale is None else norm[1] * weights.scale
    if weights.shift is not None:
        norm[3] = weights.shift
    return y, norm


def _keep_running(settings: Settings, mean: Tensor, variance: Tensor, count: int) -> None:
    if settings.mean is not None and settings.variance is not None:
        settings.mean.lerp_(mean, settings.momentum)
        settings.variance.lerp_(variance * (count / (count - 1)), settings.momentum)


class _Backward(NamedTuple):
    """The backward pass of one stage; shapes and names as in ``_run_forward``.

    Attributes:
        needs: which weights need a gradient.
    """

    x: Tensor
    x_norm: Tensor | None
    settings: Settings
    weights: Weights
    needs: Weights
    y: Tensor
    norm: Tensor

    def run(
        self, grad: Tensor, sums: Tensor | None, needs_source: bool
    ) -> tuple[Any, Tensor | None, list[Tensor | None]]:
        """The gradient in the (normalized) input, its sums, and the gradients in the weights.

        Args:
            grad: in the normalized output.
            sums: over all pixels, of grad and of grad * (y - mean): ``(2, out_channels)``;
                None = not known.
            needs_source: whether the input needs a gradient.
        """
        weights, needs = self.weights, self.needs
        is_affine = needs.scale or needs.shift
        if sums is None and (self.settings.training or is_affine):
            sums = torch.empty_like(self.norm[:2])
            tensors = map(_pointer, (grad, self.y, self.norm, sums))
            call(compiled(grad.dtype).gradient_sums, *_pixels(grad), *tensors)
        x_grad = torch.empty_like(self.x) if needs_source else None
        x_sums = None
        if needs_source and self.x_norm is not None:
            x_sums = torch.empty_like(self.x_norm[:2])
        depthwise = torch.empty_like(weights.depthwise) if needs.depthwise else None
        pointwise = torch.empty_like(weights.pointwise) if needs.pointwise else None
        stage = _stage(self.x, self.x_norm, self.settings, weights, self.y)
        stage.norm, stage.grad = _address(self.norm), _address(grad)
        stage.grad_sums = _address(sums) if self.settings.training else None
        stage.x_grad, stage.x_sums = _address(x_grad), _address(x_sums)
        stage.depthwise_grad, stage.pointwise_grad = _address(depthwise), _address(pointwise)
        call(compiled(grad.dtype).separable_backward, ctypes.byref(stage))
        scale = shift = None
        if needs.scale:
            scale = cast(Tensor, sums)[1] * self.norm[1]
            if cast(Tensor, weights.scale).ndim == 0:
                scale = scale.sum()
        if needs.shift:
            shift = cast(Tensor, sums)[0].clone()
        return x_grad, x_sums, [depthwise, pointwise, scale, shift]


def _graph_of_gradients(
    inputs: Sequence[Tensor | None],
    settings: Sequence[Settings],
    grad: Tensor,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients in ``inputs``, x and the weights, by operations that have gradients too."""
    x, *flat = inputs
    out = cast(Tensor, x)
    for own, weights in zip(settings, _grouped(flat), strict=True):
        kernel, channels = weights.depthwise.shape[-1], weights.depthwise.shape[0]
        padding = own.dilation * (kernel // 2)
        out = F.conv2d(
            F.relu(out), weights.depthwise, None, own.stride, padding, own.dilation, channels
        )
        out = F.conv2d(out, weights.pointwise)
        scale = None if weights.scale is None else weights.scale.expand(out.shape[1])
        fixed = (None, None) if own.training else (own.mean, own.variance)
        out = F.batch_norm(out, *fixed, scale, weights.shift, own.training, 0.0, own.eps)
    wanted = [cast(Tensor, tensor) for tensor, need in zip(inputs, needs, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs]


def _grouped(flat: Sequence[Any]) -> list[Weights]:
    return [Weights(*flat[i : i + N_WEIGHTS]) for i in range(0, len(flat), N_WEIGHTS)]


def _pixels(x: Tensor) -> tuple[c_int64, c_int64]:
    return c_int64(x.numel() // x.shape[1]), c_int64(x.shape[1])


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _pointer(x: Tensor | None) -> c_void_p:
    return c_void_p(_address(x))
