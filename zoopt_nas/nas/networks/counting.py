"""The size of a network: its parameters and multiply-adds."""

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
    enable_kernels(runnable, False)  # PyTorch's operators can be seen
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
