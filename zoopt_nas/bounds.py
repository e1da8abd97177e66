"""Bounds on the points of a run.

A user writes a `Box`; ``Box.at`` converts it to the `RunBox` of one run, by which `minimize` moves
the points of a solver inside before it evaluates them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, as_like, device, to_numpy
from zoopt_nas._checks import check_choice
from zoopt_nas.errors import InvalidValueError

BOUND_METHODS = ("reflect", "clip", "transform")

# "transform" cannot represent a start on a bound, and moves it inside: between two bounds to this
# fraction of the half width, and from a single bound by this distance.
_START_BETWEEN = 0.99
_START_BESIDE = 0.1


@dataclass(frozen=True, eq=False)
class Box:
    """Bounds of each coordinate, and the method that keeps points inside.

    Attributes:
        lower: (dim,) or one number for all coordinates; None or -inf for no bound.
        upper: the same, with +inf. ``lower == upper`` fixes a coordinate.
        method: how a coordinate outside of its bounds is moved inside:

            * ``"clip"``: to the nearest bound.
            * ``"reflect"``: by reflection at the bounds. Antithetic pairs x + d, x - d are shifted
              inside instead: reflection would map both to the same point.
            * ``"transform"``: by a smooth bijection of the real line, on which the solver works.
              Between two bounds with centre m and half width h,
              x = m + h v / sqrt(1 + v²), v = (u - m) / h. With a single bound b,
              x = b + s (v + sqrt(v² + 4)) / 2, v = (u - b) / s, where s is the distance of x0
              from b. No point lies on a bound; a start on a bound is moved inside by 0.5 % of the
              width, or by 0.1.

    Raises:
        InvalidValueError: an entry is not a real number, or a lower bound exceeds its upper bound.
    """

    lower: Any = None
    upper: Any = None
    method: str = "clip"

    def __post_init__(self) -> None:
        check_choice("method", self.method, BOUND_METHODS)
        lower = _as_bound_array("lower", self.lower, -np.inf)
        upper = _as_bound_array("upper", self.upper, np.inf)
        try:
            lower, upper = map(np.array, np.broadcast_arrays(lower, upper))
        except ValueError as error:
            raise InvalidValueError(
                f"lower and upper must have the same shape, got {lower.shape} and {upper.shape}"
            ) from error
        for index in np.ndindex(lower.shape):
            name = "bounds" + "".join(f"[{i}]" for i in index)
            _check_pair(name, float(lower[index]), float(upper[index]))
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    def at(self, x0: Array) -> RunBox:
        """Return the box of a run that starts at ``x0``, (dim,), which must be inside."""
        dim = x0.shape[0]
        if self.lower.ndim == 1 and self.lower.shape != (dim,):
            raise InvalidValueError(
                f"bounds must have one pair for each of the {dim} coordinates of x0, "
                f"got {self.lower.shape[0]}"
            )
        lower = np.array(np.broadcast_to(self.lower, (dim,)))
        upper = np.array(np.broadcast_to(self.upper, (dim,)))
        _check_start(x0, lower, upper)
        return RunBox(x0, lower, upper, self.method)


def as_box(bounds: object) -> Box:
    """Convert the argument ``bounds`` of ``minimize`` to a ``Box``."""
    if isinstance(bounds, Box):
        return bounds
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):  # scipy's Bounds, without importing scipy
        ends = (np.asarray(to_numpy(ends)) for ends in (bounds.lb, bounds.ub))
        lower, upper = (e.item() if e.size == 1 else e for e in ends)  # as in SciPy: one for all
        return Box(lower, upper)
    rule = "bounds must be a Box, a scipy Bounds or a sequence of (lower, upper) pairs"
    pairs = to_numpy(bounds)
    if not isinstance(pairs, Sequence | np.ndarray) or isinstance(pairs, str):
        raise InvalidValueError(f"{rule}, got {bounds!r}")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
            raise InvalidValueError(f"bounds[{i}] must be a pair (lower, upper), got {pair!r}")
    return Box([pair[0] for pair in pairs], [pair[1] for pair in pairs])


class RunBox:
    """The box of one run, in the namespace, dtype and device of its points.

    Bounds are rounded inwards to the dtype, so that no point violates the exact bounds. A fixed
    coordinate is rounded to the nearest number.

    Attributes:
        lower: the rounded bounds, (dim,).
        upper: the same.
        start: the start point of the solver, (dim,).
        repairs: whether the points of the solver and of the function lie in the same space, so
            that the solver can be told the moved points. False for "transform".
    """

    def __init__(self, x0: Array, lower: np.ndarray, upper: np.ndarray, method: str) -> None:
        self.method = method
        self.repairs = method != "transform"
        self.lower, self.upper = _rounded_inwards(lower, upper, x0)
        self._x0 = self._clip(x0)  # differs from x0 by rounding only
        self._line = self._make_line()
        self.start = self._x0 if self.repairs else self._to_line(self._x0)

    def inside(self, points: Array, *, antithetic: bool = False) -> Array:
        """Map points of the solver, (..., dim), into the box.

        With ``antithetic``, rows 2k and 2k + 1 are x + d and x - d.
        """
        xp = array_namespace(points)
        # `where` discards the results of inf - inf at open ends and of overflow far outside.
        with np.errstate(over="ignore", invalid="ignore"):
            if self.method == "transform":
                points = self._from_line(points)
            elif self.method == "reflect":
                points = self._shift_pairs(points) if antithetic else self._reflect(points)
            return self._clip(xp.where(xp.isnan(points), self._x0, points))

    def quarters(self) -> Array:
        """Return a quarter of the distance between two bounds, (dim,); inf where one is missing."""
        return self.upper / 4 - self.lower / 4

    def steps_on_line(self, steps: Array) -> Array:
        """Replace ``steps``, (dim,), for "transform" where there are bounds.

        The new ones change points by about a quarter of the distance between two bounds, or by the
        distance of the start from a single one.
        """
        xp = array_namespace(steps)
        both, bounded, origin, unit = self._line
        distance = xp.abs((self.start - origin) / unit)
        reach = xp.abs(unit) * xp.maximum(distance, xp.ones_like(distance))
        return xp.where(bounded, xp.where(both, reach / 2, reach), steps)

    def project(self, x: Array) -> Array:
        """Return the nearest iterate inside: reflection would keep it away from the bounds."""
        return self._clip(x) if self.repairs else x

    def _clip(self, points: Array) -> Array:
        xp = array_namespace(points)
        return xp.minimum(xp.maximum(points, self.lower), self.upper)

    def _reflect(self, points: Array) -> Array:
        """Reflect points at the bounds, repeatedly if needed; points inside do not change."""
        xp = array_namespace(points)
        lower, upper = self.lower, self.upper
        width = upper - lower
        period = 2 * width
        # `remainder` is exact and comes first: far outside, x - lower would be rounded.
        t = xp.remainder(points, period) - xp.remainder(lower, period)
        t = xp.remainder(t, period)
        between = lower + xp.where(t > width, period - t, t)
        beside = xp.where(points < lower, lower + (lower - points), upper - (points - upper))
        reflected = xp.where(xp.isfinite(period), between, beside)
        # NaN for a fixed coordinate, infinite after an overflow: `inside` clips the point.
        reflected = xp.where(xp.isfinite(reflected), reflected, points)
        return xp.where((points < lower) | (points > upper), reflected, points)

    def _shift_pairs(self, points: Array) -> Array:
        """Shift pairs x + d, x - d inside; d shrinks only where the box is too narrow."""
        xp = array_namespace(points)
        plus, minus = points[::2], points[1::2]
        half_width = self.upper / 2 - self.lower / 2
        step = xp.minimum(xp.maximum(plus / 2 - minus / 2, -half_width), half_width)
        reach = xp.abs(step)
        centre = xp.maximum(plus / 2 + minus / 2, self.lower + reach)
        centre = xp.minimum(centre, self.upper - reach)
        is_inside = (self._clip(plus) == plus) & (self._clip(minus) == minus)
        plus = xp.where(is_inside, plus, centre + step)
        minus = xp.where(is_inside, minus, centre - step)
        return xp.reshape(xp.stack([plus, minus], axis=1), tuple(points.shape))

    def _make_line(self) -> tuple[Array, Array, Array, Array]:
        """Return (has two bounds, has a bound, origin, unit) of each coordinate for "transform".

        The unit is negative if the only bound is an upper one.
        """
        xp = array_namespace(self._x0)
        has_lower, has_upper = xp.isfinite(self.lower), xp.isfinite(self.upper)
        both, any_ = has_lower & has_upper, has_lower | has_upper
        with np.errstate(invalid="ignore"):
            origin = xp.where(has_lower, self.lower, self.upper)
            origin = xp.where(both, self.lower / 2 + self.upper / 2, origin)
            unit = xp.where(both, self.upper / 2 - self.lower / 2, self._x0 - origin)
        direction = xp.where(has_lower, xp.ones_like(unit), -xp.ones_like(unit))
        unit = xp.where(unit == 0, direction, unit)  # fixed, or x0 is on the only bound
        return both, any_, xp.where(any_, origin, 0.0), xp.where(any_, unit, 1.0)

    def _from_line(self, points: Array) -> Array:
        xp = array_namespace(points)
        both, bounded, origin, unit = self._line
        v = (points - origin) / unit
        far = xp.abs(v) + _norm(v, 2.0)
        beside = xp.where(v >= 0, far / 2, 2 / far)  # (v + sqrt(v² + 4)) / 2 without cancellation
        # The distance from the nearer bound, which m + h v / sqrt(1 + v²) would lose by rounding.
        root = _norm(v, 1.0)
        gap = unit / root / (root + xp.abs(v))
        between = xp.where(v < 0, self.lower + gap, self.upper - gap)
        return xp.where(bounded, xp.where(both, between, origin + unit * beside), points)

    def _to_line(self, x: Array) -> Array:
        xp = array_namespace(x)
        both, bounded, origin, unit = self._line
        with np.errstate(invalid="ignore"):  # `where` discards inf - inf at open ends
            below, above = x / unit - self.lower / unit, self.upper / unit - x / unit
            is_on_bound = (below <= 0) | (above <= 0)
            inside = _START_BETWEEN * xp.ones_like(x)
            inside = xp.where(below <= above, -inside, inside)
            below = xp.where(is_on_bound, 1 + inside, below)
            above = xp.where(is_on_bound, 1 - inside, above)
            between = (below - above) / 2 / (xp.sqrt(below) * xp.sqrt(above))
            t = (x - origin) / unit
            beside = xp.where(t > 0, t, _START_BESIDE)
            v = xp.where(both, between, beside - 1 / beside)
        return xp.where(bounded, origin + unit * v, x)


def _norm(v: Array, c: float) -> Array:
    """Return sqrt(v² + c²) without overflow."""
    xp = array_namespace(v)
    top = xp.maximum(xp.abs(v), xp.ones_like(v))
    v, c = v / top, c / top
    return top * xp.sqrt(v * v + c * c)


def _as_bound_array(name: str, value: object, open_end: float) -> np.ndarray:
    """Return bounds as float64, () or (dim,), with ``open_end`` for None."""
    try:
        given = np.asarray(to_numpy(value), dtype=object)
        numbers = [open_end if end is None else float(end) for end in given.flat]
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{name} must be real numbers or None, got {value!r}") from error
    if given.ndim > 1:
        raise InvalidValueError(f"{name} must be one-dimensional, got shape {given.shape}")
    return np.array(numbers, dtype=np.float64).reshape(given.shape)


def _check_pair(name: str, lower: float, upper: float) -> None:
    pair = f"({lower}, {upper})"
    if math.isnan(lower) or math.isnan(upper):
        raise InvalidValueError(f"{name} must not be NaN, got {pair}")
    if lower > upper:
        raise InvalidValueError(f"{name} must have its lower end first, got {pair}")
    if lower == np.inf or upper == -np.inf:
        raise InvalidValueError(f"{name} must contain a finite number, got {pair}")


def _check_start(x0: Array, lower: np.ndarray, upper: np.ndarray) -> None:
    """Raise if ``x0`` is outside of the bounds rounded to its dtype."""
    shape = tuple(x0.shape)
    with np.errstate(over="ignore"):
        nearest = [to_numpy(as_like("bounds", ends, x0, shape)) for ends in (lower, upper)]
    x = to_numpy(x0)
    for is_outside, ends, rule in (
        (x < nearest[0], lower, "at least its lower bound"),
        (x > nearest[1], upper, "at most its upper bound"),
    ):
        if is_outside.any():
            i = int(np.argmax(is_outside))
            raise InvalidValueError(f"x0[{i}] must be {rule} {ends[i]}, got {x[i]}")


def _rounded_inwards(lower: np.ndarray, upper: np.ndarray, like: Array) -> tuple[Array, Array]:
    xp = array_namespace(like)

    def rounded(exact: np.ndarray, inwards: float) -> Array:
        with np.errstate(over="ignore"):
            nearest = as_like("bounds", exact, like, exact.shape)
            host = np.asarray(to_numpy(nearest), dtype=np.float64)
            is_outside = host < exact if inwards > 0 else host > exact
            moves = xp.asarray(is_outside & (lower < upper), device=device(like))
            return xp.where(moves, xp.nextafter(nearest, xp.full_like(nearest, inwards)), nearest)

    low, high = rounded(lower, np.inf), rounded(upper, -np.inf)
    empty = np.asarray(to_numpy(low > high))
    if empty.any():
        i = int(np.argmax(empty))
        raise InvalidValueError(
            f"bounds[{i}] must contain a number of {like.dtype}, got ({lower[i]}, {upper[i]})"
        )
    return low, high
