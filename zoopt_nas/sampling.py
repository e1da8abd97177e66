"""Random directions: (n, dim) arrays in the caller's namespace, dtype and device.

Every function takes the generator to draw from, the number of rows ``n``, and an array ``like`` of
shape (dim,) that gives the dimension, namespace, dtype and device. Rows are independent unless a
function says otherwise.
"""

from __future__ import annotations

import numpy as np

from zoopt_nas._arrays import Array, Generator, array_namespace, import_torch, is_torch_array


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
    radius = _uniform(rng, n, like) ** (1.0 / like.shape[0])
    return sphere(rng, n, like) * radius[:, None]


def rademacher(rng: Generator, n: int, like: Array) -> Array:
    """Draws rows of independent signs, -1 or +1 with probability 1/2 each."""
    shape = (n, like.shape[0])
    if is_torch_array(like):
        torch = import_torch()
        bits = torch.randint(0, 2, shape, generator=rng, dtype=like.dtype, device=like.device)
    else:
        bits = rng.integers(0, 2, shape, dtype=np.int8).astype(like.dtype)
    return 2 * bits - 1


def orthogonal(rng: Generator, n: int, like: Array) -> Array:
    """Draws rows on the unit sphere, orthogonal to each other within blocks of dim rows.

    Each row alone is uniform on the sphere; each block is Haar-distributed. Blocks are independent.
    """
    dim = like.shape[0]
    xp = array_namespace(like)
    blocks = [_orthonormal_rows(rng, min(dim, n - done), like) for done in range(0, n, dim)]
    return blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=0)


def choose(rng: Generator, n: int, probability: float, like: Array) -> Array:
    """Draws (n,) booleans that are True with ``probability``."""
    return _uniform(rng, n, like) < probability


def _orthonormal_rows(rng: Generator, n: int, like: Array) -> Array:
    xp = array_namespace(like)
    block = _normal(rng, (like.shape[0], n), like)
    Q, R = xp.linalg.qr(block)
    # LAPACK fixes no signs. With a positive diagonal of R the factorisation is unique, and only
    # then is Q Haar-distributed (Mezzadri 2007).
    signs = xp.where(xp.linalg.diagonal(R) < 0, -1.0, 1.0)
    return xp.matrix_transpose(Q * xp.astype(signs, Q.dtype))


def _normalized(rows: Array) -> Array:
    xp = array_namespace(rows)
    norm = xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    # A float32 normal number is exactly 0 once in some 2^24 draws, which is a row for dim = 1.
    return rows / xp.where(norm > 0, norm, xp.ones_like(norm))


def _normal(rng: Generator, shape: tuple[int, int], like: Array) -> Array:
    if is_torch_array(like):
        return import_torch().randn(shape, generator=rng, dtype=like.dtype, device=like.device)
    if like.dtype in (np.float64, np.float32):
        return rng.standard_normal(shape, dtype=like.dtype)
    return rng.standard_normal(shape).astype(like.dtype)  # NumPy draws in no other precision


def _uniform(rng: Generator, n: int, like: Array) -> Array:
    """Draws (n,) numbers uniform in [0, 1]."""
    if is_torch_array(like):
        return import_torch().rand(n, generator=rng, dtype=like.dtype, device=like.device)
    return rng.random(n).astype(like.dtype)
