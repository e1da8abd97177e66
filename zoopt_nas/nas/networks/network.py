"""The network that a genotype stands for, as it is trained from scratch after a search."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.kernels.channels_last import join_channels
from zoopt_nas.nas.networks.genotype import CELL_KINDS, EDGES_PER_NODE, Genotype
from zoopt_nas.nas.networks.operations import (
    OPERATIONS,
    AfterReLU,
    Separable,
    seed_noise,
    use_native,
)
from zoopt_nas.nas.networks.skeleton import (
    CellPlan,
    Head,
    Preprocess,
    build_stem,
    drop_path,
    plan_cells,
)


class FixedCell(nn.Module):
    """A cell with the chosen operations only: two edges into each node."""

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
        nodes: list[Tensor] = list(self.preprocess(first, second))
        positive: dict[int, Tensor] = {}  # one ReLU of a node for all edges from it
        outputs: list[Tensor] = []
        for operation, source in zip(self.operations, self._sources, strict=True):
            if isinstance(operation, Separable) and operation.chains(nodes[source]):
                out = operation.chained(nodes[source])
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

    On the published sizes it pools as published (CIFAR 8x8 with stride 3, ImageNet 7x7 with stride
    2), which both give 2x2; other sizes are pooled to 2x2. The ImageNet head has no BatchNorm
    after the second convolution, as in the released DARTS code.
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
        x = F.relu(x)
        if x.shape[-2:] == (self._published_size,) * 2:
            x = F.avg_pool2d(x, 5, stride=self._stride, count_include_pad=False)
        else:
            x = F.adaptive_avg_pool2d(x, 2)
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class Network(nn.Module):
    """A trainable network from a genotype (Liu et al., 2019, section 3.2).

    Args:
        genotype: the cells.
        n_classes: number of classes.
        init_channels: width of the first cell (36 on CIFAR, 48 on ImageNet in the papers).
        n_cells: number of cells (20 on CIFAR, 14 on ImageNet).
        in_channels: channels of the images.
        auxiliary: whether to build the auxiliary head.
        stem: ``"cifar"`` or ``"imagenet"``.

    Attributes:
        drop_path_probability: in [0, 1); acts in training mode only. A training schedule sets it.
        channels_last: whether cells compute in that memory order; see ``SearchConfig``.
    """

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
        super().__init__()
        n_outputs = {kind: len(genotype.concat(kind)) for kind in CELL_KINDS}
        plans = list(
            plan_cells(n_cells, init_channels, (n_outputs["normal"], n_outputs["reduce"]), stem)
        )
        self.genotype = genotype
        self.drop_path_probability = 0.0
        self.channels_last = True
        self._generator: torch.Generator | None = None
        self.stem = build_stem(stem, in_channels, init_channels)
        self.cells = nn.ModuleList(FixedCell(genotype, plan) for plan in plans)
        last = plans[-1]
        self.head = Head(n_outputs[last.kind] * last.channels, n_classes)
        self._auxiliary_index = 2 * n_cells // 3
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary:
            plan = plans[self._auxiliary_index]
            self.auxiliary = AuxiliaryHead(n_outputs[plan.kind] * plan.channels, n_classes, stem)

    def set_generator(self, generator: torch.Generator | None) -> None:
        """Where drop path and noise operations draw from: a generator on the network's device."""
        self._generator = generator
        seed_noise(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(batch, n_classes)`` of ``images`` (batch, in_channels, h, w)."""
        return self._run(images, None)[0]

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits and those of the auxiliary head, both ``(batch, n_classes)``.

        Raises:
            InvalidValueError: the network was built without an auxiliary head.
        """
        if self.auxiliary is None:
            raise InvalidValueError("auxiliary must be True to use the auxiliary head, got False")
        return cast(tuple[Tensor, Tensor], self._run(images, self.auxiliary))

    def _run(self, images: Tensor, auxiliary: AuxiliaryHead | None) -> tuple[Tensor, Tensor | None]:
        drop_probability = self.drop_path_probability if self.training else 0.0
        auxiliary_logits: Tensor | None = None
        if self.channels_last:  # it makes depthwise convolutions and pools faster
            images = images.contiguous(memory_format=torch.channels_last)
        first, second = self.stem(images)
        if self.channels_last:  # with one image channel the stem cannot tell
            first = first.contiguous(memory_format=torch.channels_last)
            second = second.contiguous(memory_format=torch.channels_last)
        for index, cell in enumerate(self.cells):
            out = cell(first, second, drop_probability, self._generator)
            first, second = second, out
            if auxiliary is not None and index == self._auxiliary_index:
                auxiliary_logits = auxiliary(second)
        return self.head(second), auxiliary_logits


def count_parameters(model: nn.Module, *, with_auxiliary: bool = False) -> int:
    """The number of trainable parameters; papers leave the auxiliary head out of the count."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if with_auxiliary or not name.startswith("auxiliary.")
    )


def count_multiply_adds(network: Network, image_size: int, in_channels: int = 3) -> int:
    """Multiply-adds of one image's forward pass: what papers print as "FLOPs" or "Madds".

    Convolutions and linear layers count, one for each multiplication with its addition. BatchNorm,
    activations, pooling, sums and the auxiliary head do not. Some papers add two for each number
    that goes through BatchNorm and one for each through ReLU, which is 2.6 % more; then the numbers
    of P-DARTS (557 M) and PC-DARTS (586 M and 597 M) come out, but not DARTS's own 574 M: it is
    544 M that way, and 530 M here (docs/deviations.md, E7).

    Args:
        network: only its shapes matter; a copy of it is run on the CPU.
        image_size: side of the square images.
        in_channels: of the images.
    """
    # No module hooks: a fused operation takes weights from modules that are never called. And no
    # copy on the meta device: its kernels are Python and take longer than one image on a CPU.
    runnable = copy.deepcopy(network).to("cpu", torch.float32).eval()
    runnable.set_generator(torch.Generator().manual_seed(0))  # what it draws is not looked at
    use_native(runnable, False)  # PyTorch's operators can be seen
    counter = _MultiplyAdds()
    with torch.no_grad(), counter:
        runnable(torch.zeros(1, in_channels, image_size, image_size))
    return counter.total


class _MultiplyAdds(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, it adds up those of every convolution and matrix product."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func.overloadpacket
        if operator is torch.ops.aten.convolution:  # each output sums over one filter
            self.total += out.numel() * math.prod(args[1].shape[1:])
        elif operator is torch.ops.aten.addmm:  # bias, rows, columns
            self.total += out.numel() * args[1].shape[1]
        return out
