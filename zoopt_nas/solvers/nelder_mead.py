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
from zoopt_nas.solvers.engines.restarting import RestartingSolver, as_float64, as_rows

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
        state.memory.update(
            phase=int(Phase.RESTART), is_moved=0, is_mirrored=0, least=nowhere, largest=-nowhere
        )

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        memory = state.memory
        if int(memory["phase"]) == Phase.RESTART:
            self._draw_start(state)
            memory.update(phase=int(Phase.START), checked_value=np.inf)
        return as_rows(self._rows(memory), state.x)

    def _rows(self, memory: dict[str, Any]) -> np.ndarray:
        """Returns the points of the phase, (n, dim)."""
        phase = int(memory["phase"])
        if phase == Phase.START:
            start = memory["start"]
            corners = start + np.diag(self._scale * memory["signs"])
            return np.concatenate([start[None, :], corners])
        simplex: np.ndarray = memory["simplex"]
        rows: np.ndarray
        if phase == Phase.CORNERS:
            length = self._scale * _OTHER_LENGTHS[int(memory["n_tries"])]
            axes = np.flatnonzero(memory["is_flat"])
            rows = simplex[0] + length * np.diag(memory["signs"])[axes]
            return rows
        if phase == Phase.REBUILD:
            axes = np.flatnonzero(_flat_axes(memory))
            inwards = np.where(memory["middle"] >= simplex[0], 1.0, -1.0)
            rows = simplex[0] + self._edge(simplex) * np.diag(inwards)[axes]
            return rows
        _, chi, psi, sigma = self._coefficients(simplex.shape[1])
        if phase == Phase.SHRINK:
            rows = simplex[0] + sigma * (simplex[1:] - simplex[0])
            return rows
        share = {Phase.REFLECT: 1.0, Phase.EXPAND: chi, Phase.OUTSIDE: psi, Phase.INSIDE: -psi}
        # The point m + t (m - worst), with the mean m of all corners but the worst.
        t = share[Phase(phase)]
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
        memory = state.memory
        told = as_float64(values)
        points = _corners(memory, as_float64(candidates), as_float64(state.pending))
        self._learn(memory, points, np.minimum(told, _LARGEST))
        if int(memory["phase"]) == Phase.REFLECT:  # the end of an iteration
            xp = array_namespace(state.x)
            self._look_at_the_simplex(memory, float(xp.finfo(state.x.dtype).eps))
        return self._best_told(state, candidates, told)

    def _learn(self, memory: dict[str, Any], points: np.ndarray, values: np.ndarray) -> None:
        """Takes in the values of a phase, and sets the next one."""
        phase = int(memory["phase"])
        if phase == Phase.START:
            memory.update(simplex=points, values=values, n_tries=-1)
            memory.update(rebuilt_at=np.inf, n_since=0)
            self._look_for_corners(memory)
            return
        if phase == Phase.CORNERS:
            _take_longer_edges(memory, points, values)
            self._look_for_corners(memory)
            return
        known = memory["values"]
        memory["phase"] = int(Phase.REFLECT)
        if phase == Phase.SHRINK:
            _replace_last(memory, points, values)
        elif phase == Phase.REBUILD:
            memory.update(rebuilt_at=self._edge(memory["simplex"]), n_since=0)
            _replace_last(memory, points, values)
        elif phase == Phase.REFLECT:
            memory.update(reflected=points, reflected_value=values)
            if values[0] < known[0]:
                memory["phase"] = int(Phase.EXPAND)
            elif values[0] < known[-2] and not _is_there(memory, points):
                _replace_last(memory, points, values)
            else:
                # Where a bound has left nothing of the way, the simplex would lose a corner.
                outside = values[0] < known[-1] and not _is_there(memory, points)
                memory["phase"] = int(Phase.OUTSIDE if outside else Phase.INSIDE)
        elif phase == Phase.EXPAND and not values[0] < memory["reflected_value"][0]:
            _replace_last(memory, memory["reflected"], memory["reflected_value"])
        elif (phase == Phase.OUTSIDE and not values[0] <= memory["reflected_value"][0]) or (
            phase == Phase.INSIDE and not values[0] < known[-1]
        ):
            memory["phase"] = int(Phase.SHRINK)
        else:
            _replace_last(memory, points, values)

    def _look_for_corners(self, memory: dict[str, Any]) -> None:
        """Asks for other corners where those of the first simplex are no simplex, else begins."""
        simplex = memory["simplex"]
        reach = np.abs(np.diagonal(simplex[1:] - simplex[0]))
        is_flat = reach < _LEAST_REACH * self._scale
        memory["n_tries"] = int(memory["n_tries"]) + 1
        if int(memory["is_moved"]) and is_flat.any() and memory["n_tries"] < len(_OTHER_LENGTHS):
            memory.update(phase=int(Phase.CORNERS), is_flat=is_flat)
            return
        # Corners that never leave the start are those of a coordinate with one value only.
        memory.update(phase=int(Phase.REFLECT), is_free=reach > 0, middle=simplex.mean(axis=0))
        _sort(memory)

    def _look_at_the_simplex(self, memory: dict[str, Any], eps: float) -> None:
        """Sets another phase than REFLECT if the simplex has converged or is flat."""
        simplex, values = memory["simplex"], memory["values"]
        best = simplex[0]
        size = float(np.maximum(simplex.max(axis=0) - best, best - simplex.min(axis=0)).max())
        resolution = 4 * eps * float(np.abs(simplex[0]).max())
        is_small = size <= self.tolerance and np.abs(values[0] - values[1:]).max() <= self.tolerance
        is_moved = bool(int(memory["is_moved"])) and not int(memory["is_mirrored"])
        if is_small or size <= resolution:
            improves = values[0] < float(memory["checked_value"]) - self.tolerance
            memory["phase"] = int(Phase.START if is_moved and improves else Phase.RESTART)
            memory.update(start=simplex[0].copy(), checked_value=float(values[0]))
        elif (
            is_moved
            and _flat_axes(memory).any()
            and (
                self._edge(simplex) <= _REBUILD * float(memory["rebuilt_at"])
                or int(memory["n_since"]) >= _REBUILD_PERIOD * len(simplex)
            )
        ):
            memory["phase"] = int(Phase.REBUILD)
        memory["n_since"] = int(memory["n_since"]) + 1


def _corners(memory: dict[str, Any], points: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Returns the points (n, dim) that the simplex takes for those that were asked.

    A point that was moved to a bound is one of the bound. A box that mirrors points shows more than
    that, the objective mirrored at its bounds, and a simplex may well lie across a bound of it.
    """
    memory["least"] = np.minimum(memory["least"], points.min(axis=0))
    memory["largest"] = np.maximum(memory["largest"], points.max(axis=0))
    if (points != asked).any():
        memory["is_moved"] = 1
        # Beyond a bound there is no point.
        is_no_bound = ((asked > points) & (memory["largest"] > points)) | (
            (asked < points) & (memory["least"] < points)
        )
        memory["is_mirrored"] = int(memory["is_mirrored"] or is_no_bound.any())
    is_first = int(memory["phase"]) in (Phase.START, Phase.CORNERS)
    return asked if int(memory["is_mirrored"]) and not is_first else points


def _flat_axes(memory: dict[str, Any]) -> np.ndarray:
    """Returns the coordinates, (dim,) bool, in which all corners have become equal."""
    flat: np.ndarray = (np.ptp(memory["simplex"], axis=0) == 0) & (memory["is_free"] != 0)
    return flat


def _is_there(memory: dict[str, Any], points: np.ndarray) -> bool:
    """Whether one of the corners that stay is the point that bounds have made of a reflection."""
    if not int(memory["is_moved"]):
        return False
    return bool((memory["simplex"][:-1] == points).all(axis=1).any())


def _take_longer_edges(memory: dict[str, Any], points: np.ndarray, values: np.ndarray) -> None:
    """Replaces corners of the first simplex by those on the same axes that are further off."""
    simplex, known = memory["simplex"].copy(), memory["values"].copy()
    for axis, point, value in zip(np.flatnonzero(memory["is_flat"]), points, values, strict=True):
        reach = abs(point[axis] - simplex[0, axis])
        if reach > abs(simplex[axis + 1, axis] - simplex[0, axis]):
            simplex[axis + 1], known[axis + 1] = point, value
    memory.update(simplex=simplex, values=known)


def _replace_last(memory: dict[str, Any], points: np.ndarray, values: np.ndarray) -> None:
    """Puts points in the place of as many of the worst corners."""
    n = len(points)
    if n == 1:  # one copy, which is what a step costs in many dimensions
        simplex, known = memory["simplex"], memory["values"]
        place = int(np.searchsorted(known[:-1], values[0], side="right"))
        memory["simplex"] = np.concatenate([simplex[:place], points, simplex[place:-1]])
        memory["values"] = np.concatenate([known[:place], values, known[place:-1]])
        return
    memory["simplex"] = np.concatenate([memory["simplex"][:-n], points])
    memory["values"] = np.concatenate([memory["values"][:-n], values])
    _sort(memory)


def _sort(memory: dict[str, Any]) -> None:
    order = np.argsort(memory["values"], kind="stable")
    memory.update(simplex=memory["simplex"][order], values=memory["values"][order])
