"""A step by a quadratic model that is fitted to a few samples of a function.

Source: the least-norm quadratic is the ridge regression with the polynomial kernel of degree 2;
samples on which CMA-ES fits such a model: Hansen, "A Global Surrogate Assisted CMA-ES", GECCO 2019.
The step in a ball: Moré and Sorensen, "Computing a Trust Region Step", 1983.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from zoopt_nas._arrays import Array, array_namespace

RIDGE = 2e-3


def model_step(steps: Array, values: Array) -> Array | None:
    """Returns the step (dim,) to the minimum of a quadratic model in a ball around 0.

    With z = step, scaled so that the mean square of its norm is 1, the model is the ridge
    regression with the kernel (1 + z·z')². Of all quadratics that fit the samples, it is the one
    with the least coefficients, so that no full set of (dim + 1)(dim + 2) / 2 samples is needed.

    Args:
        steps: (n, dim), where the function was evaluated, relative to the centre and in units of
            the proposal's standard deviations. The step is at most sqrt(dim).
        values: (n,), finite, or +inf where the evaluation failed: such a row has no weight.

    Returns:
        None if fewer than 3 values are finite or half of them are the least value, if the model has
        its minimum at 0, or if numbers overflow.
    """
    xp = array_namespace(steps)
    n, dim = steps.shape
    ordered = sorted(values.tolist())
    n_finite = bisect_left(ordered, math.inf)
    if n_finite < 3:
        return None
    # The median and not the mean: a few high values must not make all others look alike.
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
    # High values say little about the shape near the minimum: their residuals count less.
    tolerance = gaps + 1
    tolerance *= tolerance
    K.reshape(-1)[:: n + 1] += RIDGE * tolerance
    # Half the gradient and half the Hessian at 0: their ratio alone is needed.
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
    """Returns what to add to the curvatures, and the norm of the step -gradient / curvature then.

    The shifted curvatures are positive and their ratio at most some 1000. The norm is at most a
    tenth above the radius. Newton's method on 1 / norm comes from longer steps and does not
    overshoot, as 1 / norm is concave in the shift and nearly straight (Moré and Sorensen 1983).
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
