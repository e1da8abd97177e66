"""The coordinates that a solver works in: those of the user, each in a unit of its own.

A step of one unit is sensible along every coordinate, so that no solver has to find out that one
parameter is a temperature and the next one a rate per second. Units are powers of two: scaling is
then exact, and changes nothing but the lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, as_like, device, to_numpy
from zoopt_nas.bounds import FittedBox
from zoopt_nas.errors import InvalidValueError

# Coordinates of x0 whose sizes differ by less than this factor are taken to be of one kind.
_SAME_KIND = 30.0
# A bound so many times farther than a step that suits x0 stands for none.
_INFINITE = 1e8
# The size of a coordinate between these says nothing of its unit, which is 1.
_ORDINARY = (0.1, 1.0)


class Coordinates:
    """What the coordinates of a solver stand for in one run.

    Args:
        x0: (dim,), the start.
        box: where the points must stay, or None.
        units: (dim,) positive, or None for no scaling.

    Attributes:
        start: (dim,), where the solver starts.
        bounds: lower and upper ends, (dim,) each, in the coordinates of the solver; None where
            there is no box, or one that the solver knows nothing of ("transform").
    """

    def __init__(self, x0: Array, box: FittedBox | None, units: Array | None) -> None:
        self._box = box
        self._units = units
        self.start = self._scaled(x0 if box is None else box.start)
        self.bounds: tuple[Array, Array] | None = None
        if box is not None and box.repairs:
            self.bounds = self._scaled(box.lower), self._scaled(box.upper)

    def points(self, asked: Array, *, antithetic: bool = False) -> Array:
        """Returns the points of the function, (..., dim), that points of the solver stand for."""
        points = asked if self._units is None else asked * self._units
        return points if self._box is None else self._box.inside(points, antithetic=antithetic)

    def told(self, points: Array) -> Array | None:
        """Returns what the solver is to be told about ``points``; None for what it asked for."""
        if self._box is None or not self._box.repairs:
            return None
        return self._scaled(points)

    def _scaled(self, points: Array) -> Array:
        return points if self._units is None else points / self._units


def units(x0: Array, box: FittedBox | None, x_scale: Any = None) -> Array | None:
    """Returns the unit of each coordinate, (dim,): powers of two; None where all are 1.

    Args:
        x0: (dim,), the start.
        box: where the points must stay, or None.
        x_scale: (dim,) or one number for all, positive: the size of a sensible step. None: a
            quarter of the width between two bounds; elsewhere what the size of x0 suggests.

    Raises:
        InvalidValueError: ``x_scale`` is not that.
    """
    if x_scale is None:
        steps = _suggested(np.asarray(to_numpy(x0), dtype=np.float64))
        if box is not None:
            widths = box.typical_steps(as_like("steps", steps, x0, tuple(x0.shape)))
            widths = np.asarray(to_numpy(widths), dtype=np.float64)
            steps = np.where(widths <= _INFINITE * steps, widths, steps)
    else:
        steps = _given(x_scale, x0.shape[0])
    xp = array_namespace(x0)
    info = xp.finfo(x0.dtype)
    limited = np.clip(steps, float(info.tiny) * 4, float(info.max) / 4)
    exponents = np.rint(np.log2(limited)).astype(int)
    if not np.any(exponents):
        return None
    return xp.asarray(np.ldexp(1.0, exponents), dtype=x0.dtype, device=device(x0))


def _suggested(x0: np.ndarray) -> np.ndarray:
    """Returns the step along each coordinate that the size of the start suggests.

    Coordinates of about one size share a unit, since one of them is small by chance. A zero says
    nothing, and takes the unit of the others.
    """
    sizes = np.abs(x0)
    largest = np.max(sizes, initial=0.0)
    common = largest * np.sqrt(np.mean((sizes / largest) ** 2)) if largest > 0 else 1.0
    of_its_own = (sizes > 0) & (sizes * _SAME_KIND < common)
    sizes = np.where(of_its_own, sizes, common)
    low, high = _ORDINARY
    return np.where(sizes > high, sizes, np.minimum(sizes / low, high))


def _given(x_scale: Any, dim: int) -> np.ndarray:
    rule = "x_scale must be positive finite numbers, one or one for each coordinate"
    try:
        steps = np.asarray(to_numpy(x_scale), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{rule}, got {x_scale!r}") from error
    is_valid = (
        steps.shape in ((), (1,), (dim,)) and np.all(np.isfinite(steps)) and np.all(steps > 0)
    )
    if not is_valid:
        raise InvalidValueError(f"{rule}, got {x_scale!r}")
    return np.array(np.broadcast_to(steps, (dim,)))
