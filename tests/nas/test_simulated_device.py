"""The simulated CUDA device: the numbers of the CPU, what waits, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from simulated_device import CUDA, Device, kinds, on
from torch import Tensor, nn

from zoopt_nas.nas.steps.weight_step import WeightStep, cross_entropy_of


def test_its_numbers_are_those_of_the_cpu(device: Device):
    x = torch.arange(6.0).view(2, 3)
    own = x.to("cuda")
    assert own.device == CUDA
    assert torch.zeros(2, device="cuda").device == torch.zeros_like(own).device == CUDA
    own[0] += 1
    own = own.requires_grad_()
    (own * own).sum().backward()
    assert own.grad.device == CUDA
    assert torch.equal(own.grad.cpu(), 2 * torch.tensor([[1.0, 2, 3], [3, 4, 5]]))


WAITS: dict[str, Any] = {
    "item": (lambda x: x.sum().item(), ["value"]),
    "float": (lambda x: float(x[0]), ["value"]),
    "if": (lambda x: 1 if x.sum() > 0 else 0, ["value"]),
    "list": (lambda x: x.tolist(), ["to host"]),
    "host": (lambda x: x.cpu(), ["to host"]),
    "equal": (lambda x: torch.equal(x, x), ["value"]),
    "nonzero": (lambda x: x.nonzero(), ["shape"]),
    "mask": (lambda x: x[x > 1], ["shape"]),
    "several by mask": (lambda x: x.index_put_((x > 0,), x[1:] + 1), ["shape"]),
    "pinv": (lambda x: torch.linalg.pinv(x[:, None]), ["value"]),
    "from Python": (lambda x: torch.tensor([1.0], device="cuda"), ["to device"]),
    "pageable": (lambda x: torch.ones(3).to("cuda", non_blocking=True), ["to device"]),
    "index of the host": (lambda x: x[torch.tensor([0, 1])], ["to device"]),
    "pinned": (lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True), ["pinned"]),
    "pinned, waits": (lambda x: torch.ones(3, pin_memory=True).to("cuda"), ["to device"]),
    "number": (lambda x: x * 2 + torch.tensor(3.0), []),
    "one number by mask": (lambda x: x.index_put_((x > 1,), x[0]), []),
    "filled": (lambda x: torch.full((3,), 2.0, device="cuda").add_(x), []),
}


@pytest.mark.parametrize("name", WAITS)
def test_it_records_what_waits(name, device: Device):
    (x,) = on(CUDA, torch.arange(3.0))
    function, expected = WAITS[name]
    device.forget()
    function(x)
    assert kinds(device) == expected


BROKEN: dict[str, Any] = {
    "a sum": lambda x: x + torch.ones(3),
    "a product": lambda x: torch.ones(2, 3) @ x,
    "in place": lambda x: x.add_(torch.ones(3)),
    "an index": lambda x: x.index_select(0, torch.tensor([0])),
    "joined": lambda x: torch.cat([x, torch.ones(3)]),
    "a generator": lambda x: x.normal_(generator=torch.Generator()),
    "the other generator": lambda x: torch.rand(3, generator=torch.Generator("cuda")),
    "an array": lambda x: x.numpy(),
    "an array by NumPy": lambda x: np.asarray(x),
}


@pytest.mark.parametrize("name", BROKEN)
def test_it_refuses_what_cuda_refuses(name, device: Device):
    (x,) = on(CUDA, torch.arange(3.0))
    with pytest.raises((RuntimeError, TypeError)):
        BROKEN[name](x)


class Peeking(nn.Linear):
    """A module that reads a value, or holds a tensor of the host."""

    def __init__(self, fault: str) -> None:
        super().__init__(3, 2)
        self.fault, self.offset = fault, torch.ones(2)  # no buffer: it does not move

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if self.fault == "value" and logits.sum().item() > 1e9:
            return logits * 0
        return logits + self.offset if self.fault == "tensor" else logits


@pytest.mark.parametrize("fault", ["none", "value", "tensor"])
def test_a_weight_step_of_a_broken_module_is_found_out(fault, device: Device):
    model = Peeking(fault).to(CUDA)
    images, labels = on(CUDA, torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    step = WeightStep(
        cross_entropy_of(model), model, torch.optim.SGD(model.parameters(), lr=0.1), 5.0
    )
    device.forget()
    if fault == "tensor":
        with pytest.raises(RuntimeError, match="same device"):
            step(images, labels)
        return
    step(images, labels)
    assert kinds(device) == (["value"] if fault == "value" else [])
