"""The whole Hessian of a descent from second differences, once, when gradients alone are slow.

With the values at x ± h z_i and x + h (z_i + z_j), i < j, of the columns z of a basis, the slopes
and the second derivatives along all columns are known. These n (n + 3) / 2 evaluations cost as much
as (n + 3) / 2 gradients, while BFGS takes n steps to learn the Hessian of a quadratic, and with
exact line searches only (Nocedal and Wright, "Numerical Optimization", 2006, theorem 6.4). The
basis becomes Z V |Λ|^(-1/2) of the eigenvalues Λ and eigenvectors V.
"""

from __future__ import annotations

import math

from zoopt_nas._arrays import Array, array_namespace, device
from zoopt_nas.solvers.engines import box_steps
from zoopt_nas.solvers.engines.descent_state import DescentState
from zoopt_nas.solvers.engines.differences import value_error, was_repaired
from zoopt_nas.solvers.engines.first_look import remember_best
from zoopt_nas.solvers.state import SolverState

# The least and the largest distance, in lengths of the columns.
MIN_DISTANCE = 1e-3
MAX_DISTANCE = 0.3
# Curvatures below this fraction of the largest one are not measured well: the third derivatives,
# and the errors of values, change them as much.
MIN_CURVATURE = 1e-5
# The Hessian is measured if the last step left the slopes longer than this fraction.
SLOW = 0.5


def n_rows(n: int) -> int:
    """Return the number of evaluations for n columns."""
    return n * (n + 3) // 2


def distance(state: SolverState) -> float:
    """Return h, in lengths of the columns: the error of a second difference is 4ε/h²."""
    return max(MIN_DISTANCE, math.sqrt(math.sqrt(error(state))))


def error(state: SolverState) -> float:
    """Return the error of a value, or of a difference that rounded coordinates hide."""
    hidden: float = state.inner.hidden
    return max(value_error(state), hidden)


def is_due(state: SolverState, slopes_before: Array) -> bool:
    """Return whether gradients alone are slow, and have cost as much as the Hessian would."""
    inner: DescentState = state.inner
    xp = array_namespace(state.x)
    norm = xp.linalg.vector_norm
    return (
        not inner.has_hessian
        and inner.noise == 0
        and inner.n_spent >= n_rows(state.x.shape[0])
        and distance(state) <= MAX_DISTANCE
        and float(norm(inner.slopes)) > SLOW * float(norm(slopes_before))
        and not bool(xp.all(_is_near(state)))
    )


def ask(state: SolverState) -> Array:
    """Return pairs and sums of the columns that move no coordinate near a bound."""
    xp = array_namespace(state.x)
    inner: DescentState = state.inner
    is_near = _is_near(state)
    inner.near = is_near if bool(xp.any(is_near)) else None
    if inner.near is not None:
        box_steps.align(state, inner.near)
    steps = distance(state) * xp.matrix_transpose(inner.basis[:, _n_near(inner) :])
    sums = [step + steps[i + 1 :] for i, step in enumerate(steps)]
    return state.x + xp.concat([steps, -steps, *sums], axis=0)


def tell(state: SolverState, candidates: Array, values: Array) -> None:
    """Change the basis and its slopes; nothing changes if an evaluation failed."""
    xp = array_namespace(candidates)
    inner: DescentState = state.inner
    inner.has_hessian = True
    if was_repaired(state, candidates) or not bool(xp.all(xp.isfinite(values))):
        return
    remember_best(state, candidates, values, is_first=False)
    k, h = _n_near(inner), distance(state)
    slopes, hessian = _derivatives(values - state.value, state.x.shape[0] - k, h)
    turn = _whitening(hessian, 4 * error(state) / h**2)
    turn, slopes = (xp.astype(array, inner.basis.dtype) for array in (turn, slopes))
    inner.basis = xp.concat([inner.basis[:, :k], inner.basis[:, k:] @ turn], axis=1)
    inner.slopes = xp.concat([inner.slopes[:k], slopes @ turn])


def _is_near(state: SolverState) -> Array:
    """Return which coordinates have a bound within reach of the sums, (dim,)."""
    xp = array_namespace(state.x)
    reach = 2 * distance(state) * xp.linalg.vector_norm(state.inner.basis, axis=1)
    is_near = box_steps.near_bounds(state, reach)
    if is_near is None:
        return xp.zeros(state.x.shape, dtype=xp.bool, device=device(state.x))
    return is_near


def _n_near(inner: DescentState) -> int:
    """Return the number of first columns that move coordinates near a bound."""
    if inner.near is None:
        return 0
    xp = array_namespace(inner.near)
    return int(xp.sum(xp.astype(inner.near, xp.int64)))


def _derivatives(changes: Array, n: int, h: float) -> tuple[Array, Array]:
    """Return the slopes (n,) and second derivatives (n, n) from the changes of value of `ask`."""
    xp = array_namespace(changes)
    ahead, behind = changes[:n], changes[n : 2 * n]
    hessian = xp.zeros((n, n), dtype=changes.dtype, device=device(changes))
    row = 2 * n
    for i in range(n):
        rest = n - i - 1
        hessian[i, i + 1 :] = changes[row : row + rest] - ahead[i] - ahead[i + 1 :]
        row += rest
    hessian = hessian + xp.matrix_transpose(hessian)
    diagonal = xp.eye(n, dtype=changes.dtype, device=device(changes)) * (ahead + behind)
    return (ahead - behind) / (2 * h), (hessian + diagonal) / h**2


def _whitening(hessian: Array, error: float) -> Array:
    """Return V |Λ|^(-1/2), with curvatures of at least the error.

    A negative curvature counts as positive, so that the step leads away from a saddle point
    (Dauphin et al. 2014, arXiv 1406.2572).
    """
    xp = array_namespace(hessian)
    eye = xp.eye(hessian.shape[0], dtype=hessian.dtype, device=device(hessian))
    try:
        curvatures, vectors = xp.linalg.eigh(hessian)
    except (ValueError, RuntimeError):  # LinAlgError of NumPy, of torch: no convergence
        return eye
    sizes = xp.abs(curvatures)
    least = max(MIN_CURVATURE * float(xp.max(sizes)), error)
    if not 0 < least < math.inf:
        return eye
    return vectors / xp.sqrt(xp.where(sizes > least, sizes, least))
