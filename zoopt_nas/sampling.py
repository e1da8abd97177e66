"""Random directions: (n, dim) arrays in the caller's namespace, dtype and device.

Every function takes the generator to draw from, the number of rows ``n``, and an array ``like`` of
shape (dim,) that gives the dimension, namespace, dtype and device. Rows are independent unless a
function says otherwise. The array returned is fresh: the caller may overwrite it, and at 10^6
dimensions should, because nothing here needs more memory than the rows themselves.
"""

from __future__ import annotations

import numpy as np

from zoopt_nas._arrays import Array, Generator, array_namespace, import_torch, is_torch_array

# From this many numbers on, rows are orthonormalized in place, if they are this much longer than
# many. Below, the memory does not matter and Householder QR is as fast.
_LEAN_SIZE = 2**16
_LEAN_RATIO = 8


def gaussian(rng: Generator, n: int, like: Array) -> Array:
    """Draws rows ~ N(0, I)."""
    return _normal(rng, (n, like.shape[0]), like)


def sphere(rng: Generator, n: int, like: Array) -> Array:
    """Draws rows uniform on the unit sphere S^{dim-1}."""
    # The direction of a normal vector is uniform, because its density depends on the norm alone.
    return _normalized(gaussian(rng, n, like))


def ball(rng: Generator, n: int, like: Array) -> Array:
    """Draws rows uniform in the unit ball."""
    # P(norm <= r) = r^dim, so the norm is the dim-th root of a uniform number.
    radius = uniform(rng, n, like) ** (1.0 / like.shape[0])
    rows = sphere(rng, n, like)
    rows *= radius[:, None]
    return rows


def rademacher(rng: Generator, n: int, like: Array) -> Array:
    """Draws rows of independent signs, -1 or +1 with probability 1/2 each."""
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
    """Draws rows on the unit sphere, orthogonal to each other within blocks of dim rows.

    Each row alone is uniform on the sphere; each block is Haar-distributed. Blocks are independent.
    """
    dim = like.shape[0]
    xp = array_namespace(like)
    blocks = [_orthonormal_rows(rng, min(dim, n - done), like) for done in range(0, n, dim)]
    return blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=0)


def uniform(rng: Generator, n: int, like: Array) -> Array:
    """Draws (n,) numbers uniform in [0, 1]."""
    if is_torch_array(like):
        return import_torch().rand(n, generator=rng, dtype=like.dtype, device=like.device)
    return rng.random(n).astype(like.dtype)


def choose(rng: Generator, n: int, probability: float, like: Array) -> Array:
    """Draws (n,) booleans that are True with ``probability``."""
    return uniform(rng, n, like) < probability


def _orthonormal_rows(rng: Generator, n: int, like: Array) -> Array:
    xp = array_namespace(like)
    dim = like.shape[0]
    if n == 1 and dim > 1:  # the very row that QR would give, up to rounding
        return sphere(rng, 1, like)
    if n * dim > _LEAN_SIZE and n * _LEAN_RATIO <= dim:
        return _orthonormal_in_place(_normal(rng, (n, dim), like))
    block = _normal(rng, (dim, n), like)
    Q, R = xp.linalg.qr(block)
    # LAPACK fixes no signs. With a positive diagonal of R the factorisation is unique, and only
    # then is Q Haar-distributed (Mezzadri 2007).
    signs = xp.where(xp.linalg.diagonal(R) < 0, -1.0, 1.0)
    return xp.matrix_transpose(Q * xp.astype(signs, Q.dtype))


def _orthonormal_in_place(rows: Array) -> Array:
    """Orthonormalizes a few long rows without a second copy of them.

    With L the Cholesky factor of the Gram matrix, L^-1 rows is the Q of QR with a positive
    diagonal. Its error grows with the square of the condition number, which for Gaussian rows much
    longer than many is near 1.
    """
    xp = array_namespace(rows)
    inverse = xp.linalg.inv(xp.linalg.cholesky(rows @ xp.matrix_transpose(rows)))
    for start in range(0, rows.shape[1], _LEAN_SIZE):
        rows[:, start : start + _LEAN_SIZE] = inverse @ rows[:, start : start + _LEAN_SIZE]
    return rows


def _normalized(rows: Array) -> Array:
    """Scales the rows to length 1, in place."""
    if is_torch_array(rows):
        norm = import_torch().linalg.vector_norm(rows, dim=1, keepdim=True)
    else:
        # The squares of many half-precision numbers overflow their own dtype.
        wide = np.promote_types(rows.dtype, np.float32)
        norm = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=wide))[:, None]
    # A float32 normal number is exactly 0 once in some 2^24 draws, which is a row for dim = 1.
    norm[norm == 0] = 1
    rows /= norm.astype(rows.dtype) if isinstance(norm, np.ndarray) else norm
    return rows


def _normal(rng: Generator, shape: tuple[int, int], like: Array) -> Array:
    if is_torch_array(like):
        return import_torch().randn(shape, generator=rng, dtype=like.dtype, device=like.device)
    if like.dtype in (np.float64, np.float32):
        return rng.standard_normal(shape, dtype=like.dtype)
    return rng.standard_normal(shape).astype(like.dtype)  # NumPy draws in no other precision
