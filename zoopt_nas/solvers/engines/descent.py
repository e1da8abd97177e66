"""A quasi-Newton descent along gradients of differences, up to 100 dimensions.

A run is a sequence of batches of four kinds. START measures a new starting point with a central
difference along every coordinate. PROBE measures the slopes at the iterate. SEARCH tries one length
of step, and EXPAND a longer one after a full step that the model did not expect to be so good.

The steps are those of BFGS in product form (Powell, "Updating conjugate directions by the BFGS
formula", Math. Programming 38, 1987): the columns of a basis Z, with Z Zᵀ the inverse Hessian
estimate, are conjugate directions along which the modelled curvature is 1. The slopes g are
measured along these columns, so the step is -Z g, the decrease that Newton's method still expects
is |g|²/2, and a difference over a distance h along a column is wrong by about h/2 from curvature
and 2ε/h from errors ε of the values: h = 2 sqrt(ε) balances the two whatever the units of x
(Berahas et al. 2021, arXiv 1905.01332).
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy, device
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.engines import first_look
from zoopt_nas.solvers.engines.box_steps import box_step
from zoopt_nas.solvers.engines.differences import (
    basis_slopes,
    measures_iterate,
    probe_basis,
    value_error,
)
from zoopt_nas.solvers.engines.first_look import Outcome
from zoopt_nas.solvers.state import within_bounds
from zoopt_nas.solvers.widening import natural_size

# Above this dim a (dim, dim) basis costs more than its share of a step.
MAX_BASIS_DIM = 100

# A step is accepted if it brings this part of the decrease that its slope promises (Armijo).
SUFFICIENT_DECREASE = 0.1
# A full step that brings nearly all of the slope's promise met no curvature: try one this longer.
EXPANSION = 4.0
MAX_TRIALS = 8
# After so many searches in a row that failed or ended shorter than this, the model is made anew,
# from probes that are closer by this factor.
POOR_LENGTH = 0.1
MAX_POOR = 6
CLOSER = 8.0
MAX_RENEWALS = 3
# The probes come closer with the steps, but not faster than this: the first steps see the
# landscape at a coarse scale, as in implicit filtering (Gilmore & Kelley 1995).
SMOOTHING_PER_STEP = 0.01
MAX_SHRINK = 0.1
# A local descent is given up if 10 times the decrease that it expects leaves it above the best one.
GIVE_UP_RATIO = 10.0
# Each second restart goes so much farther, up to 17 times, and then it begins anew.
RESTART_GROWTH = 1.5
N_SPREADS = 8


class Phase(IntEnum):
    """What the pending batch is for."""

    START = 0
    PROBE = 1
    SEARCH = 2
    EXPAND = 3


def begin(state: SolverState) -> None:
    """Prepares ``state.memory`` for a descent from ``state.x``."""
    state.memory.update(
        phase=int(Phase.START),
        value=math.inf,
        noise=0.0,
        origin_value=0.0,
        jitter=0.0,
        n_restarts=0,
        start=copy(state.x),
        best=copy(state.x),
        best_value=math.inf,
        n_renewals=0,
    )
    first_look.begin_look(state, state.x, _first_scales(state))


def ask(state: SolverState, *, smoothing: float | None) -> Array:
    """Returns the batch of the current phase.

    Args:
        state: the run.
        smoothing: the distance of the probes; None for one that follows the steps.
    """
    memory = state.memory
    phase = int(memory["phase"])
    if phase == Phase.START:
        return first_look.ask_look(state)
    if phase == Phase.PROBE:
        return probe_basis(state, smoothing)
    length = float(memory["length"])
    if phase == Phase.EXPAND:  # the iterate has already moved by one length
        length *= EXPANSION - 1
    return within_bounds(state, state.x + length * memory["direction"])[None, :]


def tell(state: SolverState, candidates: Array, values: Array) -> Array:
    """Returns the new iterate."""
    memory = state.memory
    phase = int(memory["phase"])
    if phase == Phase.START:
        return _tell_start(state, candidates, values)
    if phase == Phase.PROBE:
        return _tell_probe(state, candidates, values)
    value = float(values[0])
    if phase == Phase.SEARCH:
        return _tell_search(state, candidates[0], value)
    memory["phase"] = int(Phase.PROBE)
    if not value < float(memory["value"]):
        return state.x
    memory["length"] = EXPANSION * float(memory["length"])
    memory["phase"] = int(Phase.EXPAND)
    return _move(state, candidates[0], value)


def averaged_noise(noise: float, change: float) -> float:
    """Takes in how two values of one point differ; the mean square over the last few counts."""
    if noise == 0:
        return abs(change) / math.sqrt(2)
    averaged = math.hypot(math.sqrt(0.7) * noise, math.sqrt(0.15) * change)
    return averaged if math.isfinite(averaged) else noise


def bfgs_update(basis: Array, step: Array, change: Array) -> tuple[Array, Array] | None:
    """Updates a product-form BFGS basis Z by one step.

    With s, y the step and the change of the slopes, both in coordinates of the basis, the inverse
    Hessian I of these coordinates becomes M Mᵀ, M = I - s uᵀ, u = y / sᵀy - s / sqrt(sᵀy sᵀs).

    Args:
        basis: (dim, dim) Z.
        step: (dim,) s, the step was Z s.
        change: (dim,) y = Zᵀ (difference of the gradients).

    Returns:
        Z M and u (slopes g become g - u (sᵀg)), or None if the step met no positive curvature.
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
    memory = state.memory
    if int(memory["n_looks"]) == 0 and not math.isfinite(float(values[0])):
        return _start_elsewhere(state, candidates, values)
    outcome = first_look.tell_look(state, candidates, values)
    if outcome is Outcome.LOOK_AGAIN:
        return memory["origin"]
    if outcome is Outcome.FLAT:
        return _restart(state, memory["origin"])
    widths = first_look.widths(state)
    slopes = memory["gradient"] * widths
    eye = xp.eye(state.x.shape[0], dtype=values.dtype, device=device(values))
    memory["basis"] = xp.astype(eye * widths, candidates.dtype)
    memory.update(central=0, has_pair=0, n_stalls=0, slopes=xp.astype(slopes, candidates.dtype))
    memory.update(n_poor=0)
    return _begin_search(state, memory["origin"])


def _start_elsewhere(state: SolverState, candidates: Array, values: Array) -> Array:
    """Goes on from the best of a START whose origin failed."""
    xp = array_namespace(candidates)
    memory = state.memory
    best = int(xp.argmin(values))
    value = float(values[best])
    if not math.isfinite(value):
        return _restart(state, state.x)
    first_look.begin_look(state, candidates[best], memory["scales"])
    memory["value"] = value
    return memory["origin"]


def _tell_probe(state: SolverState, candidates: Array, values: Array) -> Array:
    memory = state.memory
    xp = array_namespace(candidates)
    if measures_iterate(state) and math.isfinite(again := float(values[0])):
        # The value on record was picked because it is low; the mean forgets that.
        change = again - float(memory["value"])
        memory["noise"] = averaged_noise(float(memory["noise"]), change)
        memory["value"] = float(memory["value"]) + change / 2
    _remember_fallback(state, candidates, values)
    slopes = _completed(state, basis_slopes(state, candidates, values), values)
    if not (math.isfinite(memory["fallback_value"]) and bool(xp.all(xp.isfinite(slopes)))):
        return _search_failed(state, state.x)
    # Slopes that a failure left at 0 would pass for a change.
    if int(memory["has_pair"]) and bool(xp.all(xp.isfinite(values))):
        step = memory["step"]
        update = bfgs_update(memory["basis"], step, slopes - memory["slopes"])
        if update is not None:
            memory["basis"], u = update
            slopes = slopes - u * (step @ slopes)
    memory["slopes"] = slopes
    memory["has_pair"] = 0
    return _begin_search(state, state.x)


def _completed(state: SolverState, slopes: Array, values: Array) -> Array:
    """Returns slopes in which that of a failed probe is what the model expects."""
    xp, memory = array_namespace(slopes), state.memory
    has_failed = ~xp.isfinite(values)
    is_one_to_one = values.shape[0] == slopes.shape[0] and "near" not in memory
    if not (is_one_to_one and "step" in memory and bool(xp.any(has_failed))):
        return slopes
    has_moved = bool(int(memory["has_pair"]))
    expected = memory["slopes"] + memory["step"] if has_moved else memory["slopes"]
    return xp.where(has_failed, expected, slopes)


def _remember_fallback(state: SolverState, candidates: Array, values: Array) -> None:
    """Keeps the best probe: if no step along the estimate succeeds, it may still be better."""
    xp = array_namespace(candidates)
    best = int(xp.argmin(values))
    state.memory["fallback"] = copy(candidates[best])
    state.memory["fallback_value"] = float(values[best])


def _begin_search(state: SolverState, x: Array) -> Array:
    memory = state.memory
    slopes = memory["slopes"]
    square = float(slopes @ slopes)
    value = float(memory["value"])
    state.metrics["gradient_norm"] = math.sqrt(square)
    is_behind = value - GIVE_UP_RATIO * square > float(memory["best_value"])
    if is_behind and not int(memory["central"]) and float(memory["smoothing"]) < 0.1:
        return _restart(state, x)
    step = box_step(state, slopes) if 0 < square < math.inf else None
    if step is None or not 0 < step.promised < math.inf:
        return _search_failed(state, x)
    memory.update(direction=step.direction, in_basis=step.in_basis, square=step.promised)
    memory.update(phase=int(Phase.SEARCH), length=1.0, n_trials=0)
    return x


def _tell_search(state: SolverState, candidate: Array, value: float) -> Array:
    memory = state.memory
    length, square = float(memory["length"]), float(memory["square"])
    change = value - float(memory["value"])
    promised = length * square
    # Under noise, a step that seems to rise may fall (Berahas, Byrd & Nocedal 2019, 1803.10173).
    if change <= -SUFFICIENT_DECREASE * promised + 2 * float(memory["noise"]):
        memory["n_poor"] = int(memory["n_poor"]) + 1 if length < POOR_LENGTH else 0
        expands = length == 1.0 and change < -0.9 * promised and _may_expand(state)
        memory["phase"] = int(Phase.EXPAND if expands else Phase.PROBE)
        return _move(state, candidate, value)
    memory["n_trials"] = int(memory["n_trials"]) + 1
    bend = change + promised
    if not math.isfinite(bend):
        length *= 0.5 if int(memory["n_trials"]) == 1 else 0.1  # failures may be rare
    else:  # the minimum of the parabola through the value, the slope and the trial
        length *= min(max(0.5 * promised / bend if bend > 0 else 0.5, 0.1), 0.5)
    memory["length"] = length
    xp = array_namespace(candidate)
    too_short = length * length * square < value_error(memory, candidate.dtype, xp)
    if too_short or int(memory["n_trials"]) >= MAX_TRIALS:
        return _search_failed(state, state.x)
    return state.x


def _move(state: SolverState, x: Array, value: float) -> Array:
    """Accepts a step of the current length, and sets the smoothing that suits it."""
    memory = state.memory
    xp = array_namespace(x)
    error = value_error(memory, x.dtype, xp)
    gained = float(memory["value"]) - value
    memory["n_stalls"] = int(memory["n_stalls"]) + 1 if gained < 4 * error else 0
    memory["value"] = value
    length = float(memory["length"])
    memory["step"] = length * memory["in_basis"]
    distance = length * math.sqrt(float(memory["square"]))
    # A change of slopes over a step shorter than the probes is all error.
    memory["has_pair"] = int(distance * math.sqrt(x.shape[0]) > 2 * math.sqrt(error))
    _adapt_smoothing(memory, distance / math.sqrt(x.shape[0]), error)
    if int(memory["n_stalls"]) >= 3:
        return _restart(state, copy(x))
    return copy(x)


def _adapt_smoothing(memory: dict[str, Any], distance: float, error: float) -> None:
    smoothing = max(SMOOTHING_PER_STEP * distance, MAX_SHRINK * float(memory["smoothing"]))
    memory["smoothing"] = max(min(smoothing, 1.0), 2 * math.sqrt(error))
    memory["central"] = 0


def _search_failed(state: SolverState, x: Array) -> Array:
    """Falls back on the best probe, else probes more carefully, else starts anew."""
    memory = state.memory
    memory.update(phase=int(Phase.PROBE), has_pair=0, n_poor=int(memory["n_poor"]) + 1)
    xp = array_namespace(x)
    if int(memory["n_poor"]) >= MAX_POOR:
        can_renew = int(memory["n_renewals"]) < MAX_RENEWALS
        return _renew(state, x) if can_renew else _restart(state, x)
    fallback_value = float(memory["fallback_value"])
    error = value_error(memory, x.dtype, xp)
    if fallback_value < float(memory["value"]) - 2 * float(memory["noise"]):
        gained = float(memory["value"]) - fallback_value
        memory["n_stalls"] = int(memory["n_stalls"]) + 1 if gained < 4 * error else 0
        memory["value"] = fallback_value
        _adapt_smoothing(memory, math.sqrt(x.shape[0]) * float(memory["smoothing"]), error)
        fallback: Array = memory["fallback"]
        return _restart(state, fallback) if int(memory["n_stalls"]) >= 3 else fallback
    floor = 2 * math.sqrt(error)
    smoothing = float(memory["smoothing"])
    if not int(memory["central"]):
        memory["central"] = 1
        memory["smoothing"] = max(min(smoothing, 1.0), floor)
    elif smoothing > 1.01 * floor:
        memory["smoothing"] = max(MAX_SHRINK * smoothing, floor)
    else:
        return _restart(state, x)
    return x


def _renew(state: SolverState, x: Array) -> Array:
    """Measures the landscape at x anew, from closer by: the model has led nowhere."""
    memory = state.memory
    memory.update(phase=int(Phase.START), n_renewals=int(memory["n_renewals"]) + 1)
    first_look.begin_look(state, x, memory["scales"] / CLOSER)
    return x


def _restart(state: SolverState, x: Array) -> Array:
    """Draws the origin of the next START: in turn around the best point and around the start."""
    xp = array_namespace(x)
    memory = state.memory
    if float(memory["value"]) < float(memory["best_value"]):
        memory.update(best=copy(x), best_value=float(memory["value"]))
    n_restarts = int(memory["n_restarts"]) + 1
    memory.update(phase=int(Phase.START), n_restarts=n_restarts, n_renewals=0)
    scales = _first_scales(state)
    if measures_iterate(state):  # noise looks like an end: stay, and measure the landscape anew
        first_look.begin_look(state, x, scales)
        return x
    centre = memory["best"] if n_restarts % 2 else memory["start"]
    spread = RESTART_GROWTH ** ((n_restarts - 1) // 2 % N_SPREADS)
    origin = centre + spread * scales * sampling.gaussian(state.rng, 1, x)[0]
    if state.lower is not None and state.upper is not None:
        # Clipped, it would most often lie in a corner: where it left the box it may be anywhere.
        width = state.upper - state.lower
        leaves = ((origin < state.lower) | (origin > state.upper)) & xp.isfinite(width)
        if bool(xp.any(leaves)):
            anywhere = state.lower + width * sampling.uniform(state.rng, x.shape[0], x)
            origin = xp.where(leaves, anywhere, origin)
    first_look.begin_look(state, within_bounds(state, origin), scales)
    return x


def _first_scales(state: SolverState) -> Array:
    """Returns how far the first probes of a START are away along each coordinate, (dim,)."""
    xp = array_namespace(state.x)
    scale = 1.0 if state.is_scaled else natural_size(state.memory["start"])
    return xp.ones_like(state.x) * scale


def _may_expand(state: SolverState) -> bool:
    """Whether a longer step than the last is inside the bounds."""
    end = state.x + EXPANSION * float(state.memory["length"]) * state.memory["direction"]
    return bool(array_namespace(end).all(within_bounds(state, end) == end))
