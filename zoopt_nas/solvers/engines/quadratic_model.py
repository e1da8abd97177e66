"""The step to the minimum of a quadratic model of a few samples.

Sources: Hansen, "A Global Surrogate Assisted CMA-ES", GECCO 2019 (a model of the samples of
CMA-ES); Moré and Sorensen, "Computing a Trust Region Step", 1983 (the step in a ball).
"""

from __future__ import annotations

import math
from bisect import bisect_left

from zoopt_nas._arrays import Array, array_namespace

RIDGE = 2e-3


def model_step(steps: Array, values: Array) -> Array | None:
    """Return the step (dim,) to the minimum of a quadratic model in a ball around 0.

    The model is the ridge regression with the kernel (1 + z·z')², z = step / root mean square norm.
    Of all quadratics that interpolate the samples, it is close to the one with least coefficients,
    so that it needs fewer than (dim + 1)(dim + 2) / 2 samples.

    Args:
        steps: (n, dim), the samples relative to the centre, in standard deviations of the proposal.
            The ball has the radius sqrt(dim).
        values: (n,), finite, or +inf for a failed evaluation, which has almost no weight.

    Returns:
        None if fewer than 3 values are finite, if the median of the finite values is the least
        value, if the model has its minimum at 0, or if numbers overflow.
    """
    xp = array_namespace(steps)
    n, dim = steps.shape
    ordered = sorted(values.tolist())
    n_finite = bisect_left(ordered, math.inf)
    if n_finite < 3:
        return None
    # The median, because a few high values would dominate the mean.
    scale = ordered[n_finite // 2] - ordered[0]
    if not 0 < scale < math.inf:
        return None
    gaps = (values - ordered[0]) / scale
    gaps = xp.where(gaps < 1e6, gaps, 1e6)
    flat = steps.reshape(-1)
    spread = math.sqrt(float(flat @ flat) / n)
    if not 0 < spread < math.inf:
        return None
    z = steps / spread
    K = z @ z.T
    K += 1
    K *= K
    # High values say little about the shape near the minimum, so their residuals count less.
    tolerance = gaps + 1
    tolerance *= tolerance
    K.reshape(-1)[:: n + 1] += RIDGE * tolerance
    # Half the gradient and half the Hessian at 0: only their ratio matters.
    a = xp.linalg.solve(K, gaps[:, None])
    curvature, basis = xp.linalg.eigh((z * a).T @ z)
    gradient = a[:, 0] @ (z @ basis)
    radius = math.sqrt(dim) / spread
    shift, norm = _shift(curvature.tolist(), gradient.tolist(), radius)
    if not 0 < norm < math.inf:
        return None
    gradient /= curvature + shift
    step = basis @ gradient
    step *= -spread * min(1.0, radius / norm)
    return step if math.isfinite(float(step @ step)) else None


def _shift(curvature: list[float], gradient: list[float], radius: float) -> tuple[float, float]:
    """Return a shift of the curvatures, and the norm of the step -gradient / (curvature + shift).

    The shifted curvatures are positive, with a ratio of at most about 1000. The norm exceeds the
    radius by at most a tenth. Newton's method on 1 / norm, which is concave and nearly linear in
    the shift, approaches it from longer steps without overshooting (Moré and Sorensen 1983).
    """
    low, high = curvature[0], curvature[-1]
    shift = max(0.0, 1e-3 * max(abs(low), abs(high)) - low) + 1e-300
    for _ in range(30):
        square = slope = 0.0
        for c, g in zip(curvature, gradient, strict=True):
            component = g / (c + shift)
            square += component * component
            slope += component * component / (c + shift)
        norm = math.sqrt(square)
        if not norm > 1.1 * radius:
            break
        shift += (norm / radius - 1) * square / slope
    return shift, norm
