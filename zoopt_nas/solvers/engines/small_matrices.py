"""Factorizations of small float64 matrices, by LAPACK itself.

The functions of ``numpy.linalg`` call the same routines, but for a few rows their checks and
conversions take up to ten times as long.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np


@cache
def _lapack() -> Any:
    from scipy.linalg import lapack  # slow to import

    return lapack


def solve_positive(matrix: np.ndarray, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return x with A x = b, (dim,), and the factor U of A = Uᵀ U, (dim, dim).

    None if the symmetric matrix A has no such factor, because it is not positive definite. Entries
    of U below the diagonal are not set.
    """
    factor, x, info = _lapack().dposv(matrix, vector)
    return (x, factor) if info == 0 else None


def solve_transposed(factor: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return x with Uᵀ x = b, (dim,), for the upper triangle U of ``factor``, (dim, dim)."""
    x: np.ndarray = _lapack().dtrtrs(factor, vector, trans=1)[0]
    return x


def eigen_symmetric(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues in ascending order, (dim,), and the eigenvectors as columns.

    Raises:
        numpy.linalg.LinAlgError: they do not converge, because numbers overflow.
    """
    eigenvalues, vectors, info = _lapack().dsyevd(matrix)
    if info != 0:
        raise np.linalg.LinAlgError("the eigenvalues did not converge")
    return eigenvalues, vectors


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return the singular values in descending order, (dim,).

    Raises:
        numpy.linalg.LinAlgError: they do not converge, because numbers overflow.
    """
    _, values, _, info = _lapack().dgesdd(matrix, compute_uv=0)
    if info != 0:
        raise np.linalg.LinAlgError("the singular values did not converge")
    result: np.ndarray = values
    return result


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse, (dim, dim).

    Raises:
        numpy.linalg.LinAlgError: the matrix is singular.
    """
    lapack = _lapack()
    factors, pivots, info = lapack.dgetrf(matrix)
    if info == 0:
        result, info = lapack.dgetri(factors, pivots, overwrite_lu=1)
    if info != 0:
        raise np.linalg.LinAlgError("singular matrix")
    return np.ascontiguousarray(result)
