"""The network of a genotype of DARTS, as trained from scratch after a search."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.kernels.channels_last import join_channels
from zoopt_nas.nas.networks.genotype import CELL_KINDS, EDGES_PER_NODE, Genotype
from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.networks.operations import OPERATIONS, AfterReLU, Separable
from zoopt_nas.nas.networks.skeleton import (
    CellPlan,
    Preprocess,
    build_head,
    build_stem,
    drop_path,
    plan_cells,
)


class FixedCell(nn.Module):
    """A cell of a genotype, with two edges into each node."""

    def __init__(self, genotype: Genotype, plan: CellPlan) -> None:
        super().__init__()
        edges = genotype.edges(plan.kind)
        self._sources = [source for _, source in edges]
        self._concat = genotype.concat(plan.kind)
        self.preprocess = Preprocess(plan, affine=True)
        self.operations = nn.ModuleList(
            OPERATIONS[name](plan.channels, plan.stride(source), False) for name, source in edges
        )

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        drop_probability: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return the joined output nodes."""
        nodes: list[Tensor] = list(self.preprocess(first, second))
        positive: dict[int, Tensor] = {}  # the ReLU of a node, for all edges from it
        outputs: list[Tensor] = []
        for operation, source in zip(self.operations, self._sources, strict=True):
            if isinstance(operation, Separable) and operation.can_fuse(nodes[source]):
                out = operation.fused(nodes[source])
            elif isinstance(operation, AfterReLU):
                if source not in positive:
                    positive[source] = F.relu(nodes[source])
                out = operation.after_relu(positive[source])
            else:
                out = operation(nodes[source])
            if drop_probability > 0.0 and not isinstance(operation, nn.Identity):
                out = drop_path(out, drop_probability, generator)
            outputs.append(out)
            if len(outputs) % EDGES_PER_NODE == 0:
                nodes.append(outputs[-2] + outputs[-1])
        return join_channels([nodes[node] for node in self._concat])


class AuxiliaryHead(nn.Module):
    """A second classifier at two thirds of the depth, used in training only.

    Features of the published sizes (CIFAR 8x8, ImageNet 7x7) are pooled to 2x2 as published, and
    others adaptively. As in the released DARTS code, the ImageNet head lacks the second BatchNorm.
    """

    def __init__(self, in_channels: int, n_classes: int, stem: str) -> None:
        super().__init__()
        self._published_size, self._stride = (8, 3) if stem == "cifar" else (7, 2)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if stem == "cifar" else nn.Identity(),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``(batch, in_channels, h, w)``."""
        x = F.relu(x)
        if x.shape[-2:] == (self._published_size,) * 2:
            x = F.avg_pool2d(x, 5, stride=self._stride, count_include_pad=False)
        else:
            x = F.adaptive_avg_pool2d(x, 2)
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class DartsNetwork(Network):
    """A trainable network from a genotype (Liu et al., 2019, section 3.2).

    Args:
        genotype: The cells.
        n_classes: Number of classes.
        init_channels: Width of the first cell (36 on CIFAR, 48 on ImageNet in the papers).
        n_cells: Number of cells (20 on CIFAR, 14 on ImageNet).
        in_channels: Channels of the images.
        auxiliary: Whether to build the auxiliary head.
        stem: ``"cifar"`` or ``"imagenet"``.
    """

    genotype: Genotype

    def __init__(
        self,
        genotype: Genotype,
        n_classes: int,
        init_channels: int = 36,
        n_cells: int = 20,
        *,
        in_channels: int = 3,
        auxiliary: bool = False,
        stem: str = "cifar",
    ) -> None:
        super().__init__(genotype)
        n_outputs = {kind: len(genotype.concat(kind)) for kind in CELL_KINDS}
        plans = list(
            plan_cells(n_cells, init_channels, (n_outputs["normal"], n_outputs["reduce"]), stem)
        )
        self.stem = build_stem(stem, in_channels, init_channels)
        self.cells = nn.ModuleList(FixedCell(genotype, plan) for plan in plans)
        last = plans[-1]
        self.head = build_head(n_outputs[last.kind] * last.channels, n_classes)
        self._auxiliary_index = 2 * n_cells // 3
        self.auxiliary = None
        if auxiliary:
            plan = plans[self._auxiliary_index]
            self.auxiliary = AuxiliaryHead(n_outputs[plan.kind] * plan.channels, n_classes, stem)

    def _run(self, images: Tensor, auxiliary: nn.Module | None) -> tuple[Tensor, Tensor | None]:
        drop_probability = self.drop_path_probability if self.training else 0.0
        auxiliary_logits: Tensor | None = None
        first, second = self.stem(self._in_format(images))
        # The stem loses the format if images have one channel.
        first, second = self._in_format(first), self._in_format(second)
        for index, cell in enumerate(self.cells):
            out = cell(first, second, drop_probability, self._generator)
            first, second = second, out
            if auxiliary is not None and index == self._auxiliary_index:
                auxiliary_logits = auxiliary(second)
        return self.head(second), auxiliary_logits
