"""Quasi-Newton descent along gradients by finite differences, up to 100 dimensions.

A run is a sequence of batches of seven kinds: START takes a central difference along every
coordinate of a new origin; PROBE measures the slopes at the iterate; SEARCH tries one step length;
EXPAND tries a longer step after a full step that fell as far as its slope predicted; HESSIAN
measures all second derivatives if gradients alone are slow; CLOSE asks before how close two points
may be; ORIGINS compares places for the next descent.

The steps are BFGS in product form (Powell, "Updating conjugate directions by the BFGS formula",
Math. Programming 38, 1987): the columns of a basis Z, with Z Zᵀ the inverse Hessian estimate, are
conjugate directions of modelled curvature 1. With the slopes g along the columns, the step is -Z g,
and Newton's method expects a decrease of |g|²/2. A difference over the distance h has an error of
about h/2 from curvature and 2ε/h from errors ε of the values, so h = 2 sqrt(ε) balances both
whatever the units of x (Berahas et al. 2021, arXiv 1905.01332).
"""

from __future__ import annotations

import math

from zoopt_nas._arrays import Array, array_namespace, copy, device
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.engines import (
    differences,
    first_look,
    resolution,
    restarts,
    second_differences,
)
from zoopt_nas.solvers.engines.box_steps import box_step
from zoopt_nas.solvers.engines.descent_state import DescentPhase, DescentState
from zoopt_nas.solvers.state import within_bounds

# The largest dim for which a (dim, dim) basis is cheap.
MAX_BASIS_DIM = 100
# A step is accepted if it achieves this fraction of the decrease that its slope predicts (Armijo).
SUFFICIENT_DECREASE = 0.1
# If a full step achieves nearly all of it, one longer by this factor is tried.
EXPANSION = 4.0
MAX_TRIALS = 8
# After so many lengths of a first step whose values were far above the origin, its probes were too
# far away: the next look is as far away as the first length with a similar value.
MAX_ABOVE = 3
# After MAX_POOR searches in a row that failed or ended below POOR_LENGTH, the model is renewed,
# with probes closer by the factor CLOSER.
POOR_LENGTH = 0.1
MAX_POOR = 6
CLOSER = 8.0
MAX_RENEWALS = 3
# The distance of the probes follows the steps, but shrinks at most by MAX_SHRINK at a time: the
# first steps see a coarse landscape, as in implicit filtering (Gilmore & Kelley 1995).
SMOOTHING_PER_STEP = 0.01
MAX_SHRINK = 0.1
# A descent restarts if a decrease by this multiple of |g|² would leave it above the best value.
GIVE_UP_RATIO = 10.0


def begin(state: SolverState) -> None:
    """Initialize ``state.inner`` for a descent from ``state.x``."""
    state.value = math.inf
    look = first_look.begin(state.x, restarts.first_scales(state, state.x))
    state.inner = DescentState(start=copy(state.x), best=copy(state.x), look=look)


def ask(state: SolverState, *, smoothing: float | None) -> Array:
    """Return the batch of the current phase; ``smoothing`` fixes the distance of the probes."""
    inner: DescentState = state.inner
    phase = inner.phase
    if phase == DescentPhase.START:
        return first_look.ask(state)
    if phase == DescentPhase.ORIGINS:
        return restarts.origins(state)
    if phase == DescentPhase.PROBE:
        return differences.probe_basis(state, smoothing)
    if phase == DescentPhase.HESSIAN:
        return second_differences.ask(state)
    if phase == DescentPhase.CLOSE:
        return resolution.ask_close(state)
    length = inner.length
    if phase == DescentPhase.EXPAND:  # x has already moved by one length
        length *= EXPANSION - 1
    return within_bounds(state, state.x + length * inner.direction)[None, :]


def tell(state: SolverState, candidates: Array, values: Array, *, smoothing: float | None) -> Array:
    """Return the new iterate."""
    inner: DescentState = state.inner
    phase = inner.phase
    inner.n_spent += values.shape[0]
    resolution.remember(state, values)
    if phase == DescentPhase.START:
        return _tell_start(state, candidates, values)
    if phase == DescentPhase.ORIGINS:
        return _tell_origins(state, candidates, values)
    if phase == DescentPhase.PROBE:
        is_free = smoothing is None and not differences.was_repaired(state, candidates)
        return _tell_probe(state, candidates, values, may_measure_hessian=is_free)
    if phase == DescentPhase.HESSIAN:
        second_differences.tell(state, candidates, values)
        return _begin_search(state, state.x)
    if phase == DescentPhase.CLOSE:
        return _tell_close(state, candidates[0], float(values[0]))
    value = float(values[0])
    if phase == DescentPhase.SEARCH:
        return _tell_search(state, candidates[0], value)
    inner.phase = DescentPhase.PROBE
    if not value < state.value:
        return state.x
    inner.length = EXPANSION * inner.length
    inner.phase = DescentPhase.EXPAND
    return _move(state, candidates[0], value)


def bfgs_update(basis: Array, step: Array, change: Array) -> tuple[Array, Array] | None:
    """Update a product-form BFGS basis Z by the step Z s, where the slopes along Z change by y.

    Returns:
        Z M and u, with M = I - s uᵀ and u = y / sᵀy - s / sqrt(sᵀy sᵀs); slopes g become
        g - u (sᵀg). None if the curvature was not positive.
    """
    xp = array_namespace(basis)
    curvature, square = float(step @ change), float(step @ step)
    if not curvature > 1e-8 * math.sqrt(square * float(change @ change)):
        return None
    root = math.sqrt(curvature) * math.sqrt(square)
    if root == 0 or not math.isfinite(root):
        return None
    u = change / curvature - step / root
    updated = basis - (basis @ step)[:, None] * u[None, :]
    return (updated, u) if bool(xp.all(xp.isfinite(updated))) else None


def _tell_start(state: SolverState, candidates: Array, values: Array) -> Array:
    xp = array_namespace(candidates)
    inner: DescentState = state.inner
    if inner.look.n_looks == 0 and not math.isfinite(float(values[0])):
        return _start_elsewhere(state, candidates, values)
    outcome = first_look.tell(state, candidates, values)
    if outcome is first_look.Outcome.LOOK_AGAIN:
        return inner.look.origin
    if outcome is first_look.Outcome.FLAT:
        return _restart(state, inner.look.origin)
    scales = first_look.widths(state)
    slopes = inner.look.gradient * scales
    eye = xp.eye(state.x.shape[0], dtype=values.dtype, device=device(values))
    inner.basis = xp.astype(eye * scales, candidates.dtype)
    inner.slopes = xp.astype(slopes, candidates.dtype)
    inner.is_central = inner.has_pair = False
    inner.n_stalls = inner.n_poor = 0
    inner.has_hessian = False
    inner.is_first, inner.n_above = True, 0
    return _begin_search(state, inner.look.origin)


def _tell_origins(state: SolverState, candidates: Array, values: Array) -> Array:
    """Begin a descent at the best of the origins; all may have failed."""
    xp = array_namespace(values)
    inner: DescentState = state.inner
    best = int(xp.argmin(xp.where(xp.isfinite(values), values, math.inf)))
    inner.look = first_look.begin(candidates[best], restarts.first_scales(state, inner.start))
    inner.phase = DescentPhase.START
    return state.x


def _start_elsewhere(state: SolverState, candidates: Array, values: Array) -> Array:
    """Continue from the best point of a START whose origin failed."""
    xp = array_namespace(candidates)
    inner: DescentState = state.inner
    best = int(xp.argmin(values))
    value = float(values[best])
    if not math.isfinite(value):
        return _restart(state, state.x)
    inner.look = first_look.begin(candidates[best], inner.look.scales)
    state.value = value
    return inner.look.origin


def _tell_probe(
    state: SolverState, candidates: Array, values: Array, *, may_measure_hessian: bool
) -> Array:
    inner: DescentState = state.inner
    xp = array_namespace(candidates)
    if differences.measures_iterate(state) and math.isfinite(again := float(values[0])):
        # The old value was selected for being low; the average reduces this bias.
        change = again - state.value
        inner.noise = differences.averaged_noise(inner.noise, change)
        state.value = state.value + change / 2
    elif may_measure_hessian and resolution.is_blind(state, candidates, values):
        return state.x
    first_look.remember_best(state, candidates, values, is_first=True)
    slopes = _completed(state, differences.basis_slopes(state, candidates, values), values)
    if not (math.isfinite(inner.fallback_value) and bool(xp.all(xp.isfinite(slopes)))):
        return _search_failed(state, state.x)
    # A failed probe has the slope 0, which is no measured change.
    before, inner.slopes = inner.slopes, slopes
    has_pair = inner.has_pair and bool(xp.all(xp.isfinite(values)))
    inner.has_pair = False
    if has_pair:
        step = inner.step
        update = bfgs_update(inner.basis, step, slopes - before)
        if update is not None:
            inner.basis, u = update
            inner.slopes = slopes - u * (step @ slopes)
        if may_measure_hessian and second_differences.is_due(state, before):
            inner.phase = DescentPhase.CLOSE
            resolution.begin_close(state)
            return state.x
    return _begin_search(state, state.x)


def _tell_close(state: SolverState, candidate: Array, value: float) -> Array:
    inner: DescentState = state.inner
    if resolution.sees_nothing(state, candidate, value):
        return state.x
    if second_differences.distance(state) > second_differences.MAX_DISTANCE:
        inner.has_hessian = True  # no other attempt
        return _begin_search(state, state.x)
    inner.phase = DescentPhase.HESSIAN
    return state.x


def _completed(state: SolverState, slopes: Array, values: Array) -> Array:
    """Return the slopes, with the prediction of the model for failed probes."""
    xp = array_namespace(slopes)
    inner: DescentState = state.inner
    has_failed = ~xp.isfinite(values)
    is_one_to_one = values.shape[0] == slopes.shape[0] and inner.near is None
    if not (is_one_to_one and inner.step is not None and bool(xp.any(has_failed))):
        return slopes
    expected = inner.slopes + inner.step if inner.has_pair else inner.slopes
    return xp.where(has_failed, expected, slopes)


def _begin_search(state: SolverState, x: Array) -> Array:
    inner: DescentState = state.inner
    slopes = inner.slopes
    square = float(slopes @ slopes)
    value = state.value
    state.metrics["gradient_norm"] = math.sqrt(square)
    is_behind = value - GIVE_UP_RATIO * square > inner.best_value
    if is_behind and not inner.is_central and inner.smoothing < 0.1:
        return _restart(state, x)
    step = box_step(state, slopes) if 0 < square < math.inf else None
    if step is None or not 0 < step.promised < math.inf:
        return _search_failed(state, x)
    if restarts.ends_at_best(state, x, step):
        return _restart(state, x)
    inner.direction, inner.in_basis, inner.promised = step
    inner.phase, inner.length, inner.n_trials = DescentPhase.SEARCH, 1.0, 0
    return x


def _tell_search(state: SolverState, candidate: Array, value: float) -> Array:
    inner: DescentState = state.inner
    length, square = inner.length, inner.promised
    change = value - state.value
    promised = length * square
    # Noise can hide a decrease (Berahas, Byrd & Nocedal 2019, arXiv 1803.10173).
    if change <= -SUFFICIENT_DECREASE * promised + 2 * inner.noise:
        inner.n_poor = inner.n_poor + 1 if length < POOR_LENGTH else 0
        expands = length == 1.0 and change < -0.9 * promised and _may_expand(state)
        inner.phase = DescentPhase.EXPAND if expands else DescentPhase.PROBE
        return _move(state, candidate, value)
    inner.n_trials += 1
    inner.n_rejected += 1
    if inner.is_first and _is_too_far(state, change):
        return _look_closer(state, candidate)
    bend = change + promised
    if not math.isfinite(bend):
        length *= 0.5 if inner.n_trials == 1 else 0.1  # a single failure may be chance
    else:  # the minimum of the parabola through both values and the slope
        length *= min(max(0.5 * promised / bend if bend > 0 else 0.5, 0.1), 0.5)
    inner.length = length
    too_short = length * length * square < differences.value_error(state)
    is_tied = change == 0 and promised > resolution.VISIBLE * differences.value_error(state)
    if is_tied or too_short or inner.n_trials >= MAX_TRIALS:
        return _search_failed(state, state.x)
    return state.x


def _is_too_far(state: SolverState, change: float) -> bool:
    """Return whether the last look was too far away, after the next trial of its first step."""
    inner: DescentState = state.inner
    is_above = abs(state.value) < change < math.inf
    inner.n_above += is_above
    is_similar = not is_above or inner.n_trials == MAX_TRIALS
    return is_similar and inner.n_above >= MAX_ABOVE and inner.n_renewals < MAX_RENEWALS


def _move(state: SolverState, x: Array, value: float) -> Array:
    """Accept a step of the current length, and adapt the smoothing."""
    inner: DescentState = state.inner
    inner.is_first = False
    error = differences.value_error(state)
    gained = state.value - value
    inner.n_stalls = inner.n_stalls + 1 if gained < 4 * error else 0
    state.value = value
    length = inner.length
    inner.step = length * inner.in_basis
    distance = length * math.sqrt(inner.promised)
    # Over a step shorter than the probes, a change of slopes is only error.
    inner.has_pair = distance * math.sqrt(x.shape[0]) > 2 * math.sqrt(error)
    _adapt_smoothing(state, distance / math.sqrt(x.shape[0]))
    if inner.n_stalls >= 3:
        return _restart(state, copy(x))
    return copy(x)


def _adapt_smoothing(state: SolverState, distance: float) -> None:
    inner: DescentState = state.inner
    smoothing = max(SMOOTHING_PER_STEP * distance, MAX_SHRINK * inner.smoothing)
    inner.smoothing = max(min(smoothing, 1.0), differences.least_smoothing(state))
    inner.is_central = False


def _search_failed(state: SolverState, x: Array) -> Array:
    """Take the best probe if it is better, else probe more carefully, else restart."""
    inner: DescentState = state.inner
    inner.phase, inner.has_pair = DescentPhase.PROBE, False
    inner.is_first = False
    inner.n_poor += 1
    if inner.n_poor >= MAX_POOR:
        can_renew = inner.n_renewals < MAX_RENEWALS
        return _renew(state, x) if can_renew else _restart(state, x)
    fallback_value = inner.fallback_value
    error = differences.value_error(state)
    if fallback_value < state.value - 2 * inner.noise:
        gained = state.value - fallback_value
        inner.n_stalls = inner.n_stalls + 1 if gained < 4 * error else 0
        state.value = fallback_value
        _adapt_smoothing(state, math.sqrt(x.shape[0]) * inner.smoothing)
        fallback: Array = inner.fallback
        return _restart(state, fallback) if inner.n_stalls >= 3 else fallback
    floor = differences.least_smoothing(state)
    smoothing = inner.smoothing
    if not inner.is_central:
        inner.is_central = True
        inner.smoothing = max(min(smoothing, 1.0), floor)
    elif smoothing > 1.01 * floor:
        inner.smoothing = max(MAX_SHRINK * smoothing, floor)
    else:
        return _restart(state, x)
    return x


def _look_closer(state: SolverState, trial: Array) -> Array:
    """Look again around the best point so far, as far away as ``trial`` is."""
    xp = array_namespace(trial)
    inner: DescentState = state.inner
    distance = float(xp.linalg.vector_norm((trial - state.x) / inner.look.scales))
    x: Array = state.x
    if inner.fallback_value < state.value - 2 * inner.noise:
        x, state.value = inner.fallback, inner.fallback_value
    return _renew(state, x, max(CLOSER, math.sqrt(x.shape[0]) / (distance or 1.0)))


def _renew(state: SolverState, x: Array, factor: float = CLOSER) -> Array:
    """Measure the landscape at x again with closer probes, because the model has failed."""
    inner: DescentState = state.inner
    inner.phase = DescentPhase.START
    inner.n_renewals += 1
    inner.n_spent = 0
    inner.look = first_look.begin(x, inner.look.scales / factor)
    return x


def _restart(state: SolverState, x: Array) -> Array:
    """End the descent at x, and plan the next one."""
    inner: DescentState = state.inner
    restarts.remember_end(state, x)
    inner.phase, inner.n_renewals = DescentPhase.START, 0
    inner.n_restarts += 1
    inner.n_spent = 0
    scales = restarts.first_scales(state, inner.start)
    is_new = inner.best_value < inner.looked_value
    if is_new and max(inner.grain, inner.reach) > 0:  # rounding looks like convergence
        inner.looked_value = inner.best_value
        inner.look = first_look.begin(inner.best, scales)
        return inner.look.origin
    if differences.measures_iterate(state):  # noise looks like convergence: stay and measure again
        inner.look = first_look.begin(x, scales)
        return x
    inner.phase = DescentPhase.ORIGINS
    return x


def _may_expand(state: SolverState) -> bool:
    """Return whether a longer step is inside the bounds."""
    inner: DescentState = state.inner
    end = state.x + EXPANSION * inner.length * inner.direction
    return bool(array_namespace(end).all(within_bounds(state, end) == end))
