"""Nelder-Mead: the simplex method, with restarts.

Source: Nelder and Mead, "A Simplex Method for Function Minimization", The Computer Journal 7, 1965;
Gao and Han, "Implementing the Nelder-Mead simplex algorithm with adaptive parameters",
Computational Optimization and Applications 51, 2012; Luersen and Le Riche, "Globalized Nelder-Mead
method for engineering optimization", Computers and Structures 82, 2004 (a simplex flattened by
bounds is rebuilt at its best point).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, as_like, copy, to_numpy
from zoopt_nas._checks import check_bool, check_positive
from zoopt_nas.solvers.base import Solver, SolverState

# The standard deviation of restarts is the scale of the solver times 1, 2, 4, 8, 1, ...
_N_SCALES = 4
# Failed corners get this value, because inf - inf is NaN.
_LARGEST = float(np.finfo(np.float64).max)
# A corner of the first simplex that a box has moved closer to the start than _LEAST_REACH is moved
# to these lengths in turn. Their golden ratio cannot be commensurate with a box that mirrors.
_LEAST_REACH = 0.25
_GOLDEN = (math.sqrt(5) - 1) / 2
_OTHER_LENGTHS = (-1.0, _GOLDEN, -_GOLDEN, 1 - _GOLDEN)
# A simplex that is flat at a bound is rebuilt when it has shrunk by this factor, or after so many
# iterations per corner. The minimum may be at the bound, so it is not rebuilt in each iteration.
_REBUILD = 0.1
_REBUILD_PERIOD = 4


class SimplexPhase(IntEnum):
    """The purpose of the pending batch."""

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
class NelderMeadState:
    """The state of Nelder-Mead."""

    least: Any  # the least value of each coordinate in all points told, (dim,)
    largest: Any  # the largest value, likewise
    origin: Any = None  # the first start, (dim,); None before the first batch
    start: Any = None  # the start of the current run, (dim,)
    signs: Any = None  # the directions of the edges of the first simplex, -1 or +1, (dim,)
    n_restarts: int = 0  # the number of restarts
    phase: SimplexPhase = SimplexPhase.RESTART  # the purpose of the pending or next batch
    simplex: Any = None  # the corners, (dim + 1, dim), the best first
    values: Any = None  # the values of the corners, (dim + 1,)
    reflected: Any = None  # the last reflection, (1, dim)
    reflected_value: Any = None  # its value, (1,)
    checked_value: float = math.inf  # the value at which a converged simplex was rebuilt
    is_moved: bool = False  # whether bounds have moved a point
    is_mirrored: bool = False  # whether bounds mirror points
    n_tries: int = -1  # the number of lengths tried for corners of the first simplex
    is_flat: Any = None  # the coordinates that lack a corner, (dim,)
    is_free: Any = None  # the coordinates along which the first simplex extends, (dim,)
    middle: Any = None  # the mean of the first simplex, (dim,)
    rebuilt_at: float = math.inf  # the edge of the simplex when it was last rebuilt
    n_since: int = 0  # the number of iterations since then


@dataclass(frozen=True)
class NelderMead(Solver):
    """Nelder-Mead: reflects the worst corner of a simplex through the mean of the others.

    It only compares values, assumes a deterministic objective, and computes in float64 on the CPU.
    The iterate is the best point told. The dim + 1 corners of a restart are one batch, as are the
    dim corners of a simplex that shrinks; other batches are one point, so workers hardly help.

    A corner that was moved to a bound is a point of the bound. A simplex that bounds have flattened
    gets a corner off the bound; one that has converged is rebuilt at its best point until that
    brings no improvement. If bounds mirror points, the simplex lives in the mirrored objective.

    Attributes:
        step: > 0, the edges of the first simplex along the coordinate axes, in units of x, and the
            scale of restarts. Their directions, up or down, are random. None: 1.
        adaptive: coefficients that depend on the dimension (Gao and Han, section 4). False: those
            of Nelder and Mead, which fail above some ten dimensions.
        tolerance: > 0, the run restarts once all corners are within this distance of the best one,
            in every coordinate and in value.
    """

    name: ClassVar[str] = "nelder_mead"
    evaluates_iterate: ClassVar[bool] = True
    adapts_steps: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("step",)
    inner_states: ClassVar[tuple[type, ...]] = (NelderMeadState, SimplexPhase)

    step: float | None = None
    adaptive: bool = True
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        if self.step is not None:
            check_positive("step", self.step)
        check_bool("adaptive", self.adaptive)
        check_positive("tolerance", self.tolerance)

    @property
    def compares_batches(self) -> bool:
        """Yes: a new corner is compared with the values of the others."""
        return True

    @property
    def _scale(self) -> float:
        return 1.0 if self.step is None else self.step

    def _init(self, state: SolverState) -> None:
        state.value = math.inf
        nowhere = np.full(state.x.shape[0], np.inf)
        state.inner = NelderMeadState(least=nowhere, largest=-nowhere)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        inner: NelderMeadState = state.inner
        if inner.phase == SimplexPhase.RESTART:
            self._draw_start(state)
            inner.phase, inner.checked_value = SimplexPhase.START, math.inf
        rows = self._rows(inner)
        limit = float(array_namespace(state.x).finfo(state.x.dtype).max)
        return as_like("candidates", np.clip(rows, -limit, limit), state.x, rows.shape)

    def _draw_start(self, state: SolverState) -> None:
        """Set the start of the next run: x, then normal draws around the first start."""
        inner: NelderMeadState = state.inner
        if inner.origin is None:  # not in `_init`, because a warm start moves x
            inner.origin = inner.start = _as_float64(state.x)
        else:
            scale = self._scale * 2.0 ** (inner.n_restarts % _N_SCALES)
            step = _as_float64(sampling.gaussian(state.rng, 1, state.x)[0])
            inner.n_restarts += 1
            inner.start = np.nan_to_num(inner.origin + scale * step)
        inner.signs = _as_float64(sampling.rademacher(state.rng, 1, state.x)[0])

    def _rows(self, inner: NelderMeadState) -> np.ndarray:
        """Return the points of the phase, (n, dim)."""
        phase = inner.phase
        if phase == SimplexPhase.START:
            corners = inner.start + np.diag(self._scale * inner.signs)
            return np.concatenate([inner.start[None, :], corners])
        simplex: np.ndarray = inner.simplex
        dim = simplex.shape[1]
        rows: np.ndarray
        if phase == SimplexPhase.CORNERS:
            length = self._scale * _OTHER_LENGTHS[inner.n_tries]
            rows = simplex[0] + length * np.diag(inner.signs)[np.flatnonzero(inner.is_flat)]
        elif phase == SimplexPhase.REBUILD:
            axes = np.flatnonzero(_flat_axes(inner))
            inwards = np.where(inner.middle >= simplex[0], 1.0, -1.0)
            rows = simplex[0] + self._edge(simplex) * np.diag(inwards)[axes]
        elif phase == SimplexPhase.SHRINK:
            sigma = 1 - 1 / dim if self.adaptive else 0.5
            rows = simplex[0] + sigma * (simplex[1:] - simplex[0])
        else:  # the point m + t (m - worst), with the mean m of all corners but the worst
            chi, psi = (1 + 2 / dim, 0.75 - 1 / (2 * dim)) if self.adaptive else (2.0, 0.5)
            factors = {
                SimplexPhase.EXPAND: chi,
                SimplexPhase.OUTSIDE: psi,
                SimplexPhase.INSIDE: -psi,
            }
            t = factors.get(phase, 1.0)
            middle = np.add.reduce(simplex[:-1], 0) / dim
            rows = ((1 + t) * middle - t * simplex[-1])[None, :]
        return rows

    def _edge(self, simplex: np.ndarray) -> float:
        return float(np.ptp(simplex, axis=0).max()) or self._scale

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        inner: NelderMeadState = state.inner
        told = _as_float64(values)
        points = _corners(inner, _as_float64(candidates), _as_float64(state.pending))
        self._learn(inner, points, np.minimum(told, _LARGEST))
        if inner.phase == SimplexPhase.REFLECT:  # the end of an iteration
            xp = array_namespace(state.x)
            self._check_simplex(inner, float(xp.finfo(state.x.dtype).eps))
        state.metrics["n_restarts"] = inner.n_restarts
        best = int(np.argmin(told))
        if not told[best] < state.value:
            return state.x
        state.value = float(told[best])
        return copy(candidates[best])

    def _learn(self, inner: NelderMeadState, points: np.ndarray, values: np.ndarray) -> None:
        """Take in the values of a phase, and set the next phase."""
        phase = inner.phase
        if phase == SimplexPhase.START:
            inner.simplex, inner.values, inner.n_tries = points, values, -1
            inner.rebuilt_at, inner.n_since = math.inf, 0
            self._check_corners(inner)
            return
        if phase == SimplexPhase.CORNERS:
            _take_longer_edges(inner, points, values)
            self._check_corners(inner)
            return
        known = inner.values
        inner.phase = SimplexPhase.REFLECT
        if phase == SimplexPhase.SHRINK:
            _replace_last(inner, points, values)
        elif phase == SimplexPhase.REBUILD:
            inner.rebuilt_at, inner.n_since = self._edge(inner.simplex), 0
            _replace_last(inner, points, values)
        elif phase == SimplexPhase.REFLECT:
            inner.reflected, inner.reflected_value = points, values
            if values[0] < known[0]:
                inner.phase = SimplexPhase.EXPAND
            elif values[0] < known[-2] and not _is_there(inner, points):
                _replace_last(inner, points, values)
            else:
                # A reflection that a bound has moved onto a corner would flatten the simplex.
                outside = values[0] < known[-1] and not _is_there(inner, points)
                inner.phase = SimplexPhase.OUTSIDE if outside else SimplexPhase.INSIDE
        elif phase == SimplexPhase.EXPAND and not values[0] < inner.reflected_value[0]:
            _replace_last(inner, inner.reflected, inner.reflected_value)
        elif (phase == SimplexPhase.OUTSIDE and not values[0] <= inner.reflected_value[0]) or (
            phase == SimplexPhase.INSIDE and not values[0] < known[-1]
        ):
            inner.phase = SimplexPhase.SHRINK
        else:
            _replace_last(inner, points, values)

    def _check_corners(self, inner: NelderMeadState) -> None:
        """Ask for other corners if the first simplex is flat, else start to iterate."""
        simplex = inner.simplex
        reach = np.abs(np.diagonal(simplex[1:] - simplex[0]))
        is_flat = reach < _LEAST_REACH * self._scale
        inner.n_tries += 1
        if inner.is_moved and is_flat.any() and inner.n_tries < len(_OTHER_LENGTHS):
            inner.phase, inner.is_flat = SimplexPhase.CORNERS, is_flat
            return
        # A coordinate whose corner cannot leave the start is fixed.
        inner.phase = SimplexPhase.REFLECT
        inner.is_free, inner.middle = reach > 0, simplex.mean(axis=0)
        _sort(inner)

    def _check_simplex(self, inner: NelderMeadState, eps: float) -> None:
        """Change the phase if the simplex has converged or is flat."""
        simplex, values = inner.simplex, inner.values
        best = simplex[0]
        size = float(np.maximum(simplex.max(axis=0) - best, best - simplex.min(axis=0)).max())
        resolution = 4 * eps * float(np.abs(simplex[0]).max())
        is_small = size <= self.tolerance and np.abs(values[0] - values[1:]).max() <= self.tolerance
        is_moved = inner.is_moved and not inner.is_mirrored
        if is_small or size <= resolution:
            improves = values[0] < inner.checked_value - self.tolerance
            inner.phase = SimplexPhase.START if is_moved and improves else SimplexPhase.RESTART
            inner.start, inner.checked_value = simplex[0].copy(), float(values[0])
        elif (
            is_moved
            and _flat_axes(inner).any()
            and (
                self._edge(simplex) <= _REBUILD * inner.rebuilt_at
                or inner.n_since >= _REBUILD_PERIOD * len(simplex)
            )
        ):
            inner.phase = SimplexPhase.REBUILD
        inner.n_since += 1


def _corners(inner: NelderMeadState, points: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the corners (n, dim) for the points evaluated.

    A point that was moved to a bound is a point of the bound. If bounds mirror points, corners stay
    where they were asked, in the objective mirrored at the bounds.
    """
    inner.least = np.minimum(inner.least, points.min(axis=0))
    inner.largest = np.maximum(inner.largest, points.max(axis=0))
    if (points != asked).any():
        inner.is_moved = True
        # No point is beyond a bound, so a point moved elsewhere was mirrored.
        is_mirrored = ((asked > points) & (inner.largest > points)) | (
            (asked < points) & (inner.least < points)
        )
        inner.is_mirrored = inner.is_mirrored or bool(is_mirrored.any())
    is_first = inner.phase in (SimplexPhase.START, SimplexPhase.CORNERS)
    return asked if inner.is_mirrored and not is_first else points


def _flat_axes(inner: NelderMeadState) -> np.ndarray:
    """Return the coordinates, (dim,) bool, in which all corners have become equal."""
    flat: np.ndarray = (np.ptp(inner.simplex, axis=0) == 0) & inner.is_free
    return flat


def _is_there(inner: NelderMeadState, points: np.ndarray) -> bool:
    """Return whether bounds have moved a reflection onto another corner."""
    if not inner.is_moved:
        return False
    return bool((inner.simplex[:-1] == points).all(axis=1).any())


def _take_longer_edges(inner: NelderMeadState, points: np.ndarray, values: np.ndarray) -> None:
    """Replace corners of the first simplex by points farther away on the same axes."""
    simplex, known = inner.simplex.copy(), inner.values.copy()
    for axis, point, value in zip(np.flatnonzero(inner.is_flat), points, values, strict=True):
        reach = abs(point[axis] - simplex[0, axis])
        if reach > abs(simplex[axis + 1, axis] - simplex[0, axis]):
            simplex[axis + 1], known[axis + 1] = point, value
    inner.simplex, inner.values = simplex, known


def _replace_last(inner: NelderMeadState, points: np.ndarray, values: np.ndarray) -> None:
    """Replace the worst corners by the points."""
    n = len(points)
    if n == 1:  # faster than sorting
        simplex, known = inner.simplex, inner.values
        place = int(np.searchsorted(known[:-1], values[0], side="right"))
        inner.simplex = np.concatenate([simplex[:place], points, simplex[place:-1]])
        inner.values = np.concatenate([known[:place], values, known[place:-1]])
        return
    inner.simplex = np.concatenate([inner.simplex[:-n], points])
    inner.values = np.concatenate([inner.values[:-n], values])
    _sort(inner)


def _as_float64(array: Array) -> np.ndarray:
    """Return a copy as NumPy float64."""
    return np.array(to_numpy(array), dtype=np.float64)


def _sort(inner: NelderMeadState) -> None:
    order = np.argsort(inner.values, kind="stable")
    inner.simplex, inner.values = inner.simplex[order], inner.values[order]
