"""GLD: gradientless descent (ZARTS, section 4.3).

Source: Golovin et al., "Gradientless Descent: High-Dimensional Zeroth-Order Optimization", ICLR
2020, arXiv 1911.06317, Algorithms 1 (GLD-Search) and 2 (GLD-Fast); Wang et al., "ZARTS", NeurIPS
2022, Eq. 12.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, scale_rows
from zoopt_nas._checks import (
    check_at_least,
    check_bool,
    check_choice,
    check_positive,
    check_positive_int,
)
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.solvers.base import Solver, SolverState

SCHEDULES = ("search", "fast")
DIRECTIONS = ("sphere", "ball", "gaussian")
# The fields that only one schedule uses.
_SCHEDULE_OF = {"min_radius": "search", "condition_number": "fast", "h_scale": "fast"}


@dataclass(frozen=True)
class GLD(Solver):
    """Gradientless descent: step to the best of x and one random point at each of several radii.

    With random directions v_k and radii r_k::

        x <- argmin {f(x), f(x + r_1 v_1), ..., f(x + r_K v_K)}                   (Eq. 12)

        search:  r_k = 2^-k R, k = 0..floor(log2(R / r))                     (Algorithm 1)
        fast:    r_k = 2^-k R_t, k = -K..K, K = ceil(log2(4 sqrt(Q))),       (Algorithm 2)
                 where R_t is R halved every H = ceil(h dim Q log2 Q) steps

    GLD only compares values, so any increasing transform of the objective gives the same run. A
    failed candidate is never chosen; if x failed, any other candidate beats it.

    Attributes:
        max_radius: R > 0, about the distance to the optimum.
        min_radius: r in (0, R], about the precision wanted, of "search" only. None: min(1e-3, R).
        schedule: ``"search"`` (GLD-Search) or ``"fast"`` (GLD-Fast).
        condition_number: Q >= 1 of the objective (see ``diagnostics.condition_number``), of "fast"
            only. None: 4.
        h_scale: h > 0, of "fast" only. None: 1, as in the paper. Below 1, radii shrink sooner.
        direction: ``"sphere"``, ``"ball"`` (uniform inside) or ``"gaussian"``, N(0, I / dim).
        deterministic: whether a point always has the same value. If not, x is evaluated again in
            row 0 of each batch, because its old value is stale if the objective drifts.

    Raises:
        InvalidValueError: a field is out of its range, or belongs to the other schedule.
    """

    name: ClassVar[str] = "gld"
    evaluates_iterate: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("max_radius", "min_radius")

    max_radius: float = 1.0
    min_radius: float | None = None
    schedule: str = "search"
    condition_number: float | None = None
    h_scale: float | None = None
    direction: str = "sphere"
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_positive("max_radius", self.max_radius)
        check_choice("schedule", self.schedule, SCHEDULES)
        for field, schedule in _SCHEDULE_OF.items():
            if getattr(self, field) is not None and self.schedule != schedule:
                raise InvalidValueError(
                    f"{field} must be None with schedule {self.schedule!r}, where it has no "
                    f"effect, got {getattr(self, field)!r}"
                )
        if self.min_radius is not None and (
            check_positive("min_radius", self.min_radius) > self.max_radius
        ):
            raise InvalidValueError(
                f"min_radius must be at most max_radius ({self.max_radius}), got {self.min_radius}"
            )
        if self.condition_number is not None:
            check_at_least("condition_number", self.condition_number, 1)
        if self.h_scale is not None:
            check_positive("h_scale", self.h_scale)
        check_choice("direction", self.direction, DIRECTIONS)
        check_bool("deterministic", self.deterministic)

    @property
    def compares_batches(self) -> bool:
        """Whether the value of x is kept from an earlier batch."""
        return self.deterministic

    def radii(self, dim: int, n_steps: int = 0) -> list[float]:
        """Return the radius of each candidate of step ``n_steps``, largest first.

        Raises:
            InvalidValueError: ``dim`` is not a positive integer.
        """
        check_positive_int("dim", dim)
        if self.schedule == "search":
            smallest = self.min_radius or min(1e-3, self.max_radius)
            # 1e-9 keeps the last radius if R / r is a power of two up to rounding.
            n_halvings = math.floor(math.log2(self.max_radius / smallest) + 1e-9)
            return [math.ldexp(self.max_radius, -k) for k in range(n_halvings + 1)]
        Q = self.condition_number or 4.0
        K = math.ceil(math.log2(4 * math.sqrt(Q)))
        H = max(1, math.ceil(dim * Q * math.log2(Q) * (self.h_scale or 1.0)))  # Q = 1 gives 0
        R = math.ldexp(self.max_radius, -(n_steps // H))
        return [math.ldexp(R, -k) for k in range(-K, K + 1)]

    def with_n_samples(self, n: int) -> Self:
        """Return a copy that draws ``n`` candidates a step, by its ``min_radius``.

        Raises:
            InvalidValueError: ``n`` is not a positive integer, or the schedule is "fast".
        """
        if self.schedule == "fast":
            raise InvalidValueError(
                f"n_samples must be left to condition_number in GLD's fast schedule, got {n!r}"
            )
        n = check_positive_int("n_samples", n)
        return replace(self, min_radius=math.ldexp(self.max_radius, 1 - n))

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        radii = self.radii(state.x.shape[0], state.n_steps)
        steps = self._directions(state, len(radii))
        scale_rows(steps, radii)
        candidates = state.x + steps
        if self.deterministic and state.has_value:
            return candidates
        return array_namespace(state.x).concat([state.x[None, :], candidates], axis=0)

    def _directions(self, state: SolverState, n: int) -> Array:
        """Return the directions v_k, (n, dim)."""
        if self.direction == "gaussian":
            return sampling.gaussian(state.rng, n, state.x) / math.sqrt(state.x.shape[0])
        draw = sampling.sphere if self.direction == "sphere" else sampling.ball
        return draw(state.rng, n, state.x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        xp = array_namespace(state.x)
        # Row 0 is x, and argmin returns the first minimum, so x moves to lower values only.
        best = values.argmin()[None]  # (Eq. 12)
        value = xp.take(values, best, axis=0)[0]
        x = xp.take(candidates, best, axis=0)[0]
        is_better = value < math.inf
        if self.deterministic and state.has_value:  # no row of this batch is x
            known = state.value
            is_better = value < known
            x = xp.where(is_better, x, state.x)
            value = xp.where(is_better, value, known)
        state.value = value
        return x
