"""The network of a NAS-Bench-201 cell for evaluation; see ``standalone``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoopt_nas.nas.networks.standalone import OPERATIONS


class Stem(nn.Sequential):
    """A 3x3 convolution and BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions that halve height and width, beside a pooled 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        # Odd sizes are rounded up, as the convolutions do.
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, out_channels, h / 2, w / 2)``."""
        out: Tensor = self.convolutions(x) + self.shortcut(x)
        return out


class Head(nn.Module):
    """BatchNorm, ReLU, the mean over all pixels and a linear layer."""

    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.classifier = nn.Linear(in_channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``(batch, channels, h, w)``."""
        x = torch.relu(self.norm(x))
        pooled = nn.functional.avg_pool2d(x, x.shape[-2:])
        logits: Tensor = self.classifier(pooled.flatten(1))
        return logits


class Cell(nn.Module):
    """A graph of four nodes: every node is the sum of one edge from each node before it."""

    def __init__(self, operations: Sequence[str], channels: int) -> None:
        super().__init__()
        self.operations = nn.ModuleList(OPERATIONS[name](channels, 1) for name in operations)

    def forward(self, x: Tensor) -> Tensor:
        """Return node 3."""
        edges = iter(self.operations)
        nodes = [x]
        while len(nodes) < 4:
            outputs = [next(edges)(node) for node in nodes]
            nodes.append(sum(outputs[1:], start=outputs[0]))
        return nodes[-1]


class Network(nn.Module):
    """Maps normalised images to logits.

    Args:
        operations: The operations of the six edges of the cell.
        in_channels: Channels of the images.
        n_classes: Number of classes.
        init_channels: Width of the first stage.
        n_cells: Number of cells.
        reductions: Indices of the cells before which a residual block halves height and width and
            doubles the width.
    """

    def __init__(
        self,
        operations: Sequence[str],
        in_channels: int,
        n_classes: int,
        init_channels: int,
        n_cells: int,
        reductions: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = Stem(in_channels, init_channels)
        self.cells, self.blocks = nn.ModuleList(), nn.ModuleDict()
        channels = init_channels
        for index in range(n_cells):
            if index in reductions:
                self.blocks[str(index)] = ResidualBlock(channels, 2 * channels)
                channels *= 2
            self.cells.append(Cell(operations, channels))
        self.head = Head(channels, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, n_classes) of ``images`` (batch, in_channels, height, width)."""
        x = self.stem(images)
        for index, cell in enumerate(self.cells):
            if str(index) in self.blocks:
                x = self.blocks[str(index)](x)
            x = cell(x)
        logits: Tensor = self.head(x)
        return logits
