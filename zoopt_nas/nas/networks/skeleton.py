"""The common parts of supernet and retrained network: stem, plan of the cells, drop path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.fused import Fused, FusedStage, fused_stage
from zoopt_nas.nas.networks.operations import FactorizedReduce
from zoopt_nas.nas.networks.standalone_darts import CifarStem, Head, ImageNetStem

STEM_MULTIPLIER = 3  # the CIFAR stem has 3 times the cells' initial channels
STEMS = ("cifar", "imagenet")


@dataclass(frozen=True)
class CellPlan:
    """The kind and the sizes of a cell.

    Attributes:
        kind: ``"normal"`` or ``"reduce"``.
        channels: Channels of the cell's nodes.
        in_channels: Channels of its two inputs, cell k-2 first.
        halve_first_input: Whether the first input has twice the height and width of the second.
    """

    kind: str
    channels: int
    in_channels: tuple[int, int]
    halve_first_input: bool

    def stride(self, source: int) -> int:
        """Return the stride of an edge from node ``source``."""
        return 2 if self.kind == "reduce" and source < 2 else 1


def plan_cells(
    n_cells: int, init_channels: int, n_outputs: tuple[int, int], stem: str
) -> Iterator[CellPlan]:
    """Yield the cells in order; reductions at 1/3 and 2/3 of the depth double the width.

    Args:
        n_cells: Number of cells.
        init_channels: Width of the first cell.
        n_outputs: Number of output nodes of a normal and a reduction cell.
        stem: ``"cifar"`` or ``"imagenet"``.
    """
    if stem not in STEMS:
        raise UnknownNameError("stem", stem, STEMS)
    for field, value in (("n_cells", n_cells), ("init_channels", init_channels)):
        if value < 1:
            raise InvalidValueError(f"{field} must be a positive integer, got {value}")
    if stem == "imagenet" and init_channels < 2:  # it begins with half as many
        raise InvalidValueError(
            f"init_channels must be at least 2 with the imagenet stem, got {init_channels}"
        )
    # Below three cells n_cells // 3 is 0, but the first cell must be normal.
    reductions = {n_cells // 3, 2 * n_cells // 3} - ({0} if n_cells < 3 else set())
    width = init_channels if stem == "imagenet" else STEM_MULTIPLIER * init_channels
    inputs, channels, halve = (width, width), init_channels, stem == "imagenet"
    for index in range(n_cells):
        reduction = index in reductions
        channels *= 2 if reduction else 1
        yield CellPlan("reduce" if reduction else "normal", channels, inputs, halve)
        inputs = (inputs[1], n_outputs[reduction] * channels)
        halve = reduction


class Preprocess(nn.Module):
    """Brings a cell's two inputs to the channels of its nodes and to the same size."""

    def __init__(self, plan: CellPlan, *, affine: bool) -> None:
        super().__init__()
        first = FactorizedReduce if plan.halve_first_input else ReLUConvBN
        self.first = first(plan.in_channels[0], plan.channels, affine=affine)
        self.second = ReLUConvBN(plan.in_channels[1], plan.channels, affine=affine)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the preprocessed inputs."""
        return self.first(first), self.second(second)


def build_stem(stem: str, in_channels: int, init_channels: int) -> nn.Module:
    """Build the stem, which maps images to the two inputs of the first cell."""
    return (CifarStem if stem == "cifar" else ImageNetStem)(in_channels, init_channels)


def build_head(in_channels: int, n_classes: int) -> nn.Module:
    """Build the head, which maps the last cell's output to logits."""
    if n_classes < 1:
        raise InvalidValueError(f"n_classes must be a positive integer, got {n_classes}")
    return Head(in_channels, n_classes)


def drop_path(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Zero samples at random and scale the others to keep the mean (FractalNet, 2017).

    Args:
        x: ``(batch, channels, height, width)``.
        probability: Probability in [0, 1) to zero a sample.
        generator: A generator on the device of ``x``; None is torch's default generator.
    """
    keep = 1.0 - probability
    mask = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
    return x * mask.bernoulli_(keep, generator=generator).div_(keep)


IMAGENET_STEM_SIZE = 128  # images at least this large get the ImageNet stem


def stem_for(image_size: int) -> str:
    """Return the name of the stem for images with a side of ``image_size`` pixels."""
    return "imagenet" if image_size >= IMAGENET_STEM_SIZE else "cifar"


class ReLUConvBN(Fused):
    """ReLU, 1x1 convolution and BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(nn.ReLU(), conv, nn.BatchNorm2d(out_channels, affine=affine))

    def fused_stages(self) -> list[FusedStage]:
        """Return the only stage."""
        _, conv, norm = self
        return [fused_stage(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm))]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to ``(batch, channels, h, w)``."""
        if self.can_fuse(x):
            return self.fused(x)
        for module in self:
            x = module(x)
        return x
