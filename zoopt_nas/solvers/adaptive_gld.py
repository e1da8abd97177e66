"""Adaptive GLD: radii, metric and extrapolation learnt from comparisons of values.

Sources: the success rule for the radius, Rechenberg (1973), here with the ratio 1 : 1/4 of growth
to shrinkage that is in balance where one direction of five improves; that noise wants long trial
steps and short moves: Beyer, "Evolutionary algorithms in noisy environments", Computer Methods in
Applied Mechanics and Engineering 186, 2000 ("mutate large, but inherit small"). The metric and the
descent direction: see ``engines.comparison_metric``.
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
from zoopt_nas.solvers.engines.comparison_metric import (
    learn_descent,
    learn_shape,
    learns_metric,
    norm_or_one,
)
from zoopt_nas.solvers.engines.comparison_state import ComparisonState

# A new direction that improves multiplies the radius by exp(GROWTH / s), one that fails by
# exp(-SHRINKAGE / s), s = sqrt((dim + 1) n_directions).
GROWTH = 1.0
SHRINKAGE = 0.25
# The extrapolation is tried at a radius of its own, doubled on success and halved on failure, ...
LEAD_CHANGE = 0.7
# ... between the radius of the new directions and exp(7) = 1097 times that.
MAX_LEAD = 7.0
# Batches without a success after which x is evaluated anew: doubled, up to the second number, each
# time that its value was the same again, and the first number once it was not. So a deterministic
# objective costs few evaluations of x, and a noisy one cannot lock in a lucky value.
MIN_PATIENCE = 1
MAX_PATIENCE = 32
# Restarts draw around x with this standard deviation per coordinate, in units of max_radius, which
# doubles from one restart to the next.
FIRST_SPREAD = 1.0
MAX_SPREAD = 4.0
# Where values are found to change, x moves only a share of the way to the best row. It grows by the
# first factor (a logarithm) when x then has a lower value than before, and shrinks by the second
# when not, which is in balance at 3 of 4: noise alone gives 3 of 5, a real descent nearly all.
SHARE_GROWTH = 0.05
SHARE_SHRINKAGE = 0.15
MIN_SHARE = 0.1
# Each 16th batch has one more candidate, at so many times max_radius, which does not shrink with
# the others: it can leave a local minimum in a long run.
WIDE_PERIOD = 16
WIDE_RADIUS = 4.0


@dataclass(frozen=True)
class AdaptiveGLD(Solver):
    """Gradientless descent that adapts: a few new directions and one extrapolation in each batch.

    With the factor A of the metric (C = A A'), the radius r and orthonormal z_i, the new candidates
    are x + r A z_i, and x moves to the best row of the batch if that is better. The signs
    s_i = +1 (better than x) and -1 (not) say on which side of a hyperplane the descent lies, so
    that g <- (1 - n / (dim + n)) g + sum_i s_i z_i points downhill after some dim evaluations: the
    cosine with the gradient is about sqrt(2 / pi) where the objective is linear on the scale of r.
    The next batch also has x + R A g / |g|, with a radius R of its own. A batch in which nothing
    was better than x is followed by that of the antithetic partners, x - v for each new candidate
    x + v, where a metric is learnt: above 100 dimensions, keeping them would cost memory.

    Noise makes lucky rows win. Where values change, x moves a share of the way only, which keeps
    the direction of the step and takes out most of its random walk, and is measured after each
    move; the metric learns more slowly by the same share.

    Only comparisons of values are used, so any increasing transform of the objective gives the same
    run.

    Attributes:
        max_radius: > 0, the first radius, which then grows and shrinks as it must: any value within
            a few orders of magnitude does. None: 1.
        min_radius: in (0, max_radius], the radius at which the run has converged. None: 1e-9 times
            ``max_radius``.
        n_directions: n, new directions in a batch. More serve more parallel workers, at some cost
            per evaluation.
        restart: whether to go on from a point further away when converged. Without it the radius
            stays at ``min_radius``.
        deterministic: the value of x, once measured, holds. Without it x is evaluated anew after a
            run of failures.

    Raises:
        InvalidValueError: a field is out of its range.
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
    def _max_radius(self) -> float:
        return 1.0 if self.max_radius is None else self.max_radius

    def with_n_samples(self, n: int) -> Self:
        """Returns a copy that draws ``n`` new directions a step."""
        return replace(self, n_directions=check_positive_int("n_samples", n))

    def _init(self, state: SolverState) -> None:
        state.value = math.inf
        state.inner = ComparisonState(spread=FIRST_SPREAD, patience=MIN_PATIENCE)
        self._reset(state)

    def _reset(self, state: SolverState) -> None:
        """Forgets radii, metric and descent direction: at the start and at a restart."""
        x = state.x
        xp = array_namespace(x)
        inner: ComparisonState = state.inner
        inner.log_radius = inner.log_lead_radius = math.log(self._max_radius)
        # An objective without a minimum makes the radii grow until x overflows. Half of the
        # exponent is far off in float64, and in float16 leaves time to end the run.
        inner.log_limit = math.log(float(xp.finfo(x.dtype).max)) / 2
        inner.descent = xp.zeros_like(x)
        inner.has_descent = inner.has_moved = False
        inner.n_failures = 0
        inner.failed = None
        if learns_metric(x):
            inner.factor = inner.inverse = xp.eye(x.shape[0], dtype=x.dtype, device=device(x))
            inner.path = xp.zeros_like(x)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        """Returns x where it is due, the extrapolation where there is one, and new candidates."""
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
        is_mirror = inner.failed is not None and state.pending is None  # asked again: a fresh batch
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
        """Sets ``rows`` to new directions, as displacements of x."""
        x = state.x
        inner: ComparisonState = state.inner
        radius = math.exp(inner.log_radius)
        if inner.factor is not None:
            rows[:] = self._orthogonal_block(state) @ (radius * inner.factor.T)
        else:
            # One row at a time: no second (n, dim) array.
            for k in range(rows.shape[0]):
                rows[k] = sampling.sphere(state.rng, 1, x)[0]
                rows[k] *= radius
        if x.shape[0] == 1:  # there are two directions only: the rows differ in length instead
            for k in range(self.n_directions):
                rows[k] *= 2.0 ** ((self.n_directions - 1) / 2 - k)

    def _orthogonal_block(self, state: SolverState) -> Array:
        """Returns the next n_directions rows of orthonormal blocks, drawn one QR at a time."""
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
        """Sets ``row`` to the extrapolation, as a displacement of x."""
        inner: ComparisonState = state.inner
        descent = inner.descent
        row[:] = inner.factor @ descent if inner.factor is not None else descent
        row /= norm_or_one(descent)
        row *= math.exp(inner.log_lead_radius)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        """Learns from the batch and returns the new x."""
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
        # The last value of x that was measured may be from before it moved.
        value: float = inner.measured if inner.has_moved else state.value
        if inner.has_x and told[best] < math.inf:
            self._compare_x(inner, told[0], value)
            value = told[0]
        wins = [v < value for v in told[n_before:]]
        if inner.factor is not None:
            learn_shape(state, candidates, told, n_before, best, value)
        else:
            learn_descent(state, candidates, wins, n_before)
        inner.has_descent = True
        self._adapt_radii(inner, x.shape[0], wins, told[i_lead] < value)
        state.metrics["radius"] = math.exp(inner.log_radius)
        is_better = told[best] < value
        inner.n_failures = 0 if is_better else inner.n_failures + 1
        state.value = told[best] if is_better else value
        if inner.has_moved:  # still: the evaluation of x failed
            state.value, inner.measured = math.nan, value
        inner.failed = None
        if inner.factor is not None and not (is_better or inner.is_mirror):
            inner.failed = candidates[n_before:] - x
        self._restart_if_converged(inner)
        if not is_better:
            return x
        # From an x that failed, all the way: nothing is known of the points in between.
        if not inner.is_noisy or value == math.inf:
            return copy(candidates[best])
        # The value of the point that x goes to is not known.
        state.value, inner.measured, inner.has_moved = math.nan, value, True
        return _go_part(state, candidates, best, math.exp(inner.log_share))

    def _absorb(self, state: SolverState, points: Array, values: Array) -> None:
        """Goes on from the best of points that were in no batch, if x is known to be worse."""
        if state.n_steps == 0:
            super()._absorb(state, points, values)
            return
        inner: ComparisonState = state.inner
        best = int(array_namespace(values).argmin(values))
        value = float(values[best])
        # The rows of a batch that is out are displacements of x.
        is_bound = state.pending is not None or inner.is_noisy or inner.has_moved
        if not is_bound and value < state.value:
            state.x = copy(points[best])
            if inner.is_restart:  # it would have been a random point
                self._reset(state)
            state.value = value
            inner.is_restart = False
            inner.n_failures = 0
            inner.failed = None

    def _compare_x(self, inner: ComparisonState, value: float, last: float) -> None:
        """Compares a new value of x with its last one."""
        if inner.has_moved:
            change = SHARE_GROWTH if value < last else -SHARE_SHRINKAGE
            share = inner.log_share + change
            inner.log_share = min(max(share, math.log(MIN_SHARE)), 0.0)
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
            # Lucky values win about as often as short steps do: where noise is proportional to the
            # value, radius and distance would grow together for ever.
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


def _go_part(state: SolverState, candidates: Array, row: int, share: float) -> Array:
    """Returns the point that is a share of the way from x to a row."""
    step = candidates[row] - state.x
    step *= share
    step += state.x
    return step
