"""The network of a genotype in PyTorch alone: its parts, and the whole in evaluation mode.

A Python export contains the text of this file behind its docstring, so it imports torch alone.
The trained network is built from the same stem, operations and head; its cells add what only
training needs (drop path, an auxiliary head, kernels). The weights have the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    """Halves height and width (rounded up) by two 1x1 convolutions, one of them a pixel apart."""

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv_even = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.conv_odd = nn.Conv2d(in_channels, out_channels - half, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        padded = nn.functional.pad(x, (0, 1, 0, 1))  # the zeros are seen with odd sizes only
        shifted = padded[:, :, 1:, 1:]
        out: Tensor = self.norm(torch.cat([self.conv_even(x), self.conv_odd(shifted)], dim=1))
        return out


def separable(
    channels: int, kernel_size: int, stride: int, dilation: int = 1, *, affine: bool = True
) -> list[nn.Module]:
    """ReLU, depthwise convolution, 1x1 convolution, BatchNorm."""
    padding = dilation * (kernel_size // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=channels,
            bias=False,
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


class Zero(nn.Module):
    """No connection: zeros."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def none(channels: int, stride: int) -> nn.Module:
    return Zero(stride)


def skip_connect(channels: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)


# In a Sequential, as everywhere below, so that the weights have their published names.
def max_pool_3x3(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.MaxPool2d(3, stride, padding=1))


def avg_pool_3x3(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, stride, padding=1, count_include_pad=False))


def sep_conv_3x3(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(*separable(channels, 3, stride), *separable(channels, 3, 1))


def sep_conv_5x5(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(*separable(channels, 5, stride), *separable(channels, 5, 1))


def sep_conv_7x7(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(*separable(channels, 7, stride), *separable(channels, 7, 1))


def dil_conv_3x3(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(*separable(channels, 3, stride, dilation=2))


def dil_conv_5x5(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(*separable(channels, 5, stride, dilation=2))


# Not noise: it is random in evaluation too, so that no two outputs can be compared.
OPERATIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": none,
    "skip_connect": skip_connect,
    "max_pool_3x3": max_pool_3x3,
    "avg_pool_3x3": avg_pool_3x3,
    "sep_conv_3x3": sep_conv_3x3,
    "sep_conv_5x5": sep_conv_5x5,
    "sep_conv_7x7": sep_conv_7x7,
    "dil_conv_3x3": dil_conv_3x3,
    "dil_conv_5x5": dil_conv_5x5,
}


class Preprocess(nn.Module):
    """Brings the two inputs of a cell to the same width and size.

    Args:
        in_channels: of the two inputs.
        out_channels: of both outputs.
        halve_first: whether the first input has twice the height and width of the second.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, halve_first: bool) -> None:
        super().__init__()
        first = FactorizedReduce if halve_first else ReLUConvBN
        self.first = first(in_channels[0], out_channels)
        self.second = ReLUConvBN(in_channels[1], out_channels)

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        return [self.first(first), self.second(second)]


class Cell(nn.Module):
    """A small graph: nodes 0 and 1 are the inputs, each further node is the sum of two edges.

    Args:
        edges: ``(operation, source node)``, two for each further node in order.
        concat: the nodes that are joined to the cell's output.
        in_channels: of the two inputs.
        channels: of every node.
        reduction: whether the cell halves height and width.
        halve_first: as in ``Preprocess``.
    """

    def __init__(
        self,
        edges: Sequence[tuple[str, int]],
        concat: Sequence[int],
        in_channels: Sequence[int],
        channels: int,
        reduction: bool,
        halve_first: bool,
    ) -> None:
        super().__init__()
        self.sources = [source for _, source in edges]
        self.concat = list(concat)
        self.preprocess = Preprocess(in_channels, channels, halve_first)
        self.operations = nn.ModuleList(
            OPERATIONS[name](channels, 2 if reduction and source < 2 else 1)
            for name, source in edges
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        nodes = self.preprocess(first, second)
        edges = list(zip(self.operations, self.sources, strict=True))
        for (left, left_source), (right, right_source) in zip(edges[::2], edges[1::2], strict=True):
            nodes.append(left(nodes[left_source]) + right(nodes[right_source]))
        return torch.cat([nodes[node] for node in self.concat], dim=1)


class CifarStem(nn.Module):
    """A 3x3 convolution with BatchNorm, affine also in search; both cell inputs are its output."""

    halves = False

    def __init__(self, in_channels: int, init_channels: int) -> None:
        super().__init__()
        self.out_channels = 3 * init_channels
        self.conv = nn.Conv2d(in_channels, self.out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.norm(self.conv(images))
        return out, out


class ImageNetStem(nn.Module):
    """Three strided 3x3 convolutions; the outputs have a quarter and an eighth of the size."""

    halves = True

    def __init__(self, in_channels: int, init_channels: int) -> None:
        super().__init__()
        half, full = init_channels // 2, init_channels
        self.out_channels = full
        self.quarter = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, full, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(full),
        )
        self.eighth = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(full, full, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(full),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        quarter = self.quarter(images)
        return quarter, self.eighth(quarter)


class Head(nn.Module):
    """Mean over all pixels, and one linear layer: ``(batch, channels, h, w)`` to logits."""

    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(in_channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        # The mean over all pixels; that of torch.mean has a gradient that is not channels_last.
        pooled = nn.functional.avg_pool2d(x, x.shape[-2:])
        logits: Tensor = self.classifier(pooled.flatten(1))
        return logits


class Network(nn.Module):
    """Normalised images ``(batch, in_channels, height, width)`` to logits ``(batch, n_classes)``.

    Args:
        genotype: the edges ``normal`` and ``reduce`` of the two kinds of cell, and the nodes
            ``normal_concat`` and ``reduce_concat`` that are their outputs.
        stem: a ``CifarStem`` or an ``ImageNetStem``.
        n_classes: number of classes.
        init_channels: width of the first cell.
        n_cells: number of cells.
        reductions: which cells halve height and width, and double the width of the network.
    """

    def __init__(
        self,
        genotype: Mapping[str, Any],
        stem: Any,
        n_classes: int,
        init_channels: int,
        n_cells: int,
        reductions: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = stem
        self.cells = nn.ModuleList()
        inputs, channels = (stem.out_channels, stem.out_channels), init_channels
        halve_first = stem.halves
        for index in range(n_cells):
            reduction = index in reductions
            kind = "reduce" if reduction else "normal"
            channels *= 2 if reduction else 1
            edges, concat = genotype[kind], genotype[f"{kind}_concat"]
            self.cells.append(Cell(edges, concat, inputs, channels, reduction, halve_first))
            inputs = (inputs[1], len(concat) * channels)
            halve_first = reduction
        self.head = Head(inputs[1], n_classes)

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.stem(images)
        for cell in self.cells:
            first, second = second, cell(first, second)
        logits: Tensor = self.head(second)
        return logits


class Normalize(nn.Module):
    """Pixels in 0..1, ``(batch, channels, height, width)``, to normalised images.

    Args:
        mean: of each channel.
        std: of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not persistent: the weights are those of the network alone.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std
