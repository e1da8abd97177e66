"""Nelder-Mead: the simplex method, with restarts.

Source: Nelder and Mead, "A Simplex Method for Function Minimization", The Computer Journal 7, 1965;
Gao and Han, "Implementing the Nelder-Mead simplex algorithm with adaptive parameters",
Computational Optimization and Applications 51, 2012. That a simplex which has been flattened by
bounds is built anew at its best point: Luersen and Le Riche, "Globalized Nelder-Mead method for
engineering optimization", Computers and Structures 82, 2004.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np

from zoopt_nas._arrays import Array, array_namespace
from zoopt_nas._checks import check_bool, check_positive
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.engines.restarting import (
    RestartingSolver,
    Restarts,
    as_float64,
    as_rows,
)

# inf - inf is NaN, at which the tolerance would never be met.
_LARGEST = float(np.finfo(np.float64).max)
# A corner of the first simplex that a box moved this close to the start is asked for elsewhere, at
# these lengths in turn. Their ratio, the golden one, is in step with no box that mirrors.
_LEAST_REACH = 0.25
_GOLDEN = (math.sqrt(5) - 1) / 2
_OTHER_LENGTHS = (-1.0, _GOLDEN, -_GOLDEN, 1 - _GOLDEN)
# A simplex that lies in a bound is given its volume back each time that it has become so much
# smaller: not always, as the minimum may be there.
_REBUILD = 0.1
_REBUILD_PERIOD = 4


class Phase(IntEnum):
    """What the pending batch is for."""

    RESTART = 0
    START = 1
    CORNERS = 2
    REFLECT = 3
    EXPAND = 4
    OUTSIDE = 5
    INSIDE = 6
    SHRINK = 7
    REBUILD = 8


@dataclass(eq=False)
class NelderMeadState(Restarts):
    """What Nelder-Mead keeps.

    Attributes:
        least: the least coordinates of all points told, (dim,), and ...
        largest: ... the largest.
        phase: what the pending batch, or the next one, is for.
        simplex: the corners, (dim + 1, dim), the best first.
        values: theirs, (dim + 1,).
        reflected: the last reflection, (1, dim), and ...
        reflected_value: ... its value, (1,).
        checked_value: the value at which a simplex had converged when it was built anew.
        is_moved: whether a point was moved into bounds.
        is_mirrored: whether the bounds mirror points.
        n_tries: how many lengths were tried for corners of the first simplex.
        is_flat: the coordinates that lack a corner, (dim,).
        is_free: the coordinates along which the first simplex extends, (dim,).
        middle: of the first simplex, (dim,).
        rebuilt_at: the edge of the simplex when it was given its volume back.
        n_since: the iterations since then.
    """

    least: Any = None
    largest: Any = None
    phase: Phase = Phase.RESTART
    simplex: Any = None
    values: Any = None
    reflected: Any = None
    reflected_value: Any = None
    checked_value: float = math.inf
    is_moved: bool = False
    is_mirrored: bool = False
    n_tries: int = -1
    is_flat: Any = None
    is_free: Any = None
    middle: Any = None
    rebuilt_at: float = math.inf
    n_since: int = 0


@dataclass(frozen=True)
class NelderMead(RestartingSolver):
    """Nelder-Mead: moves the worst corner of a simplex through the middle of the others.

    Only comparisons of values are used. The first dim + 1 candidates of a restart are one batch, so
    are the dim corners of a simplex that shrinks, and all others are batches of their own: workers
    hardly help. It takes the objective for deterministic, and the iterate is the best point told.

    A corner that was moved to a bound is a point of the bound. Where that happens, a simplex that
    has lost a dimension gets a corner off the bound, and one that has converged is built anew at
    its best point, until that brings no more. Where bounds mirror points, the simplex lives in the
    mirrored objective.

    Attributes:
        step: > 0, the length of the edges of the first simplex along the coordinate axes, in units
            of x. Their directions, up or down, are drawn. Also the scale of restarts. None: 1.
        adaptive: coefficients that depend on the dimension (Gao and Han, section 4); with False
            those of Nelder and Mead, which fail above some ten dimensions.
        tolerance: > 0, restart once no corner is further than this from the best one, in any
            coordinate and in value.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "nelder_mead"
    adapts_steps: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("step",)
    inner_states: ClassVar[tuple[type, ...]] = (NelderMeadState, Phase)

    step: float | None = None
    adaptive: bool = True
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        if self.step is not None:
            check_positive("step", self.step)
        check_bool("adaptive", self.adaptive)
        check_positive("tolerance", self.tolerance)

    @property
    def _scale(self) -> float:
        return 1.0 if self.step is None else self.step

    def _init(self, state: SolverState) -> None:
        super()._init(state)
        nowhere = np.full(state.x.shape[0], np.inf)
        state.inner = NelderMeadState(least=nowhere, largest=-nowhere)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        inner: NelderMeadState = state.inner
        if inner.phase == Phase.RESTART:
            self._draw_start(state)
            inner.phase, inner.checked_value = Phase.START, math.inf
        return as_rows(self._rows(inner), state.x)

    def _rows(self, inner: NelderMeadState) -> np.ndarray:
        """Returns the points of the phase, (n, dim)."""
        phase = inner.phase
        if phase == Phase.START:
            start = inner.start
            corners = start + np.diag(self._scale * inner.signs)
            return np.concatenate([start[None, :], corners])
        simplex: np.ndarray = inner.simplex
        rows: np.ndarray
        if phase == Phase.CORNERS:
            length = self._scale * _OTHER_LENGTHS[inner.n_tries]
            axes = np.flatnonzero(inner.is_flat)
            rows = simplex[0] + length * np.diag(inner.signs)[axes]
            return rows
        if phase == Phase.REBUILD:
            axes = np.flatnonzero(_flat_axes(inner))
            inwards = np.where(inner.middle >= simplex[0], 1.0, -1.0)
            rows = simplex[0] + self._edge(simplex) * np.diag(inwards)[axes]
            return rows
        _, chi, psi, sigma = self._coefficients(simplex.shape[1])
        if phase == Phase.SHRINK:
            rows = simplex[0] + sigma * (simplex[1:] - simplex[0])
            return rows
        share = {Phase.REFLECT: 1.0, Phase.EXPAND: chi, Phase.OUTSIDE: psi, Phase.INSIDE: -psi}
        # The point m + t (m - worst), with the mean m of all corners but the worst.
        t = share[phase]
        middle = np.add.reduce(simplex[:-1], 0) / simplex.shape[1]
        point: np.ndarray = (1 + t) * middle - t * simplex[-1]
        return point[None, :]

    def _coefficients(self, dim: int) -> tuple[float, float, float, float]:
        """Returns ρ, χ, ψ and σ."""
        if self.adaptive:
            return 1.0, 1 + 2 / dim, 0.75 - 1 / (2 * dim), 1 - 1 / dim
        return 1.0, 2.0, 0.5, 0.5

    def _edge(self, simplex: np.ndarray) -> float:
        return float(np.ptp(simplex, axis=0).max()) or self._scale

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        inner: NelderMeadState = state.inner
        told = as_float64(values)
        points = _corners(inner, as_float64(candidates), as_float64(state.pending))
        self._learn(inner, points, np.minimum(told, _LARGEST))
        if inner.phase == Phase.REFLECT:  # the end of an iteration
            xp = array_namespace(state.x)
            self._look_at_the_simplex(inner, float(xp.finfo(state.x.dtype).eps))
        return self._best_told(state, candidates, told)

    def _learn(self, inner: NelderMeadState, points: np.ndarray, values: np.ndarray) -> None:
        """Takes in the values of a phase, and sets the next one."""
        phase = inner.phase
        if phase == Phase.START:
            inner.simplex, inner.values, inner.n_tries = points, values, -1
            inner.rebuilt_at, inner.n_since = math.inf, 0
            self._look_for_corners(inner)
            return
        if phase == Phase.CORNERS:
            _take_longer_edges(inner, points, values)
            self._look_for_corners(inner)
            return
        known = inner.values
        inner.phase = Phase.REFLECT
        if phase == Phase.SHRINK:
            _replace_last(inner, points, values)
        elif phase == Phase.REBUILD:
            inner.rebuilt_at, inner.n_since = self._edge(inner.simplex), 0
            _replace_last(inner, points, values)
        elif phase == Phase.REFLECT:
            inner.reflected, inner.reflected_value = points, values
            if values[0] < known[0]:
                inner.phase = Phase.EXPAND
            elif values[0] < known[-2] and not _is_there(inner, points):
                _replace_last(inner, points, values)
            else:
                # Where a bound has left nothing of the way, the simplex would lose a corner.
                outside = values[0] < known[-1] and not _is_there(inner, points)
                inner.phase = Phase.OUTSIDE if outside else Phase.INSIDE
        elif phase == Phase.EXPAND and not values[0] < inner.reflected_value[0]:
            _replace_last(inner, inner.reflected, inner.reflected_value)
        elif (phase == Phase.OUTSIDE and not values[0] <= inner.reflected_value[0]) or (
            phase == Phase.INSIDE and not values[0] < known[-1]
        ):
            inner.phase = Phase.SHRINK
        else:
            _replace_last(inner, points, values)

    def _look_for_corners(self, inner: NelderMeadState) -> None:
        """Asks for other corners where those of the first simplex are no simplex, else begins."""
        simplex = inner.simplex
        reach = np.abs(np.diagonal(simplex[1:] - simplex[0]))
        is_flat = reach < _LEAST_REACH * self._scale
        inner.n_tries += 1
        if inner.is_moved and is_flat.any() and inner.n_tries < len(_OTHER_LENGTHS):
            inner.phase, inner.is_flat = Phase.CORNERS, is_flat
            return
        # Corners that never leave the start are those of a coordinate with one value only.
        inner.phase, inner.is_free, inner.middle = Phase.REFLECT, reach > 0, simplex.mean(axis=0)
        _sort(inner)

    def _look_at_the_simplex(self, inner: NelderMeadState, eps: float) -> None:
        """Sets another phase than REFLECT if the simplex has converged or is flat."""
        simplex, values = inner.simplex, inner.values
        best = simplex[0]
        size = float(np.maximum(simplex.max(axis=0) - best, best - simplex.min(axis=0)).max())
        resolution = 4 * eps * float(np.abs(simplex[0]).max())
        is_small = size <= self.tolerance and np.abs(values[0] - values[1:]).max() <= self.tolerance
        is_moved = inner.is_moved and not inner.is_mirrored
        if is_small or size <= resolution:
            improves = values[0] < inner.checked_value - self.tolerance
            inner.phase = Phase.START if is_moved and improves else Phase.RESTART
            inner.start, inner.checked_value = simplex[0].copy(), float(values[0])
        elif (
            is_moved
            and _flat_axes(inner).any()
            and (
                self._edge(simplex) <= _REBUILD * inner.rebuilt_at
                or inner.n_since >= _REBUILD_PERIOD * len(simplex)
            )
        ):
            inner.phase = Phase.REBUILD
        inner.n_since += 1


def _corners(inner: NelderMeadState, points: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Returns the points (n, dim) that the simplex takes for those that were asked.

    A point that was moved to a bound is one of the bound. A box that mirrors points shows more than
    that, the objective mirrored at its bounds, and a simplex may well lie across a bound of it.
    """
    inner.least = np.minimum(inner.least, points.min(axis=0))
    inner.largest = np.maximum(inner.largest, points.max(axis=0))
    if (points != asked).any():
        inner.is_moved = True
        # Beyond a bound there is no point.
        is_no_bound = ((asked > points) & (inner.largest > points)) | (
            (asked < points) & (inner.least < points)
        )
        inner.is_mirrored = inner.is_mirrored or bool(is_no_bound.any())
    is_first = inner.phase in (Phase.START, Phase.CORNERS)
    return asked if inner.is_mirrored and not is_first else points


def _flat_axes(inner: NelderMeadState) -> np.ndarray:
    """Returns the coordinates, (dim,) bool, in which all corners have become equal."""
    flat: np.ndarray = (np.ptp(inner.simplex, axis=0) == 0) & inner.is_free
    return flat


def _is_there(inner: NelderMeadState, points: np.ndarray) -> bool:
    """Whether one of the corners that stay is the point that bounds have made of a reflection."""
    if not inner.is_moved:
        return False
    return bool((inner.simplex[:-1] == points).all(axis=1).any())


def _take_longer_edges(inner: NelderMeadState, points: np.ndarray, values: np.ndarray) -> None:
    """Replaces corners of the first simplex by those on the same axes that are further off."""
    simplex, known = inner.simplex.copy(), inner.values.copy()
    for axis, point, value in zip(np.flatnonzero(inner.is_flat), points, values, strict=True):
        reach = abs(point[axis] - simplex[0, axis])
        if reach > abs(simplex[axis + 1, axis] - simplex[0, axis]):
            simplex[axis + 1], known[axis + 1] = point, value
    inner.simplex, inner.values = simplex, known


def _replace_last(inner: NelderMeadState, points: np.ndarray, values: np.ndarray) -> None:
    """Puts points in the place of as many of the worst corners."""
    n = len(points)
    if n == 1:  # one copy, which is what a step costs in many dimensions
        simplex, known = inner.simplex, inner.values
        place = int(np.searchsorted(known[:-1], values[0], side="right"))
        inner.simplex = np.concatenate([simplex[:place], points, simplex[place:-1]])
        inner.values = np.concatenate([known[:place], values, known[place:-1]])
        return
    inner.simplex = np.concatenate([inner.simplex[:-n], points])
    inner.values = np.concatenate([inner.values[:-n], values])
    _sort(inner)


def _sort(inner: NelderMeadState) -> None:
    order = np.argsort(inner.values, kind="stable")
    inner.simplex, inner.values = inner.simplex[order], inner.values[order]
