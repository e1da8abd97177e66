"""The published forms of supernet and network, which the package's own must equal.

One module for each candidate operation, every edge on its own, default memory format. Both share
their weights' names with the package's forms, so that a state dict of one loads into the other.
The tests compare values and gradients with these, the benchmarks time and memory.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.darts_space import DartsSpace, cell_edges
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet, SearchCell
from zoopt_nas.nas.networks.fused import Fused
from zoopt_nas.nas.networks.operations import DilConv, FactorizedReduce, SepConv
from zoopt_nas.nas.networks.standalone import Zero


class PlainReduce(nn.Module):
    """``FactorizedReduce`` with a ReLU of its own."""

    def __init__(self, reduce: FactorizedReduce) -> None:
        super().__init__()
        self.conv_even, self.conv_odd = reduce.conv_even, reduce.conv_odd
        self.norm = reduce.norm

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        height, width = x.shape[-2:]
        shifted = F.pad(x[:, :, 1:, 1:], (0, width % 2, 0, height % 2))
        out: Tensor = self.norm(torch.cat([self.conv_even(x), self.conv_odd(shifted)], dim=1))
        return out


def plain_operation(operation: nn.Module) -> nn.Module:
    """The same operation as a sequence of plain modules, with the same weights."""
    if isinstance(operation, SepConv | DilConv):
        return nn.Sequential(*operation.children())
    return PlainReduce(operation) if isinstance(operation, FactorizedReduce) else operation


def pytorch_only(model: nn.Module) -> None:
    """No CPU kernels."""
    for module in model.modules():
        if isinstance(module, Fused):
            module.cpu_kernels = False


class PlainSupernet(nn.Module):
    """A supernet that computes every operation of every edge by itself.

    Args:
        supernet: whose weights are copied.
    """

    def __init__(self, supernet: DartsSupernet) -> None:
        super().__init__()
        # A pool that edges share becomes one for each.
        supernet = copy.deepcopy(supernet)
        self.space: DartsSpace = supernet.space
        self.stem, self.cells, self.head = supernet.stem, supernet.cells, supernet.head
        self._mask = supernet._mask
        pytorch_only(self)
        for cell in self.cells:
            for edge in cast(SearchCell, cell).edges:
                candidates = cast(nn.ModuleList, edge.candidates)
                for i, operation in enumerate(candidates):
                    candidates[i] = plain_operation(copy.deepcopy(operation))

    def forward(self, images: Tensor, alpha: Tensor) -> Tensor:
        """Logits ``(batch, n_classes)``."""
        table = alpha.new_full(self._mask.shape, -torch.inf).masked_scatter(self._mask, alpha)
        normal, reduce = torch.softmax(table, dim=1).chunk(2)
        first, second = self.stem(images)
        for cell in self.cells:
            weights = normal if cell.kind == "normal" else reduce
            first, second = second, self._cell(cast(SearchCell, cell), first, second, weights)
        return cast(Tensor, self.head(second))

    def _cell(self, cell: SearchCell, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        nodes = list(cell.preprocess(first, second))
        incoming: dict[int, list[Tensor]] = {}
        for edge, (source, node) in enumerate(cell_edges(self.space.n_nodes)):
            candidates = cast(nn.ModuleList, cell.edges[edge].candidates)
            live = [i for i, op in enumerate(candidates) if not isinstance(op, Zero)]
            out = weights[edge, live[0]] * candidates[live[0]](nodes[source])
            for i in live[1:]:
                out = out + weights[edge, i] * candidates[i](nodes[source])
            incoming.setdefault(node, []).append(out)
            if len(incoming[node]) == node:
                nodes.append(sum(incoming[node][1:], incoming[node][0]))
        return torch.cat(nodes[2:], dim=1)


def plain_network(network: DartsNetwork) -> DartsNetwork:
    """A copy of ``network`` with the same weights: plain modules, the default memory format."""
    network = copy.deepcopy(network)
    pytorch_only(network)
    network.channels_last = False
    for cell in network.cells:
        operations = cast(nn.ModuleList, cell.operations)
        for i, operation in enumerate(operations):
            operations[i] = plain_operation(operation)
    return network
