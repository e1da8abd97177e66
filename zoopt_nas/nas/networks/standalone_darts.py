"""The network of a genotype of DARTS for evaluation; see ``standalone``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoopt_nas.nas.networks.standalone import OPERATIONS, FactorizedReduce, ReLUConvBN


class Preprocess(nn.Module):
    """Brings the two inputs of a cell to the same number of channels and the same size.

    ``halve_first`` says that the first input has twice the height and width of the second.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, halve_first: bool) -> None:
        super().__init__()
        first = FactorizedReduce if halve_first else ReLUConvBN
        self.first = first(in_channels[0], out_channels)
        self.second = ReLUConvBN(in_channels[1], out_channels)

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return the preprocessed inputs."""
        return [self.first(first), self.second(second)]


class Cell(nn.Module):
    """A graph: nodes 0 and 1 are the inputs, and every other node is the sum of two edges.

    Args:
        edges: ``(operation, source node)``, two for each node from 2 on.
        concat: The nodes to concatenate as output.
        in_channels: Channels of the two inputs.
        channels: Channels of every node.
        reduction: Whether the cell halves height and width.
        halve_first: See ``Preprocess``.
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
        """Return the output of the cell."""
        nodes = self.preprocess(first, second)
        edges = list(zip(self.operations, self.sources, strict=True))
        for (left, left_source), (right, right_source) in zip(edges[::2], edges[1::2], strict=True):
            nodes.append(left(nodes[left_source]) + right(nodes[right_source]))
        return torch.cat([nodes[node] for node in self.concat], dim=1)


class CifarStem(nn.Module):
    """A 3x3 convolution with affine BatchNorm, whose output is both inputs of the first cell."""

    halves = False

    def __init__(self, in_channels: int, init_channels: int) -> None:
        super().__init__()
        self.out_channels = 3 * init_channels
        self.conv = nn.Conv2d(in_channels, self.out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two inputs of the first cell."""
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
        """Return the two inputs of the first cell."""
        quarter = self.quarter(images)
        return quarter, self.eighth(quarter)


class Head(nn.Module):
    """The mean over all pixels and a linear layer."""

    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(in_channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``(batch, channels, h, w)``."""
        # torch.mean has a gradient that is not channels_last.
        pooled = nn.functional.avg_pool2d(x, x.shape[-2:])
        logits: Tensor = self.classifier(pooled.flatten(1))
        return logits


class Network(nn.Module):
    """Maps normalised images to logits.

    Args:
        genotype: The edges ``normal`` and ``reduce`` of the two kinds of cell, and their output
            nodes ``normal_concat`` and ``reduce_concat``.
        stem: A ``CifarStem`` or an ``ImageNetStem``.
        n_classes: Number of classes.
        init_channels: Width of the first cell.
        n_cells: Number of cells.
        reductions: Indices of the cells that halve height and width and double the width.
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
        """Return logits (batch, n_classes) of ``images`` (batch, in_channels, height, width)."""
        first, second = self.stem(images)
        for cell in self.cells:
            first, second = second, cell(first, second)
        logits: Tensor = self.head(second)
        return logits
