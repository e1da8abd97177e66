"""GLD: gradientless descent (ZARTS, section 4.3).

Source: Golovin et al., "Gradientless Descent: High-Dimensional Zeroth-Order Optimization", ICLR
2020, arXiv 1911.06317, Algorithms 1 (GLD-Search) and 2 (GLD-Fast); Wang et al., "ZARTS", NeurIPS
2022, Eq. 12. The adaptive form is in ``solvers/comparison_descent.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace
from zoopt_nas._checks import (
    check_at_least,
    check_bool,
    check_choice,
    check_positive,
    check_positive_int,
)
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.comparison_descent import ComparisonDescent
from zoopt_nas.solvers.comparison_state import ComparisonState

SCHEDULES = ("adaptive", "search", "fast")
DIRECTIONS = ("sphere", "ball", "gaussian")


@dataclass(frozen=True)
class GLD(Solver):
    """Gradientless descent: step to the best of x and a few random points at several radii.

    Only comparisons of values are used, so any increasing transform of the objective gives the same
    run. A failed candidate is never picked; if x itself failed, any other candidate beats it.

    Attributes:
        max_radius: R > 0. For "search" and "fast", about the distance to the optimum, if that is
            known. For "adaptive", the first radius, which then grows and shrinks as it must: any
            value within a few orders of magnitude does. None: 1.
        min_radius: r in (0, R]. For "search", the least radius, about the wanted precision (None:
            1e-3, or R if that is less). For "adaptive", the radius at which the run has converged
            and restarts (None: 1e-9 R). Not used by "fast".
        schedule: how the radii are chosen:

            * ``"adaptive"``: they follow the successes, the metric of the directions is learnt, and
              one candidate a step extrapolates. Ours; the default. See ``ComparisonDescent``.
            * ``"search"``: 2^-k R, k = 0..floor(log2(R / r)) (Eq. 12; GLD-Search).
            * ``"fast"``: 2^-k R_t, k = -K..K, K = ceil(log2(4 sqrt(Q))), where R_t is R halved
              every H = ceil(h_scale dim Q log2 Q) steps (GLD-Fast).
        condition_number: Q >= 1, of the objective (diagnostics.condition_number estimates one).
            Used by "fast" only.
        h_scale: > 0, multiplies H of "fast": 1 is the paper's, less shrinks the radii sooner.
        direction: ``"sphere"``, ``"ball"`` (uniform inside) or ``"gaussian"``, N(0, I / dim). Not
            used by "adaptive", whose directions are orthogonal.
        n_directions: new directions in each batch of "adaptive", beside the extrapolation. More
            serve more parallel workers, at some cost per evaluation.
        restart: whether "adaptive" goes on from a point further away when it has converged. Without
            it the radius stays at ``min_radius``.
        window: >= 0, the octaves around its radius over which "adaptive" spreads the new directions
            of a batch.
        wide_radius: >= 0, the radius of one more candidate in each 16th batch of "adaptive", in
            units of ``max_radius``, which does not shrink with the others; 0 for none. It can leave
            a local minimum.
        mirror: whether "adaptive" follows a batch in which nothing was better than x by that of the
            antithetic partners, x - v for each new candidate x + v; up to 100 dimensions.
        deterministic: the objective at a given point never changes. Row 0 of each batch of "search"
            and "fast" is x itself, evaluated anew because an old value is stale where the objective
            drifts; "adaptive" does so only after a run of failures. With True only the first batch
            has it.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "gld"
    evaluates_iterate: ClassVar[bool] = True
    weighs_candidates: ClassVar[bool] = True
    inner_states: ClassVar[tuple[type, ...]] = (ComparisonState,)
    lengths: ClassVar[tuple[str, ...]] = ("max_radius", "min_radius")

    # The paper gives no numbers. For "search", of r = 1e-2..1e-5, 1e-3 is the best compromise
    # measured on the sphere function in 2, 10 and 50 dimensions at 100 to 250 evaluations per
    # dimension; the three directions differ by less than the seeds do.
    max_radius: float | None = None
    min_radius: float | None = None
    schedule: str = "adaptive"
    condition_number: float = 4.0
    direction: str = "sphere"
    deterministic: bool = False
    h_scale: float = 1.0
    n_directions: int = 2
    restart: bool = True
    # More costs more than it brings over the 24 BBOB functions: see docs/solvers/gld.md.
    window: float = 0.0
    wide_radius: float = 4.0
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.max_radius is not None:
            check_positive("max_radius", self.max_radius)
        if self.min_radius is not None and (
            check_positive("min_radius", self.min_radius) > self._max_radius
        ):
            raise InvalidValueError(
                f"min_radius must be at most max_radius ({self._max_radius}), got {self.min_radius}"
            )
        check_choice("schedule", self.schedule, SCHEDULES)
        check_at_least("condition_number", self.condition_number, 1)
        check_choice("direction", self.direction, DIRECTIONS)
        check_bool("deterministic", self.deterministic)
        check_positive("h_scale", self.h_scale)
        check_positive_int("n_directions", self.n_directions)
        check_bool("restart", self.restart)
        check_at_least("window", self.window, 0)
        check_at_least("wide_radius", self.wide_radius, 0)
        check_bool("mirror", self.mirror)

    @property
    def adapts_steps(self) -> bool:
        return self.schedule == "adaptive"

    @property
    def _max_radius(self) -> float:
        return 1.0 if self.max_radius is None else self.max_radius

    def radii(self, dim: int, n_steps: int = 0) -> list[float]:
        """Returns the radius of each candidate of step ``n_steps``, largest first.

        Raises:
            InvalidValueError: ``dim`` is not a positive integer, or the schedule is "adaptive",
                whose radii depend on the run.
        """
        check_positive_int("dim", dim)
        if self.schedule == "adaptive":
            raise InvalidValueError("schedule must be search or fast for radii, got 'adaptive'")
        if self.schedule == "search":
            smallest = self.min_radius or min(1e-3, self._max_radius)
            # The tolerance keeps the last radius when R / r is a power of two up to rounding.
            n_halvings = math.floor(math.log2(self._max_radius / smallest) + 1e-9)
            return [math.ldexp(self._max_radius, -k) for k in range(n_halvings + 1)]  # Eq. 12
        Q = self.condition_number
        K = math.ceil(math.log2(4 * math.sqrt(Q)))
        H = max(
            1, math.ceil(dim * Q * math.log2(Q) * self.h_scale)
        )  # Q = 1 would give no steps at all
        R = math.ldexp(self._max_radius, -(n_steps // H))
        return [math.ldexp(R, -k) for k in range(-K, K + 1)]

    def with_n_samples(self, n: int) -> Self:
        """Returns a copy that draws ``n`` candidates a step: ``min_radius`` is adjusted.

        Beside them a batch has x in "search" and the extrapolation in "adaptive", where
        ``n_directions`` becomes ``n``.

        Raises:
            InvalidValueError: ``n`` is not a positive integer, or the schedule is "fast", whose
                number of candidates follows from ``condition_number``.
        """
        if self.schedule == "fast":
            raise InvalidValueError(
                f"n_samples must be left to condition_number in GLD's fast schedule, got {n!r}"
            )
        n = check_positive_int("n_samples", n)
        if self.schedule == "adaptive":
            return replace(self, n_directions=n)
        return replace(self, min_radius=math.ldexp(self._max_radius, 1 - n))

    @cached_property
    def _adaptive(self) -> ComparisonDescent | None:
        """The adaptive form with these fields, or None for the paper's forms."""
        if self.schedule != "adaptive":
            return None
        return ComparisonDescent(
            max_radius=self._max_radius,
            min_radius=self.min_radius or 1e-9 * self._max_radius,
            n_directions=self.n_directions,
            restart=self.restart,
            deterministic=self.deterministic,
            window=self.window,
            wide_radius=self.wide_radius,
            mirror=self.mirror,
        )

    def _init(self, state: SolverState) -> None:
        if self._adaptive is not None:
            self._adaptive.init(state)

    def _absorb(self, state: SolverState, points: Array, values: Array) -> None:
        if self._adaptive is not None and state.n_steps > 0:
            self._adaptive.absorb(state, points, values)
        else:
            super()._absorb(state, points, values)

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        if self._adaptive is not None:
            return self._adaptive.ask(state)
        xp = array_namespace(state.x)
        radii = self.radii(state.x.shape[0], state.n_steps)
        steps = self._draw(state, len(radii))
        for k, radius in enumerate(radii):  # an array of them would be copied to a device
            steps[k, :] *= radius
        candidates = state.x + steps
        if self.deterministic and state.has_value:
            return candidates
        return xp.concat([state.x[None, :], candidates], axis=0)

    def _draw(self, state: SolverState, n: int) -> Array:
        if self.direction == "gaussian":
            return sampling.gaussian(state.rng, n, state.x) / math.sqrt(state.x.shape[0])
        draw = sampling.sphere if self.direction == "sphere" else sampling.ball
        return draw(state.rng, n, state.x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        if self._adaptive is not None:
            return self._adaptive.tell(state, candidates, values)
        xp = array_namespace(state.x)
        # Eq. 12. Row 0 is x, and argmin takes the first of equals: only a strict improvement moves.
        best = xp.argmin(values)[None]
        value = xp.take(values, best, axis=0)[0]
        x = xp.take(candidates, best, axis=0)[0]
        is_better = value < math.inf
        if self.deterministic and state.has_value:  # no row of this batch is x
            known = state.value
            is_better = value < known
            x = xp.where(is_better, x, state.x)
            value = xp.where(is_better, value, known)
        state.value = value
        state.weights = xp.zeros_like(values)
        state.weights[best] = 1.0
        state.weights *= is_better
        return x
