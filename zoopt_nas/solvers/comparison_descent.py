"""The adaptive form of GLD: radii, metric and extrapolation learnt from comparisons of values.

Sources: the success rule for the radius, Rechenberg (1973), here with the ratio 1 : 1/4 of growth
to shrinkage that is in balance where one direction of five improves; the metric, Igel, Suttorp and
Hansen, "A Computational Efficient Covariance Matrix Update and a (1+1)-CMA for Evolution
Strategies", GECCO 2006; its negative update, Arnold and Hansen, "Active Covariance Matrix
Adaptation for the (1+1)-CMA-ES", GECCO 2010. The signed sum of directions is the one-bit relative
of weighted recombination, Arnold, "Optimal Weighted Recombination", FOGA 2005. That noise wants
long trial steps and short moves: Beyer, "Evolutionary algorithms in noisy environments", Computer
Methods in Applied Mechanics and Engineering 186, 2000 ("mutate large, but inherit small").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy, device, value_dtype
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.comparison_state import MIN_PATIENCE, ComparisonState

# Up to here a dim x dim metric is learnt. It takes about dim² evaluations to learn one, and two
# matrices of that size to keep it.
MAX_METRIC_DIM = 100
# A new direction that improves multiplies the radius by exp(GROWTH / s), one that fails by
# exp(-SHRINKAGE / s), s = sqrt((dim + 1) n_directions). On BBOB in 2 to 10 dimensions, 1.4
# times these, and an extrapolation that changes by 0.5 to 1.4, score within 0.01 of each other.
GROWTH = 1.0
SHRINKAGE = 0.25
# The extrapolation is tried at a radius of its own, doubled on success and halved on failure, ...
LEAD_CHANGE = 0.7
# ... between the radius of the new directions and exp(7) = 1097 times that.
MAX_LEAD = 7.0
# Batches without a success after which x is evaluated anew: doubled, up to the second number, each
# time that its value was the same again, and the first number once it was not. So a deterministic
# objective costs few evaluations of x, and a noisy one cannot lock in a lucky value.
MAX_PATIENCE = 32
# Restarts draw around x with this standard deviation per coordinate, in units of max_radius, which
# doubles from one restart to the next.
MAX_SPREAD = 4.0
# Where values are found to change, x moves only a share of the way to the best row. It grows by the
# first factor (a logarithm) when x then has a lower value than before, and shrinks by the second
# when not, which is in balance at 3 of 4: noise alone gives 3 of 5, a real descent nearly all.
SHARE_GROWTH = 0.05
SHARE_SHRINKAGE = 0.15
MIN_SHARE = 0.1
# Batches from one candidate at the wide radius to the next: often enough to leave a local minimum
# in a long run. On BBOB each 16th costs nothing that can be measured, each 4th 0.008 of score.
WIDE_PERIOD = 16


@dataclass(frozen=True)
class ComparisonDescent:
    """Descent by comparisons with x: each batch has a few new directions and one extrapolation.

    With the factor A of the metric (C = A A'), the radius r and orthonormal z_i, the new candidates
    are x + r A z_i, and x moves to the best row of the batch if that is better. The signs
    s_i = +1 (better than x) and -1 (not) say on which side of a hyperplane the descent lies, so
    that g <- (1 - n / (dim + n)) g + sum_i s_i z_i points downhill after some dim evaluations: the
    cosine with the gradient is about sqrt(2 / pi) where the objective is linear on the scale of r.
    The next batch also has x + R A g / |g|, with a radius R of its own.

    Noise makes lucky rows win. Where values change, x moves a share of the way only, which keeps
    the direction of the step and takes out most of its random walk, and is measured after each
    move; the metric learns more slowly by the same share.

    Attributes:
        max_radius: the first radius.
        min_radius: the radius at which the run has converged.
        n_directions: n, new directions in a batch.
        restart: whether to go on from a random point when converged.
        deterministic: whether the value of x, once measured, holds.
        window: w, the octaves around the radius over which the new directions of a batch are
            spread evenly: their radii are from 2^(w / 2) to 2^(-w / 2) times it.
        wide_radius: the radius of one more candidate in each 16th batch, in units of
            ``max_radius``; 0 for none.
        mirror: whether a batch without success is followed by that of the antithetic partners,
            x - v for each new candidate x + v. Where a metric is learnt only: above, keeping the
            displacements would cost memory.
    """

    max_radius: float
    min_radius: float
    n_directions: int
    restart: bool
    deterministic: bool
    window: float = 0.0
    wide_radius: float = 4.0
    mirror: bool = True

    def init(self, state: SolverState) -> None:
        """Fills ``state.inner``."""
        state.value = math.inf
        state.inner = ComparisonState()
        self._reset(state)

    def _reset(self, state: SolverState) -> None:
        """Forgets radii, metric and descent direction: at the start and at a restart."""
        x = state.x
        xp = array_namespace(x)
        inner: ComparisonState = state.inner
        inner.log_radius = inner.log_lead_radius = math.log(self.max_radius)
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

    def ask(self, state: SolverState) -> Array:
        """Returns x where it is due, the extrapolation where there is one, and new candidates."""
        x = state.x
        inner: ComparisonState = state.inner
        if inner.is_restart:
            rows = sampling.gaussian(state.rng, self.n_directions + 1, x)
            rows *= self.max_radius * inner.spread
            rows += x
            return rows
        is_known = math.isfinite(state.value) and not inner.has_moved
        is_due = not self.deterministic and inner.n_failures >= inner.patience
        has_x, has_lead = bool(is_due or not is_known), inner.has_descent
        has_wide = self.wide_radius > 0 and state.n_steps % WIDE_PERIOD == WIDE_PERIOD - 1
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
            rows[n_before - 1] *= self.wide_radius * self.max_radius
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
        n = self.n_directions
        # One coordinate has two directions only: there the rows differ in length.
        window = max(self.window, n - 1.0) if x.shape[0] == 1 else self.window
        if window > 0 and n > 1:
            for k in range(n):
                rows[k] *= 2.0 ** (window * (0.5 - k / (n - 1)))

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
        row /= _norm_or_one(descent)
        row *= math.exp(inner.log_lead_radius)

    def tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
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
            return _go(state, candidates, best)
        i_lead = int(inner.has_x)
        n_before = inner.n_before
        # The last value of x that was measured may be from before it moved.
        value: float = inner.measured if inner.has_moved else state.value
        if inner.has_x and told[best] < math.inf:
            self._compare_x(inner, told[0], value)
            value = told[0]
        wins = [v < value for v in told[n_before:]]
        if inner.factor is not None:
            self._learn_shape(state, candidates, told, n_before, best, value)
        else:
            self._learn_descent(state, candidates, wins, n_before)
        inner.has_descent = True
        self._adapt_radii(inner, x.shape[0], wins, told[i_lead] < value)
        state.metrics["radius"] = math.exp(inner.log_radius)
        is_better = told[best] < value
        inner.n_failures = 0 if is_better else inner.n_failures + 1
        state.value = told[best] if is_better else value
        if inner.has_moved:  # still: the evaluation of x failed
            state.value, inner.measured = math.nan, value
        inner.failed = None
        if self.mirror and inner.factor is not None and not (is_better or inner.is_mirror):
            inner.failed = candidates[n_before:] - x
        self._restart_if_converged(inner)
        if not is_better:
            if inner.has_x and told[0] < math.inf:  # it is row 0 that was not beaten
                _weigh(state, len(told), 0, 1.0)
            return x
        # From an x that failed, all the way: nothing is known of the points in between.
        if not inner.is_noisy or value == math.inf:
            return _go(state, candidates, best)
        # The value of the point that x goes to is not known.
        state.value, inner.measured, inner.has_moved = math.nan, value, True
        return _go_part(state, candidates, best, math.exp(inner.log_share))

    def absorb(self, state: SolverState, points: Array, values: Array) -> None:
        """Goes on from the best of points that were in no batch, if x is known to be worse."""
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
            limit = min(limit, math.log(MAX_SPREAD * self.max_radius))
        radius = min(inner.log_radius + change, limit)
        lead = inner.log_lead_radius
        if inner.has_lead:
            lead += LEAD_CHANGE if lead_wins else -LEAD_CHANGE
        inner.log_radius = radius
        inner.log_lead_radius = min(max(lead, radius), radius + MAX_LEAD, limit)

    def _restart_if_converged(self, inner: ComparisonState) -> None:
        floor = math.log(self.min_radius)
        if inner.log_radius >= floor:
            return
        if self.restart:
            inner.is_restart = True
        else:
            inner.log_radius = floor

    def _learn_descent(
        self, state: SolverState, candidates: Array, wins: list[bool], n_before: int
    ) -> None:
        """g <- decay g + sum_i s_i z_i, a row at a time and in place: dim may be 10^6."""
        descent = state.inner.descent
        descent *= 1 - len(wins) / (descent.shape[0] + len(wins))
        for k, is_win in enumerate(wins):
            step = candidates[n_before + k] - state.x
            step *= (1.0 if is_win else -1.0) / _norm_or_one(step)
            descent += step
            del step  # before the next one is made

    def _learn_shape(
        self,
        state: SolverState,
        candidates: Array,
        told: list[float],
        n_before: int,
        best: int,
        value: float,
    ) -> None:
        """Updates g in the coordinates of the metric, and the metric itself."""
        x = state.x
        inner: ComparisonState = state.inner
        dim, new = x.shape[0], told[n_before:]
        # The rows as they came back, which bounds may have moved.
        units = (candidates[n_before:] - x) @ inner.inverse.T
        units *= math.exp(min(-inner.log_radius, 700.0))
        descent = inner.descent * (1 - len(new) / (dim + len(new)))
        for v, unit in zip(new, units, strict=True):
            descent = descent + unit if v < value else descent - unit
        inner.descent = descent
        rate = math.exp(inner.log_share) * 2 / (dim * dim + 6)
        if told[best] < value:
            step = candidates[best] - x
            c = 2 / (dim + 2)
            scale = math.sqrt(c * (2 - c) * dim) / _norm_or_one(inner.inverse @ step)
            inner.path = inner.path * (1 - c) + step * scale
            self._reshape(inner, inner.inverse @ inner.path, rate)
        elif len(new) > 1:
            worst = max(range(len(new)), key=new.__getitem__)
            # Half of Arnold and Hansen's limit, for |w|² = dim: C stays positive definite.
            rate = min(rate, 0.5 / (2 * dim - 1))
            unit = units[worst] * (math.sqrt(dim) / _norm_or_one(units[worst]))
            self._reshape(inner, unit, -rate)

    def _reshape(self, inner: ComparisonState, direction: Array, rate: float) -> None:
        inner.factor, inner.inverse = rank_one_update(inner.factor, inner.inverse, direction, rate)


def learns_metric(x: Array) -> bool:
    """Whether a metric is learnt at ``x``: a small dim, and a dtype that has linear algebra."""
    name = str(x.dtype).removeprefix("torch.")
    return x.shape[0] <= MAX_METRIC_DIM and name in ("float64", "float32")


def rank_one_update(
    factor: Array, inverse: Array, direction: Array, rate: float
) -> tuple[Array, Array]:
    """Returns A' and its inverse with A' A'^T = (1 - rate) A A^T + rate (A w)(A w)^T.

    Args:
        factor: A, (dim, dim).
        inverse: the inverse of A.
        direction: w, (dim,); with rate < 0, |rate| |w|² < 1 - rate.
        rate: below 1. A negative one shrinks A along w.

    Igel, Suttorp and Hansen 2006, Theorem 1, and Sherman-Morrison for the inverse.
    """
    square = direction @ direction
    stretch = (1 + (rate / (1 - rate)) * square) ** 0.5
    square = square + (square == 0)
    shrink = math.sqrt(1 - rate)
    column = (factor @ direction) * (shrink * (stretch - 1) / square)
    row = (direction @ inverse) * ((1 - 1 / stretch) / (shrink * square))
    return (
        factor * shrink + column[:, None] * direction,
        inverse * (1 / shrink) - direction[:, None] * row,
    )


def _go(state: SolverState, candidates: Array, row: int) -> Array:
    """Returns a row as the new x."""
    _weigh(state, candidates.shape[0], row, 1.0)
    return copy(candidates[row])


def _go_part(state: SolverState, candidates: Array, row: int, share: float) -> Array:
    """Returns the point that is a share of the way from x to a row."""
    _weigh(state, candidates.shape[0], row, share)
    step = candidates[row] - state.x
    step *= share
    step += state.x
    return step


def _weigh(state: SolverState, n: int, row: int, share: float) -> None:
    xp = array_namespace(state.x)
    state.weights = xp.zeros(n, dtype=value_dtype(state.x), device=device(state.x))
    state.weights[row] = share


def _norm_or_one(vector: Array) -> Array:
    """Returns the norm of ``vector`` as a 0-d array, or 1 if it is 0."""
    norm = (vector @ vector) ** 0.5
    return norm + (norm == 0)  # several times cheaper than `where` on a 0-d array
