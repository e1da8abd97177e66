"""Slopes from differences of values: the probes of a descent, and their evaluation."""

from __future__ import annotations

import math
from typing import Any

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, device, value_dtype
from zoopt_nas.solvers.engines import box_steps
from zoopt_nas.solvers.engines.descent_state import DescentState
from zoopt_nas.solvers.state import SolverState

# The share of the last change in the estimate of the noise; the least change, in units of what the
# estimate lets expect; and the geometric mean of |z| for a standard normal z.
LAST_SHARE = 0.4
LEAST_RATIO = 0.1
TYPICAL_NORMAL = math.sqrt(2 * math.exp(-0.5772156649015329)) / 2


def measures_iterate(state: SolverState) -> bool:
    """Return whether row 0 of a PROBE is the iterate, which is measured again under noise."""
    noise: float = state.inner.noise
    return noise > 0


def averaged_noise(noise: float, change: float) -> float:
    """Update the noise by a change of value at one point.

    It grows as the mean square of the last few changes, and falls faster, as a geometric mean of
    them, because noise that is proportional to the value falls with it.
    """
    shown = abs(change) / math.sqrt(2)
    if noise == 0:
        return shown
    if shown > noise:
        averaged = math.hypot(math.sqrt(1 - LAST_SHARE) * noise, math.sqrt(LAST_SHARE) * shown)
    else:
        averaged = noise * max(shown / (TYPICAL_NORMAL * noise), LEAST_RATIO) ** LAST_SHARE
    return averaged if math.isfinite(averaged) else noise


def value_error(state: SolverState) -> float:
    """Return ε, the error of a value near the iterate: of noise, few digits, or rounding.

    If the least value is 0, rounding gives no bound: then the error is eps^1.5 of the value at the
    origin, some 24 decades below it in float64.
    """
    inner: DescentState = state.inner
    eps = float(array_namespace(state.x).finfo(state.x.dtype).eps)
    value = abs(state.value)
    rounding = 4 * eps * value if math.isfinite(value) else 0.0
    smallest = eps * math.sqrt(eps) * inner.origin_value
    return max(rounding, smallest, 2 * inner.jitter, inner.grain / 2, inner.noise, _hidden(inner))


def _hidden(inner: DescentState) -> float:
    """Return the change of value over a quarter of ``reach``, on average over the columns."""
    if inner.reach == 0 or inner.basis is None:
        return 0.0
    xp = array_namespace(inner.basis)
    length = float(xp.mean(xp.linalg.vector_norm(inner.basis, axis=0)))
    slope = float(xp.linalg.vector_norm(inner.slopes)) / length if length > 0 else 0.0
    return slope * inner.reach / 4


def probe_basis(state: SolverState, smoothing: float | None) -> Array:
    """Return one point or, if ``is_central``, a pair on each column of the basis; (n, dim)."""
    xp = array_namespace(state.x)
    inner: DescentState = state.inner
    near = inner.near = box_steps.near_bounds(state, probe_reach(state, smoothing))
    if near is not None:
        box_steps.align(state, near)
    # Probe a random side.
    signs = sampling.rademacher(state.rng, 1, state.x)[0]
    inner.steps = signs * probe_distances(state, smoothing)
    steps = xp.matrix_transpose(inner.basis) * inner.steps[:, None]
    if near is None:
        rows = _sides(state, steps, -steps)
    else:
        inwards = _inward_rows(state, near, smoothing)
        free = steps[inwards.shape[0] :]
        rows = xp.concat([_sides(state, inwards, inwards / 2), _sides(state, free, -free)], axis=0)
    if measures_iterate(state):
        rows = xp.concat([state.x[None, :], rows], axis=0)
    return rows


def basis_slopes(state: SolverState, candidates: Array, values: Array) -> Array:
    """Return the slopes (dim,) along the columns of the basis."""
    xp = array_namespace(candidates)
    inner: DescentState = state.inner
    first = int(measures_iterate(state))
    rows = candidates[first:]
    changes = values[first:] - state.value
    if was_repaired(state, candidates):
        alive = xp.isfinite(changes)
        displacements = xp.where(alive[:, None], rows - state.x, 0.0)
        changes = xp.where(alive, changes, 0.0)
        gradient = interpolated_gradient(displacements, changes)
        return xp.matrix_transpose(inner.basis) @ gradient
    steps = xp.astype(inner.steps, values.dtype)
    near = inner.near
    if near is None:
        return xp.astype(_slopes(inner.is_central, changes, steps, -steps, 1.0), candidates.dtype)
    n_rows = (2 if inner.is_central else 1) * inner.inwards.shape[0]
    inwards = xp.astype(inner.inwards, values.dtype)
    curvatures = _coordinate_curvatures(state, near)
    near_slopes = _slopes(inner.is_central, changes[:n_rows], inwards, inwards / 2, curvatures)
    free = steps[inwards.shape[0] :]
    slopes = _slopes(inner.is_central, changes[n_rows:], free, -free, 1.0)
    slopes = box_steps.gradient_near_bounds(state, near, near_slopes, slopes)
    return xp.astype(slopes, candidates.dtype)


def _slopes(
    is_central: bool, changes: Array, ahead: Array, behind: Array, curvatures: Any
) -> Array:
    """Return the slopes along several lines; unknown ones are 0.

    ``changes`` holds the changes of value at the distances ``ahead`` or, if central, alternately
    ``ahead`` and ``behind``; ``curvatures`` are modelled.
    """
    xp = array_namespace(changes)
    if is_central:
        slopes, _ = parabola(ahead, behind, changes[::2], changes[1::2])
    else:
        safe = xp.where(ahead == 0, 1.0, ahead)
        slopes = xp.where(ahead == 0, 0.0, changes / safe - curvatures * ahead / 2)
    return xp.where(xp.isfinite(slopes), slopes, 0.0)


def _sides(state: SolverState, ahead: Array, behind: Array) -> Array:
    """Return the points at the displacements, (k, dim), alternately on both sides if central."""
    xp = array_namespace(state.x)
    if not state.inner.is_central:
        return state.x + ahead
    return xp.reshape(xp.stack([state.x + ahead, state.x + behind], axis=1), (-1, state.x.shape[0]))


def _inward_rows(state: SolverState, near: Array, smoothing: float | None) -> Array:
    """Return the displacements (k, dim) of the coordinates near a bound, one per row."""
    xp = array_namespace(state.x)
    state.inner.inwards = box_steps.inward_steps(state, near, probe_reach(state, smoothing))
    eye = xp.eye(state.x.shape[0], dtype=state.x.dtype, device=device(state.x))
    return eye[near, :] * state.inner.inwards[:, None]


def _coordinate_curvatures(state: SolverState, near: Array) -> Array:
    """Return the modelled curvatures along the coordinates near a bound, (k,)."""
    xp = array_namespace(state.x)
    basis = xp.astype(state.inner.basis, value_dtype(state.x))
    try:
        inverse = xp.linalg.inv(basis)
    except (ValueError, RuntimeError):  # LinAlgError of NumPy, of torch: singular
        return xp.zeros_like(basis[0, :])[near]
    return xp.sum(inverse * inverse, axis=0)[near]


def probe_reach(state: SolverState, smoothing: float | None) -> Array:
    """Return how far a probe may move each coordinate, (dim,)."""
    xp = array_namespace(state.x)
    if smoothing is not None:
        return xp.ones_like(state.x) * smoothing
    reach = adapted_smoothing(state) * xp.linalg.vector_norm(state.inner.basis, axis=1)
    return xp.where(reach < state.inner.reach, state.inner.reach, reach)


def was_repaired(state: SolverState, candidates: Array) -> bool:
    """Return whether the evaluated rows differ from the pending ones."""
    if candidates is state.pending:
        return False
    return bool(array_namespace(candidates).any(candidates != state.pending))


def probe_distances(state: SolverState, smoothing: float | None) -> Array:
    """Return the distance of the probes along each column, in units of its length; (dim,)."""
    xp = array_namespace(state.x)
    lengths = xp.linalg.vector_norm(state.inner.basis, axis=0)
    lengths = xp.where(lengths > 0, lengths, 1.0)
    if smoothing is None:
        distances = xp.ones_like(state.x) * adapted_smoothing(state)
        farther = state.inner.reach / lengths
        return xp.where(distances < farther, farther, distances)
    return smoothing / lengths


def least_smoothing(state: SolverState) -> float:
    """Return the least distance that probes need, in lengths of the columns."""
    xp = array_namespace(state.x)
    inner: DescentState = state.inner
    longest = float(xp.max(xp.linalg.vector_norm(inner.basis, axis=0)))
    farther = inner.reach / longest if longest > 0 else 0.0
    return max(2 * math.sqrt(value_error(state)), min(farther, 1.0))


def adapted_smoothing(state: SolverState) -> float:
    """Return the adapted distance of the probes, limited to prevent overflow."""
    xp = array_namespace(state.x)
    largest = float(xp.finfo(state.x.dtype).max)
    inner: DescentState = state.inner
    return min(inner.smoothing, math.sqrt(largest))


def interpolated_gradient(displacements: Array, differences: Array) -> Array:
    """Return the least-norm least-squares solution g of displacements @ g = differences.

    The k rows are weighted by 1 / length, because curvature adds more error over longer distances.
    """
    xp = array_namespace(displacements)
    dtype = xp.float64 if displacements.dtype == xp.float64 else xp.float32
    rows = xp.astype(displacements, dtype)
    lengths = xp.linalg.vector_norm(rows, axis=1)
    weights = xp.where(lengths > 0, 1 / xp.where(lengths > 0, lengths, 1.0), 0.0)
    rcond = 10 * max(rows.shape) * float(xp.finfo(dtype).eps)
    inverse = xp.linalg.pinv(rows * weights[:, None], rtol=rcond)
    gradient = inverse @ (weights * xp.astype(differences, dtype))
    return xp.astype(gradient, displacements.dtype)


def parabola(a: Array, b: Array, fa: Array, fb: Array) -> tuple[Array, Array]:
    """Return slope and curvature at 0 of the parabolas through (0, 0), (a, fa) and (b, fb)."""
    xp = array_namespace(a)
    has_a = xp.isfinite(fa) & (a != 0)
    has_b = xp.isfinite(fb) & (b != 0) & (a != b)
    both = has_a & has_b
    a, b = xp.where(has_a, a, 1.0), xp.where(has_b, b, -1.0)
    ra, rb = xp.where(has_a, fa, 0.0) / a, xp.where(has_b, fb, 0.0) / b
    gap = xp.where(both, a - b, 1.0)
    slope = xp.where(both, (rb * a - ra * b) / gap, ra + rb)  # a missing ratio is 0
    curvature = xp.where(both, 2 * (ra - rb) / gap, 0.0)
    finite = xp.isfinite(slope) & xp.isfinite(curvature)
    return xp.where(finite, slope, 0.0), xp.where(finite, curvature, 0.0)


def orthogonal_to(known: Array, n: int, state: SolverState) -> Array:
    """Draw n <= dim - k orthonormal rows that are orthogonal to the k rows of ``known``."""
    xp = array_namespace(known)
    k = known.shape[0]
    block = xp.concat([known, sampling.gaussian(state.rng, n, state.x)], axis=0)
    dtype = xp.float64 if block.dtype == xp.float64 else xp.float32  # LAPACK has no others
    # The columns k.. of Q are orthogonal to the span of the first k.
    columns = xp.linalg.qr(xp.matrix_transpose(xp.astype(block, dtype)))[0]
    return xp.astype(xp.matrix_transpose(columns)[k:, :], known.dtype)
