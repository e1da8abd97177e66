"""Count the parameters and multiply-adds of a network."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.network import Network


def count_parameters(model: nn.Module, *, with_auxiliary: bool = False) -> int:
    """Count trainable parameters, by default without the auxiliary head, as papers do."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if with_auxiliary or not name.startswith("auxiliary.")
    )


def count_multiply_adds(network: Network, image_size: int, in_channels: int = 3) -> int:
    """Count the multiply-adds of a forward pass of one image, the "FLOPs" or "Madds" of papers.

    Only the convolutions and linear layers count. Some papers add BatchNorm and ReLU, which is
    2.6 % more (docs/deviations.md, E7).

    Args:
        network: The network; a copy of it runs on the CPU.
        image_size: Side of the square images.
        in_channels: Channels of the images.
    """
    # Module hooks would miss fused operations. A copy on the meta device would be slower.
    runnable = copy.deepcopy(network).to("cpu", torch.float32).eval()
    runnable.set_generator(torch.Generator().manual_seed(0))  # its values do not matter
    enable_kernels(runnable, False)  # only PyTorch's operators can be counted
    counter = _MultiplyAdds()
    with torch.no_grad(), counter:
        runnable(torch.zeros(1, in_channels, image_size, image_size))
    return counter.total


class _MultiplyAdds(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiply-adds of convolutions and matrix products."""

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
