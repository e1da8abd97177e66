"""LIZO: gradients by linear interpolation that reuses earlier queries.

Source: Wang, Qin, Yang and Yan, "ReLIZO: Sample Reusable Linear Interpolation-based Zeroth-order
Optimization", NeurIPS 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, device, to_numpy, value_dtype
from zoopt_nas._checks import check_at_least, check_positive, check_positive_int
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.engines.differences import interpolated_gradient, orthogonal_to

# The largest number of coordinates kept.
MAX_KEPT_SIZE = 20_000
# The least sine of the angle between a reused direction and the span of the other ones.
MIN_SINE = 0.3
# The largest reused part of a gradient; with more, errors of old slopes persist.
MAX_REUSED = 0.5


@dataclass(eq=False)
class LIZOState:
    """The state of LIZO: the k queries kept, oldest first, and the n that a batch reuses."""

    displacements: Array  # the kept queries relative to the x of their batch, (k, dim)
    differences: Array  # their values minus the value of that x, (k,)
    travelled: Array  # how far x has moved since each query, (k,)
    reused: Array = None  # the displacements that the pending batch reuses, (n, dim)
    reused_differences: Array = None  # their differences of values, (n,)


@dataclass(frozen=True)
class LIZO(Solver):
    """Linear interpolation: x <- x - ξ g, where earlier queries are reused.

    g is the least-squares solution of least norm of ``D g = δ``: the rows of D are displacements
    from x, and δ the differences of their values from f(x). Displacements of earlier steps that are
    still near x replace new ones; the new ones are orthogonal to them.

    Row 0 of a batch is x. A kept difference refers to row 0 of its own batch, so that values of
    different times are never compared, even if the objective drifts.

    Attributes:
        learning_rate: ξ > 0.
        smoothing: μ > 0, the distance of new points from x.
        n_samples: the number of points, new and reused, that a gradient uses; at most dim.
        reuse_radius: how far x may have moved since a reused query, in units of ``smoothing``; 0
            reuses none.
        max_queries: the largest number of queries kept, None for 2 dim; in any case, at most 20 000
            coordinates are kept.
    """

    name: ClassVar[str] = "lizo"
    lengths: ClassVar[tuple[str, ...]] = ("smoothing",)
    inner_states: ClassVar[tuple[type, ...]] = (LIZOState,)

    learning_rate: float = 0.1
    smoothing: float = 0.01
    n_samples: int = 4
    reuse_radius: float = 0.5
    max_queries: int | None = None

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_positive("smoothing", self.smoothing)
        check_positive_int("n_samples", self.n_samples)
        check_at_least("reuse_radius", self.reuse_radius, 0)
        if self.max_queries is not None:
            check_positive_int("max_queries", self.max_queries)

    def capacity(self, dim: int) -> int:
        """Return the number of queries kept for points of ``dim`` coordinates."""
        if self.reuse_radius == 0:
            return 0
        return min(2 * dim if self.max_queries is None else self.max_queries, MAX_KEPT_SIZE // dim)

    def _init(self, state: SolverState) -> None:
        xp = array_namespace(state.x)
        rows = xp.zeros((0, state.x.shape[0]), dtype=state.x.dtype, device=device(state.x))
        numbers = xp.zeros((0,), dtype=value_dtype(state.x), device=device(state.x))
        state.inner = LIZOState(rows, numbers, numbers)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        xp = array_namespace(state.x)
        inner: LIZOState = state.inner
        n = min(self.n_samples, state.x.shape[0])
        chosen = self._reusable(inner, int(n * MAX_REUSED))
        inner.reused = _rows_at(inner.displacements, chosen)
        inner.reused_differences = _rows_at(inner.differences, chosen)
        rows = orthogonal_to(inner.reused, n - len(chosen), state)
        return xp.concat([state.x[None, :], state.x + self.smoothing * rows], axis=0)

    def _reusable(self, inner: LIZOState, most: int) -> list[int]:
        """Return the indices of the displacements to reuse: near and independent, newest first."""
        displacements, travelled = inner.displacements, inner.travelled
        if displacements.shape[0] == 0:
            return []
        # The host decides, after a single copy from the device.
        xp = array_namespace(displacements)
        displacements = xp.astype(displacements, travelled.dtype)
        host = to_numpy(xp.concat([displacements, travelled[:, None]], axis=1))
        near = np.flatnonzero(host[:, -1] <= self.reuse_radius * self.smoothing)
        return _independent(host[:, :-1], near[::-1].tolist(), most)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        xp = array_namespace(candidates)
        inner: LIZOState = state.inner
        displacements = candidates[1:, :] - candidates[:1, :]
        differences = values[1:] - values[0]
        alive = xp.isfinite(differences)
        displacements = xp.where(alive[:, None], displacements, 0.0)
        differences = xp.where(alive, differences, 0.0)
        gradient = interpolated_gradient(
            xp.concat([displacements, inner.reused], axis=0),  # D
            xp.concat([differences, inner.reused_differences]),  # δ
        )
        # If all failed, x stays; `where` does not wait for the device to know.
        gradient = xp.where(xp.any(alive), gradient, 0.0)
        state.metrics["gradient_norm"] = xp.linalg.vector_norm(gradient)
        state.metrics["n_reused"] = inner.reused.shape[0]
        x = state.x - self.learning_rate * gradient
        self._keep(inner, displacements, differences, x - state.x)
        return x

    def _keep(
        self, inner: LIZOState, displacements: Array, differences: Array, step: Array
    ) -> None:
        """Add the queries of a batch to the kept ones, and drop the oldest beyond the capacity."""
        capacity = self.capacity(step.shape[0])
        if capacity == 0:
            return
        xp = array_namespace(step)
        rows = xp.concat([inner.displacements, displacements], axis=0)
        inner.displacements = rows[-capacity:, :]
        inner.differences = xp.concat([inner.differences, differences])[-capacity:]
        travelled = xp.concat([inner.travelled, xp.zeros_like(differences)])[-capacity:]
        inner.travelled = travelled + xp.linalg.vector_norm(xp.astype(step, differences.dtype))


def _rows_at(rows: Array, chosen: list[int]) -> Array:
    """Select rows by indices on the host, without a copy to the device."""
    return array_namespace(rows).stack([rows[k] for k in chosen]) if chosen else rows[:0]


def _independent(rows: np.ndarray, order: list[int], most: int) -> list[int]:
    """Select at most ``most`` rows, in this order, each well outside the span of the former."""
    xp = array_namespace(rows)
    chosen: list[int] = []
    span = np.zeros((0, rows.shape[1]), dtype=rows.dtype)
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
            span = np.concatenate([span, rest[None, :]], axis=0)
            chosen.append(k)
    return chosen
