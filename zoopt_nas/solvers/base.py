"""The contract of a solver: frozen hyper-parameters (`Solver`) and a moving `SolverState`.

The public ``init``, ``ask`` and ``tell`` check their input once and call ``_init``, ``_ask`` and
``_tell``; those three (the first is optional) are all that a new solver writes::

    from dataclasses import dataclass
    from typing import ClassVar

    from array_api_compat import array_namespace

    from zoopt_nas import Solver, sampling

    @dataclass(frozen=True)
    class RandomWalk(Solver):
        name: ClassVar[str] = "random_walk"
        step: float = 0.1
        n_samples: int = 4

        def _ask(self, state, guide):
            return state.x + self.step * sampling.gaussian(state.rng, self.n_samples, state.x)

        def _tell(self, state, candidates, values):
            xp = array_namespace(candidates)
            best = xp.argmin(values)[None]
            x = xp.take(candidates, best, axis=0)[0]
            return xp.where(values[best] < xp.inf, x, state.x)  # +inf: all have failed

A solver keeps no best-so-far: where the objective drifts (in architecture search the weights move
between two steps) an old value is stale. `minimize` keeps it for the user whose objective does not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np

from zoopt_nas._arrays import (
    Array,
    array_namespace,
    as_generator,
    as_like,
    as_point,
    copy,
    device,
    finite_or,
    finite_values,
    to_numpy,
)
from zoopt_nas._checks import check_positive, check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.solvers.state import SolverState as SolverState
from zoopt_nas.solvers.state import within_bounds
from zoopt_nas.solvers.widening import MAX_FLAT, widened


@dataclass(frozen=True)
class Task:
    """What `minimize` knows of a run before it starts, for a solver that depends on it.

    Attributes:
        dim: the number of coordinates.
        maxfev: the evaluations that may be made; None if no number limits them.
        bounded: whether the points have bounds.
        noisy: whether the caller said that the objective is.
    """

    dim: int
    maxfev: int | None = None
    bounded: bool = False
    noisy: bool = False


@dataclass(frozen=True)
class Solver(ABC):
    """A zero-order optimizer: hyper-parameters only, so one instance may drive many runs.

    Attributes:
        name: the key in ``SOLVERS``.
        uses_guide: whether ``ask`` takes a ``guide``.
        evaluates_iterate: whether the iterate is always a point that was evaluated: no other
            evaluation is needed. Such a solver keeps its value, as last measured, in
            ``state.value``; NaN says that it is not known at the moment.
        adapts_steps: whether the solver finds the lengths of its steps by itself. Where it is not
            told in which units to begin, by one of its ``lengths``, `minimize` then gives each
            coordinate a unit in which a first step of 1 is sensible. And where nothing near the
            start tells a direction, the base class looks farther away.
        keeps_bounds: whether all candidates lie within ``state.lower`` and ``state.upper``, where
            given.
        annealed: the fields that an outer schedule may shrink; see ``scaled``.
        lengths: the fields that are lengths in units of x, where they are not None.
        inner_states: the classes of ``state.inner`` and of what it is made of: dataclasses of
            numbers, arrays and each other, and IntEnums. Only these are read from a file.
    """

    name: ClassVar[str]
    uses_guide: ClassVar[bool] = False
    evaluates_iterate: ClassVar[bool] = False
    adapts_steps: ClassVar[bool] = False
    keeps_bounds: ClassVar[bool] = False
    annealed: ClassVar[tuple[str, ...]] = ()
    lengths: ClassVar[tuple[str, ...]] = ()
    inner_states: ClassVar[tuple[type, ...]] = ()

    @property
    def has_lengths(self) -> bool:
        """Whether one of the ``lengths`` was given."""
        return any(getattr(self, name) is not None for name in self.lengths)

    @property
    def antithetic(self) -> bool:
        """Whether rows 2k and 2k + 1 of each batch are x + d and x - d, whose difference counts."""
        return False

    def init(
        self,
        x0: Any,
        *,
        rng: Any = None,
        bounds: tuple[Any, Any] | None = None,
        is_scaled: bool = False,
    ) -> SolverState:
        """Starts a run at ``x0``.

        Args:
            x0: (dim,), finite and real; copied. A floating NumPy array or torch tensor keeps its
                dtype and device, anything else becomes a float64 NumPy array.
            rng: None, a non-negative int, a ``numpy.random.Generator`` (used as it is for NumPy;
                for torch, one draw from it seeds a ``torch.Generator`` on the device of ``x0``) or,
                for torch, a ``torch.Generator``.
            bounds: lower and upper ends, (dim,) each with infinities where open, for a solver with
                ``keeps_bounds``; others ignore them. ``x0`` must lie within.
            is_scaled: whether a first step of 1 is sensible along every coordinate; else solvers
                go by the size of ``x0``.

        Raises:
            InvalidValueError: an argument is none of these.
        """
        x = as_point("x0", x0)
        state = SolverState(x=x, rng=as_generator(rng, x), is_scaled=is_scaled)
        if bounds is not None:
            shape = tuple(x.shape)
            state.lower, state.upper = (as_like("bounds", end, x, shape) for end in bounds)
            if not bool(array_namespace(x).all((state.lower <= x) & (x <= state.upper))):
                raise InvalidValueError(f"x0 must be within its bounds, got {x0!r}")
        self._init(state)
        return state

    def ask(self, state: SolverState, *, guide: Any = None) -> Array:
        """Draws a batch of candidates to evaluate; the iterate does not move.

        Asking again before telling draws a fresh batch, which replaces the pending one.

        Args:
            state: the run; its generator advances and its ``pending`` becomes the batch.
            guide: (dim,), where the solver should look, as a displacement of the iterate. Only for
                a solver with ``uses_guide``.

        Returns:
            (n, dim) in the namespace and dtype and on the device of ``state.x``. It is
            ``state.pending`` itself: do not write into it.

        Raises:
            InvalidValueError: a guide of the wrong shape, or to a solver that takes none.
        """
        if guide is not None:
            if not self.uses_guide:
                raise InvalidValueError(f"guide must be None for {self.name}, which takes none")
            guide = as_like("guide", guide, state.x, tuple(state.x.shape))
        # As in `tell`: where the objective falls for ever, steps overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            if state.n_widenings > 0 and not state.has_contrast:
                state.pending = widened(state)
            else:
                asked = self._ask(state, guide)
                state.pending = within_bounds(state, asked) if self.keeps_bounds else asked
        return state.pending

    def tell(
        self, state: SolverState, candidates: Any, values: Any, *, repaired: bool = False
    ) -> SolverState:
        """Moves the iterate by the values of candidates that ``ask`` returned, or knows of others.

        The rows may be any of the pending batch, in any order: each is recognized by its
        coordinates, and rows that are missing count as failed. Rows that are not of the batch, such
        as late ones of an earlier batch or points that were never asked for, leave it pending: see
        ``_absorb`` for what becomes of them.

        Args:
            state: the run; advanced in place.
            candidates: (n, dim); the pending batch itself is recognized at no cost.
            values: (n,), the objective at each row: a list, NumPy array or torch tensor. NaN and
                both infinities mark a failed evaluation; the solver sees +inf for it.
            repaired: the rows are all those of the pending batch, in the order in which they were
                asked, but may have been moved (clipped to a box, say): the solver uses them as
                they are given.

        Returns:
            ``state`` itself.

        Raises:
            InvalidValueError: a shape is wrong, or nothing is pending that could be repaired.
        """
        pending = state.pending
        if candidates is not pending or pending is None:
            if repaired:
                if pending is None:
                    raise InvalidValueError("repaired rows must follow ask, got no pending batch")
                candidates = as_like("candidates", candidates, state.x, tuple(pending.shape))
            else:
                candidates, values = _sort_out(self, state, candidates, values)
                if candidates is None:
                    return state
        # inf - inf and the overflow of huge values are expected here; their results are caught
        # below and in the solvers, so NumPy need not warn (torch never does).
        with np.errstate(over="ignore", invalid="ignore"):
            values = finite_values("values", values, state.x, candidates.shape[0])
            if state.has_contrast or not self._looks_for_contrast(state, candidates, values):
                state.x = finite_or(self._tell(state, candidates, values), state.x)
        state.n_steps += 1
        state.pending = None
        return state

    def with_n_samples(self, n: int) -> Self:
        """Returns a copy that draws ``n`` samples a step (what a sample is, each solver says)."""
        if "n_samples" not in (f.name for f in fields(self)):
            raise InvalidValueError(f"{self.name} has no n_samples to set to {n!r}")
        return replace(self, n_samples=check_positive_int("n_samples", n))  # type: ignore[call-arg]

    def scaled(self, factor: float) -> Self:
        """Returns a copy whose ``annealed`` fields are multiplied by ``factor`` > 0."""
        factor = check_positive("factor", factor)
        return replace(self, **{name: getattr(self, name) * factor for name in self.annealed})

    def prepared(self, task: Task) -> Solver:
        """Returns the solver for a run of `minimize`; itself, unless it wants to know the task."""
        return self

    def describe(self, state: SolverState) -> str:
        """Returns what `minimize` shall add to the message of its result; nothing, by default."""
        return ""

    def _looks_for_contrast(self, state: SolverState, candidates: Array, values: Array) -> bool:
        """Looks for the first two values that differ; returns whether this batch was part of that.

        Where no point near the start has a value, or all have the same, a search has nothing to go
        by. The base class then asks for points farther and farther away (`widened`), and starts
        the solver anew at the best of them.
        """
        if not self.adapts_steps:
            return False
        xp = array_namespace(values)
        finite = values[xp.isfinite(values)]
        if finite.shape[0] > 0 and math.isnan(state.first_value):
            state.first_value = float(finite[0])
        had_value = state.n_equal > 0
        state.n_equal += int(xp.sum(xp.astype(finite == state.first_value, xp.int64)))
        differs = bool(xp.any(finite != state.first_value))
        if state.n_widenings == 0 and not differs and state.n_equal in (1, 2):
            return False  # so few may be the same by chance
        finds_first = state.n_widenings > 0 and not had_value and state.n_equal > 0
        gives_up = state.n_equal > 0 and state.n_widenings >= MAX_FLAT
        if not (differs or finds_first or gives_up):
            state.n_widenings += 1
            return True
        state.has_contrast = True
        if state.n_widenings == 0:
            return False
        best = int(xp.argmin(values))
        value = float(values[best])
        is_better = value < state.first_value or not had_value
        if is_better:
            state.x = copy(candidates[best])
        state.value, state.inner = math.nan, None
        self._init(state)
        state.value = value if is_better else state.first_value
        return True

    def _init(self, state: SolverState) -> None:  # noqa: B027 (an optional hook)
        """Sets ``state.inner`` to what the solver wants to keep. Optional."""

    def _absorb(self, state: SolverState, points: Array, values: Array) -> None:
        """Makes use of points that are no rows of the pending batch. Optional.

        Before the first batch, the run starts from the best of them, which is a warm start. Later
        ones are ignored: the value of an old point says nothing where the objective drifts.

        Args:
            state: the run; ``state.value`` is the value of its iterate, where known.
            points: (n, dim) like ``state.x``.
            values: (n,), +inf where failed.
        """
        if state.n_steps > 0 or state.pending is not None:
            return
        best = int(array_namespace(values).argmin(values))
        value = float(values[best])
        if value < (state.value if state.has_value else math.inf):
            state.x = copy(points[best])
            state.value = value

    @abstractmethod
    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        """Returns (n, dim) candidates in the namespace, dtype and device of ``state.x``.

        ``guide`` is (dim,) like ``state.x``, or None. All randomness comes from ``state.rng``.
        """

    @abstractmethod
    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        """Returns the new iterate (dim,); ``value``, ``inner`` and ``metrics`` may be written.

        ``candidates`` is (n, dim) like ``state.x``. ``values`` is (n,), of ``value_dtype``, with
        +inf where the evaluation failed and finite everywhere else. Never write into either, nor
        into ``state.x``. A returned iterate with a non-finite entry is discarded by ``tell``.
        """


def _sort_out(
    solver: Solver, state: SolverState, candidates: Any, values: Any
) -> tuple[Array, Any]:
    """Gives each told row its place in the pending batch, and strangers to the solver.

    Returns:
        The pending batch and (n,) values for it, +inf where no row was told; (None, None) if no
        row is of the batch.
    """
    like = state.x
    n = len(candidates) if hasattr(candidates, "__len__") else 1
    told = as_like("candidates", candidates, like, (n, like.shape[0]))
    values = finite_values("values", values, like, n)
    xp = array_namespace(like)
    place: dict[int, int] = {}
    if state.pending is not None:
        # Rows are compared one by one: n^2 comparisons at once would need n^2 vectors.
        for row in range(n):
            same = xp.all(state.pending == told[row], axis=1)
            free = [k for k in np.flatnonzero(to_numpy(same)).tolist() if k not in place.values()]
            if free:
                place[row] = free[0]
    strangers = [row for row in range(n) if row not in place]
    if strangers:
        index = xp.asarray(strangers, device=device(like))
        solver._absorb(state, xp.take(told, index, axis=0), xp.take(values, index, axis=0))
    if state.pending is None or not place:
        return None, None
    sorted_values = xp.full(
        (state.pending.shape[0],), xp.inf, dtype=values.dtype, device=device(like)
    )
    for row, k in place.items():
        sorted_values[k] = values[row]
    return state.pending, sorted_values
