"""The contract of a solver: frozen hyper-parameters (`Solver`) and a mutable `SolverState`.

The public ``init``, ``ask`` and ``tell`` check their input once and call ``_init`` (optional),
``_ask`` and ``_tell``, the only methods that a new solver has to write::

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

A solver does not track the best point so far: if the objective drifts, as in architecture search
where the weights change between two steps, old values are stale. `minimize` tracks it instead.
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
    """What `minimize` knows about a run before it starts; see `Solver.prepared`.

    Attributes:
        dim: the number of coordinates.
        maxfev: the evaluation budget; None for no limit.
        bounded: whether the points have bounds.
        noisy: whether the caller declared the objective noisy.
    """

    dim: int
    maxfev: int | None = None
    bounded: bool = False
    noisy: bool = False


@dataclass(frozen=True)
class Solver(ABC):
    """A zero-order optimizer. It holds hyper-parameters only, so one instance can drive many runs.

    Attributes:
        name: the key in ``SOLVERS``.
        uses_guide: whether ``ask`` accepts a ``guide``.
        evaluates_iterate: whether the iterate is always an evaluated point. If so, ``state.value``
            is its last measured value (NaN while unknown), and no other evaluation is needed.
        adapts_steps: whether the solver finds its step lengths itself. Unless one of its
            ``lengths`` is given, `minimize` then scales each coordinate so that a first step of 1
            is sensible. While all values are equal or missing, the base class looks farther away.
        keeps_bounds: whether all candidates lie within ``state.lower`` and ``state.upper``.
        annealed: the fields that ``scaled`` multiplies.
        lengths: the fields that are lengths in units of x, or None; `stretched` multiplies them.
        value_scales: the fields that are in units of the objective.
        inner_states: the classes that ``state.inner`` may consist of: IntEnums, and dataclasses of
            numbers, arrays and each other. No other class is read from a checkpoint, where a class
            is known by its name, so names must differ.

    Raises:
        InvalidValueError: a field is out of its range; this holds for every solver. For a new
            subclass: two of its ``inner_states`` have one name.
    """

    name: ClassVar[str]
    uses_guide: ClassVar[bool] = False
    evaluates_iterate: ClassVar[bool] = False
    adapts_steps: ClassVar[bool] = False
    keeps_bounds: ClassVar[bool] = False
    annealed: ClassVar[tuple[str, ...]] = ()
    lengths: ClassVar[tuple[str, ...]] = ()
    value_scales: ClassVar[tuple[str, ...]] = ()
    inner_states: ClassVar[tuple[type, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Check that a checkpoint can tell the ``inner_states`` apart."""
        super().__init_subclass__(**options)
        names = [kind.__name__ for kind in cls.inner_states]
        for name in names:
            if names.count(name) > 1:
                raise InvalidValueError(
                    f"{cls.__name__}.inner_states holds two classes called {name!r}; rename one"
                )

    @property
    def has_lengths(self) -> bool:
        """Whether one of the ``lengths`` is given."""
        return any(getattr(self, name) is not None for name in self.lengths)

    @property
    def antithetic(self) -> bool:
        """Whether rows 2k and 2k + 1 of each batch are x + d and x - d."""
        return False

    @property
    def compares_batches(self) -> bool:
        """Whether values of different batches are compared.

        An objective that drifts makes that wrong, so an architecture search refuses the solver.
        """
        return False

    def init(
        self,
        x0: Any,
        *,
        rng: Any = None,
        bounds: tuple[Any, Any] | None = None,
        is_scaled: bool = False,
    ) -> SolverState:
        """Start a run at ``x0``.

        Args:
            x0: (dim,), finite and real; copied. A floating NumPy array or torch tensor keeps its
                dtype and device; anything else becomes a float64 NumPy array.
            rng: None, a non-negative int, a ``numpy.random.Generator`` (for torch, one draw from it
                seeds a ``torch.Generator`` on the device of ``x0``) or, for torch, a
                ``torch.Generator``.
            bounds: the lower and upper bounds, (dim,) each, infinite where open. ``x0`` must lie
                within them. Only a solver with ``keeps_bounds`` uses them.
            is_scaled: whether a first step of 1 is sensible along every coordinate. Otherwise the
                first step follows from the size of ``x0``.

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
        """Draw a batch of candidates to evaluate; the iterate does not move.

        A second ``ask`` before ``tell`` draws a new batch, which replaces the pending one.

        Args:
            state: the run; its generator advances and its ``pending`` becomes the batch.
            guide: (dim,), a promising displacement of x, for a solver with ``uses_guide``.

        Returns:
            ``state.pending``, (n, dim), in the namespace and dtype and on the device of
            ``state.x``. Do not write into it.

        Raises:
            InvalidValueError: the guide has the wrong shape, or the solver accepts none.
        """
        if guide is not None:
            if not self.uses_guide:
                kind = type(guide).__name__
                raise InvalidValueError(f"guide must be None for {self.name}, got a {kind}")
            guide = as_like("guide", guide, state.x, tuple(state.x.shape))
        # Steps overflow if the objective has no minimum; see `tell`.
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
        """Move the iterate by the values of candidates from ``ask``, or take in other points.

        The rows may be any subset of the pending batch in any order: they are matched by their
        coordinates, and missing rows count as failed. Rows outside the pending batch, such as late
        rows of an earlier one, go to ``_absorb``; alone they leave the batch pending.

        Args:
            state: the run; advanced in place.
            candidates: (n, dim). Passing ``state.pending`` itself skips the matching.
            values: (n,), the objective at each row, as a list, NumPy array or torch tensor. NaN and
                infinities mark failed evaluations, which the solver sees as +inf.
            repaired: whether ``candidates`` is the whole pending batch in its order, with rows that
                may have been moved, such as clipped to a box. The solver then uses them as given.

        Returns:
            ``state`` itself.

        Raises:
            InvalidValueError: a shape is wrong, or ``repaired`` without a pending batch.
        """
        pending = state.pending
        if candidates is not pending or pending is None:
            if repaired:
                if pending is None:
                    raise InvalidValueError("repaired rows must follow ask, got no pending batch")
                candidates = as_like("candidates", candidates, state.x, tuple(pending.shape))
            else:
                candidates, values = _match_pending(self, state, candidates, values)
                if candidates is None:
                    return state
        # inf - inf and overflow are expected, and handled below and in the solvers.
        with np.errstate(over="ignore", invalid="ignore"):
            values = finite_values("values", values, state.x, candidates.shape[0])
            if state.has_contrast or not self._looks_for_contrast(state, candidates, values):
                state.x = finite_or(self._tell(state, candidates, values), state.x)
        state.n_steps += 1
        state.pending = None
        return state

    def with_n_samples(self, n: int) -> Self:
        """Return a copy that draws ``n`` samples a step; each solver defines what a sample is."""
        if "n_samples" not in (f.name for f in fields(self)):
            raise InvalidValueError(f"{self.name} has no n_samples to set to {n!r}")
        return replace(self, n_samples=check_positive_int("n_samples", n))  # type: ignore[call-arg]

    def scaled(self, factor: float) -> Self:
        """Return a copy whose ``annealed`` fields are multiplied by ``factor`` > 0."""
        factor = check_positive("factor", factor)
        return replace(self, **{name: getattr(self, name) * factor for name in self.annealed})

    def stretched(self, factor: float) -> Self:
        """Return a copy whose ``lengths``, if given, are multiplied by ``factor`` > 0.

        A run may go on with it, unless the solver ``adapts_steps``: its lengths are the first ones.
        """
        factor = check_positive("factor", factor)
        given = {name: getattr(self, name) for name in self.lengths}
        return replace(self, **{k: v * factor for k, v in given.items() if v is not None})

    def prepared(self, task: Task) -> Solver:
        """Return the solver for a run of `minimize`: itself, unless it depends on the task."""
        return self

    def describe(self, state: SolverState) -> str:
        """Return a sentence for the message of `minimize`; empty by default."""
        return ""

    def _looks_for_contrast(self, state: SolverState, candidates: Array, values: Array) -> bool:
        """Look for two different values; return whether the batch was used for this.

        While no point has a value, or all values are equal, `widened` draws the batches, and the
        solver then starts at the best of their points.
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
            return False  # one or two equal values may be chance
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
        """Set ``state.inner`` to what the solver keeps between steps. Optional."""

    def _absorb(self, state: SolverState, points: Array, values: Array) -> None:
        """Take in points outside the pending batch. Optional.

        Before the first batch the run starts at the best of them (a warm start). Later points are
        ignored by default, because old values are stale if the objective drifts.

        Args:
            state: the run; ``state.value`` is the value of its iterate, if known.
            points: (n, dim) like ``state.x``.
            values: (n,), +inf for failed evaluations.
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
        """Return (n, dim) candidates in the namespace, dtype and device of ``state.x``.

        ``guide`` is (dim,) like ``state.x``, or None. All randomness comes from ``state.rng``.
        """

    @abstractmethod
    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        """Return the new iterate (dim,); may write ``value``, ``inner`` and ``metrics``.

        ``candidates`` is (n, dim) like ``state.x``; ``values`` is (n,) of ``value_dtype``, finite
        or, for a failed evaluation, +inf. Do not write into either, nor into ``state.x``. ``tell``
        discards a returned iterate with a non-finite entry.
        """


def _match_pending(
    solver: Solver, state: SolverState, candidates: Any, values: Any
) -> tuple[Array, Any]:
    """Sort told rows into the pending batch, and pass all other rows to the solver.

    Returns:
        The pending batch and its values (n,), +inf for rows not told; (None, None) if no row is of
        the batch.
    """
    like = state.x
    n = len(candidates) if hasattr(candidates, "__len__") else 1
    told = as_like("candidates", candidates, like, (n, like.shape[0]))
    values = finite_values("values", values, like, n)
    xp = array_namespace(like)
    pending_row: dict[int, int] = {}
    if state.pending is not None:
        # One row at a time, because n^2 comparisons at once would need n^2 vectors.
        for row in range(n):
            same = np.flatnonzero(to_numpy(xp.all(state.pending == told[row], axis=1))).tolist()
            free = [k for k in same if k not in pending_row.values()]
            if free:
                pending_row[row] = free[0]
    others = [row for row in range(n) if row not in pending_row]
    if others:
        index = xp.asarray(others, device=device(like))
        solver._absorb(state, xp.take(told, index, axis=0), xp.take(values, index, axis=0))
    if state.pending is None or not pending_row:
        return None, None
    shape = (state.pending.shape[0],)
    sorted_values = xp.full(shape, xp.inf, dtype=values.dtype, device=device(like))
    for row, k in pending_row.items():
        sorted_values[k] = values[row]
    return state.pending, sorted_values
