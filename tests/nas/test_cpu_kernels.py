"""The CPU kernels against PyTorch's operators: values, gradients, statistics."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.kernels import library as kernel_library
from zoopt_nas.nas.kernels.library import library
from zoopt_nas.nas.kernels.stages import StageSettings, StageWeights, can_run_stages, run_stages

pytestmark = pytest.mark.skipif(library(torch.float32) is None, reason="no C compiler")

EPS, MOMENTUM = 1e-5, 0.1


class Case(NamedTuple):
    """Inputs of ``run_stages``.

    Attributes:
        leaves: x, base, skip and all weights that are there, each with a gradient.
        running: of each stage: mean and variance.
    """

    x: Tensor
    base: Tensor | None
    skip: Tensor | None
    stages: list[tuple[StageSettings, StageWeights]]
    leaves: list[Tensor]
    running: list[tuple[Tensor, Tensor]]

    def run(self) -> Tensor:
        return run_stages(self.x, self.stages, self.base, self.skip)


def make_case(
    channels: tuple[int, ...] = (3, 4),
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    size: tuple[int, int] = (6, 5),
    batch: int = 3,
    *,
    training: bool = True,
    affine: bool = False,
    scaled: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    """Inputs of ``len(channels) - 1`` stages, of which the first one strides.

    Args:
        kernel: 0 = no depthwise convolutions.
    """
    generator = torch.Generator().manual_seed(seed)
    leaves: list[Tensor] = []

    def leaf(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=dtype)
        if not shape:  # with others next to it, as in a table of architecture weights
            tensor = torch.randn(9, generator=generator, dtype=dtype)[1]
        if len(shape) == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        leaves.append(tensor.requires_grad_())
        return tensor

    x = leaf(batch, channels[0], *size)
    if dtype == torch.float64:
        assert can_run_stages(x)
    out_size = [-(-side // stride) for side in size]
    is_residual = stride == 1 and channels[0] == channels[-1]
    base = leaf(batch, channels[-1], *out_size)
    skip = leaf() if is_residual else None
    stages, running = [], []
    for i, (own, following) in enumerate(pairwise(channels)):
        depthwise = leaf(own, 1, kernel, kernel) if kernel else None
        pointwise = leaf(following, own, 1, 1)
        scale = leaf(following) if affine else leaf() if scaled and i == len(channels) - 2 else None
        shift = leaf(following) if affine else None
        mean = torch.randn(following, generator=generator, dtype=dtype)
        variance = torch.rand(following, generator=generator, dtype=dtype) + 0.5
        running.append((mean, variance))
        own_settings = StageSettings(
            stride if i == 0 else 1, dilation, training, MOMENTUM, EPS, mean, variance
        )
        stages.append((own_settings, StageWeights(depthwise, pointwise, scale, shift)))
    return Case(x, base, skip, stages, leaves, running)


def plain(case: Case) -> Tensor:
    """The same by PyTorch's operators; running statistics of its own."""
    out = case.x
    for (own, weights), (mean, variance) in zip(case.stages, case.running, strict=True):
        out = F.relu(out)
        if weights.depthwise is not None:
            padding = own.dilation * (weights.depthwise.shape[-1] // 2)
            settings_of_conv = own.stride, padding, own.dilation, out.shape[1]
            out = F.conv2d(out, weights.depthwise, None, *settings_of_conv)
        out = F.conv2d(out, weights.pointwise)
        out = F.batch_norm(
            out, mean, variance, None, None, own.training, own.momentum, own.eps
        )  # fmt: skip
        if weights.scale is not None:
            out = out * weights.scale.view(-1, 1, 1)
        if weights.shift is not None:
            out = out + weights.shift.view(-1, 1, 1)
    if case.base is not None:
        out = out + case.base
    return out if case.skip is None else out + case.skip * case.x


def copied(case: Case) -> Case:
    """With running statistics of its own; the same leaves."""
    return case._replace(running=[(mean.clone(), var.clone()) for mean, var in case.running])


def check(case: Case, tolerance: float) -> None:
    reference = copied(case)
    got, wanted = case.run(), plain(reference)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(got)
    weights = weights.contiguous(memory_format=torch.channels_last)  # as in a network
    got_grads = torch.autograd.grad((got * weights).sum(), case.leaves)
    wanted_grads = torch.autograd.grad((wanted * weights).sum(), case.leaves)
    pairs = [(got, wanted), *zip(got_grads, wanted_grads, strict=True)]
    if case.stages[0][0].training:  # those with a graph of their own are made in another way
        again = torch.autograd.grad((case.run() * weights).sum(), case.leaves, create_graph=True)
        pairs += zip(again, wanted_grads, strict=True)
        plain(reference)  # the running statistics have moved on
    for own, other in zip(case.running, reference.running, strict=True):
        pairs += zip(own, other, strict=True)
    for one, two in pairs:
        assert one.shape == two.shape
        atol = tolerance * max(1.0, float(two.detach().abs().max()))
        torch.testing.assert_close(one, two, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("side", [1, 2, 5, 8])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_one_stage(kernel, stride, dilation, side, training):
    size = (side, side + 3)
    check(make_case((3, 4), kernel, stride, dilation, size, training=training), 1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(4, 4, 4), (8, 16, 8), (36, 36, 36), (5, 17, 5), (2, 9, 3)])
def test_two_stages(channels, stride, affine, training):
    check(make_case(channels, stride=stride, affine=affine, training=training), 1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (24, 20), (130, 2)])
@pytest.mark.parametrize("channels", [(24, 8), (5, 7, 5)])
def test_without_depthwise_convolutions(channels, size, training):
    """Images of more than 128 pixels are computed in bands, where their height can be divided."""
    check(make_case(channels, 0, size=size, affine=True, training=training), 1e-9)


# A stage goes over an image in bands of rows of 128 pixels or more; the last one may be lower.
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2), (3, 3)])
@pytest.mark.parametrize(
    ("size", "stride"), [((19, 20), 1), ((37, 39), 2), ((33, 12), 1), ((3, 200), 1), ((40, 70), 3)]
)
@pytest.mark.parametrize("channels", [(8, 16, 8), (5, 7)])
def test_images_of_several_bands(channels, size, stride, kernel, dilation, training):
    check(make_case(channels, kernel, stride, dilation, size, 2, training=training), 1e-9)


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_memory_of_the_base(overwrite):
    case = make_case((4, 4))
    base = case.base * 1
    kept = base.detach().clone()
    out = run_stages(case.x, case.stages, base, case.skip, overwrite=overwrite)
    assert (out.data_ptr() == base.data_ptr()) == overwrite
    assert torch.equal(base, kept) != overwrite
    wanted = plain(copied(case))
    torch.testing.assert_close(out, wanted)
    got_grads = torch.autograd.grad(out.square().sum(), case.leaves)
    wanted_grads = torch.autograd.grad(wanted.square().sum(), case.leaves)
    for one, two in zip(got_grads, wanted_grads, strict=True):
        torch.testing.assert_close(one, two)


def test_a_base_that_must_not_be_overwritten():
    case = make_case((4, 4))
    wanted = plain(copied(case))
    view = torch.stack([case.base, case.base]).unbind()[0]
    plain_order = (case.base * 1).contiguous()
    for base in (view, plain_order):
        kept = base.detach().clone()
        again = make_case((4, 4))
        out = run_stages(again.x, again.stages, base, again.skip, overwrite=True)
        torch.testing.assert_close(out, wanted)
        assert torch.equal(base, kept)


@pytest.mark.parametrize("batch", [2, 3, 16, 17, 40])  # more and fewer than parts of a sum
def test_any_batch(batch):
    check(make_case((4, 4, 4), batch=batch), 1e-9)


# Padding, tails of vectors, rows and columns that are left over: each an own path in C.
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    channels=st.lists(st.integers(1, 20), min_size=2, max_size=3).map(tuple),
    kernel=st.sampled_from([0, 1, 3, 5, 7]),
    stride=st.sampled_from([1, 2, 3]),
    dilation=st.integers(1, 3),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    batch=st.integers(2, 6),
    affine=st.booleans(),
)
def test_any_shape(channels, kernel, stride, dilation, size, batch, affine):
    stride = stride if kernel else 1
    case = make_case(channels, kernel, stride, dilation, size, batch, affine=affine)
    # Statistics of two numbers: 1 / standard deviation can be large, and so is what it multiplies.
    check(case, 1e-6)


@pytest.mark.parametrize("channels", [(16, 16, 16), (36, 36), (64, 64, 64)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_float32(channels, kernel):
    check(make_case(channels, kernel, size=(8, 8), batch=8, dtype=torch.float32), 2e-4)


def test_statistics_of_a_mean_far_from_zero_keep_their_digits():
    """Variance 1 around 1000: a sum of squares, 1e6 each, would have lost all but one digit of it.

    An image's mean is off by the rounding of a sum of 64 thousands, about 1e-4, and lies up to 0.4
    from that of all: so much of the variance, 1e-4 at most, is not known.
    """
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(8, 8, 8, 8, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    weights = StageWeights(torch.ones(8, 1, 1, 1), torch.eye(8).view(8, 8, 1, 1))
    mean, variance = torch.zeros(8), torch.zeros(8)
    stage = StageSettings(1, 1, True, 1.0, EPS, mean, variance)
    out = run_stages(x, [(stage, weights)])
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3)), rtol=1e-4, atol=0)
    wanted = F.batch_norm(exact, None, None, training=True, eps=EPS)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives(training):
    case = make_case((2, 3, 2), size=(3, 2), batch=2, training=training)

    def function(*leaves: Tensor) -> Tensor:
        x, base, skip, *rest = leaves
        (first, _), (second, _) = case.stages
        one = StageWeights(rest[0], rest[1])
        two = StageWeights(rest[2], rest[3], rest[4])
        return run_stages(x, [(first, one), (second, two)], base, skip)

    assert torch.autograd.gradcheck(function, case.leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, case.leaves, fast_mode=True)


@pytest.mark.parametrize("index", range(8))
def test_only_the_gradients_asked_for(index):
    case = make_case((4, 4, 4))
    assert len(case.leaves) == 8
    wanted = torch.autograd.grad(plain(copied(case)).square().sum(), case.leaves[index])[0]
    leaves = [leaf.requires_grad_(i == index) for i, leaf in enumerate(case.leaves)]
    (got,) = torch.autograd.grad(case.run().square().sum(), leaves[index])
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_without_gradients_nothing_is_kept():
    case = make_case((4, 4, 4))
    with torch.no_grad():
        out = case.run()
    assert not out.requires_grad
    torch.testing.assert_close(out, plain(copied(case)).detach())


def test_what_is_kept_is_the_input_and_one_tensor_for_each_stage():
    case = make_case((8, 8, 8), size=(8, 8), batch=4)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        case.run()
    images = [tensor for tensor in kept if tensor.ndim == 4 and tensor.shape[0] == 4]
    assert len(images) == 3
    assert images[0].data_ptr() == case.x.data_ptr()


def test_nothing_depends_on_the_number_of_threads():
    results = []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            case = make_case((16, 16, 16), size=(9, 9), batch=23, dtype=torch.float32)
            out = case.run()
            results.append([out, *torch.autograd.grad(out.square().sum(), case.leaves)])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_stay_so(bad):
    """A diverged run must show as one: no ReLU or mean may hide a NaN."""
    case = make_case((4, 4, 4))
    with torch.no_grad():
        case.x[1, 2, 3, 3] = bad
    out = case.run()
    wanted = plain(copied(case))
    assert torch.equal(out.isnan(), wanted.isnan())
    assert out.isnan().any()
    grads = torch.autograd.grad(out.sum(), case.leaves)
    assert all(grad.isnan().any() for grad in grads[3:])


def test_a_gradient_in_another_memory_order():
    case = make_case((4, 4, 4), size=(4, 6))
    grad = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    got = torch.autograd.grad(case.run(), case.leaves, grad)
    wanted = torch.autograd.grad(plain(copied(case)), case.leaves, grad)
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_weights_that_are_not_contiguous():
    case = make_case((4, 6), kernel=3)
    ((own, weights),) = case.stages
    turned = weights.pointwise.detach().view(6, 4).T.contiguous().T.view(6, 4, 1, 1)
    assert not turned.is_contiguous()
    out = run_stages(case.x, [(own, weights._replace(pointwise=turned))], case.base)
    torch.testing.assert_close(out, plain(copied(case)))


def test_when_pytorch_has_to_do_it(monkeypatch):
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    assert can_run_stages(x)
    assert can_run_stages(x.double())
    assert not can_run_stages(x.contiguous())  # another memory order
    assert not can_run_stages(x[:1])  # one image
    assert not can_run_stages(x[:, :2])  # not all channels
    assert not can_run_stages(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_run_stages(x)
    seen = []
    torch.vmap(lambda part: seen.append(can_run_stages(part)) or part)(x[None])
    assert seen == [False]
    monkeypatch.setattr(kernel_library, "library", lambda dtype: None)
    assert not can_run_stages(x)
