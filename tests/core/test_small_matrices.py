"""Factorizations by LAPACK against NumPy."""

import numpy as np
import pytest

from zoopt_nas.solvers.engines.small_matrices import (
    eigen_symmetric,
    inverse,
    singular_values,
    solve_positive,
    solve_transposed,
)

SIZES = (1, 2, 5, 20)


def random_matrix(n):
    return np.random.default_rng(n).standard_normal((n, n))


@pytest.mark.parametrize("n", SIZES)
def test_a_positive_definite_system_is_solved(n):
    a, b = random_matrix(n), np.arange(1.0, n + 1)
    matrix = a @ a.T + np.eye(n)
    x, factor = solve_positive(matrix, b)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-8)
    upper = np.triu(factor)
    np.testing.assert_allclose(upper.T @ upper, matrix, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        solve_transposed(factor, b), np.linalg.solve(upper.T, b), rtol=1e-8, atol=1e-12
    )


def test_a_matrix_that_is_not_positive_definite_is_not_solved():
    assert solve_positive(np.diag([1.0, -1.0]), np.ones(2)) is None
    assert solve_positive(np.diag([1.0, 0.0]), np.ones(2)) is None


@pytest.mark.parametrize("n", SIZES)
def test_eigenvalues_singular_values_and_the_inverse_are_those_of_numpy(n):
    a = random_matrix(n)
    symmetric = a + a.T
    eigenvalues, vectors = eigen_symmetric(symmetric)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(symmetric), atol=1e-10)
    np.testing.assert_allclose(vectors * eigenvalues @ vectors.T, symmetric, atol=1e-10)
    np.testing.assert_allclose(singular_values(a), np.linalg.svd(a, compute_uv=False), atol=1e-10)
    np.testing.assert_allclose(inverse(a) @ a, np.eye(n), atol=1e-9)


def test_the_arguments_stay_as_they_are():
    a = random_matrix(4)
    matrix, b = np.asfortranarray(a @ a.T), np.ones(4)
    before = matrix.copy()
    for function in (eigen_symmetric, singular_values, inverse):
        function(matrix)
    _, factor = solve_positive(matrix, b)
    solve_transposed(factor, b)
    np.testing.assert_array_equal(matrix, before)
    np.testing.assert_array_equal(b, np.ones(4))


def test_a_singular_matrix_has_no_inverse():
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        inverse(np.zeros((2, 2)))
