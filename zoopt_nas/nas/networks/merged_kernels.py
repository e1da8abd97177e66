"""Convolutions of an edge that share one kernel (Wang et al., MergeNAS, IJCAI 2020).

Each convolution has the entries of the kernel that its size and dilation reach from the middle. The
mixture of all of them is a single convolution, whose kernel is ``sum_o w_o (mask_o * kernel)`` for
architecture weights w. BatchNorm, and the 1x1 convolution behind a depthwise one, are shared too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.kernels.stages import run_stages
from zoopt_nas.nas.networks.fused import Fused, fused_stage, scaled_norm, separable_conv2d
from zoopt_nas.nas.networks.operations import OPERATIONS, AfterReLU, OperationBuilder, Stage


class Footprint(NamedTuple):
    """The entries that a convolution has in a larger kernel, around the middle."""

    size: int
    dilation: int = 1

    @property
    def extent(self) -> int:
        """The side of the smallest kernel that has all entries."""
        return self.dilation * (self.size - 1) + 1

    def entries(self, kernel_size: int) -> slice:
        """Return the entries along a side of a kernel."""
        start = (kernel_size - self.extent) // 2
        return slice(start, start + self.extent, self.dilation)


class _Taps(NamedTuple):
    """A kernel to convolve with, and its dilation."""

    kernel: Tensor
    dilation: int


class SharedKernel(Fused):
    """The kernel of several convolutions, each of which follows a ReLU.

    Args:
        footprints: The entries of each convolution.
        conv: The convolution with the whole kernel.
        others: The modules behind it, the last of which is BatchNorm without affine parameters.
    """

    def __init__(
        self, footprints: Sequence[Footprint], conv: nn.Conv2d, *others: nn.Module
    ) -> None:
        super().__init__(conv, *others)
        nn.init.kaiming_normal_(conv.weight)  # as published
        self._footprints = tuple(footprints)
        size = conv.kernel_size[0]
        masks = torch.zeros(len(footprints), size, size)
        for mask, footprint in zip(masks, footprints, strict=True):
            entries = footprint.entries(size)
            mask[entries, entries] = 1.0
        self._masks: Tensor
        self.register_buffer("_masks", masks, persistent=False)

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution with the whole kernel."""
        return cast(nn.Conv2d, self[0])

    def mixture(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the mixture behind the ReLU, whose output is ``x``, for weights ``(n,)``."""
        return self.convolve(x, self._mixed(weights))

    def fused(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        base: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Return ``base + skip * x`` plus the mixture, for weights ``scale`` ``(n,)``."""
        assert scale is not None
        return self.convolve_fused(x, self._mixed(scale), base, skip)

    def part(self, number: int) -> _Taps:
        """Return one of the convolutions."""
        footprint = self._footprints[number]
        entries = footprint.entries(self.conv.kernel_size[0])
        return _Taps(self.conv.weight[:, :, entries, entries], footprint.dilation)

    def convolve(self, x: Tensor, taps: _Taps, scale: Tensor | None = None) -> Tensor:
        """Apply the modules with a part of the kernel, and multiply by ``scale`` ()."""
        raise NotImplementedError

    def convolve_fused(
        self, x: Tensor, taps: _Taps, base: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        """Do the same by the CPU kernels, from the input of the ReLU; see ``Fused.fused``."""
        raise NotImplementedError

    def _mixed(self, weights: Tensor) -> _Taps:
        # Not a matrix product, which autocast would round.
        mask = (weights[:, None, None] * self._masks).sum(dim=0)
        return _Taps(self.conv.weight * mask, 1)


class SharedSeparable(SharedKernel):
    """Depthwise separable convolutions, each of one stage."""

    def __init__(self, footprints: Sequence[Footprint], channels: int, stride: int) -> None:
        size = max(footprint.extent for footprint in footprints)
        super().__init__(
            footprints,
            nn.Conv2d(channels, channels, size, stride, size // 2, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=False),
        )

    @property
    def _stage(self) -> Stage:
        depthwise, pointwise, norm = cast(Any, self)
        return Stage(depthwise, pointwise, norm)

    def convolve(self, x: Tensor, taps: _Taps, scale: Tensor | None = None) -> Tensor:
        """See ``SharedKernel.convolve``."""
        conv, pointwise, norm = self._stage
        out = separable_conv2d(x, taps.kernel, pointwise.weight, conv.stride[0], taps.dilation)
        return scaled_norm(out, norm, scale)

    def convolve_fused(
        self, x: Tensor, taps: _Taps, base: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        """See ``SharedKernel.convolve_fused``."""
        conv, pointwise, norm = self._stage
        settings, weights = fused_stage(pointwise, norm, conv)
        settings = dataclasses.replace(settings, dilation=taps.dilation)
        stage = settings, weights._replace(depthwise=taps.kernel)
        return run_stages(x, [stage], base, skip, overwrite=True)


class SharedNorConv(SharedKernel):
    """Normal convolutions (NAS-Bench-201); the CPU kernels have none."""

    def __init__(self, footprints: Sequence[Footprint], channels: int, stride: int) -> None:
        size = max(footprint.extent for footprint in footprints)
        super().__init__(
            footprints,
            nn.Conv2d(channels, channels, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(channels, affine=False),
        )

    def can_fuse(self, x: Tensor) -> bool:
        """Return False."""
        return False

    def convolve(self, x: Tensor, taps: _Taps, scale: Tensor | None = None) -> Tensor:
        """See ``SharedKernel.convolve``."""
        padding = taps.dilation * (taps.kernel.shape[-1] // 2)
        out = F.conv2d(x, taps.kernel, None, self.conv.stride, padding, taps.dilation)
        return scaled_norm(out, cast(nn.BatchNorm2d, self[-1]), scale)


class MergedConvolution(AfterReLU):
    """One of the convolutions of a shared kernel, a candidate of an edge.

    Args:
        kernel: The shared kernel, which has all weights.
        number: The position of the convolution in it.
    """

    def __init__(self, kernel: SharedKernel, number: int) -> None:
        super().__init__()
        # A submodule of the first only: functional_call cannot restore a module with two names.
        if number == 0:
            self.shared = kernel
        self._kernel, self._number = (kernel,), number

    @property
    def kernel(self) -> SharedKernel:
        """The shared kernel."""
        return self._kernel[0]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution to ``(batch, channels, h, w)``."""
        if self.kernel.can_fuse(x):
            return self.kernel.convolve_fused(x, self.kernel.part(self._number))
        return self.after_relu(F.relu(x))

    def after_relu(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See ``AfterReLU.after_relu``."""
        return self.kernel.convolve(x, self.kernel.part(self._number), scale)


# Operations that can share a kernel with the others of their group.
_GROUPS: tuple[tuple[type[SharedSeparable | SharedNorConv], Mapping[str, Footprint]], ...] = (
    (
        SharedSeparable,
        {
            "sep_conv_3x3": Footprint(3),
            "sep_conv_5x5": Footprint(5),
            "sep_conv_7x7": Footprint(7),
            "dil_conv_3x3": Footprint(3, 2),
            "dil_conv_5x5": Footprint(5, 2),
        },
    ),
    (SharedNorConv, {"nor_conv_1x1": Footprint(1), "nor_conv_3x3": Footprint(3)}),
)


def build_candidate(builder: OperationBuilder, channels: int, stride: int) -> nn.Module:
    """Return an operation in the form of a supernet."""
    return builder(channels, stride, True)


def merges(names: Sequence[str]) -> bool:
    """Return whether two candidates of an edge can share a kernel."""
    return any(sum(name in footprints for name in names) > 1 for _, footprints in _GROUPS)


def build_candidates(
    builders: Sequence[OperationBuilder],
    channels: int,
    stride: int,
    merge_kernels: bool,
    build: Callable[[OperationBuilder, int, int], nn.Module] = build_candidate,
) -> list[nn.Module]:
    """Return the candidates of an edge of a supernet, with ``build`` for those that share nothing.

    With ``merge_kernels`` two or more convolutions of a kind share a kernel.
    """
    merged: dict[int, nn.Module] = {}
    for shared, footprints in _GROUPS if merge_kernels else ():
        known = {OPERATIONS[name]: footprint for name, footprint in footprints.items()}
        places = [place for place, builder in enumerate(builders) if builder in known]
        if len(places) > 1:
            kernel = shared([known[builders[place]] for place in places], channels, stride)
            merged |= {place: MergedConvolution(kernel, n) for n, place in enumerate(places)}
    return [
        merged[place] if place in merged else build(builder, channels, stride)
        for place, builder in enumerate(builders)
    ]
