"""Modules that the CPU kernels compute, and the same by PyTorch's operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.kernels.library import can_run
from zoopt_nas.nas.kernels.stages import StageSettings, StageWeights, can_run_stages, run_stages

FusedStage = tuple[StageSettings, StageWeights]
"""A stage as the CPU kernels take it."""


class Fused(nn.Sequential):
    """Stages of ReLU, convolutions and BatchNorm, which the CPU kernels can compute.

    Attributes:
        cpu_kernels: whether they may; see ``enable_kernels``.
    """

    cpu_kernels = True

    def fused_stages(self) -> list[FusedStage]:
        """The stages, each behind a ReLU."""
        raise NotImplementedError

    def can_fuse(self, x: Tensor) -> bool:
        """Whether ``fused`` can be used for ``x``; else PyTorch's operators must."""
        return self.cpu_kernels and can_run_stages(x)

    def fused(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        base: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """``base + skip * x`` + the module on ``x``, times ``scale``.

        Args:
            x: its input, ``(batch, channels, h, w)``.
            scale: ``()``; only where BatchNorm has no affine parameters.
            base: of the shape of the output; None = 0. The result may take its memory.
            skip: ``()``; None = 0. Only where the output has the shape of ``x``.
        """
        stages = self.fused_stages()
        if scale is not None:
            settings, weights = stages[-1]
            stages[-1] = settings, weights._replace(scale=scale)
        return run_stages(x, stages, base, skip, overwrite=True)


def enable_kernels(model: nn.Module, is_on: bool) -> None:
    """Sets whether the CPU kernels may compute operations of ``model``, where they can."""
    for module in model.modules():
        if isinstance(module, Fused):
            module.cpu_kernels = is_on


def kernels_enabled(model: nn.Module) -> bool:
    """Whether the CPU kernels compute operations of ``model``, where it is now."""
    is_on = any(isinstance(module, Fused) and module.cpu_kernels for module in model.modules())
    return is_on and can_run(next(model.parameters()))


def fused_stage(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, depthwise: nn.Conv2d | None = None
) -> FusedStage:
    """A stage.

    Args:
        conv: 1x1, without bias.
        norm: behind it.
        depthwise: in front of it, if there is one.
    """
    settings = StageSettings(
        1 if depthwise is None else depthwise.stride[0],
        1 if depthwise is None else depthwise.dilation[0],
        norm.training or norm.running_mean is None,
        norm.momentum or 0.0,
        norm.eps,
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
    )
    weight = None if depthwise is None else depthwise.weight
    return settings, StageWeights(weight, conv.weight, norm.weight, norm.bias)


def separable_conv2d(
    x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int
) -> Tensor:
    """A depthwise convolution, padded to keep the size, and a 1x1 convolution of its output.

    Args:
        x: ``(batch, channels, height, width)``.
        depthwise: ``(channels, 1, k, k)``, k odd.
        pointwise: ``(out_channels, channels / groups, 1, 1)``.
        stride: of the depthwise convolution, 1 or 2; the size is rounded up.
        dilation: of the depthwise convolution, 1 or 2.
    """
    if torch.is_autocast_enabled(x.device.type):  # which sees no convolution under torch.vmap
        dtype = torch.get_autocast_dtype(x.device.type)
        x, depthwise, pointwise = x.to(dtype), depthwise.to(dtype), pointwise.to(dtype)
    if stride == dilation > 1:
        # Every pixel that it reads is at a multiple of the stride.
        x, stride, dilation = x[:, :, ::stride, ::stride], 1, 1
    channels = depthwise.shape[0]
    padding = dilation * (depthwise.shape[-1] // 2)
    between = F.conv2d(x, depthwise, None, stride, padding, dilation, channels)
    return F.conv2d(between, pointwise, groups=channels // pointwise.shape[1])


def scaled_norm(x: Tensor, norm: nn.BatchNorm2d, scale: Tensor | None) -> Tensor:
    """``norm(x) * scale``; without affine parameters the scale costs nothing there.

    Args:
        scale: ``()`` or ``(channels,)``; None is one.
    """
    if scale is None:
        out: Tensor = norm(x)
        return out
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    # Contiguous: its gradient is written in the same memory order.
    scale = scale.expand(x.shape[1]).contiguous()
    return normalize(x, norm, norm.running_mean, norm.running_var, scale)


def normalize(
    x: Tensor,
    norm: nn.BatchNorm2d,
    mean: Tensor | None,
    variance: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """BatchNorm with the settings of ``norm``, which has no affine parameters.

    Args:
        mean, variance: running statistics, ``(channels,)``, updated in training; None = those of
            the batch, always.
        scale: ``(channels,)``, contiguous; None is one.
    """
    training = norm.training or mean is None
    return F.batch_norm(x, mean, variance, scale, None, training, norm.momentum or 0.0, norm.eps)
