"""LIZO: gradients by linear interpolation, with the reuse of earlier queries.

Source: Wang, Qin, Yang and Yan, "ReLIZO: Sample Reusable Linear Interpolation-based Zeroth-order
Optimization", NeurIPS 2024. The gradient g is the shortest least-squares solution of D g = δ, with
the displacements D of several points and the differences δ of their values. Points of earlier steps
that are still near take the place of new ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, device, to_numpy, value_dtype
from zoopt_nas._checks import check_at_least, check_positive, check_positive_int
from zoopt_nas.solvers import descent, subspace
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.box_steps import near_bounds
from zoopt_nas.solvers.descent_state import DESCENT_STATES, Phase
from zoopt_nas.solvers.differences import (
    adapted_smoothing,
    basis_slopes,
    interpolated_gradient,
    measures_iterate,
    orthogonal_to,
    probe_basis,
    probe_reach,
    was_repaired,
)

# What the plain form takes for None.
SMOOTHING = 0.01
N_SAMPLES = 4
# Above so many numbers, earlier queries are not kept: dim = 10^6 has room for none.
MAX_MEMORY_SIZE = 20_000
# A reused direction must have this part of its length outside the span of the others.
MIN_SINE = 0.3
# At most so much of a gradient may be old: with more, wrong slopes live on in what reuses them.
MAX_REUSED = 0.5


@dataclass(frozen=True)
class LIZO(Solver):
    """Linear interpolation: x <- x - step * interpolated gradient, with reused queries.

    The adaptive form, the default, takes the steps of RS's adaptive form. Every point it evaluates
    joins a memory, and each of those near the iterate saves a new point. In the model of BFGS the
    curvature along a displacement is known, and its part of a difference is taken off before the
    interpolation, so that a reused point need not be as near as a new one.

    The plain form, with a ``learning_rate``, suits an objective that drifts: row 0 of a batch is x
    itself, and what the memory holds are differences from the row 0 of the same batch, so that a
    value is never compared with one of another time.

    Attributes:
        learning_rate: None for the adaptive form, or ξ > 0, a plain step along the gradient.
        smoothing: μ > 0, the distance of new points from x. None adapts it; in the plain form 0.01.
        n_samples: how many points a gradient is interpolated from, new and reused. None takes dim
            up to 100, fewer above; in the plain form 4.
        reuse_radius: how far from x a reused point may be: in lengths of the last step, measured in
            the model's metric; in the plain form in units of ``smoothing``. 0 reuses none.
        memory: the most queries kept, or None for 2 dim (20 000 numbers at most).

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "lizo"
    lengths: ClassVar[tuple[str, ...]] = ("smoothing",)
    inner_states: ClassVar[tuple[type, ...]] = (*DESCENT_STATES, subspace.SubspaceState)

    learning_rate: float | None = None
    smoothing: float | None = None
    n_samples: int | None = None
    reuse_radius: float = 0.5
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        if self.smoothing is not None:
            check_positive("smoothing", self.smoothing)
        if self.n_samples is not None:
            check_positive_int("n_samples", self.n_samples)
        check_at_least("reuse_radius", self.reuse_radius, 0)
        if self.memory is not None:
            check_positive_int("memory", self.memory)

    @property
    def is_adaptive(self) -> bool:
        """Whether the lengths of the steps are searched, not given by ``learning_rate``."""
        return self.learning_rate is None

    @property
    def evaluates_iterate(self) -> bool:
        return self.is_adaptive

    @property
    def adapts_steps(self) -> bool:
        return self.is_adaptive

    @property
    def keeps_bounds(self) -> bool:
        return self.is_adaptive

    def capacity(self, dim: int) -> int:
        """Returns how many queries the memory holds for points of ``dim`` coordinates."""
        if self.reuse_radius == 0:
            return 0
        return min(2 * dim if self.memory is None else self.memory, MAX_MEMORY_SIZE // dim)

    def _has_basis(self, dim: int) -> bool:
        return dim <= descent.MAX_BASIS_DIM and (self.n_samples is None or self.n_samples >= dim)

    def _init(self, state: SolverState) -> None:
        xp = array_namespace(state.x)
        none = xp.zeros((0, state.x.shape[0]), dtype=state.x.dtype, device=device(state.x))
        numbers = xp.zeros((0,), dtype=value_dtype(state.x), device=device(state.x))
        # The plain form keeps displacements, differences and how far x has gone since.
        state.memory.update(points=none, point_values=numbers)
        if not self.is_adaptive:
            state.memory["travelled"] = numbers
        elif self._has_basis(state.x.shape[0]):
            descent.begin(state)
        else:
            subspace.begin(state)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        if not self.is_adaptive:
            return self._plain_batch(state)
        if self._has_basis(state.x.shape[0]):
            return descent.ask(state, self._probe)
        known = self._near(state)
        return subspace.ask(
            state,
            n_directions=self.n_samples,
            smoothing=self.smoothing,
            has_momentum=True,
            known=None if known is None else known[0],
        )

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        if not self.is_adaptive:
            return self._plain_step(state, candidates, values)
        if self._has_basis(state.x.shape[0]):
            x = descent.tell(state, candidates, values, self._slopes)
        else:
            x = subspace.tell(state, candidates, values, known=self._near(state))
        self._remember(state, candidates, values)
        return x

    def _remember(self, state: SolverState, points: Array, values: Array) -> None:
        """Adds what was evaluated to the memory, whose oldest points make room."""
        xp = array_namespace(points)
        capacity = self.capacity(points.shape[1])
        if capacity == 0:
            return
        memory = state.memory
        points, values = points[-capacity:, :], values[-capacity:]
        memory["points"] = xp.concat([memory["points"], points], axis=0)[-capacity:, :]
        memory["point_values"] = xp.concat([memory["point_values"], values])[-capacity:]

    def _probe(self, state: SolverState) -> Array:
        """Returns new points in the directions that the reused ones leave open."""
        xp = array_namespace(state.x)
        memory = state.memory
        known, changes = self._reusable(state)
        n_known = known.shape[0]
        # Near a bound not every direction may be probed.
        if n_known == 0 or near_bounds(state, probe_reach(state, self.smoothing)) is not None:
            memory["known"], memory["known_changes"] = known[:0, :], changes[:0]
            return probe_basis(state, self.smoothing)
        memory["known"], memory["known_changes"] = known, changes
        rows = orthogonal_to(known, state.x.shape[0] - n_known, state)
        # Columns may differ in length: a fixed distance is that of each row's own displacement.
        steps = rows @ xp.matrix_transpose(state.inner.basis)
        if self.smoothing is None:
            distances = xp.ones_like(rows[:, 0]) * adapted_smoothing(state)
        else:
            distances = self.smoothing / xp.linalg.vector_norm(steps, axis=1)
        memory["new"] = rows * distances[:, None]
        return state.x + steps * distances[:, None]

    def _slopes(self, state: SolverState, candidates: Array, values: Array) -> Array:
        """Returns the slopes (dim,) along the columns of the basis, by interpolation."""
        xp = array_namespace(candidates)
        memory = state.memory
        known = memory["known"]
        if known.shape[0] == 0:
            return basis_slopes(state, candidates, values)
        changes = values - state.value
        new = memory["new"]
        if was_repaired(state, candidates):
            new = _in_basis(state, candidates - state.x)
        changes = changes - 0.5 * xp.astype(xp.sum(new * new, axis=1), values.dtype)
        alive = xp.isfinite(changes)
        new = xp.where(alive[:, None], new, 0.0)
        changes = xp.concat([xp.where(alive, changes, 0.0), memory["known_changes"]])
        return interpolated_gradient(xp.concat([new, known], axis=0), changes)

    def _reusable(self, state: SolverState) -> tuple[Array, Array]:
        """Returns displacements in the basis, and differences free of the model's curvature."""
        xp = array_namespace(state.x)
        memory = state.memory
        points, values = memory["points"], memory["point_values"]
        none = points[:0, :], values[:0]
        dim = state.x.shape[0]
        # Careful differences, and those of noisy values, are taken anew.
        if points.shape[0] == 0 or dim == 1 or state.inner.is_central or measures_iterate(state):
            return none
        if state.inner.direction is None:
            return none
        reach = self.reuse_radius * state.inner.length * math.sqrt(state.inner.promised)
        rows = _in_basis(state, points - state.x)
        squares = xp.sum(rows * rows, axis=1)
        usable = (squares <= reach * reach) & (squares > 0) & xp.isfinite(values)
        order = xp.argsort(xp.where(usable, squares, xp.inf))[: min(int(xp.sum(usable)), 2 * dim)]
        chosen = _independent(rows, [int(k) for k in order.tolist()], int(dim * MAX_REUSED))
        if not chosen:
            return none
        index = xp.asarray(chosen, device=device(rows))
        changes = xp.take(values, index, axis=0) - state.value
        bends = 0.5 * xp.astype(xp.take(squares, index, axis=0), values.dtype)
        return xp.take(rows, index, axis=0), changes - bends

    def _near(self, state: SolverState) -> tuple[Array, Array] | None:
        """Returns displacements and values of the queries within reach of the iterate."""
        xp = array_namespace(state.x)
        memory = state.memory
        points, values = memory["points"], memory["point_values"]
        if points.shape[0] == 0 or state.inner.phase != Phase.PROBE:
            return None
        if measures_iterate(state):
            return None
        reach = self.reuse_radius * state.inner.length
        rows = points - state.x
        squares = xp.sum(rows * rows, axis=1)
        usable = (squares <= reach * reach) & (squares > 0) & xp.isfinite(values)
        order = xp.argsort(xp.where(usable, squares, xp.inf))[: int(xp.sum(usable))]
        dim = state.x.shape[0]
        n = min(self.n_samples or subspace.default_directions(dim), dim)
        chosen = _independent(rows, [int(k) for k in order.tolist()[: 2 * n]], n - 1)
        if not chosen:
            return None
        index = xp.asarray(chosen, device=device(rows))
        return xp.take(rows, index, axis=0), xp.take(values, index, axis=0)

    def _plain_batch(self, state: SolverState) -> Array:
        """Returns x, and new points that complete the reused ones to ``n_samples``."""
        xp = array_namespace(state.x)
        memory = state.memory
        n = min(self.n_samples or N_SAMPLES, state.x.shape[0])
        smoothing = self.smoothing or SMOOTHING
        chosen = self._nearest(memory, smoothing, int(n * MAX_REUSED))
        memory["known"] = _rows_at(memory["points"], chosen)
        memory["known_changes"] = _rows_at(memory["point_values"], chosen)
        rows = orthogonal_to(memory["known"], n - len(chosen), state)
        return xp.concat([state.x[None, :], state.x + smoothing * rows], axis=0)

    def _nearest(self, memory: dict[str, Any], smoothing: float, most: int) -> list[int]:
        """Returns which kept displacements to reuse: the youngest first, well apart."""
        points, travelled = memory["points"], memory["travelled"]
        if points.shape[0] == 0:
            return []
        # How many there are decides how many points are new, so that the host has to know. One copy
        # waits for a device once; a look at each number would do so every time.
        xp = array_namespace(points)
        points = xp.astype(points, travelled.dtype)
        host = to_numpy(xp.concat([points, travelled[:, None]], axis=1))
        near = np.flatnonzero(host[:, -1] <= self.reuse_radius * smoothing)
        return _independent(host[:, :-1], near[::-1].tolist(), most)

    def _plain_step(self, state: SolverState, candidates: Array, values: Array) -> Array:
        """Returns x - learning_rate * interpolated gradient."""
        xp = array_namespace(candidates)
        memory = state.memory
        displacements = candidates[1:, :] - candidates[:1, :]
        changes = values[1:] - values[0]
        alive = xp.isfinite(changes)
        displacements = xp.where(alive[:, None], displacements, 0.0)
        changes = xp.where(alive, changes, 0.0)
        gradient = interpolated_gradient(
            xp.concat([displacements, memory["known"]], axis=0),
            xp.concat([changes, memory["known_changes"]]),
        )
        # Where everything failed there is no step, and no wait for the device to find out.
        gradient = xp.where(xp.any(alive), gradient, 0.0)
        norm = xp.linalg.vector_norm(gradient)
        state.metrics["gradient_norm"] = norm
        state.metrics["n_reused"] = memory["known"].shape[0]
        x = state.x - float(self.learning_rate or 0) * gradient
        if capacity := self.capacity(x.shape[0]):
            self._remember(state, displacements, changes)
            fresh = xp.zeros_like(changes)
            way = xp.concat([memory["travelled"], fresh])[-capacity:]
            memory["travelled"] = way + xp.linalg.vector_norm(xp.astype(x - state.x, way.dtype))
        return x


def _rows_at(rows: Array, chosen: list[int]) -> Array:
    """Picks rows by numbers of the host, which need not be copied to a device."""
    return array_namespace(rows).stack([rows[k] for k in chosen]) if chosen else rows[:0]


def _in_basis(state: SolverState, displacements: Array) -> Array:
    """Returns displacements (k, dim) in coordinates of the basis."""
    xp = array_namespace(displacements)
    basis = state.inner.basis
    dtype = xp.float64 if basis.dtype == xp.float64 else xp.float32
    columns = xp.matrix_transpose(xp.astype(displacements, dtype))
    try:
        solved = xp.linalg.solve(xp.astype(basis, dtype), columns)
    except (ValueError, RuntimeError):  # the LinAlgErrors of NumPy and of torch: singular
        return xp.zeros_like(displacements)
    return xp.astype(xp.matrix_transpose(solved), basis.dtype)


def _independent(rows: Array, order: list[int], most: int) -> list[int]:
    """Picks rows, in this order, each well outside the span of those before it."""
    xp = array_namespace(rows)
    chosen: list[int] = []
    span = xp.zeros((0, rows.shape[1]), dtype=rows.dtype, device=device(rows))
    for k in order:
        if len(chosen) >= most:
            break
        row = rows[k, :]
        length = float(xp.linalg.vector_norm(row))
        rest = row - (span @ row) @ span
        left = float(xp.linalg.vector_norm(rest))
        if length > 0 and left > MIN_SINE * length:
            rest = rest - (span @ rest) @ span
            rest = rest / xp.linalg.vector_norm(rest)
            span = xp.concat([span, rest[None, :]], axis=0)
            chosen.append(k)
    return chosen
