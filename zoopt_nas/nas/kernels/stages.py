"""Depthwise separable convolutions with ReLU and BatchNorm, by the kernels of this folder.

``run_stages`` is one autograd function for several stages. It stores its input and the output of
each 1x1 convolution, and recomputes everything else in the backward pass.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.kernels.channels_last import channels_last
from zoopt_nas.nas.kernels.library import call, can_run, compiled


@dataclass(frozen=True)
class StageSettings:
    """Settings of a stage: ReLU, depthwise convolution, 1x1 convolution, BatchNorm.

    Attributes:
        stride, dilation: Settings of the depthwise convolution.
        training: Whether BatchNorm uses the statistics of the batch.
        momentum, eps: Settings of BatchNorm.
        mean, variance: Running statistics, ``(out_channels,)``, updated in training; or None.
        count: Number of batches in them, ``()``; or None.
    """

    stride: int
    dilation: int
    training: bool
    momentum: float
    eps: float
    mean: Tensor | None = None
    variance: Tensor | None = None
    count: Tensor | None = None


class StageWeights(NamedTuple):
    """Weights of a stage.

    Attributes:
        depthwise: ``(channels, 1, k, k)``, k odd; None = no depthwise convolution.
        pointwise: ``(out_channels, channels, 1, 1)``.
        scale: Scale of BatchNorm, ``(out_channels,)`` or ``()``; None = 1.
        shift: Shift of BatchNorm, ``(out_channels,)``; None = 0.
    """

    depthwise: Tensor | None
    pointwise: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


N_WEIGHTS = len(StageWeights._fields)


def can_run_stages(x: Tensor) -> bool:
    """Whether ``run_stages`` accepts ``x``, ``(batch, channels, h, w)``, in this context."""
    # The kernels distribute images over threads. PyTorch refuses to normalize a single pixel.
    return x.shape[0] > 1 and x.permute(0, 2, 3, 1).is_contiguous() and can_run(x)


def run_stages(
    x: Tensor,
    stages: Sequence[tuple[StageSettings, StageWeights]],
    base: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Return ``base + skip * x`` plus the output of the stages in sequence.

    Args:
        x: ``(batch, channels, height, width)``, accepted by ``can_run_stages``.
        stages: One or more stages.
        base: A tensor in the shape of the output; None = 0.
        skip: ``()``, allowed if the output has the shape of ``x``; None = 0.
        overwrite: Whether the result may overwrite ``base``.

    Raises:
        MemoryError: There is no memory for the buffers of the kernels.
    """
    settings = [of_stage for of_stage, _ in stages]
    # Contiguous here, so that the memory behind the kernels' pointers stays alive.
    weights = [
        None if tensor is None else tensor.contiguous()
        for _, tensors in stages
        for tensor in tensors
    ]
    if base is not None:
        overwrite = overwrite and not base._is_view()  # autograd forbids it for some views
        overwrite = overwrite and base.permute(0, 2, 3, 1).is_contiguous()
    out: Tensor = _Stages.apply(x, base, skip, overwrite, settings, *weights)
    return out


class _Stages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor | None,
        skip: Tensor | None,
        overwrite: bool,
        settings: Sequence[StageSettings],
        *flat: Tensor | None,
    ) -> Tensor:
        source, norm = x, None
        results: list[Tensor] = []
        for of_stage, weights in zip(settings, _grouped(flat), strict=True):
            source, norm = _run_forward(source, norm, of_stage, weights)
            results += [source, norm]
        ctx.settings, ctx.n_flat = settings, len(flat)
        ctx.save_for_backward(x, skip, *flat, *results)
        if base is not None and overwrite:
            ctx.mark_dirty(base)
            out = base
        else:
            out = torch.empty_like(source)
            base = None if base is None else channels_last(base)
        compiled(x.dtype).add_normalized(
            *_pixels(source), *map(_pointer, (source, norm, base, skip, x, out))
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, skip, *saved = ctx.saved_tensors
        flat, results = saved[: ctx.n_flat], saved[ctx.n_flat :]
        needs_x, needs_base, needs_skip, _, _, *needs = ctx.needs_input_grad
        base_grad = grad if needs_base else None
        if torch.is_grad_enabled():  # second derivatives are needed
            inputs, wanted = (x, skip, *flat), (needs_x, needs_skip, *needs)
            x_grad, skip_grad, *grads = _graph_of_gradients(inputs, ctx.settings, grad, wanted)
            return x_grad, base_grad, skip_grad, None, None, *grads
        grad = channels_last(grad)
        stages = list(zip(ctx.settings, _grouped(flat), _grouped(needs), strict=True))
        in_norm: Tensor | None = grad
        sums: Tensor | None = None
        weight_grads: list[Tensor | None] = []
        for i in reversed(range(len(stages))):
            needs_source = needs_x or any(needs[: i * N_WEIGHTS])
            if not (needs_source or any(stages[i][2])):  # earlier stages need none, either
                in_norm = None
                weight_grads[:0] = [None] * (N_WEIGHTS * (i + 1))
                break
            source, norm = (results[2 * i - 2], results[2 * i - 1]) if i else (x, None)
            stage = _Backward(source, norm, *stages[i], *results[2 * i : 2 * i + 2])
            beside = (skip, grad) if i == 0 and skip is not None else None
            in_norm, sums, grads = stage.run(cast(Tensor, in_norm), sums, needs_source, beside)
            weight_grads[:0] = grads
        skip_grad = (grad * x).sum() if needs_skip else None
        return in_norm, base_grad, skip_grad, None, None, *weight_grads


class _StageStruct(ctypes.Structure):
    """``Stage`` of stage.h."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "channels", "out_channels", "height", "width")),
        *((name, c_int64) for name in ("out_height", "out_width", "kernel", "stride", "dilation")),
        *((name, c_void_p) for name in ("x", "x_norm", "depthwise", "pointwise", "y", "norm")),
        ("takes_batch", c_int64),
        *((name, c_double) for name in ("momentum", "eps")),
        *((name, c_void_p) for name in ("running_mean", "running_variance", "scale", "shift")),
        ("scale_step", c_int64),
        *((name, c_void_p) for name in ("grad", "grad_sums", "x_grad", "x_sums")),
        *((name, c_void_p) for name in ("skip", "skip_grad", "depthwise_grad", "pointwise_grad")),
    ]


def _stage_struct(
    x: Tensor,
    x_norm: Tensor | None,
    settings: StageSettings,
    weights: StageWeights,
    y: Tensor,
    norm: Tensor,
) -> _StageStruct:
    batch, channels, height, width = x.shape
    out_height, kernel = y.shape[2], 1
    if weights.depthwise is not None:
        kernel = weights.depthwise.shape[-1]
    else:  # pixels are independent, and bands of an image fit into the cache
        height = out_height = _band(height, width)
        batch *= x.shape[2] // height
    sizes = (batch, channels, y.shape[1], height, width, out_height, y.shape[3], kernel)
    tensors = (x, x_norm, weights.depthwise, weights.pointwise, y, norm)
    of_norm = (settings.mean, settings.variance, weights.scale, weights.shift)
    return _StageStruct(
        *(*sizes, settings.stride, settings.dilation, *map(_address, tensors)),
        *(settings.training, settings.momentum, settings.eps, *map(_address, of_norm)),
        weights.scale is not None and weights.scale.ndim,
    )


def _band(height: int, width: int) -> int:
    """Return the least divisor of ``height`` that gives a band of rows at least 128 pixels."""
    rows = (rows for rows in range(1, height) if height % rows == 0 and rows * width >= 128)
    return next(rows, height)


def _run_forward(
    x: Tensor, x_norm: Tensor | None, settings: StageSettings, weights: StageWeights
) -> tuple[Tensor, Tensor]:
    """Return the output y of the 1x1 convolution, channels_last, and its norm.

    A norm, ``(y - mean) * multiplier + shift``, has the rows mean, 1 / standard deviation,
    multiplier and shift: ``(4, channels)``.
    """
    n, (height, width) = weights.pointwise.shape[0], x.shape[2:]
    size = (-(-height // settings.stride), -(-width // settings.stride), n)
    y = x.new_empty((x.shape[0], *size)).permute(0, 3, 1, 2)
    norm = x.new_empty((4, n))
    stage = _stage_struct(x, x_norm, settings, weights, y, norm)
    call(compiled(x.dtype).separable_forward, ctypes.byref(stage))
    if settings.training and settings.count is not None:
        settings.count.add_(1)
    return y, norm


class _Backward(NamedTuple):
    """The backward pass of a stage; ``needs`` says which weights need a gradient."""

    x: Tensor
    x_norm: Tensor | None
    settings: StageSettings
    weights: StageWeights
    needs: StageWeights
    y: Tensor
    norm: Tensor

    def run(
        self,
        grad: Tensor,
        sums: Tensor | None,
        needs_source: bool,
        skip: tuple[Tensor, Tensor] | None,
    ) -> tuple[Any, Tensor | None, list[Tensor | None]]:
        """Return the gradient of the (normalized) input, its sums, and the weights' gradients.

        Args:
            grad: Gradient of the normalized output.
            sums: Sums over all pixels of grad and of grad * (y - mean), ``(2, out_channels)``, if
                known.
            needs_source: Whether the input needs a gradient.
            skip: A number and a gradient whose product is added to the gradient of the input.
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
        depthwise = None
        if needs.depthwise and weights.depthwise is not None:
            depthwise = torch.empty_like(weights.depthwise)
        pointwise = torch.empty_like(weights.pointwise) if needs.pointwise else None
        stage = _stage_struct(self.x, self.x_norm, self.settings, weights, self.y, self.norm)
        stage.grad = _address(grad)
        stage.grad_sums = _address(sums) if self.settings.training else None
        stage.x_grad, stage.x_sums = _address(x_grad), _address(x_sums)
        stage.skip, stage.skip_grad = map(_address, skip or (None, None))
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
    settings: Sequence[StageSettings],
    grad: Tensor,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of ``inputs`` (x, skip, weights) by differentiable operations."""
    x, skip, *flat = inputs
    out = cast(Tensor, x)
    for of_stage, weights in zip(settings, _grouped(flat), strict=True):
        out = F.relu(out)
        if weights.depthwise is not None:
            channels, _, kernel, _ = weights.depthwise.shape
            padding = of_stage.dilation * (kernel // 2)
            geometry = (of_stage.stride, padding, of_stage.dilation, channels)
            out = F.conv2d(out, weights.depthwise, None, *geometry)
        out = F.conv2d(out, weights.pointwise)
        fixed = (None, None) if of_stage.training else (of_stage.mean, of_stage.variance)
        out = F.batch_norm(out, *fixed, None, None, of_stage.training, 0.0, of_stage.eps)
        # batch_norm has a wrong gradient for an expanded scale on channels_last.
        if weights.scale is not None:
            out = out * weights.scale.view(-1, 1, 1)
        if weights.shift is not None:
            out = out + weights.shift.view(-1, 1, 1)
    if skip is not None:
        out = out + skip * cast(Tensor, x)
    wanted = [cast(Tensor, tensor) for tensor, need in zip(inputs, needs, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs]


def _grouped(flat: Sequence[Any]) -> list[StageWeights]:
    return [StageWeights(*flat[i : i + N_WEIGHTS]) for i in range(0, len(flat), N_WEIGHTS)]


def _pixels(x: Tensor) -> tuple[c_int64, c_int64]:
    # Not by ``numel``, which differs in an estimate of memory.
    batch, channels, height, width = x.shape
    return c_int64(batch * height * width), c_int64(channels)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _pointer(x: Tensor | None) -> c_void_p:
    return c_void_p(_address(x))
