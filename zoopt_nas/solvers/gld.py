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
from zoopt_nas._arrays import Array, array_namespace, device
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


@dataclass(frozen=True)
class GLD(Solver):
    """Gradientless descent: step to the best of x and one random point at each of several radii.

    Only comparisons of values are used, so any increasing transform of the objective gives the same
    run. A failed candidate is never picked; if x itself failed, any other candidate beats it.

    Attributes:
        max_radius: R > 0, about the distance to the optimum, if that is known.
        min_radius: r in (0, R], about the wanted precision. Not used by the fast schedule.
        schedule: ``"search"``: radii 2^-k R, k = 0..floor(log2(R / r)) (Eq. 12).
            ``"fast"``: radii 2^-k R_t, k = -K..K, K = ceil(log2(4 sqrt(Q))), where R_t is R halved
            every ceil(dim Q log2 Q) steps.
        condition_number: Q >= 1, of the objective (diagnostics.condition_number estimates one).
            Used by the fast schedule only.
        direction: ``"sphere"``, ``"ball"`` (uniform inside) or ``"gaussian"``, N(0, I / dim).
        deterministic: the objective at a given point never changes. Row 0 of each batch is x
            itself, evaluated anew because an old value is stale where the objective drifts; with
            True only the first batch has it, which saves one evaluation a step.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "gld"
    # The paper gives no numbers. Of r = 1e-2..1e-5, 1e-3 is the best compromise measured on the
    # sphere function in 2, 10 and 50 dimensions at 100 to 250 evaluations per dimension; the three
    # directions differ by less than the seeds do.
    max_radius: float = 1.0
    min_radius: float = 1e-3
    schedule: str = "search"
    condition_number: float = 4.0
    direction: str = "sphere"
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_positive("max_radius", self.max_radius)
        check_positive("min_radius", self.min_radius)
        if self.min_radius > self.max_radius:
            raise InvalidValueError(
                f"min_radius must be at most max_radius ({self.max_radius}), got {self.min_radius}"
            )
        check_choice("schedule", self.schedule, SCHEDULES)
        check_at_least("condition_number", self.condition_number, 1)
        check_choice("direction", self.direction, DIRECTIONS)
        check_bool("deterministic", self.deterministic)

    @property
    def evaluates_iterate(self) -> bool:
        return True

    def radii(self, dim: int, n_steps: int = 0) -> list[float]:
        """Returns the radius of each candidate of step ``n_steps``, largest first.

        Raises:
            InvalidValueError: ``dim`` is not a positive integer.
        """
        check_positive_int("dim", dim)
        if self.schedule == "search":
            # The tolerance keeps the last radius when R / r is a power of two up to rounding.
            n_halvings = math.floor(math.log2(self.max_radius / self.min_radius) + 1e-9)
            return [math.ldexp(self.max_radius, -k) for k in range(n_halvings + 1)]  # Eq. 12
        Q = self.condition_number
        K = math.ceil(math.log2(4 * math.sqrt(Q)))
        H = max(1, math.ceil(dim * Q * math.log2(Q)))  # Q = 1 would give no steps at all
        R = math.ldexp(self.max_radius, -(n_steps // H))
        return [math.ldexp(R, -k) for k in range(-K, K + 1)]

    def with_n_samples(self, n: int) -> Self:
        """Returns a copy that draws ``n`` candidates a step beside x: ``min_radius`` is adjusted.

        Raises:
            InvalidValueError: ``n`` is not a positive integer, or the schedule is "fast", whose
                number of candidates follows from ``condition_number``.
        """
        if self.schedule == "fast":
            raise InvalidValueError(
                f"n_samples must be left to condition_number in GLD's fast schedule, got {n!r}"
            )
        n = check_positive_int("n_samples", n)
        return replace(self, min_radius=math.ldexp(self.max_radius, 1 - n))

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        xp = array_namespace(state.x)
        radii = self.radii(state.x.shape[0], state.n_steps)
        column = xp.asarray(radii, dtype=state.x.dtype, device=device(state.x))[:, None]
        candidates = state.x + column * self._draw(state, len(radii))
        if self.deterministic and "value" in state.memory:
            return candidates
        return xp.concat([state.x[None, :], candidates], axis=0)

    def _draw(self, state: SolverState, n: int) -> Array:
        if self.direction == "gaussian":
            return sampling.gaussian(state.rng, n, state.x) / math.sqrt(state.x.shape[0])
        draw = sampling.sphere if self.direction == "sphere" else sampling.ball
        return draw(state.rng, n, state.x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        xp = array_namespace(state.x)
        # Eq. 12. Row 0 is x, and argmin takes the first of equals: only a strict improvement moves.
        best = xp.argmin(values)[None]
        value = xp.take(values, best, axis=0)[0]
        x = xp.take(candidates, best, axis=0)[0]
        if self.deterministic and "value" in state.memory:  # no row of this batch is x
            known = state.memory["value"]
            is_better = value < known
            x = xp.where(is_better, x, state.x)
            value = xp.where(is_better, value, known)
        state.memory["value"] = value
        return x
