"""The scaled coordinates of a solver: a step of length 1 is sensible along each of them.

The units are powers of two, so that scaling is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, as_like, device, to_numpy
from zoopt_nas.bounds import RunBox
from zoopt_nas.errors import InvalidValueError

# Coordinates of x0 whose sizes differ by less than this factor get the same unit. Between two
# bounds, which are a better sign of unlike units, it is the second one: otherwise a coordinate that
# is near 0 by chance would get a unit of its own.
_SAME_UNIT_RATIO = 30.0
_SAME_FRACTION_RATIO = 1000.0
# Two bounds are loose if a quarter of their distance exceeds the size of x0 by this factor.
_LOOSE = 30.0
# A start that is no more than this many quarters of the width away from 0 tells a size; farther
# away, in a box beside 0, it tells none.
_MAX_FRACTION = 4.0
# A box wider than this many steps is treated as open.
_MAX_WIDTH = 1e8
# A coordinate of x0 in this range gets the unit 1.
_UNIT_RANGE = (0.1, 1.0)


class Coordinates:
    """The map between the points of a solver and the points of the function in one run.

    Attributes:
        start: the start point of the solver, (dim,).
        bounds: lower and upper bounds, (dim,) each, in the coordinates of the solver; None without
            a box and for the method "transform".
    """

    def __init__(self, x0: Array, box: RunBox | None, units: Array | None) -> None:
        self._box = box
        self._units = units
        self.start = self._scaled(x0 if box is None else box.start)
        self.bounds: tuple[Array, Array] | None = None
        if box is not None and box.repairs:
            self.bounds = self._scaled(box.lower), self._scaled(box.upper)

    def points(self, asked: Array, *, antithetic: bool = False) -> Array:
        """Map points of the solver, (..., dim), to points of the function."""
        points = asked if self._units is None else asked * self._units
        return points if self._box is None else self._box.inside(points, antithetic=antithetic)

    def told(self, points: Array) -> Array | None:
        """Map evaluated points back to the solver; None if it is told the points it asked for."""
        if self._box is None or not self._box.repairs:
            return None
        return self._scaled(points)

    def _scaled(self, points: Array) -> Array:
        return points if self._units is None else points / self._units


def units(x0: Array, box: RunBox | None, x_scale: Any = None) -> Array | None:
    """Return the unit of each coordinate, (dim,), as powers of two, or None if all are 1.

    Without ``x_scale``, it is a quarter of the width between two bounds that are not loose, or
    derived from ``x0``.
    """
    if x_scale is None:
        sizes = np.abs(np.asarray(to_numpy(x0), dtype=np.float64))
        steps = _steps(_common(sizes, _SAME_UNIT_RATIO))
        if box is not None and box.repairs:
            quarters = np.asarray(to_numpy(box.quarters()), dtype=np.float64)
            steps = _steps_in_box(sizes, steps, quarters)
        elif box is not None:
            on_line = box.steps_on_line(as_like("steps", steps, x0, tuple(x0.shape)))
            on_line = np.asarray(to_numpy(on_line), dtype=np.float64)
            steps = np.where(on_line <= _MAX_WIDTH * steps, on_line, steps)
    else:
        steps = _steps_from_user(x_scale, x0.shape[0])
    xp = array_namespace(x0)
    info = xp.finfo(x0.dtype)
    limited = np.clip(steps, float(info.tiny) * 4, float(info.max) / 4)
    exponents = np.rint(np.log2(limited)).astype(int)
    if not np.any(exponents):
        return None
    return xp.asarray(np.ldexp(1.0, exponents), dtype=x0.dtype, device=device(x0))


def _common(sizes: np.ndarray, ratio: float) -> np.ndarray:
    """Replace zeros, and sizes above 1 / ratio of the root mean square, by it; 1 if all are 0."""
    largest = np.max(sizes, initial=0.0)
    common = largest * np.sqrt(np.mean((sizes / largest) ** 2)) if largest > 0 else 1.0
    is_smaller = (sizes > 0) & (sizes * ratio < common)
    return np.where(is_smaller, sizes, common)


def _steps(sizes: np.ndarray) -> np.ndarray:
    """Return a step for coordinates of these sizes."""
    low, high = _UNIT_RANGE
    return np.where(sizes > high, sizes, np.minimum(sizes / low, high))


def _steps_in_box(sizes: np.ndarray, steps: np.ndarray, quarters: np.ndarray) -> np.ndarray:
    """Replace ``steps``, (dim,), by a quarter of the width, or by less where bounds are loose."""
    has_width = (quarters > 0) & (quarters <= _MAX_WIDTH * steps)
    widths = quarters[has_width]
    fractions = np.minimum(sizes[has_width] / widths, _MAX_FRACTION)
    by_size = _steps(widths * _common(fractions, _SAME_FRACTION_RATIO))
    result = steps.copy()
    result[has_width] = np.where(widths <= _LOOSE * by_size, widths, by_size)
    return result


def _steps_from_user(x_scale: Any, dim: int) -> np.ndarray:
    rule = "x_scale must be positive finite numbers, one or one for each coordinate"
    try:
        steps = np.asarray(to_numpy(x_scale), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{rule}, got {x_scale!r}") from error
    is_valid = np.all(np.isfinite(steps) & (steps > 0))
    if not is_valid or steps.shape not in ((), (1,), (dim,)):
        raise InvalidValueError(f"{rule}, got {x_scale!r}")
    return np.array(np.broadcast_to(steps, (dim,)))
