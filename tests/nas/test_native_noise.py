"""Noise that is drawn where it is used: its numbers, their distribution, and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from zoopt_nas.nas.kernels.library import library
from zoopt_nas.nas.kernels.noise import add_noise
from zoopt_nas.nas.networks.operations import Noise

pytestmark = pytest.mark.skipif(library(torch.float32) is None, reason="no C compiler")

LANES = 8


def noise(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    zeros = torch.zeros(1, 1, 1, n, dtype=dtype)
    return add_noise(zeros, torch.ones((), dtype=dtype), seed).flatten()


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 as Salmon et al. (2011) write it, in whole numbers of Python."""
    (a, b, c, d), (k, m), low = counter, key, 2**32 - 1
    for _ in range(10):
        one, two = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (two >> 32) ^ b ^ k, two & low, (one >> 32) ^ d ^ m, one & low
        k, m = (k + 0x9E3779B9) & low, (m + 0xBB67AE85) & low
    return [a, b, c, d]


# Of the authors' own test vectors (Random123, kat_vectors).
@pytest.mark.parametrize(("counter", "key", "words"), [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
])  # fmt: skip
def test_the_reference_is_philox(counter, key, words):
    assert philox(counter, key) == words


def polar(radius_word: int, angle_word: int) -> tuple[float, float]:
    """Box and Muller's two normals; the angle in an eighth of a turn, mirrored by two bits."""
    uniform = np.float32(np.float32(radius_word) + np.float32(1)) * 2.0**-32  # to 24 bits
    radius = math.sqrt(-2 * math.log(uniform))
    signed = ((angle_word << 2) & (2**32 - 1) ^ 2**31) - 2**31
    angle = signed / 2**31 * math.pi / 4
    x, y = radius * math.cos(angle), radius * math.sin(angle)
    if angle_word & 2**30:
        x, y = y, x
    return (-x, -y) if angle_word & 2**31 else (x, y)


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567])
def test_every_number_is_that_of_the_reference(seed):
    n_blocks = 4
    expected = []
    for block in range(n_blocks):
        lanes = []
        for lane in range(LANES):
            counter = block * LANES + lane
            w = philox([counter, 0, 0, 0], [seed & (2**32 - 1), seed >> 32])
            lanes.append([*polar(w[0], w[1]), *polar(w[2], w[3])])
        expected += np.array(lanes).T.flatten().tolist()
    n = n_blocks * 4 * LANES - 5  # the last block is not whole
    got = noise(n, seed)
    torch.testing.assert_close(
        got.double(), torch.tensor(expected[:n]).double(), rtol=2e-6, atol=2e-6
    )


def test_the_distribution():
    """A million numbers; each bound is four standard errors, one in 16,000 for each statistic."""
    n = 2**20
    sample = noise(n, 7).double().numpy()
    assert abs(sample.mean()) < 4 / math.sqrt(n)
    assert abs(sample.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(sample)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(sample)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(sample, "norm").pvalue > 1e-4
    for lag in (1, 2, LANES, 2 * LANES, 4 * LANES):  # pairs, lanes, blocks
        products = sample[:-lag] * sample[lag:]
        assert abs(products.mean()) < 4 / math.sqrt(len(products))
        squares = (sample[:-lag] ** 2 - 1) * (sample[lag:] ** 2 - 1)
        assert abs(squares.mean()) < 4 * 2 / math.sqrt(len(squares))
    beyond = (np.abs(sample) > 4).sum()  # 66.4 of a million
    assert abs(beyond - n * 2 * stats.norm.sf(4)) < 4 * math.sqrt(n * 2 * stats.norm.sf(4))


def test_seeds_are_independent():
    n = 2**16
    one, two = noise(n, 1), noise(n, 2)
    assert abs(float((one * two).mean())) < 4 / math.sqrt(n)
    assert torch.equal(one, noise(n, 1))
    # The same numbers, whatever the type and however many there are.
    assert torch.equal(noise(n, 1, torch.float64).float(), one)
    assert torch.equal(noise(33, 1), one[:33])


def test_nothing_depends_on_the_number_of_threads():
    base = torch.randn(3, 5, 7, 9, generator=torch.Generator().manual_seed(0))
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            scale = torch.tensor(0.5, requires_grad=True)
            out = add_noise(base, scale, 3)
            results.append((out, torch.autograd.grad(out.square().sum(), scale)[0]))
    finally:
        torch.set_num_threads(before)
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sum_and_gradients(dtype):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 3, 5, 7, generator=generator, dtype=dtype).requires_grad_()
    scale = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    unit = add_noise(torch.zeros_like(base), torch.ones((), dtype=dtype), 11).detach()
    out = add_noise(base, scale, 11)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(out, base + scale * unit, rtol=tolerance, atol=tolerance)
    grad = torch.randn(out.shape, generator=generator, dtype=dtype)
    base_grad, scale_grad = torch.autograd.grad(out, (base, scale), grad)
    assert torch.equal(base_grad, grad)
    torch.testing.assert_close(scale_grad, (grad * unit).sum(), rtol=1e-5, atol=1e-5)


def test_second_derivatives():
    base = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *own: add_noise(*own, 5), (base, scale))
    cubed = lambda base, scale: add_noise(base, scale, 5) ** 3  # noqa: E731
    assert torch.autograd.gradgradcheck(cubed, (base, scale))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_operation(stride):
    x = torch.randn(4, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    operation = Noise(stride)

    def seeded() -> Noise:
        operation.generator = torch.Generator().manual_seed(3)
        return operation

    drawn = seeded()(x)
    assert drawn.shape == x[:, :, ::stride, ::stride].shape
    base, scale = torch.randn_like(drawn), torch.tensor(0.25)
    torch.testing.assert_close(seeded().added(x, scale, base), base + 0.25 * drawn)
    torch.testing.assert_close(seeded().added(x, scale, None), 0.25 * drawn)
    assert not torch.equal(operation(x), drawn)  # the generator has moved on
    operation.native = False
    ours, plain = drawn.flatten(), seeded()(x).flatten()
    assert not torch.equal(ours, plain)  # PyTorch's numbers are others
    assert abs(float(plain.var() - ours.var())) < 4 * math.sqrt(2 * 2 / len(ours))
