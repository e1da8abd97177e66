"""Candidate operations of the search spaces and the table that names them.

Every operation maps ``(batch, channels, height, width)`` to the same shape, or to half the height
and width (rounded up) with stride 2, and leaves its input unchanged. Facts: Liu et al. (DARTS,
2019), Zela et al. (R-DARTS, 2020). No convolution has a bias. During search BatchNorm has no affine
parameters, since they would let a candidate rescale itself past its architecture weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.kernels.channels_last import contiguous_like, diagonal_pixels
from zoopt_nas.nas.networks import standalone
from zoopt_nas.nas.networks.fused import (
    Fused,
    FusedStage,
    fused_stage,
    scaled_norm,
    separable_conv2d,
)
from zoopt_nas.registry import Registry


class AfterReLU(nn.Module):
    """An operation that begins with a ReLU, which edges from the same node can share."""

    def forward(self, x: Tensor) -> Tensor:
        return self.after_relu(F.relu(x))

    def after_relu(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The operation on the positive part of its input, ``(batch, channels, h, w)``.

        Args:
            scale: ``()``, multiplies the output; only where BatchNorm has no affine parameters.
        """
        raise NotImplementedError


class FactorizedReduce(AfterReLU, standalone.FactorizedReduce):
    """Halves height and width without losing pixels: two 1x1 convolutions on shifted grids.

    Odd sizes are padded by one row or column of zeros, so that both grids have ceil(size / 2)
    points; for even sizes this is the published operation to the letter.
    """

    def after_relu(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.after_halving(*diagonal_pixels(x), scale)

    def after_halving(self, even: Tensor, odd: Tensor, scale: Tensor | None = None) -> Tensor:
        """``after_relu``, from the ``diagonal_pixels`` of its input."""
        convolved = [F.conv2d(even, self.conv_even.weight), F.conv2d(odd, self.conv_odd.weight)]
        return scaled_norm(torch.cat(convolved, dim=1), self.norm, scale)


class Stage(NamedTuple):
    """A separable convolution of an operation, behind its ReLU."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d


class Separable(AfterReLU, Fused):
    """Depthwise separable convolutions, each behind a ReLU.

    The modules of the ReLUs are never called: they keep the published names of the weights.
    """

    @property
    def stages(self) -> list[Stage]:
        modules = list(self)
        return [Stage(*cast(list[Any], modules[i + 1 : i + 4])) for i in range(0, len(modules), 4)]

    def fused_stages(self) -> list[FusedStage]:
        return [fused_stage(stage.pointwise, stage.norm, stage.depthwise) for stage in self.stages]

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x) if self.can_fuse(x) else self.after_relu(F.relu(x))

    def after_relu(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        *first, last = self.stages
        for stage in first:
            # In place: BatchNorm keeps its input, and nothing else reads its output.
            x = F.relu(_apply_stage(x, None, stage), inplace=True)
        return _apply_stage(x, scale, last)


class SepConv(Separable):
    """Depthwise separable convolution, applied twice; only the first one strides."""

    def __init__(self, channels: int, kernel_size: int, stride: int, *, affine: bool) -> None:
        first, second = (
            standalone.separable(channels, kernel_size, step, affine=affine) for step in (stride, 1)
        )
        nn.Sequential.__init__(self, *first, *second)


class DilConv(Separable):
    """Depthwise separable convolution with dilation 2, applied once."""

    def __init__(self, channels: int, kernel_size: int, stride: int, *, affine: bool) -> None:
        stage = standalone.separable(channels, kernel_size, stride, 2, affine=affine)
        nn.Sequential.__init__(self, *stage)


def _apply_stage(x: Tensor, scale: Tensor | None, stage: Stage) -> Tensor:
    """A stage, and a scale of its output."""
    depthwise, pointwise, norm = stage
    stride, dilation = depthwise.stride[0], depthwise.dilation[0]
    out = separable_conv2d(x, depthwise.weight, pointwise.weight, stride, dilation)
    return scaled_norm(out, norm, scale)


class Pool(nn.Sequential):
    """3x3 max or average pooling; an average counts no padding.

    During search BatchNorm follows, so that a pooled edge has the scale of a convolved one; the
    retrained network has none.
    """

    def __init__(self, pool: nn.Module, channels: int, *, search: bool) -> None:
        super().__init__(pool, *([nn.BatchNorm2d(channels, affine=False)] if search else []))


class Stochastic(nn.Module):
    """A module that draws random numbers.

    Attributes:
        generator: where it draws from, on the device of its input; None means torch's default
            generator. A search sets it by ``seed_noise``, so that it is reproducible and every
            candidate of a batch sees the same draws.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None


class Noise(Stochastic):
    """Fresh standard normal noise in place of the input, also in evaluation (space S4)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x[:, :, :: self.stride, :: self.stride].shape
        # Of a shape, not of a tensor: under torch.vmap all candidates get this one draw. In the
        # order of channels_last, so that the same seed gives the same noise in both orders.
        noise = torch.empty((batch, height, width, channels), dtype=x.dtype, device=x.device)
        noise.normal_(generator=self.generator)
        return contiguous_like(noise.permute(0, 3, 1, 2), x)


def _skip_connect(channels: int, stride: int, search: bool) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return FactorizedReduce(channels, channels, affine=not search)


def _pool(build: Callable[[int, int], nn.Sequential]) -> OperationBuilder:
    return lambda channels, stride, search: Pool(
        build(channels, stride)[0], channels, search=search
    )


def _sep_conv(kernel_size: int) -> OperationBuilder:
    return lambda channels, stride, search: SepConv(
        channels, kernel_size, stride, affine=not search
    )


def _dil_conv(kernel_size: int) -> OperationBuilder:
    return lambda channels, stride, search: DilConv(
        channels, kernel_size, stride, affine=not search
    )


OperationBuilder = Callable[[int, int, bool], nn.Module]
"""``(channels, stride, search) -> module``; ``search`` picks the supernet's form."""

OPERATIONS: Registry[OperationBuilder] = Registry(
    "operation",
    {
        "none": lambda channels, stride, search: standalone.Zero(stride),
        "skip_connect": _skip_connect,
        "max_pool_3x3": _pool(standalone.max_pool_3x3),
        "avg_pool_3x3": _pool(standalone.avg_pool_3x3),
        "sep_conv_3x3": _sep_conv(3),
        "sep_conv_5x5": _sep_conv(5),
        "sep_conv_7x7": _sep_conv(7),
        "dil_conv_3x3": _dil_conv(3),
        "dil_conv_5x5": _dil_conv(5),
        "noise": lambda channels, stride, search: Noise(stride),
    },
    group="zoopt_nas.operations",
    check=callable,
)


def seed_noise(model: nn.Module, generator: torch.Generator | None) -> None:
    """Makes ``model`` and everything inside it that draws draw from ``generator``."""
    for module in model.modules():
        if isinstance(module, Stochastic):
            module.generator = generator
