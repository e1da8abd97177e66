"""Modules for the CPU kernels, and the same computation by PyTorch's operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.kernels.library import can_run
from zoopt_nas.nas.kernels.stages import StageSettings, StageWeights, can_run_stages, run_stages

FusedStage = tuple[StageSettings, StageWeights]
"""A stage in the form of the CPU kernels."""


class Fused(nn.Sequential):
    """Stages of ReLU, convolutions and BatchNorm, which the CPU kernels can compute.

    Attributes:
        cpu_kernels: Whether to use the kernels; see ``enable_kernels``.
    """

    cpu_kernels = True

    def fused_stages(self) -> list[FusedStage]:
        """Return the stages, each of which begins with a ReLU."""
        raise NotImplementedError

    def can_fuse(self, x: Tensor) -> bool:
        """Whether ``fused`` accepts ``x``; if not, use PyTorch's operators."""
        return self.cpu_kernels and can_run_stages(x)

    def fused(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        base: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Return ``base + skip * x + scale * module(x)``.

        Args:
            x: The input, ``(batch, channels, h, w)``.
            scale: ``()``, allowed if BatchNorm has no affine parameters; None = 1.
            base: A tensor in the shape of the output, which may be overwritten; None = 0.
            skip: ``()``, allowed if the output has the shape of ``x``; None = 0.
        """
        stages = self.fused_stages()
        if scale is not None:
            settings, weights = stages[-1]
            stages[-1] = settings, weights._replace(scale=scale)
        return run_stages(x, stages, base, skip, overwrite=True)


def enable_kernels(model: nn.Module, is_on: bool) -> None:
    """Allow or forbid the CPU kernels for the operations of ``model``."""
    for module in model.modules():
        if isinstance(module, Fused):
            module.cpu_kernels = is_on


def kernels_enabled(model: nn.Module) -> bool:
    """Whether the CPU kernels compute operations of ``model`` on its current device."""
    is_on = any(isinstance(module, Fused) and module.cpu_kernels for module in model.modules())
    return is_on and can_run(next(model.parameters()))


def fused_stage(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, depthwise: nn.Conv2d | None = None
) -> FusedStage:
    """Return the stage of an optional depthwise convolution, a 1x1 convolution and BatchNorm."""
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
    """Apply a padded depthwise convolution, stride and dilation 1 or 2, and a 1x1 convolution.

    The weights are ``(channels, 1, k, k)``, k odd, and ``(out_channels, channels / groups, 1, 1)``.
    """
    if torch.is_autocast_enabled(x.device.type):  # autocast misses convolutions under torch.vmap
        dtype = torch.get_autocast_dtype(x.device.type)
        x, depthwise, pointwise = x.to(dtype), depthwise.to(dtype), pointwise.to(dtype)
    if stride == dilation > 1:
        # It only reads pixels at multiples of the stride.
        x, stride, dilation = x[:, :, ::stride, ::stride], 1, 1
    channels = depthwise.shape[0]
    padding = dilation * (depthwise.shape[-1] // 2)
    between = F.conv2d(x, depthwise, None, stride, padding, dilation, channels)
    return F.conv2d(between, pointwise, groups=channels // pointwise.shape[1])


def scaled_norm(x: Tensor, norm: nn.BatchNorm2d, scale: Tensor | None) -> Tensor:
    """Return ``norm(x) * scale``, with a scale of shape () or (channels,); None is 1."""
    if scale is None:
        out: Tensor = norm(x)
        return out
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    # Contiguous, because the gradient has the same memory format.
    scale = scale.expand(x.shape[1]).contiguous()
    return normalize(x, norm, norm.running_mean, norm.running_var, scale)


def normalize(
    x: Tensor,
    norm: nn.BatchNorm2d,
    mean: Tensor | None,
    variance: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """Apply BatchNorm with the settings of ``norm`` and the given running statistics.

    Without statistics it always uses those of the batch. ``scale`` is contiguous (channels,).
    """
    training = norm.training or mean is None
    return F.batch_norm(x, mean, variance, scale, None, training, norm.momentum or 0.0, norm.eps)
