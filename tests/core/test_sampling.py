"""Sampling: shapes and dtypes in both namespaces, and moments of the distributions."""

import math

import numpy as np
import pytest
from scipy import stats

from zoopt_nas import sampling
from zoopt_nas._arrays import as_generator, scale_rows, to_numpy
from zoopt_nas.testing import BACKENDS

SAMPLERS = {
    "gaussian": sampling.gaussian,
    "sphere": sampling.sphere,
    "ball": sampling.ball,
    "rademacher": sampling.rademacher,
    "orthogonal": sampling.orthogonal,
}


@pytest.fixture(params=BACKENDS, ids=lambda b: f"{b.namespace}-{b.dtype}")
def backend(request):
    if request.param.namespace == "torch":
        pytest.importorskip("torch")
    return request.param


def draw(name, backend, n, dim, seed=0):
    like = backend.array(np.zeros(dim))
    return SAMPLERS[name](as_generator(seed, like), n, like)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("n", "dim"), [(1, 1), (3, 7), (7, 3), (4, 4)])
def test_shape_and_kind(name, backend, n, dim):
    rows = draw(name, backend, n, dim)
    backend.check(rows)
    assert tuple(rows.shape) == (n, dim)
    assert np.all(np.isfinite(to_numpy(rows)))


def test_rows_are_scaled_in_place(backend):
    rows = draw("gaussian", backend, 4, 3)
    factors = [2.0, 0.5, -0.25, 0.0]  # exact in every dtype
    expected = to_numpy(rows) * np.array(factors)[:, None]
    scale_rows(rows, factors)
    backend.check(rows)
    np.testing.assert_array_equal(to_numpy(rows), expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_generator_alone_decides(name, backend):
    first, again, other = (to_numpy(draw(name, backend, 7, 3, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_is_zero_and_covariance_isotropic(name, backend):
    n, dim = 6000, 3
    rows = to_numpy(draw(name, backend, n, dim)).astype(np.float64)
    variance = {"gaussian": 1.0, "rademacher": 1.0, "ball": 1 / (dim + 2)}.get(name, 1 / dim)
    # A product of two entries has a standard deviation of at most sqrt(2) * variance here.
    assert np.all(np.abs(rows.mean(axis=0)) < 5 * math.sqrt(variance / n))
    covariance = rows.T @ rows / n
    tolerance = 5 * math.sqrt(2 / n) * variance
    np.testing.assert_allclose(covariance, variance * np.eye(dim), atol=tolerance)


def test_gaussian_is_normal(backend):
    rows = to_numpy(draw("gaussian", backend, 2000, 2)).ravel()
    assert stats.kstest(rows, "norm").pvalue > 1e-4


def test_sphere_has_unit_norm(backend):
    norms = np.linalg.norm(to_numpy(draw("sphere", backend, 50, 9)), axis=1)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-6)


def test_ball_is_uniform(backend):
    norms = np.linalg.norm(to_numpy(draw("ball", backend, 2000, 3)), axis=1)
    assert stats.kstest(norms**3, "uniform").pvalue > 1e-4


def test_rademacher_has_both_signs_and_nothing_else(backend):
    assert set(np.unique(to_numpy(draw("rademacher", backend, 20, 20)))) == {-1.0, 1.0}


@pytest.mark.parametrize(("n", "dim"), [(3, 5), (5, 5), (12, 5)])
def test_orthogonal_within_blocks(backend, n, dim):
    rows = to_numpy(draw("orthogonal", backend, n, dim)).astype(np.float64)
    for start in range(0, n, dim):
        block = rows[start : start + dim]
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-5)
    if n > dim:
        assert np.abs(rows[:dim] @ rows[dim : 2 * dim].T).max() < 1 - 1e-6  # another block


def test_orthogonal_blocks_are_haar():
    # Unfixed LAPACK signs give a first row that is not symmetric; a Haar row is uniform, so its
    # first coordinate has a known distribution: uniform on [-1, 1] for dim = 3 (Archimedes).
    like, rng = np.zeros(3), np.random.default_rng(0)
    blocks = np.array([sampling.orthogonal(rng, 3, like) for _ in range(2000)])
    for row in range(3):
        for column in range(3):
            entries = blocks[:, row, column]
            assert stats.kstest(entries, "uniform", args=(-1, 2)).pvalue > 1e-4
    # Haar on O(3): both signs of the determinant are equally likely.
    assert abs(np.mean(np.linalg.det(blocks) > 0) - 0.5) < 5 * 0.5 / math.sqrt(2000)


def test_a_zero_draw_gives_no_nan():
    class Zeros(np.random.Generator):
        def standard_normal(self, size=None, dtype=np.float64, out=None):
            return np.zeros(size, dtype)

    rows = sampling.sphere(Zeros(np.random.PCG64()), 2, np.zeros(1))
    np.testing.assert_array_equal(rows, np.zeros((2, 1)))
