"""Adaptive GLD: radii, metric and extrapolation learnt from comparisons of values.

Sources: Rechenberg (1973) (the success rule for the radius; the ratio 1 : 1/4 of growth to
shrinkage balances if one direction of five improves); Beyer, "Evolutionary algorithms in noisy
environments", Computer Methods in Applied Mechanics and Engineering 186, 2000 (long trial steps and
short moves under noise: "mutate large, but inherit small"). For the metric and the descent
direction, see ``engines.comparison_metric``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy, device
from zoopt_nas._checks import check_bool, check_positive, check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.engines import comparison_metric
from zoopt_nas.solvers.engines.comparison_state import ComparisonState

# A success of a new direction multiplies the radius by exp(GROWTH / s), a failure by
# exp(-SHRINKAGE / s), s = sqrt((dim + 1) n_directions).
GROWTH = 1.0
SHRINKAGE = 0.25
# The changes of the logarithm of the radius of the extrapolation, and its limit relative to the
# radius of the new directions.
LEAD_CHANGE = 0.7
MAX_LEAD = 7.0
# x is evaluated again after this many batches without success. The patience doubles up to
# MAX_PATIENCE while its value stays the same, and resets to MIN_PATIENCE when it changes.
MIN_PATIENCE = 1
MAX_PATIENCE = 32
# The standard deviation of restarts around x, in units of max_radius; it doubles at each restart.
FIRST_SPREAD = 1.0
MAX_SPREAD = 4.0
# Under noise, x moves the fraction η of the way to the best row. log η grows by the first number if
# the new x has a lower value, and shrinks by the second if not, which balances at 3 of 4 moves:
# noise alone gives 3 of 5, a real descent nearly all.
MOVE_GROWTH = 0.05
MOVE_SHRINKAGE = 0.15
MIN_MOVE = 0.1
# Every 16th batch has one more candidate at this multiple of max_radius, to leave local minima.
WIDE_PERIOD = 16
WIDE_RADIUS = 4.0


@dataclass(frozen=True)
class AdaptiveGLD(Solver):
    """Gradientless descent that adapts: a few new directions and one extrapolation per batch.

    The new candidates are x + r A z_i with the radius r, the factor A of the metric (C = A A') and
    orthonormal z_i. x moves to the best row of the batch if that is better. With s_i = +1 for a
    candidate better than x and -1 otherwise, g <- (1 - n / (dim + n)) g + sum_i s_i z_i points
    downhill after about dim evaluations: if the objective is linear on the scale of r, its cosine
    with the gradient is about sqrt(2 / pi). The next batch also has x + R A g / |g|, with a radius
    R that adapts separately. With a metric, a batch without success is followed by the antithetic
    partners x - v of its new candidates x + v.

    Under noise, low values may be luck. If the value of x is found to change, x moves only a part
    of the way to the best row, which averages out much of the noise, and is measured after each
    move. The metric then learns more slowly too.

    It only compares values, so any increasing transform of the objective gives the same run.

    Attributes:
        max_radius: > 0, the first radius; its order of magnitude suffices. None: 1.
        min_radius: in (0, max_radius], the radius at which the run has converged. None: 1e-9 times
            ``max_radius``.
        n_directions: n, the new directions of a batch. More use more parallel workers, at some cost
            per evaluation.
        restart: whether to restart from a point farther away after convergence. If not, the radius
            stays at ``min_radius``.
        deterministic: whether a point always has the same value. If not, x is evaluated again after
            failures.
    """

    name: ClassVar[str] = "adaptive_gld"
    evaluates_iterate: ClassVar[bool] = True
    adapts_steps: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("max_radius", "min_radius")
    inner_states: ClassVar[tuple[type, ...]] = (ComparisonState,)

    max_radius: float | None = None
    min_radius: float | None = None
    n_directions: int = 2
    restart: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.max_radius is not None:
            check_positive("max_radius", self.max_radius)
        if self.min_radius is not None and (
            check_positive("min_radius", self.min_radius) > self._max_radius
        ):
            raise InvalidValueError(
                f"min_radius must be at most max_radius ({self._max_radius}), got {self.min_radius}"
            )
        check_positive_int("n_directions", self.n_directions)
        check_bool("restart", self.restart)
        check_bool("deterministic", self.deterministic)

    @property
    def compares_batches(self) -> bool:
        """Yes: candidates are compared with the last value of x."""
        return True

    @property
    def _max_radius(self) -> float:
        return 1.0 if self.max_radius is None else self.max_radius

    def with_n_samples(self, n: int) -> Self:
        """Return a copy that draws ``n`` new directions a step."""
        return replace(self, n_directions=check_positive_int("n_samples", n))

    def _init(self, state: SolverState) -> None:
        state.value = math.inf
        state.inner = ComparisonState(spread=FIRST_SPREAD, patience=MIN_PATIENCE)
        self._reset(state)

    def _reset(self, state: SolverState) -> None:
        """Forget radii, metric and descent direction, at the start and at a restart."""
        x = state.x
        xp = array_namespace(x)
        inner: ComparisonState = state.inner
        inner.log_radius = inner.log_lead_radius = math.log(self._max_radius)
        # The limit keeps x from overflowing if the objective has no minimum.
        inner.log_limit = math.log(float(xp.finfo(x.dtype).max)) / 2
        inner.descent = xp.zeros_like(x)
        inner.has_descent = inner.has_moved = False
        inner.n_failures = 0
        inner.failed = None
        if comparison_metric.learns_metric(x):
            inner.factor = inner.inverse = xp.eye(x.shape[0], dtype=x.dtype, device=device(x))
            inner.path = xp.zeros_like(x)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        """Return x if it is due, the extrapolation if there is one, and the new candidates."""
        x = state.x
        inner: ComparisonState = state.inner
        if inner.is_restart:
            rows = sampling.gaussian(state.rng, self.n_directions + 1, x)
            rows *= self._max_radius * inner.spread
            rows += x
            return rows
        is_known = math.isfinite(state.value) and not inner.has_moved
        is_due = not self.deterministic and inner.n_failures >= inner.patience
        has_x, has_lead = bool(is_due or not is_known), inner.has_descent
        has_wide = state.n_steps % WIDE_PERIOD == WIDE_PERIOD - 1
        is_mirror = inner.failed is not None and state.pending is None  # not if asked again
        n_before = has_x + has_lead + has_wide
        inner.has_x, inner.has_lead, inner.is_mirror = has_x, has_lead, is_mirror
        inner.n_before = n_before
        shape = (n_before + self.n_directions, x.shape[0])
        rows = array_namespace(x).empty(shape, dtype=x.dtype, device=device(x))
        if is_mirror:
            rows[n_before:] = -inner.failed
        else:
            self._write_directions(state, rows[n_before:])
        if has_wide:
            rows[n_before - 1] = sampling.sphere(state.rng, 1, x)[0]
            rows[n_before - 1] *= WIDE_RADIUS * self._max_radius
        if has_lead:
            self._write_lead(state, rows[int(has_x)])
        if has_x:
            rows[0] = 0
        rows += x
        return rows

    def _write_directions(self, state: SolverState, rows: Array) -> None:
        """Set ``rows`` to new directions, relative to x."""
        x = state.x
        inner: ComparisonState = state.inner
        radius = math.exp(inner.log_radius)
        if inner.factor is not None:
            rows[:] = self._orthogonal_block(state) @ (radius * inner.factor.T)
        else:
            for k in range(rows.shape[0]):  # row by row, to avoid a second (n, dim) array
                rows[k] = sampling.sphere(state.rng, 1, x)[0]
                rows[k] *= radius
        if x.shape[0] == 1:  # only two directions exist, so the rows differ in length
            for k in range(self.n_directions):
                rows[k] *= 2.0 ** ((self.n_directions - 1) / 2 - k)

    def _orthogonal_block(self, state: SolverState) -> Array:
        """Return the next n_directions rows of orthonormal blocks, drawn by one QR at a time."""
        n = self.n_directions
        inner: ComparisonState = state.inner
        used = inner.n_used
        if inner.directions is None or used + n > inner.directions.shape[0]:
            n_drawn = max(n, state.x.shape[0])
            inner.directions = sampling.orthogonal(state.rng, n_drawn, state.x)
            used = 0
        inner.n_used = used + n
        return inner.directions[used : used + n]

    def _write_lead(self, state: SolverState, row: Array) -> None:
        """Set ``row`` to the extrapolation, relative to x."""
        inner: ComparisonState = state.inner
        descent = inner.descent
        row[:] = inner.factor @ descent if inner.factor is not None else descent
        row /= comparison_metric.norm_or_one(descent)
        row *= math.exp(inner.log_lead_radius)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        """Learn from the batch and return the new x."""
        x = state.x
        inner: ComparisonState = state.inner
        told: list[float] = values.tolist()
        best = min(range(len(told)), key=told.__getitem__)
        if inner.is_restart:
            if told[best] == math.inf:
                return x
            self._reset(state)
            state.value = told[best]
            inner.is_restart = False
            inner.spread = min(2 * inner.spread, MAX_SPREAD)
            return copy(candidates[best])
        i_lead = int(inner.has_x)
        n_before = inner.n_before
        value: float = inner.measured if inner.has_moved else state.value
        if inner.has_x and told[best] < math.inf:
            self._compare_x(inner, told[0], value)
            value = told[0]
        wins = [v < value for v in told[n_before:]]
        if inner.factor is not None:
            comparison_metric.learn_shape(state, candidates, told, n_before, best, value)
        else:
            comparison_metric.learn_descent(state, candidates, wins, n_before)
        inner.has_descent = True
        self._adapt_radii(inner, x.shape[0], wins, told[i_lead] < value)
        state.metrics["radius"] = math.exp(inner.log_radius)
        is_better = told[best] < value
        inner.n_failures = 0 if is_better else inner.n_failures + 1
        state.value = told[best] if is_better else value
        if inner.has_moved:  # the evaluation of the moved x failed
            state.value, inner.measured = math.nan, value
        inner.failed = None
        if inner.factor is not None and not (is_better or inner.is_mirror):
            inner.failed = candidates[n_before:] - x
        self._restart_if_converged(inner)
        if not is_better:
            return x
        if not inner.is_noisy or value == math.inf:  # from an x that failed, go all the way
            return copy(candidates[best])
        state.value, inner.measured, inner.has_moved = math.nan, value, True
        step = candidates[best] - x
        step *= math.exp(inner.log_move)
        step += x
        return step

    def _absorb(self, state: SolverState, points: Array, values: Array) -> None:
        """Move to the best of points outside any batch, if x is known to be worse."""
        if state.n_steps == 0:
            super()._absorb(state, points, values)
            return
        inner: ComparisonState = state.inner
        best = int(array_namespace(values).argmin(values))
        value = float(values[best])
        must_stay = state.pending is not None or inner.is_noisy or inner.has_moved
        if not must_stay and value < state.value:
            state.x = copy(points[best])
            if inner.is_restart:  # in place of a random point
                self._reset(state)
            state.value = value
            inner.is_restart = False
            inner.n_failures = 0
            inner.failed = None

    def _compare_x(self, inner: ComparisonState, value: float, last: float) -> None:
        """Compare a new value of x with its last one."""
        if inner.has_moved:
            change = MOVE_GROWTH if value < last else -MOVE_SHRINKAGE
            inner.log_move = min(max(inner.log_move + change, math.log(MIN_MOVE)), 0.0)
        elif math.isfinite(last):
            is_stale = value != last
            patience = MIN_PATIENCE if is_stale else 2 * inner.patience
            inner.patience = min(patience, MAX_PATIENCE)
            inner.is_noisy = is_stale
        inner.has_moved = False
        inner.n_failures = 0

    def _adapt_radii(
        self, inner: ComparisonState, dim: int, wins: list[bool], lead_wins: bool
    ) -> None:
        n, n_wins = len(wins), sum(wins)
        change = (GROWTH * n_wins - SHRINKAGE * (n - n_wins)) / math.sqrt((dim + 1) * n)
        limit = inner.log_limit
        if inner.is_noisy:
            # Under noise proportional to the value, radius and distance could grow together.
            limit = min(limit, math.log(MAX_SPREAD * self._max_radius))
        radius = min(inner.log_radius + change, limit)
        lead = inner.log_lead_radius
        if inner.has_lead:
            lead += LEAD_CHANGE if lead_wins else -LEAD_CHANGE
        inner.log_radius = radius
        inner.log_lead_radius = min(max(lead, radius), radius + MAX_LEAD, limit)

    def _restart_if_converged(self, inner: ComparisonState) -> None:
        floor = math.log(self.min_radius or 1e-9 * self._max_radius)
        if inner.log_radius >= floor:
            return
        if self.restart:
            inner.is_restart = True
        else:
            inner.log_radius = floor
