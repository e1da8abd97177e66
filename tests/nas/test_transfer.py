"""Tensors of the host on a device: one pinned copy of all of them, with every bit as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_device import CUDA, simulated_device
from torch import Tensor

from zoopt_nas.nas.data.transfer import staging, to_device

DTYPES = (torch.uint8, torch.bool, torch.float16, torch.float32, torch.float64, torch.int64)
SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3)


def drawn(shapes: list[tuple[torch.dtype, list[int]]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 2, shape, generator=generator).to(dtype) for dtype, shape in shapes]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=5))
def test_any_tensors_go_in_one_copy(shapes):
    tensors = drawn(shapes)
    with simulated_device() as device:
        moved = to_device(tensors, CUDA)
        assert [event.kind for event in device.events] == ["pinned"] * bool(tensors)
        assert all(x.device == CUDA for x in moved)
        back = [x.cpu() for x in moved]
    for there, here in zip(back, tensors, strict=True):
        assert there.dtype == here.dtype
        assert there.shape == here.shape
        assert torch.equal(there, here)


def test_views_and_slices_keep_their_numbers():
    table = torch.arange(24.0).view(4, 6)
    with simulated_device():
        moved = to_device([table.T, table[:, ::2], table[0, 0]], CUDA)
        back = [x.cpu() for x in moved]
    assert torch.equal(back[0], table.T)
    assert torch.equal(back[1], table[:, ::2])
    assert back[2] == 0


def test_on_a_cpu_they_stay_what_they_are():
    tensors = drawn([(torch.float32, [3]), (torch.int64, [2, 2])])
    assert all(
        a is b for a, b in zip(to_device(tensors, torch.device("cpu")), tensors, strict=True)
    )
    assert not staging((3,), torch.device("cpu")).is_pinned()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_buffer_is_not_used_again_before_it_is_copied():
    device = torch.device("cuda")
    assert staging((3,), device).is_pinned()
    busy = torch.zeros(4096, 4096, device=device)
    moved = []
    for k in range(50):
        busy = busy @ busy  # the copies wait behind it
        moved.append(to_device([torch.full((1000,), k), torch.full((7,), k / 2)], device))
    for k, (whole, half) in enumerate(moved):
        assert torch.equal(whole.cpu(), torch.full((1000,), k))
        assert torch.equal(half.cpu(), torch.full((7,), k / 2))
