"""Every candidate operation against plain NumPy, and its contract in every form."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoopt_nas.errors import UnknownNameError
from zoopt_nas.nas.kernels.channels_last import diagonal_pixels, join_channels
from zoopt_nas.nas.networks.operations import (
    OPERATIONS,
    FactorizedReduce,
    Noise,
    seed_noise,
)
from zoopt_nas.nas.networks.skeleton import ReLUConvBN

PUBLISHED = (
    "none",
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "noise",
)
POOLS = ("max_pool_3x3", "avg_pool_3x3")
BLIND = ("none", "noise")  # their output does not depend on the input's values
EPS = 1e-5  # of torch's BatchNorm


def images(channels: int, height: int, width: int, *, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def build(name: str, channels: int = 4, stride: int = 1, search: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return OPERATIONS[name](channels, stride, search).double()


def plain_relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.0)


def plain_norm(x: np.ndarray) -> np.ndarray:
    """BatchNorm on batch statistics, scale 1 and shift 0, which is what it starts with."""
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=(0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(variance + EPS)


def windows(x: np.ndarray, size: int, stride: int, dilation: int, fill: float) -> np.ndarray:
    """``(batch, channels, out, out, size, size)``: what each output position sees."""
    pad = dilation * (size - 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    height, width = (math.ceil(n / stride) for n in x.shape[2:])
    out = np.empty((*x.shape[:2], height, width, size, size))
    for i in range(height):
        for j in range(width):
            for a in range(size):
                for b in range(size):
                    row, column = i * stride + a * dilation, j * stride + b * dilation
                    out[:, :, i, j, a, b] = padded[:, :, row, column]
    return out


def plain_separable(
    x: np.ndarray, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int
) -> np.ndarray:
    seen = windows(plain_relu(x), depthwise.shape[-1], stride, dilation, 0.0)
    deep = np.einsum("nchwab,cab->nchw", seen, depthwise.detach().numpy()[:, 0])
    return plain_norm(np.einsum("nchw,oc->nohw", deep, pointwise.detach().numpy()[:, :, 0, 0]))


def test_table_has_the_published_names():
    assert set(PUBLISHED) <= set(OPERATIONS)
    with pytest.raises(UnknownNameError, match="did you mean 'sep_conv_3x3'"):
        OPERATIONS["sep_conv_3x4"]


@pytest.mark.parametrize("search", [True, False], ids=["search", "eval"])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 6), (1, 3)], ids=str)
@pytest.mark.parametrize("channels", [4, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_contract(name: str, stride: int, channels: int, size: tuple[int, int], search: bool):
    x = images(channels, *size).float().requires_grad_()
    before = x.detach().clone()
    operation = OPERATIONS[name](channels, stride, search)
    out = operation(x)
    assert out.shape == (2, channels, *(math.ceil(n / stride) for n in size))
    assert out.dtype == torch.float32
    if name in BLIND:
        assert not out.requires_grad
    else:
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((out * weights).sum(), x)
        assert bool(torch.isfinite(gradient).all())
        assert int(gradient.count_nonzero()) > 0
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("search", [True, False], ids=["search", "eval"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_bias_and_affine_norms_in_eval_only(name: str, stride: int, search: bool):
    modules = list(build(name, stride=stride, search=search).modules())
    assert all(module.bias is None for module in modules if isinstance(module, nn.Conv2d))
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    assert [norm.affine for norm in norms] == [not search] * len(norms)
    n_norms = {"sep": 2, "dil": 1, "nor": 1, "ski": stride - 1, "non": 0, "noi": 0}
    expected = int(search) if name in POOLS else n_norms[name[:3]]
    assert len(norms) == expected


@pytest.mark.parametrize("search", [True, False], ids=["search", "eval"])
@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_sep_conv_value(kernel: int, stride: int, size: int, search: bool):
    operation = build(f"sep_conv_{kernel}x{kernel}", stride=stride, search=search)
    x = images(4, size, size)
    deep1, point1, deep2, point2 = (
        module.weight for module in operation.modules() if isinstance(module, nn.Conv2d)
    )
    assert deep1.shape == deep2.shape == (4, 1, kernel, kernel)
    assert point1.shape == point2.shape == (4, 4, 1, 1)
    middle = plain_separable(x.numpy(), deep1, point1, stride, 1)
    expected = plain_separable(middle, deep2, point2, 1, 1)
    np.testing.assert_allclose(operation(x).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_dil_conv_value(kernel: int, stride: int, size: int):
    operation = build(f"dil_conv_{kernel}x{kernel}", stride=stride)
    x = images(4, size, size)
    deep, point = (m.weight for m in operation.modules() if isinstance(m, nn.Conv2d))
    assert deep.shape == (4, 1, kernel, kernel)
    expected = plain_separable(x.numpy(), deep, point, stride, 2)
    np.testing.assert_allclose(operation(x).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("search", [True, False], ids=["search", "eval"])
def test_pool_values(search: bool, stride: int, size: int):
    x = images(4, size, size) - 5.0  # all negative: a padded zero would win the maximum
    assert float(x.max()) < 0
    largest = windows(x.numpy(), 3, stride, 1, -np.inf).max(axis=(4, 5))
    mean = np.nanmean(windows(x.numpy(), 3, stride, 1, np.nan), axis=(4, 5))
    for name, expected in (("max_pool_3x3", largest), ("avg_pool_3x3", mean)):
        out = build(name, stride=stride, search=search)(x).numpy()
        np.testing.assert_allclose(out, plain_norm(expected) if search else expected, atol=1e-10)


def test_avg_pool_of_ones_is_one_at_the_border():
    ones = torch.ones(1, 4, 3, 3, dtype=torch.float64)
    assert torch.equal(build("avg_pool_3x3", search=False)(ones), ones)


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (3, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("out_channels", [4, 5])
def test_factorized_reduce_value(size: tuple[int, int], out_channels: int):
    torch.manual_seed(0)
    module = FactorizedReduce(3, out_channels).double()
    x = images(3, *size, batch=3)
    even, odd = (m.weight.detach().numpy() for m in (module.conv_even, module.conv_odd))
    assert even.shape[0] == out_channels // 2
    height, width = (math.ceil(n / 2) for n in size)
    raw = np.zeros((3, out_channels, height, width))
    for i in range(height):
        for j in range(width):
            pixel = plain_relu(x.numpy())[:, :, 2 * i, 2 * j]
            raw[:, : len(even), i, j] = pixel @ even[:, :, 0, 0].T
            if 2 * i + 1 < size[0] and 2 * j + 1 < size[1]:  # past the edge there are zeros
                pixel = plain_relu(x.numpy())[:, :, 2 * i + 1, 2 * j + 1]
                raw[:, len(even) :, i, j] = pixel @ odd[:, :, 0, 0].T
    np.testing.assert_allclose(module(x).detach().numpy(), plain_norm(raw), atol=1e-10)


def test_skip_connect_is_the_identity_or_a_factorized_reduce():
    x = images(4, 6, 6)
    assert torch.equal(build("skip_connect")(x), x)
    strided = build("skip_connect", stride=2)
    assert isinstance(strided, FactorizedReduce)
    assert strided(x).shape == (2, 4, 3, 3)


def test_none_is_zero():
    x = torch.full((2, 4, 5, 5), torch.inf)
    assert torch.equal(OPERATIONS["none"](4, 2, True)(x), torch.zeros(2, 4, 3, 3))


def test_relu_conv_norm():
    torch.manual_seed(0)
    module = ReLUConvBN(4, 6, affine=False).double()
    x = images(4, 5, 5)
    seen = windows(plain_relu(x.numpy()), 1, 1, 1, 0.0)
    (weight,) = (parameter.detach().numpy() for parameter in module.parameters())
    expected = plain_norm(np.einsum("nchwab,ocab->nohw", seen, weight))
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_noise_is_standard_normal_and_ignores_its_input(training: bool):
    operation = OPERATIONS["noise"](16, 2, True).train(training)
    seed_noise(operation, torch.Generator().manual_seed(0))
    x = images(16, 40, 39, batch=8).float()
    first = operation(x)
    assert first.shape == (8, 16, 20, 20)
    n = first.numel()
    # Five standard errors of a mean and of a standard deviation of n normal draws.
    assert abs(float(first.mean())) < 5 / math.sqrt(n)
    assert abs(float(first.std()) - 1) < 5 / math.sqrt(2 * n)
    assert not torch.equal(operation(x), first)  # fresh at each call
    seed_noise(operation, torch.Generator().manual_seed(0))
    assert torch.equal(operation(torch.full_like(x, torch.nan)), first)


def test_noise_draws_from_torchs_generator_unless_given_one():
    operation = OPERATIONS["noise"](4, 1, False)
    assert isinstance(operation, Noise)
    x = torch.zeros(2, 4, 3, 3)
    torch.manual_seed(3)
    out = operation(x)
    torch.manual_seed(3)
    assert torch.equal(out, torch.randn(2, 3, 3, 4).permute(0, 3, 1, 2))


def test_noise_is_the_same_in_both_orders_of_memory():
    operation = OPERATIONS["noise"](4, 2, False)
    drawn = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        seed_noise(operation, torch.Generator().manual_seed(3))
        drawn.append(operation(torch.zeros(2, 4, 5, 3).contiguous(memory_format=memory_format)))
        assert drawn[-1].is_contiguous(memory_format=memory_format)
    assert torch.equal(*drawn)


def test_seed_noise_reaches_nested_operations_and_only_those():
    model = nn.Sequential(nn.Sequential(Noise(1)), nn.Dropout(0.5), Noise(2))
    generator = torch.Generator()
    seed_noise(model, generator)
    assert [m.generator for m in model.modules() if isinstance(m, Noise)] == [generator] * 2
    seed_noise(model, None)
    assert [m.generator for m in model.modules() if isinstance(m, Noise)] == [None] * 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [2, 4, 8, 15, 16, 24])
def test_narrow_reductions_have_the_right_gradients_in_float32(channels, memory_format):
    """A library's weight gradient of strided 1x1 convolutions writes past narrow channels_last."""
    torch.manual_seed(0)
    operation = FactorizedReduce(channels, channels, affine=False)
    exact = copy.deepcopy(operation).double()
    for _ in range(20):
        x = torch.randn(16, channels, 8, 8)
        single = x.contiguous(memory_format=memory_format).requires_grad_()
        double = x.double().requires_grad_()
        weight = torch.randn(16, channels, 4, 4)
        gradients = [
            torch.autograd.grad((module(y) * weight.to(y)).sum(), [y, *module.parameters()])
            for module, y in ((operation, single), (exact, double))
        ]
        for found, expected in zip(*gradients, strict=True):
            # A sum of 256 products, behind a BatchNorm: 1e-4 is a thousand roundings.
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [4, 5])
def test_second_derivatives_of_what_keeps_the_memory_order(side, memory_format):
    generator = torch.Generator().manual_seed(side)
    x, y = (
        torch.randn(2, n, side, side, generator=generator, dtype=torch.float64)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
        for n in (2, 3)
    )
    # Squares: both are linear, and would have no second derivative.
    for function in (
        lambda *nodes: join_channels(nodes) ** 2,
        lambda *nodes: [pixels**2 for node in nodes for pixels in diagonal_pixels(node)],
    ):
        assert torch.autograd.gradcheck(function, (x, y))
        assert torch.autograd.gradgradcheck(function, (x, y))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_keep_the_memory_order(memory_format):
    x, y = (
        torch.randn(2, 4, 6, 6).contiguous(memory_format=memory_format).requires_grad_()
        for _ in range(2)
    )
    gradients = [
        *torch.autograd.grad((join_channels([x, y]) ** 2).sum(), [x, y]),
        *torch.autograd.grad(sum((pixels**2).sum() for pixels in diagonal_pixels(x)), x),
    ]
    assert len(gradients) == 3
    assert all(gradient.is_contiguous(memory_format=memory_format) for gradient in gradients)
