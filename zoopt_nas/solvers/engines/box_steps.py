"""Probes and steps of a quasi-Newton model that stay inside a box.

The columns of a basis Z are directions of modelled curvature 1; Z Q is an equivalent basis for any
orthogonal Q. If k coordinates are near a bound, Q is chosen such that all but k columns leave them
unchanged. Those columns are probed as without bounds, and the k coordinates one by one, inwards.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from zoopt_nas._arrays import Array, array_namespace, device, value_dtype
from zoopt_nas.solvers.engines.descent_state import DescentState
from zoopt_nas.solvers.state import SolverState

# Rounds of block pivots without progress before single pivots.
MAX_BLOCK_PIVOTS = 3


def slacks(x: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Return the distances to the lower and the upper bounds, (dim,) each."""
    xp = array_namespace(x)
    zero = xp.zeros_like(x)
    return xp.maximum(x - lower, zero), xp.maximum(upper - x, zero)


def paired_offsets(state: SolverState, origin: Array, steps: Array) -> tuple[Array, Array]:
    """Return two displacements along each coordinate, (dim,) each, that stay inside the bounds.

    They are ±step if there is room for both. Otherwise both are on the side with more room, or on
    both sides as far as possible. They are 0 for a coordinate that cannot move.
    """
    if state.lower is None or state.upper is None:
        return steps, -steps
    xp = array_namespace(origin)
    down, up = slacks(origin, state.lower, state.upper)
    length, sign = xp.abs(steps), xp.where(steps < 0, -1.0, 1.0)
    far = xp.minimum(length, xp.maximum(down, up))
    outwards = xp.where(up >= down, 1.0, -1.0)
    near = xp.minimum(length, xp.minimum(down, up))
    has_room = near >= length
    # Use the side with less room only if it is not much shorter.
    other = xp.where(near > 0.3 * far, -outwards * near, outwards * far / 2)
    ahead = xp.where(has_room, sign * length, outwards * far)
    behind = xp.where(has_room, -sign * length, other)
    return xp.astype(ahead, origin.dtype), xp.astype(behind, origin.dtype)


def near_bounds(state: SolverState, reach: Array) -> Array | None:
    """Return which coordinates, (dim,), are within ``reach`` of a bound; None if there are none."""
    if state.lower is None or state.upper is None:
        return None
    xp = array_namespace(state.x)
    down, up = slacks(state.x, state.lower, state.upper)
    is_near = xp.minimum(down, up) <= reach
    return is_near if bool(xp.any(is_near)) else None


def align(state: SolverState, is_near: Array) -> None:
    """Rotate the basis such that only its first columns move the coordinates near a bound."""
    xp = array_namespace(state.x)
    inner: DescentState = state.inner
    basis = xp.astype(inner.basis, value_dtype(state.x))
    k = int(xp.sum(xp.astype(is_near, xp.int64)))
    turn = xp.linalg.qr(xp.matrix_transpose(basis[is_near, :]), mode="complete")[0]
    turned = basis @ turn
    free_columns = xp.arange(turned.shape[1], device=device(basis)) >= k
    turned = xp.where(is_near[:, None] & free_columns[None, :], 0.0, turned)
    inner.basis = xp.astype(turned, state.x.dtype)
    inner.slopes, inner.step = _turned(inner.slopes, turn), _turned(inner.step, turn)


def _turned(vector: Array | None, turn: Array) -> Array | None:
    """Return coordinates of the basis, (dim,), as coordinates of the rotated basis."""
    if vector is None:
        return None
    xp = array_namespace(vector)
    return xp.astype(xp.astype(vector, turn.dtype) @ turn, vector.dtype)


def inward_steps(state: SolverState, is_near: Array, lengths: Array) -> Array:
    """Return a displacement away from the bound, (k,), for each coordinate near one."""
    xp = array_namespace(state.x)
    down, up = slacks(state.x, state.lower, state.upper)
    far = xp.minimum(lengths, xp.maximum(down, up))
    return xp.where(up >= down, far, -far)[is_near]


def gradient_near_bounds(
    state: SolverState, is_near: Array, slopes_near: Array, slopes_free: Array
) -> Array:
    """Return the slopes (dim,) along all columns of a basis rotated by ``align``.

    They follow from the derivatives (k,) in the coordinates near a bound and the slopes (dim - k,)
    along the other columns.
    """
    xp = array_namespace(state.x)
    basis = xp.astype(state.inner.basis, slopes_near.dtype)
    k = slopes_near.shape[0]
    gradient = xp.zeros_like(basis[0, :])
    gradient[is_near] = slopes_near
    if slopes_free.shape[0] > 0:
        free = basis[~is_near, k:]
        with suppress(ValueError, RuntimeError):  # LinAlgError of NumPy, of torch: singular
            solved = xp.linalg.solve(xp.matrix_transpose(free), slopes_free[:, None])
            gradient[~is_near] = solved[:, 0]
    slopes = xp.matrix_transpose(basis) @ gradient
    slopes[k:] = slopes_free
    return slopes


class BoxStep(NamedTuple):
    """A step inside the bounds: Z times ``in_basis``, and the decrease that the slope predicts."""

    direction: Array
    in_basis: Array
    promised: float


def box_step(state: SolverState, slopes: Array) -> BoxStep:
    """Return the step to the minimum of the model inside the bounds; ``slopes`` is Zᵀ ∇f."""
    xp = array_namespace(state.x)
    direction = -(state.inner.basis @ slopes)
    free = BoxStep(direction, -slopes, float(slopes @ slopes))
    if state.lower is None or state.upper is None:
        return free
    end = state.x + direction
    if bool(xp.all((end >= state.lower) & (end <= state.upper))):
        return free
    kind = value_dtype(state.x)
    basis, x, rates = (xp.astype(a, kind) for a in (state.inner.basis, state.x, slopes))
    lower, upper = xp.astype(state.lower, kind), xp.astype(state.upper, kind)
    try:
        inverse = xp.linalg.inv(basis)
        gradient = xp.matrix_transpose(inverse) @ rates
        step = _bounded_newton(x, gradient, inverse, lower, upper)
    except (ValueError, RuntimeError):  # LinAlgError of NumPy, of torch: singular
        return BoxStep(_projected(end, state.lower, state.upper) - state.x, -slopes, free.promised)
    if not -float(gradient @ step) > 0:  # rounding; single coordinates always descend
        squares = xp.sum(basis * basis, axis=1)
        step = _projected(x - squares * gradient, lower, upper) - x
    return BoxStep(
        xp.astype(step, state.x.dtype),
        xp.astype(inverse @ step, state.x.dtype),
        -float(gradient @ step),
    )


def _bounded_newton(x: Array, gradient: Array, inverse: Array, lower: Array, upper: Array) -> Array:
    """Minimize gᵀd + |Z⁻¹d|² / 2 subject to the bounds of x + d, by block principal pivoting.

    Each round solves for the free coordinates, fixes those that leave the bounds, and frees those
    that the gradient pulls inwards. It changes all of them, or only the last one once their number
    has stopped falling, which terminates for any positive definite matrix (Júdice and Pires, "A
    block principal pivoting algorithm for large-scale strictly monotone linear complementarity
    problems", Computers & Operations Research 21, 1994).
    """
    xp = array_namespace(x)
    hessian = xp.matrix_transpose(inverse) @ inverse
    at_lower = ((x <= lower) & (gradient > 0)) | (lower == upper)
    at_upper = (x >= upper) & (gradient < 0) & ~at_lower
    fewest, patience = x.shape[0] + 1, MAX_BLOCK_PIVOTS
    step = xp.zeros_like(x)
    for _ in range(10 * x.shape[0] + 10):
        step = xp.where(at_lower, lower - x, xp.where(at_upper, upper - x, 0.0))
        free = ~(at_lower | at_upper)
        if bool(xp.any(free)):
            pull = -(gradient + hessian @ step)[free]
            step[free] = xp.linalg.solve(hessian[free, :][:, free], pull[:, None])[:, 0]
        slope, end = gradient + hessian @ step, x + step
        too_low, too_high = free & (end < lower), free & (end > upper)
        is_wrong = too_low | too_high | (at_lower & (slope < 0)) | (at_upper & (slope > 0))
        is_wrong = is_wrong & (lower < upper)
        n_wrong = int(xp.sum(xp.astype(is_wrong, xp.int64)))
        if n_wrong == 0:
            break
        if n_wrong < fewest:
            fewest, patience = n_wrong, MAX_BLOCK_PIVOTS
        elif patience > 0:
            patience -= 1
        else:
            last = int(xp.nonzero(is_wrong)[0][-1])
            is_wrong = xp.arange(x.shape[0], device=device(x)) == last
        at_lower = (at_lower & ~is_wrong) | (too_low & is_wrong)
        at_upper = (at_upper & ~is_wrong) | (too_high & is_wrong)
    return _projected(x + step, lower, upper) - x


def _projected(x: Array, lower: Array, upper: Array) -> Array:
    xp = array_namespace(x)
    return xp.minimum(xp.maximum(x, lower), upper)
