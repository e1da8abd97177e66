"""Adaptive MGS: guided search with a temperature and a proposal that follow from the values.

As in MGS, a step is the mean of random displacements u, weighted by exp(-[f(x + u) - f(x)] / τ)
(ZARTS, Eq. 7). τ follows from the values of the batch, and the proposal N(0, σ² C) from the
weighted samples as in CMA-ES.

Source: Wang et al., "ZARTS: On Zero-order Optimization for Neural Architecture Search", NeurIPS
2022, Eq. 7-10; Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772 (adaptation);
Hansen, "Injecting External Solutions Into CMA-ES", arXiv 1110.4181 (guides and repaired points).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy, device, value_dtype
from zoopt_nas._checks import check_fraction, check_positive, check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.engines import cma_rates
from zoopt_nas.solvers.engines.cma_rates import MAX_FULL_DIM
from zoopt_nas.solvers.engines.quadratic_model import model_step

# The batches per fit of the model, which costs as much as the rest of a step.
MODEL_PERIOD = 2
# The factor of σ after a batch of equal values.
BLANK_SHRINKAGE = 0.5


@dataclass(eq=False)
class AdaptiveMGSState:
    """The state of adaptive MGS. Above 64 dimensions, C = I and the optional arrays stay None."""

    sigma: float  # σ, the scale of the proposal
    path: Array  # the evolution path of σ, (dim,)
    n_restarts: int = 0  # the number of restarts
    n_local: int = 0  # the number of steps since the last restart
    n_flat: int = 0  # the number of batches in a row with the least value ``reference``
    reference: float = math.inf  # see ``n_flat``; equal up to rounding
    guide: Array = None  # the model's displacement of x for the next batch, (dim,), or None
    long_path: Array = None  # the evolution path of C, (dim,)
    covariance: Array = None  # C, (dim, dim)
    root: Array = None  # the square root of C at the last decomposition
    inverse_root: Array = None  # the inverse of ``root``
    axis_ratio: float = 1.0  # the ratio of the longest to the shortest axis of C
    longest_axis: float = 1.0  # the length of the longest axis
    points: Array = None  # a ring of the last points, to which the model is fitted, (size, dim)
    values: Array = None  # the values of ``points``, (size,)
    n_points: int = 0  # the number of points ever written into the ring
    low: float = math.inf  # the least value so far
    low_x: Array = None  # the point with the value ``low``, (dim,); None before the first batch


@dataclass(frozen=True)
class AdaptiveMGS(Solver):
    """Guided search with a normal proposal that adapts: x <- x + weighted mean of displacements.

    A failed candidate has weight 0; if all failed, x stays. ``metrics`` holds N_e = 1 / Σ c_i² as
    ``n_effective``, N_e / N as ``effective_ratio``, τ as ``temperature`` and σ as ``sigma``.

    One sample is at x + guide and, if N >= 8, one at x + guide / 2. The guide comes from ``ask``
    or, in every second batch, from a quadratic model of the last values.

    Attributes:
        sigma: σ > 0, the first standard deviation of the proposal, per coordinate, in units of x:
            about a third of the distance to the optimum. None: 1.
        n_samples: N, the evaluations of a step. None: 4 + floor(3 ln dim), as in CMA-ES, up to 64
            dimensions and 10 above. More help against noise.
        ess_target: N_e / N in (0, 1), which determines τ.
    """

    name: ClassVar[str] = "adaptive_mgs"
    uses_guide: ClassVar[bool] = True
    adapts_steps: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("sigma",)
    inner_states: ClassVar[tuple[type, ...]] = (AdaptiveMGSState,)

    sigma: float | None = None
    n_samples: int | None = None
    ess_target: float = 0.35

    def __post_init__(self) -> None:
        if self.sigma is not None:
            check_positive("sigma", self.sigma)
        if self.n_samples is not None:
            check_positive_int("n_samples", self.n_samples)
        if not 0 < check_fraction("ess_target", self.ess_target) < 1:
            raise InvalidValueError(
                f"ess_target must be a number in (0, 1), got {self.ess_target!r}"
            )

    @property
    def compares_batches(self) -> bool:
        """Yes: a quadratic model is fitted to the values of several batches."""
        return True

    @property
    def _sigma(self) -> float:
        return 1.0 if self.sigma is None else self.sigma

    def _n(self, dim: int) -> int:
        if self.n_samples is not None:
            return self.n_samples
        return 4 + int(3 * math.log(dim)) if dim <= MAX_FULL_DIM else 10

    def _init(self, state: SolverState) -> None:
        self._restart(state)

    def _restart(self, state: SolverState, n_restarts: int = 0) -> None:
        """Reset the proposal to N(0, σ² I), without earlier samples."""
        xp = array_namespace(state.x)
        dim = state.x.shape[0]
        before: AdaptiveMGSState | None = state.inner
        sigma = self._sigma * 2 ** (n_restarts % 4)  # basins may be near or far
        inner = AdaptiveMGSState(sigma, xp.zeros_like(state.x), n_restarts=n_restarts)
        state.inner = inner
        if before is not None:
            inner.low, inner.low_x = before.low, before.low_x
        if dim > MAX_FULL_DIM:
            return
        size = min(2 * dim + 16, 100)
        kind = {"dtype": value_dtype(state.x), "device": device(state.x)}
        inner.path, inner.long_path = xp.zeros(dim, **kind), xp.zeros(dim, **kind)
        inner.covariance = xp.eye(dim, **kind)
        inner.root, inner.inverse_root = xp.eye(dim, **kind), xp.eye(dim, **kind)
        inner.points = xp.zeros((size, dim), **kind)
        inner.values = xp.full((size,), math.inf, **kind)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        xp = array_namespace(state.x)
        inner: AdaptiveMGSState = state.inner
        sigma = inner.sigma
        batch = sampling.gaussian(state.rng, self._n(state.x.shape[0]), state.x)
        if inner.root is not None:
            root = inner.root
            batch = xp.astype(xp.astype(batch, root.dtype, copy=False) @ root, batch.dtype)
        batch *= sigma
        batch += state.x
        if state.n_steps == 0 and batch.shape[0] > 1:
            batch[0, :] = state.x  # the start is often a good guess
        if guide is None:
            guide = inner.guide
        if guide is not None:
            guide = xp.astype(guide, batch.dtype, copy=False)
            batch[-1, :] = state.x + guide
            if batch.shape[0] >= 8:  # a guide is more often too long than too short
                batch[-2, :] = state.x + 0.5 * guide
        return batch

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        host = values.tolist()
        weights, temperature = cma_rates.tempered_weights(host, self.ess_target)
        total = sum(w * w for w in weights)
        n_effective = 1 / total if total > 0 else 0.0
        state.metrics |= {"n_effective": n_effective, "effective_ratio": n_effective / len(host)}
        if n_effective == 0:
            return state.x
        inner: AdaptiveMGSState = state.inner
        best = min(host)
        if inner.root is not None and self._is_above(state, candidates, host, best):
            inner.sigma = BLANK_SHRINKAGE * inner.sigma
            return copy(inner.low_x)
        inner.n_local += 1
        update = self._adapt_full if inner.root is not None else self._adapt_isotropic
        x = update(state, candidates, weights, n_effective)
        state.metrics |= {"temperature": temperature, "sigma": inner.sigma}
        if self._has_converged(state, best):
            self._restart(state, inner.n_restarts + 1)
            return x + 2 * state.inner.sigma * sampling.gaussian(state.rng, 1, x)[0]
        if inner.root is not None:
            self._remember(inner, candidates, values)
            inner.guide = None
            if state.n_steps % MODEL_PERIOD == 0:
                inner.guide = self._model_guide(inner, x)
        return x

    def _is_above(self, state: SolverState, rows: Array, told: list[float], best: float) -> bool:
        """Return whether all rows have one value, above the least so far; track the least point."""
        inner: AdaptiveMGSState = state.inner
        if inner.low_x is None:
            inner.low = state.value if state.has_value else math.inf
            inner.low_x = copy(state.x)
        if best < inner.low:
            inner.low, inner.low_x = best, copy(rows[told.index(best)])
        return best > inner.low and all(v in (best, math.inf) for v in told)

    def _adapt_isotropic(
        self, state: SolverState, candidates: Array, weights: list[float], n_effective: float
    ) -> Array:
        """Adapt σ and return the new iterate, with operations in place because dim may be large."""
        xp = array_namespace(state.x)
        inner: AdaptiveMGSState = state.inner
        dim, sigma = state.x.shape[0], inner.sigma
        rate, damping = cma_rates.path_rates(dim, n_effective)
        scale = math.sqrt(rate * (2 - rate) * n_effective) / sigma
        x = xp.asarray(weights, dtype=candidates.dtype, device=device(candidates)) @ candidates
        x -= state.x
        x *= scale
        path = inner.path
        path *= 1 - rate
        path += x
        x /= scale
        x += state.x
        inner.sigma = sigma * cma_rates.growth(math.sqrt(float(path @ path)), dim, rate, damping)
        return x

    def _adapt_full(
        self, state: SolverState, candidates: Array, weights: list[float], n_effective: float
    ) -> Array:
        """Adapt σ and C, and return the new iterate (Hansen 2016, Eq. 31-37 and 47)."""
        xp = array_namespace(state.x)
        inner: AdaptiveMGSState = state.inner
        C, inverse_root = inner.covariance, inner.inverse_root
        dim, sigma, n_local = state.x.shape[0], inner.sigma, inner.n_local
        x = xp.astype(state.x, C.dtype, copy=False)
        steps = xp.astype(candidates, C.dtype, copy=False) - x
        steps /= sigma
        # σ and C see a guide or a repaired point no farther than a sample at the edge of the
        # proposal (Hansen 2011).
        limit = math.sqrt(dim) + 2 * dim / (dim + 2)
        white = steps @ inverse_root
        white *= white
        norms = [math.sqrt(square) for square in white.sum(1).tolist()]
        shrunk = [limit / norm if norm > limit else 1.0 for norm in norms]
        c_path, c_one, c_mu = cma_rates.covariance_rates(dim, n_effective)
        c = xp.asarray(
            [
                weights,
                [w * s for w, s in zip(weights, shrunk, strict=True)],
                [c_mu * w * s * s for w, s in zip(weights, shrunk, strict=True)],
            ],
            dtype=C.dtype,
            device=device(C),
        )
        move, mean = c[:2] @ steps
        rate, damping = cma_rates.path_rates(dim, n_effective)
        path = inner.path
        path *= 1 - rate
        path += (math.sqrt(rate * (2 - rate) * n_effective) * mean) @ inverse_root
        norm = math.sqrt(float(path @ path))
        inner.sigma = sigma * cma_rates.growth(norm, dim, rate, damping)
        # A long path makes σ grow, so C need not grow along it.
        settled = 1 - (1 - rate) ** (2 * n_local)
        moves = norm < (1.4 + 2 / (dim + 1)) * cma_rates.mean_norm(dim) * math.sqrt(settled)
        long_path = inner.long_path
        long_path *= 1 - c_path
        if moves:
            long_path += math.sqrt(c_path * (2 - c_path) * n_effective) * mean
        C *= 1 - c_one - c_mu + (0.0 if moves else c_one * c_path * (2 - c_path))
        C += (c_one * long_path)[:, None] * long_path
        C += (c[2][:, None] * steps).T @ steps
        if n_local % max(1, dim // 5) == 0:
            self._decompose(inner)
        move *= sigma
        move += x
        return xp.astype(move, state.x.dtype, copy=False)

    def _decompose(self, inner: AdaptiveMGSState) -> None:
        """Update the roots of C; not in every step, because it costs dim³."""
        xp = array_namespace(inner.covariance)
        squares, axes = xp.linalg.eigh(inner.covariance)
        lengths = xp.sqrt(xp.where(squares > 1e-30, squares, 1e-30))
        inner.root = (axes * lengths) @ axes.T
        inner.inverse_root = (axes / lengths) @ axes.T
        inner.longest_axis = float(lengths[-1])
        inner.axis_ratio = inner.longest_axis / float(lengths[0])

    def _has_converged(self, state: SolverState, best: float) -> bool:
        """Return whether σ or C is out of range, or the least value does not change."""
        inner: AdaptiveMGSState = state.inner
        dim, sigma = state.x.shape[0], inner.sigma
        reference = inner.reference
        # The absolute difference, because noise can delay an improvement for long.
        if reference < math.inf and abs(best - reference) <= 1e-12 * abs(reference):
            inner.n_flat += 1
        else:
            inner.n_flat, inner.reference = 0, best
        high = inner.longest_axis
        return (
            inner.n_flat > 10 + 30 * dim / self._n(dim)
            or not 1e-11 < sigma * high / self._sigma < 1e11
            or inner.axis_ratio > 1e7
        )

    def _remember(self, inner: AdaptiveMGSState, candidates: Array, values: Array) -> None:
        """Write the batch into the ring of points, in place of the oldest."""
        points = inner.points
        size = points.shape[0]
        candidates, values = candidates[-size:], values[-size:]
        start = inner.n_points % size
        room, end = size - start, start + values.shape[0]
        for ring, rows in ((points, candidates), (inner.values, values)):
            ring[start:end] = rows[:room]
            if end > size:
                ring[: end - size] = rows[room:]
        inner.n_points += values.shape[0]

    def _model_guide(self, inner: AdaptiveMGSState, x: Array) -> Array | None:
        """Return the step of the model from x, in an ellipsoid of the size of the proposal."""
        n, sigma = inner.n_points, inner.sigma
        white = inner.points[:n] - x
        white /= sigma
        step = model_step(white @ inner.inverse_root, inner.values[:n])
        return None if step is None else sigma * (step @ inner.root)
