"""Draw random directions, (n, dim).

``like``, (dim,), sets the dimension, namespace, dtype and device. Rows are independent unless a
function says otherwise. The result is a new array, which the caller may overwrite.
"""

from __future__ import annotations

import numpy as np

from zoopt_nas._arrays import Array, Generator, array_namespace, import_torch, is_torch_array

# Rows are orthonormalized in place, to save memory, if they hold more than so many numbers and
# dim / n is at least this ratio.
_IN_PLACE_SIZE = 2**16
_IN_PLACE_RATIO = 8


def gaussian(rng: Generator, n: int, like: Array) -> Array:
    """Draw rows from N(0, I)."""
    return _normal(rng, (n, like.shape[0]), like)


def sphere(rng: Generator, n: int, like: Array) -> Array:
    """Draw rows uniformly from the unit sphere S^{dim-1}."""
    return _normalized(gaussian(rng, n, like))


def ball(rng: Generator, n: int, like: Array) -> Array:
    """Draw rows uniformly from the unit ball."""
    # P(norm <= r) = r^dim, so the norm is the dim-th root of a uniform variable.
    radius = uniform(rng, n, like) ** (1.0 / like.shape[0])
    rows = sphere(rng, n, like)
    rows *= radius[:, None]
    return rows


def rademacher(rng: Generator, n: int, like: Array) -> Array:
    """Draw rows of independent signs, -1 or +1 with probability 1/2 each."""
    shape = (n, like.shape[0])
    if is_torch_array(like):
        torch = import_torch()
        bits = torch.randint(0, 2, shape, generator=rng, dtype=like.dtype, device=like.device)
    else:
        bits = rng.integers(0, 2, shape, dtype=np.int8).astype(like.dtype)
    bits *= 2
    bits -= 1
    return bits


def orthogonal(rng: Generator, n: int, like: Array) -> Array:
    """Draw unit rows in independent blocks of dim rows, each block orthogonal by Haar measure."""
    dim = like.shape[0]
    xp = array_namespace(like)
    blocks = [_orthonormal_rows(rng, min(dim, n - done), like) for done in range(0, n, dim)]
    return blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=0)


def uniform(rng: Generator, n: int, like: Array) -> Array:
    """Draw (n,) numbers uniformly from [0, 1]."""
    if is_torch_array(like):
        return import_torch().rand(n, generator=rng, dtype=like.dtype, device=like.device)
    return rng.random(n).astype(like.dtype)


def choose(rng: Generator, n: int, probability: float, like: Array) -> Array:
    """Draw (n,) booleans that are True with the given probability."""
    return uniform(rng, n, like) < probability


def _orthonormal_rows(rng: Generator, n: int, like: Array) -> Array:
    xp = array_namespace(like)
    dim = like.shape[0]
    if n == 1 and dim > 1:  # equals the result of QR up to rounding
        return sphere(rng, 1, like)
    if n * dim > _IN_PLACE_SIZE and n * _IN_PLACE_RATIO <= dim:
        return _orthonormal_in_place(_normal(rng, (n, dim), like))
    block = _normal(rng, (dim, n), like)
    Q, R = xp.linalg.qr(block)
    # Q is Haar-distributed only if the diagonal of R is positive (Mezzadri 2007).
    signs = xp.where(xp.linalg.diagonal(R) < 0, -1.0, 1.0)
    return xp.matrix_transpose(Q * xp.astype(signs, Q.dtype))


def _orthonormal_in_place(rows: Array) -> Array:
    """Orthonormalize a few long Gaussian rows in place, by Cholesky QR.

    Its error grows with the square of the condition number, which is near 1 for such rows.
    """
    xp = array_namespace(rows)
    inverse = xp.linalg.inv(xp.linalg.cholesky(rows @ xp.matrix_transpose(rows)))
    for start in range(0, rows.shape[1], _IN_PLACE_SIZE):
        block = rows[:, start : start + _IN_PLACE_SIZE]
        block[:] = inverse @ block
    return rows


def _normalized(rows: Array) -> Array:
    """Scale the rows to length 1, in place."""
    if is_torch_array(rows):
        norm = import_torch().linalg.vector_norm(rows, dim=1, keepdim=True)
    else:
        # A sum of squares may overflow in half precision.
        wide = np.promote_types(rows.dtype, np.float32)
        norm = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=wide))[:, None]
    # For dim = 1 in float32, about one row in 2^24 is exactly 0.
    norm[norm == 0] = 1
    rows /= norm.astype(rows.dtype) if isinstance(norm, np.ndarray) else norm
    return rows


def _normal(rng: Generator, shape: tuple[int, int], like: Array) -> Array:
    if is_torch_array(like):
        return import_torch().randn(shape, generator=rng, dtype=like.dtype, device=like.device)
    if like.dtype in (np.float64, np.float32):
        return rng.standard_normal(shape, dtype=like.dtype)
    return rng.standard_normal(shape).astype(like.dtype)  # NumPy draws only float64 and float32
