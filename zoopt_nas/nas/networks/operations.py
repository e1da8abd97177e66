"""Candidate operations of the search spaces.

Sources: Liu et al. (DARTS, 2019); Zela et al. (R-DARTS, 2020); Dong and Yang (NAS-Bench-201, 2020).

Every operation maps ``(batch, channels, height, width)`` to the same shape, or to half the height
and width (rounded up) with stride 2, and does not modify its input. Convolutions have no bias. In a
search BatchNorm has no affine parameters, which could undo the architecture weight of a candidate.
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
        """Apply the operation to ``(batch, channels, h, w)``."""
        return self.after_relu(F.relu(x))

    def after_relu(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Apply the operation behind the ReLU, whose output is ``x``, and multiply by ``scale``.

        ``scale`` is a tensor (), allowed if BatchNorm has no affine parameters.
        """
        raise NotImplementedError


class FactorizedReduce(AfterReLU, standalone.FactorizedReduce):
    """Halves height and width by two 1x1 convolutions on shifted grids.

    Odd sizes are padded with a row or column of zeros, so that both grids have ceil(size / 2)
    points. For even sizes this is the published operation.
    """

    def after_relu(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See ``AfterReLU.after_relu``."""
        return self.after_halving(*diagonal_pixels(x), scale)

    def after_halving(self, even: Tensor, odd: Tensor, scale: Tensor | None = None) -> Tensor:
        """Do the same as ``after_relu``, given the ``diagonal_pixels`` of its input."""
        convolved = [F.conv2d(even, self.conv_even.weight), F.conv2d(odd, self.conv_odd.weight)]
        return scaled_norm(torch.cat(convolved, dim=1), self.norm, scale)


class Stage(NamedTuple):
    """A separable convolution with BatchNorm, without its ReLU."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d


class Separable(AfterReLU, Fused):
    """Depthwise separable convolutions, each after a ReLU.

    The ReLU modules are never called; they only preserve the published names of the weights.
    """

    @property
    def stages(self) -> list[Stage]:
        """The modules of each convolution."""
        modules = list(self)
        return [Stage(*cast(list[Any], modules[i + 1 : i + 4])) for i in range(0, len(modules), 4)]

    def fused_stages(self) -> list[FusedStage]:
        """Return the stages for the CPU kernels."""
        return [fused_stage(stage.pointwise, stage.norm, stage.depthwise) for stage in self.stages]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation to ``(batch, channels, h, w)``."""
        return self.fused(x) if self.can_fuse(x) else self.after_relu(F.relu(x))

    def after_relu(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See ``AfterReLU.after_relu``."""
        *first, last = self.stages
        for stage in first:
            # In place: nothing else reads the output of BatchNorm.
            x = F.relu(_apply_stage(x, None, stage), inplace=True)
        return _apply_stage(x, scale, last)


class SepConv(Separable):
    """Two depthwise separable convolutions; only the first has the stride."""

    def __init__(self, channels: int, kernel_size: int, stride: int, *, affine: bool) -> None:
        first, second = (
            standalone.separable(channels, kernel_size, step, affine=affine) for step in (stride, 1)
        )
        nn.Sequential.__init__(self, *first, *second)


class DilConv(Separable):
    """A depthwise separable convolution with dilation 2."""

    def __init__(self, channels: int, kernel_size: int, stride: int, *, affine: bool) -> None:
        stage = standalone.separable(channels, kernel_size, stride, 2, affine=affine)
        nn.Sequential.__init__(self, *stage)


class NorConv(AfterReLU, standalone.NorConv):
    """ReLU, convolution and BatchNorm (NAS-Bench-201)."""

    def after_relu(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See ``AfterReLU.after_relu``."""
        return scaled_norm(self.conv(x), self.norm, scale)


def _apply_stage(x: Tensor, scale: Tensor | None, stage: Stage) -> Tensor:
    """Apply a stage and multiply its output by ``scale``."""
    depthwise, pointwise, norm = stage
    stride, dilation = depthwise.stride[0], depthwise.dilation[0]
    out = separable_conv2d(x, depthwise.weight, pointwise.weight, stride, dilation)
    return scaled_norm(out, norm, scale)


class Pool(nn.Sequential):
    """3x3 max or average pooling; averages exclude the padding.

    In a search BatchNorm follows, to give pools the scale of convolutions.
    """

    def __init__(self, pool: nn.Module, channels: int, *, search: bool) -> None:
        super().__init__(pool, *([nn.BatchNorm2d(channels, affine=False)] if search else []))


class Stochastic(nn.Module):
    """A module that draws random numbers.

    Attributes:
        generator: A generator on the device of the input, set by ``seed_noise``; None is torch's
            default generator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None


class Noise(Stochastic):
    """Standard normal noise instead of the input, also in evaluation (space S4)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Draw noise with the shape and memory format of the output."""
        batch, channels, height, width = x[:, :, :: self.stride, :: self.stride].shape
        # From a shape, not a tensor, so that all candidates under torch.vmap get the same draw.
        # In channels-last order, so that a seed gives the same noise in both memory formats.
        noise = torch.empty((batch, height, width, channels), dtype=x.dtype, device=x.device)
        noise.normal_(generator=self.generator)
        return contiguous_like(noise.permute(0, 3, 1, 2), x)


class SkipDropout(Stochastic):
    """A skip connection with dropout: in training mode it loses some of its numbers (P-DARTS).

    Attributes:
        rate: Probability () of each number to become 0, below 1; the others are divided by
            ``1 - rate``. It is 0 at first.
    """

    rate: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A buffer, so that a CUDA graph follows its changes.
        self.register_buffer("rate", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``(batch, channels, h, w)`` with dropout."""
        if not self.training:
            return x
        batch, channels, height, width = x.shape
        # In channels-last order, see Noise; in float32, since bfloat16 has few numbers.
        drawn = torch.empty((batch, height, width, channels), device=x.device)
        drawn.uniform_(generator=self.generator)
        scale = (drawn >= self.rate) / (1 - self.rate)
        return x * contiguous_like(scale.to(x.dtype).permute(0, 3, 1, 2), x)


def skip_with_dropout(channels: int, stride: int, search: bool) -> nn.Module:
    """Build a skip connection with dropout, as an ``OperationBuilder``; with stride 2 without."""
    operation = _skip_connect(channels, stride, search)
    return SkipDropout() if isinstance(operation, nn.Identity) else operation


def _skip_connect(channels: int, stride: int, search: bool) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return FactorizedReduce(channels, channels, affine=not search)


def _pool(build: Callable[[int, int], nn.Sequential]) -> OperationBuilder:
    return lambda channels, stride, search: Pool(
        build(channels, stride)[0], channels, search=search
    )


def _convolution(kind: type[SepConv | DilConv | NorConv], kernel_size: int) -> OperationBuilder:
    return lambda channels, stride, search: kind(channels, kernel_size, stride, affine=not search)


OperationBuilder = Callable[[int, int, bool], nn.Module]
"""``(channels, stride, search) -> module``; ``search`` selects the form in a supernet."""

OPERATIONS: Registry[OperationBuilder] = Registry(
    "operation",
    {
        "none": lambda channels, stride, search: standalone.Zero(stride),
        "skip_connect": _skip_connect,
        "max_pool_3x3": _pool(standalone.max_pool_3x3),
        "avg_pool_3x3": _pool(standalone.avg_pool_3x3),
        "sep_conv_3x3": _convolution(SepConv, 3),
        "sep_conv_5x5": _convolution(SepConv, 5),
        "sep_conv_7x7": _convolution(SepConv, 7),
        "dil_conv_3x3": _convolution(DilConv, 3),
        "dil_conv_5x5": _convolution(DilConv, 5),
        "nor_conv_1x1": _convolution(NorConv, 1),
        "nor_conv_3x3": _convolution(NorConv, 3),
        "noise": lambda channels, stride, search: Noise(stride),
    },
    group="zoopt_nas.operations",
    check=callable,
)


def seed_noise(model: nn.Module, generator: torch.Generator | None) -> None:
    """Let ``model`` and all its modules draw from ``generator``."""
    for module in model.modules():
        if isinstance(module, Stochastic):
            module.generator = generator
