"""A step by a quadratic model that is fitted to a few samples of a function.

Source: the least-norm quadratic is the ridge regression with the polynomial kernel of degree 2;
samples on which CMA-ES fits such a model: Hansen, "A Global Surrogate Assisted CMA-ES", GECCO 2019.
"""

from __future__ import annotations

import math

from zoopt_nas._arrays import Array, array_namespace, device

RIDGE = 1e-3
# Shifts of the Hessian to try, from the Newton step to one that is short enough for certain.
_SHIFTS = (0.0, *(2 ** (-k / 2) for k in range(23, -1, -1)))


def model_step(steps: Array, values: Array, axes: Array, lengths: Array) -> Array | None:
    """Returns the step (dim,) to the minimum of a quadratic model in an ellipsoid around 0.

    With z = step in units of the ellipsoid, the model is the ridge regression with the kernel
    1 + z·z' + (z·z')² / 2. Of all quadratics that fit the samples, it is the one with the least
    gradient and Hessian, so that no full set of (dim + 1)(dim + 2) / 2 samples is needed.

    Args:
        steps: (n, dim), where the function was evaluated, relative to the centre.
        values: (n,), finite.
        axes: (dim, dim), orthonormal columns: the axes of the ellipsoid.
        lengths: (dim,), > 0, how long they are. The step is at most sqrt(dim) in these units.

    Returns:
        None if there are fewer than 3 samples or half of them have the least value, or if numbers
        overflow.
    """
    xp = array_namespace(steps)
    n, dim = steps.shape
    if n < 3:
        return None
    gaps = values - xp.min(values)
    # The median and not the mean: a few high values must not make all others look alike.
    scale = float(xp.sort(gaps)[n // 2])
    if not 0 < scale < math.inf:
        return None
    gaps = gaps / scale
    gaps = xp.where(gaps < 1e6, gaps, 1e6)
    z = (steps @ axes) / lengths
    spread = math.sqrt(float(xp.sum(z * z)) / n)
    if not 0 < spread < math.inf:
        return None
    z /= spread
    K = z @ z.T
    K += 0.5 * K * K + 1
    # High values say little about the shape near the minimum: their residuals count less.
    diagonal = xp.arange(n, device=device(K))
    K[diagonal, diagonal] += RIDGE * (1 + gaps) ** 2
    a = xp.linalg.solve(K, gaps[:, None])[:, 0]
    curvature, basis = xp.linalg.eigh((z * a[:, None]).T @ z)
    gradient = (a @ z) @ basis
    radius = math.sqrt(dim) / spread
    # The shifted Hessian is positive and its condition number at most some 1000.
    low, high = float(curvature[0]), float(curvature[-1])
    least = max(0.0, 1e-3 * max(abs(low), abs(high)) - low)
    shifts = xp.asarray(_SHIFTS, dtype=K.dtype, device=device(K))
    shifts = least + shifts * (xp.linalg.vector_norm(gradient) / radius)
    tried = -gradient / (curvature + shifts[:, None] + 1e-300)
    # Norms fall with the shift, and the last is at most the radius by construction.
    n_long = int(xp.sum(xp.sum(tried * tried, axis=1) > radius * radius))
    step = axes @ (lengths * (basis @ tried[min(n_long, len(_SHIFTS) - 1)])) * spread
    return step if bool(xp.all(xp.isfinite(step))) else None
