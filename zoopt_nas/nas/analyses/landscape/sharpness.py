"""Measures of the sharpness of a loss on a square grid.

``values[i, j]`` is the loss at ``(axis[i], axis[j])``: the first index runs along the x axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoopt_nas.errors import InvalidValueError

Array = NDArray[np.float64]

# Side of the square of points that gives the curvature. With three points, the noise of a loss on
# few images could make the curvature at a minimum negative.
FIT_SIDE = 5


@dataclass(frozen=True)
class Sharpness:
    """Measures of one landscape; NaN where the grid does not determine a number.

    The Hessian belongs to a least-squares quadratic on the 5x5 points around the minimum, or beside
    it if the minimum is on the border. The true minimum is then outside.
    """

    mean_gradient_norm: float  # over the inner points; visible as the density of contours
    minimum: tuple[float, float]  # (x, y) of the lowest point of the grid
    minimum_value: float
    centre_value: float  # the loss at (0, 0), where alpha is
    eigenvalues: tuple[float, float]  # of the Hessian at the minimum, in ascending order
    is_on_border: bool  # whether the minimum is at the border of the grid

    def distance_to(self, other: Sharpness) -> float:
        """Return the distance of the two minima, in units of alpha."""
        return math.dist(self.minimum, other.minimum)


def measure_sharpness(axis: Array, values: Array) -> Sharpness:
    """Return the measures of a landscape; non-finite points count as missing.

    Args:
        axis: ``(n,)``, equally spaced, symmetric about 0, n odd.
        values: ``(n, n)``, see the module.

    Raises:
        InvalidValueError: the shapes do not match, n is below 3, or no value is finite.
    """
    n = len(axis)
    if n < 3 or n % 2 == 0 or values.shape != (n, n):
        raise InvalidValueError(
            "values must have shape (n, n), where the length n of the axis is odd and at least 3, "
            f"got {values.shape} and {n}"
        )
    known = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(known).all():
        raise InvalidValueError("values must hold a finite loss, got none")
    step = float(axis[1] - axis[0])
    row, column = divmod(int(np.nanargmin(known)), n)
    slopes_x = (known[2:, 1:-1] - known[:-2, 1:-1]) / (2 * step)
    slopes_y = (known[1:-1, 2:] - known[1:-1, :-2]) / (2 * step)
    norms = np.hypot(slopes_x, slopes_y)
    return Sharpness(
        mean_gradient_norm=math.nan if np.isnan(norms).all() else float(np.nanmean(norms)),
        minimum=(float(axis[row]), float(axis[column])),
        minimum_value=float(known[row, column]),
        centre_value=float(known[n // 2, n // 2]),
        eigenvalues=_curvature(known, (row, column), step),
        is_on_border=bool({row, column} & {0, n - 1}),
    )


def _curvature(values: Array, at: tuple[int, int], step: float) -> tuple[float, float]:
    """Return the eigenvalues of a least-squares quadratic around ``at``; NaN if undetermined."""
    n = len(values)
    side = min(FIT_SIDE, n)
    first = [min(max(i - side // 2, 0), n - side) for i in at]  # inside the grid
    i, j = np.meshgrid(*(np.arange(start, start + side) for start in first), indexing="ij")
    z = values[i, j].ravel()
    x, y = i.ravel() - float(at[0]), j.ravel() - float(at[1])  # in steps
    is_known = ~np.isnan(z)
    basis = np.stack([np.ones_like(x), x, y, x * x / 2, x * y, y * y / 2], axis=1)[is_known]
    coefficients, _, rank, _ = np.linalg.lstsq(basis, z[is_known], rcond=None)
    if rank < basis.shape[1]:
        return math.nan, math.nan
    _, _, _, xx, xy, yy = coefficients
    lower, upper = np.linalg.eigvalsh(np.array([[xx, xy], [xy, yy]]) / step**2)
    return float(lower), float(upper)
