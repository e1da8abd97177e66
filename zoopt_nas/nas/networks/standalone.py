"""The operations of networks for evaluation, which need only PyTorch.

A Python export contains the text of this file after this docstring, and of the file with the
skeleton of its space. Trainable networks use the same modules and weight names, and add drop path,
auxiliary head and kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ReLUConvBN(nn.Sequential):
    """ReLU, 1x1 convolution, BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )


class FactorizedReduce(nn.Module):
    """Halves height and width (rounded up) by two 1x1 convolutions, one shifted by a pixel."""

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv_even = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.conv_odd = nn.Conv2d(in_channels, out_channels - half, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation to ``(batch, channels, h, w)``."""
        x = torch.relu(x)
        padded = nn.functional.pad(x, (0, 1, 0, 1))  # matters for odd sizes only
        shifted = padded[:, :, 1:, 1:]
        out: Tensor = self.norm(torch.cat([self.conv_even(x), self.conv_odd(shifted)], dim=1))
        return out


def separable(
    channels: int, kernel_size: int, stride: int, dilation: int = 1, *, affine: bool = True
) -> list[nn.Module]:
    """Return ReLU, depthwise convolution, 1x1 convolution and BatchNorm."""
    padding = dilation * (kernel_size // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(
            channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


class NorConv(nn.Module):
    """ReLU, convolution, BatchNorm."""

    def __init__(
        self, channels: int, kernel_size: int, stride: int, *, affine: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation to ``(batch, channels, h, w)``."""
        out: Tensor = self.norm(self.conv(torch.relu(x)))
        return out


class Zero(nn.Module):
    """Zeros, for no connection."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros in the size of the output."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def skip_connect(channels: int, stride: int) -> nn.Module:
    """Build an identity or, with stride 2, a `FactorizedReduce`."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)


# The Sequential of one module gives the weights their published names.
def max_pool_3x3(channels: int, stride: int) -> nn.Sequential:
    """Build 3x3 max pooling."""
    return nn.Sequential(nn.MaxPool2d(3, stride, padding=1))


def avg_pool_3x3(channels: int, stride: int) -> nn.Sequential:
    """Build 3x3 average pooling; averages exclude the padding."""
    return nn.Sequential(nn.AvgPool2d(3, stride, padding=1, count_include_pad=False))


def sep_conv(kernel_size: int) -> Callable[[int, int], nn.Module]:
    """Return a builder of two separable convolutions."""
    return lambda channels, stride: nn.Sequential(
        *separable(channels, kernel_size, stride), *separable(channels, kernel_size, 1)
    )


def dil_conv(kernel_size: int) -> Callable[[int, int], nn.Module]:
    """Return a builder of a separable convolution with dilation 2."""
    return lambda channels, stride: nn.Sequential(*separable(channels, kernel_size, stride, 2))


def nor_conv(kernel_size: int) -> Callable[[int, int], nn.Module]:
    """Return a builder of ReLU, convolution and BatchNorm."""
    return lambda channels, stride: NorConv(channels, kernel_size, stride)


# Without noise, which is random in evaluation, too.
OPERATIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda channels, stride: Zero(stride),
    "skip_connect": skip_connect,
    "max_pool_3x3": max_pool_3x3,
    "avg_pool_3x3": avg_pool_3x3,
    "sep_conv_3x3": sep_conv(3),
    "sep_conv_5x5": sep_conv(5),
    "sep_conv_7x7": sep_conv(7),
    "dil_conv_3x3": dil_conv(3),
    "dil_conv_5x5": dil_conv(5),
    "nor_conv_1x1": nor_conv(1),
    "nor_conv_3x3": nor_conv(3),
}


class Normalize(nn.Module):
    """Normalises pixels in 0..1 by the mean and standard deviation of each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not persistent, to keep them out of the state_dict.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the normalised images."""
        return (pixels - self.mean) / self.std
