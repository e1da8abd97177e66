"""Bounds: which box the points must stay in, and how any point of a solver is brought inside.

`Box` is what the user writes; ``Box.fit`` makes the `FittedBox` that one run works with. A solver
knows nothing of either: `minimize` stands between it and the function.
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

# Where "transform" puts a start that lies on a bound, which no point of the real line maps to:
# as a share of the half width between two bounds, and in units from a single one.
_START_BETWEEN = 0.99
_START_BESIDE = 0.1


@dataclass(frozen=True, eq=False)
class Box:
    """Bounds of each coordinate, and the way in which points are kept between them.

    Attributes:
        lower: (dim,) or one number for all; None, or -inf, where open.
        upper: the same, with +inf. ``lower == upper`` fixes a coordinate.
        method: what happens to a point outside, coordinate by coordinate:

            * ``"reflect"``: it is mirrored at the bound, as often as it takes. The pairs x + d,
              x - d of an antithetic solver are shifted inside together instead: at a bound both
              would be mirrored to one point, which says nothing about the slope.
            * ``"clip"``: it is moved to the bound.
            * ``"transform"``: there is none, as the solver works on the real line, which
              x = m + h v / sqrt(1 + v²), v = (u - m) / h, maps smoothly and one to one into the
              box with centre m and half width h. Beside a single bound b it is the hyperbola
              x = b + s (v + sqrt(v² + 4)) / 2, v = (u - b) / s, with s the distance of x0 from b.
              A bound itself is never quite reached; a start on one is moved inside, by 0.5 % of
              the width or by 0.1.

    Raises:
        InvalidValueError: an entry is NaN or no real number, or a lower end is above the upper one.
    """

    lower: Any = None
    upper: Any = None
    method: str = "clip"

    def __post_init__(self) -> None:
        check_choice("method", self.method, BOUND_METHODS)
        lower, upper = _ends("lower", self.lower, -np.inf), _ends("upper", self.upper, np.inf)
        try:
            lower, upper = (np.array(ends) for ends in np.broadcast_arrays(lower, upper))
        except ValueError as error:
            raise InvalidValueError(
                f"lower and upper must have one shape, got {lower.shape} and {upper.shape}"
            ) from error
        for index in np.ndindex(lower.shape):
            _check_ends(
                "bounds" + "".join(f"[{i}]" for i in index),
                float(lower[index]),
                float(upper[index]),
            )
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    def fit(self, x0: Array) -> FittedBox:
        """Returns the box of a run that starts at ``x0``, (dim,), in its namespace and dtype.

        Raises:
            InvalidValueError: a wrong number of bounds, or ``x0`` is outside.
        """
        dim = x0.shape[0]
        if self.lower.ndim == 1 and self.lower.shape != (dim,):
            raise InvalidValueError(
                f"bounds must have one pair for each of the {dim} coordinates of x0, "
                f"got {self.lower.shape[0]}"
            )
        lower = np.array(np.broadcast_to(self.lower, (dim,)))
        upper = np.array(np.broadcast_to(self.upper, (dim,)))
        _check_start(x0, lower, upper)
        return FittedBox(x0, lower, upper, self.method)


def as_box(bounds: object) -> Box:
    """Returns what ``minimize`` takes as ``bounds`` as a ``Box``.

    Args:
        bounds: a ``Box``, a ``scipy.optimize.Bounds``, or a sequence of pairs (lower, upper), one
            for each coordinate, with None where open.

    Raises:
        InvalidValueError: it is none of these, or an entry breaks a rule of ``Box``.
    """
    if isinstance(bounds, Box):
        return bounds
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):  # scipy's Bounds, without importing it
        ends = [np.asarray(to_numpy(ends)) for ends in (bounds.lb, bounds.ub)]
        lower, upper = (e.item() if e.size == 1 else e for e in ends)  # scipy: one for all
        return Box(lower, upper)
    rule = "bounds must be a Box, a scipy Bounds or a sequence of (lower, upper) pairs"
    pairs = to_numpy(bounds)
    if not isinstance(pairs, Sequence | np.ndarray) or isinstance(pairs, str):
        raise InvalidValueError(f"{rule}, got {bounds!r}")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
            raise InvalidValueError(f"bounds[{i}] must be a pair (lower, upper), got {pair!r}")
    return Box([pair[0] for pair in pairs], [pair[1] for pair in pairs])


class FittedBox:
    """The box of one run.

    Bounds are rounded inwards to the dtype of the points, so that a point inside the rounded box is
    inside the box that the user meant. (A fixed coordinate that the dtype cannot represent is
    rounded to the nearest number.)

    Args:
        x0: (dim,), the start.
        lower: (dim,), float64 NumPy.
        upper: (dim,), the same.
        method: one of ``BOUND_METHODS``.

    Attributes:
        lower: (dim,), rounded, in the namespace of ``x0``.
        upper: (dim,), the same.
        start: (dim,), where the solver starts.
        repairs: whether a solver's points and ``inside`` of them are points of one space, so that
            a solver can be told the latter. Not so for "transform".

    Raises:
        InvalidValueError: no number of the dtype lies between two bounds.
    """

    def __init__(self, x0: Array, lower: np.ndarray, upper: np.ndarray, method: str) -> None:
        self.method = method
        self.repairs = method != "transform"
        self.lower, self.upper = _rounded_inwards(lower, upper, x0)
        self._home = self._clip(x0)  # differs from x0 by rounding only
        self._chart = self._make_chart()
        self.start = self._home if self.repairs else self._to_line(self._home)

    def inside(self, points: Array, *, antithetic: bool = False) -> Array:
        """Returns the points, (..., dim), of the box that points of the solver stand for.

        Args:
            points: points of the solver.
            antithetic: rows 2k and 2k + 1 are x + d and x - d.
        """
        xp = array_namespace(points)
        # inf - inf at open ends and overflow far outside are expected; `where` discards them.
        with np.errstate(over="ignore", invalid="ignore"):
            if self.method == "transform":
                points = self._from_line(points)
            elif self.method == "reflect":
                points = self._shifted(points) if antithetic else self._folded(points)
            return self._clip(xp.where(xp.isnan(points), self._home, points))

    def typical_steps(self, steps: Array) -> Array:
        """Returns ``steps``, (dim,), replaced where the box has two ends by a quarter of its width.

        On the line of "transform" the steps are as long as they make a like change of the point.
        """
        xp = array_namespace(steps)
        both, bounded, origin, unit = self._chart
        if self.repairs:
            quarter = self.upper / 4 - self.lower / 4
            return xp.where(both & (quarter > 0), quarter, steps)
        distance = xp.abs((self.start - origin) / unit)
        reach = xp.abs(unit) * xp.maximum(distance, xp.ones_like(distance))
        return xp.where(bounded, xp.where(both, reach / 2, reach), steps)

    def project(self, x: Array) -> Array:
        """Returns the iterate that a solver goes on from: the nearest one inside.

        Not mirrored: an optimum on a bound would then never be the end of the steps towards it.
        """
        return self._clip(x) if self.repairs else x

    def _clip(self, points: Array) -> Array:
        xp = array_namespace(points)
        return xp.minimum(xp.maximum(points, self.lower), self.upper)

    def _folded(self, points: Array) -> Array:
        """Mirrors at the bounds, as often as it takes; points inside are not touched."""
        xp = array_namespace(points)
        lower, upper = self.lower, self.upper
        width = upper - lower
        period = 2 * width  # of the mirror images between two bounds
        # `remainder` is exact, so that it comes first: far out, x - lower would be rounded.
        t = xp.remainder(points, period) - xp.remainder(lower, period)
        t = xp.remainder(t, period)
        between = lower + xp.where(t > width, period - t, t)
        beside = xp.where(points < lower, lower + (lower - points), upper - (points - upper))
        mirrored = xp.where(xp.isfinite(period), between, beside)
        # Too far for the dtype, or a fixed coordinate: the clip of `inside` does the rest.
        mirrored = xp.where(xp.isfinite(mirrored), mirrored, points)
        return xp.where((points < lower) | (points > upper), mirrored, points)

    def _shifted(self, points: Array) -> Array:
        """Shifts pairs x + d, x - d inside; d shrinks only where the box is too narrow for it."""
        xp = array_namespace(points)
        plus, minus = points[::2], points[1::2]
        half_width = self.upper / 2 - self.lower / 2
        step = xp.minimum(xp.maximum(plus / 2 - minus / 2, -half_width), half_width)
        reach = xp.abs(step)
        centre = xp.maximum(plus / 2 + minus / 2, self.lower + reach)
        centre = xp.minimum(centre, self.upper - reach)
        is_inside = (self._clip(plus) == plus) & (self._clip(minus) == minus)
        pairs = xp.stack(
            [
                xp.where(is_inside, plus, centre + step),
                xp.where(is_inside, minus, centre - step),
            ],
            axis=1,
        )
        return xp.reshape(pairs, tuple(points.shape))

    def _make_chart(self) -> tuple[Array, Array, Array, Array]:
        """Returns, for each coordinate: whether bounded on both sides, whether at all, the origin,
        and the unit, which is negative where the only bound is an upper one."""
        xp = array_namespace(self._home)
        has_lower, has_upper = xp.isfinite(self.lower), xp.isfinite(self.upper)
        both, any_ = has_lower & has_upper, has_lower | has_upper
        with np.errstate(invalid="ignore"):
            origin = xp.where(has_lower, self.lower, self.upper)
            origin = xp.where(both, self.lower / 2 + self.upper / 2, origin)
            unit = xp.where(both, self.upper / 2 - self.lower / 2, self._home - origin)
        direction = xp.where(has_lower, xp.ones_like(unit), -xp.ones_like(unit))
        unit = xp.where(unit == 0, direction, unit)  # fixed, or the start is on the only bound
        return both, any_, xp.where(any_, origin, 0.0), xp.where(any_, unit, 1.0)

    def _from_line(self, points: Array) -> Array:
        xp = array_namespace(points)
        both, bounded, origin, unit = self._chart
        v = (points - origin) / unit
        far = xp.abs(v) + _norm(v, 2.0)
        beside = xp.where(v >= 0, far / 2, 2 / far)  # (v + sqrt(v² + 4)) / 2 without cancellation
        # The distance from the nearer bound, which m + h v / sqrt(1 + v²) would round away.
        root = _norm(v, 1.0)
        gap = unit / root / (root + xp.abs(v))
        between = xp.where(v < 0, self.lower + gap, self.upper - gap)
        return xp.where(bounded, xp.where(both, between, origin + unit * beside), points)

    def _to_line(self, x: Array) -> Array:
        xp = array_namespace(x)
        both, bounded, origin, unit = self._chart
        with np.errstate(invalid="ignore"):  # inf - inf at open ends, which `where` discards
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
    """Returns sqrt(v² + c²) without overflow."""
    xp = array_namespace(v)
    top = xp.maximum(xp.abs(v), xp.ones_like(v))
    v, c = v / top, c / top
    return top * xp.sqrt(v * v + c * c)


def _ends(name: str, value: object, open_end: float) -> np.ndarray:
    """Returns the lower or the upper ends as float64, () or (dim,), with None replaced."""
    try:
        given = np.asarray(to_numpy(value), dtype=object)
        numbers = [open_end if end is None else float(end) for end in given.flat]
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{name} must be real numbers or None, got {value!r}") from error
    if given.ndim > 1:
        raise InvalidValueError(f"{name} must be one-dimensional, got shape {given.shape}")
    return np.array(numbers, dtype=np.float64).reshape(given.shape)


def _check_ends(name: str, lower: float, upper: float) -> None:
    pair = f"({lower}, {upper})"
    if math.isnan(lower) or math.isnan(upper):
        raise InvalidValueError(f"{name} must not be NaN, got {pair}")
    if lower > upper:
        raise InvalidValueError(f"{name} must have its lower end first, got {pair}")
    if lower == np.inf or upper == -np.inf:
        raise InvalidValueError(f"{name} must contain a finite number, got {pair}")


def _check_start(x0: Array, lower: np.ndarray, upper: np.ndarray) -> None:
    """Refuses an ``x0`` outside; both are compared as numbers of its dtype."""
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
