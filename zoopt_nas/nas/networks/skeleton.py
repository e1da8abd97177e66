"""What supernet and retrained network share: stem, cells' plan, preprocessing, drop path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.fused import Fused, FusedStage, fused_stage
from zoopt_nas.nas.networks.operations import FactorizedReduce
from zoopt_nas.nas.networks.standalone import CifarStem, Head, ImageNetStem

STEM_MULTIPLIER = 3  # the CIFAR stem has 3 times the cells' initial channels
STEMS = ("cifar", "imagenet")


@dataclass(frozen=True)
class CellPlan:
    """Where a cell stands in the network.

    Attributes:
        kind: ``"normal"`` or ``"reduce"``.
        channels: width of the cell's nodes.
        in_channels: channels of its two inputs, cell k-2 first.
        halve_first_input: whether the first input still has twice the height and width of the
            second, because the cell between them was a reduction.
    """

    kind: str
    channels: int
    in_channels: tuple[int, int]
    halve_first_input: bool

    def stride(self, source: int) -> int:
        """The stride of an edge from node ``source``: only the cell's inputs are halved."""
        return 2 if self.kind == "reduce" and source < 2 else 1


def plan_cells(
    n_cells: int, init_channels: int, n_outputs: tuple[int, int], stem: str
) -> Iterator[CellPlan]:
    """The cells in order: reductions, which double the width, at one and two thirds of the depth.

    Args:
        n_cells: number of cells, at least 1.
        init_channels: width of the first cell.
        n_outputs: how many nodes a normal and a reduction cell concatenate.
        stem: ``"cifar"`` (both inputs are the one stem) or ``"imagenet"``.
    """
    if stem not in STEMS:
        raise UnknownNameError("stem", stem, STEMS)
    for field, value in (("n_cells", n_cells), ("init_channels", init_channels)):
        if value < 1:
            raise InvalidValueError(f"{field} must be a positive integer, got {value}")
    if stem == "imagenet" and init_channels < 2:  # its first convolution has half as many
        raise InvalidValueError(
            f"init_channels must be at least 2 with the imagenet stem, got {init_channels}"
        )
    # With one or two cells n_cells // 3 is 0: a reduction must not come before any normal cell.
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
    """Brings a cell's two inputs to the width of its nodes and to the same height and width."""

    def __init__(self, plan: CellPlan, *, affine: bool) -> None:
        super().__init__()
        first = FactorizedReduce if plan.halve_first_input else ReLUConvBN
        self.first = first(plan.in_channels[0], plan.channels, affine=affine)
        self.second = ReLUConvBN(plan.in_channels[1], plan.channels, affine=affine)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(first), self.second(second)


def build_stem(stem: str, in_channels: int, init_channels: int) -> nn.Module:
    """The stem by name: a module from images to the two inputs of the first cell."""
    builder = CifarStem if stem == "cifar" else ImageNetStem
    return builder(in_channels, init_channels)


def build_head(in_channels: int, n_classes: int) -> nn.Module:
    """The head: a module from the last cell's output to logits."""
    if n_classes < 1:
        raise InvalidValueError(f"n_classes must be a positive integer, got {n_classes}")
    return Head(in_channels, n_classes)


def drop_path(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Zeroes whole samples with ``probability`` and scales the others to keep the mean.

    Larsson et al., FractalNet, 2017, as DARTS uses it: one draw for each sample of an edge.

    Args:
        x: ``(batch, channels, height, width)``.
        probability: in [0, 1).
        generator: on the device of ``x``; None means torch's default generator.
    """
    keep = 1.0 - probability
    mask = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
    return x * mask.bernoulli_(keep, generator=generator).div_(keep)


IMAGENET_STEM_SIZE = 128  # images at least this large get the ImageNet stem


def stem_for(image_size: int) -> str:
    """The stem for images of a side of ``image_size`` pixels."""
    return "imagenet" if image_size >= IMAGENET_STEM_SIZE else "cifar"


class ReLUConvBN(Fused):
    """ReLU, convolution, BatchNorm: the 1x1 preprocessing of a cell's inputs."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, *, affine: bool = True
    ) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels, affine=affine),
        )

    def fused_stages(self) -> list[FusedStage]:
        _, conv, norm = self
        return [fused_stage(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm))]

    def can_fuse(self, x: Tensor) -> bool:
        return cast(nn.Conv2d, self[1]).kernel_size == (1, 1) and super().can_fuse(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.can_fuse(x):
            return self.fused(x)
        for module in self:
            x = module(x)
        return x
