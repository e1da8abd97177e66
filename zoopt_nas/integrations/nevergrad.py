"""The solvers as nevergrad optimizers; importing this module registers them.

The names in ``nevergrad.optimizers.registry`` are "Zoopt" and the class of the solver, such as
``ZooptQuasiNewton``. `ZooptOptimizer` makes an optimizer with other options.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoopt_nas.errors import MissingDependencyError
from zoopt_nas.integrations.fillers import filler_point, is_overdue
from zoopt_nas.solvers import KINDS, Solver, SolverState, make_solver
from zoopt_nas.solvers.base import Task

try:
    from nevergrad.optimization import base
    from nevergrad.parametrization.core import Parameter
except ImportError as error:
    raise MissingDependencyError(
        "nevergrad is not installed; install it with: pip install 'zoopt-nas[nevergrad]'"
    ) from error

# nevergrad replaces a loss that is NaN, infinite or larger by this one.
_LARGEST_LOSS = 5e20


class _SolverOptimizer(base.Optimizer):  # type: ignore[misc]
    """One run of a solver in the standardized space of nevergrad.

    ``ask`` returns the rows of a batch one by one. When all rows are assigned but some are
    unfinished, it returns a filler point or, if many of those have finished since, assigns a row
    again, as its worker may have died. Between two batches, the solver is told of the filler points
    and of points that it did not ask for. The start point is the initial value of the
    parametrization.
    """

    def __init__(
        self,
        parametrization: base.IntOrParameter,
        budget: int | None = None,
        num_workers: int = 1,
        *,
        method: str | Solver = "adaptive_gld",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(parametrization, budget=budget, num_workers=num_workers)
        solver = make_solver(method, options)
        self._solver = solver.prepared(Task(dim=self.dimension, maxfev=budget))
        self._state: SolverState | None = None
        self._queue: deque[int] = deque()  # the rows of the batch to assign
        self._row_of: dict[str, int] = {}  # the unfinished rows, by the uid of the candidate
        self._values = np.empty(0)
        self._fillers: set[str] = set()  # the uids of unfinished filler points
        self._n_fillers = 0  # the number of finished filler points
        self._assigned_at: dict[int, int] = {}  # by row: that number when it was assigned
        self._others: list[tuple[np.ndarray, float]] = []  # results outside of the batch

    def _internal_ask_candidate(self) -> Parameter:
        state = self._run()
        if not self._queue:
            self._drop_rejected()
            if state.pending is None or not self._row_of:
                self._next_batch(state)
            else:
                self._queue.extend(self._overdue_rows())
        child = self.parametrization.spawn_child()
        if self._queue:
            row = self._queue.popleft()
            self._row_of[child.uid] = row
            self._assigned_at[row] = self._n_fillers
            return child.set_standardized_data(state.pending[row])  # type: ignore[index]
        self._fillers.add(child.uid)
        return child.set_standardized_data(filler_point(state, state.rng))

    def _internal_tell_candidate(self, candidate: Parameter, loss: float) -> None:
        value = loss if loss < _LARGEST_LOSS else math.inf
        row = self._row_of.get(candidate.uid)
        if row is None:
            if candidate.uid in self._fillers:
                self._fillers.remove(candidate.uid)
                self._n_fillers += 1
            point = candidate.get_standardized_data(reference=self.parametrization)
            self._others.append((point, value))
        else:
            self._values[row] = value
            # If the row was assigned twice, the first value counts.
            self._row_of = {uid: r for uid, r in self._row_of.items() if r != row}
            if row in self._queue:
                self._queue.remove(row)

    def _run(self) -> SolverState:
        """Return the state; the run starts late since users seed nevergrad before the first ask."""
        if self._state is None:
            seed = int(self._rng.randint(2**31 - 1))
            self._state = self._solver.init(np.zeros(self.dimension), rng=seed)
        return self._state

    def _drop_rejected(self) -> None:
        """Count rows as failed that nevergrad rejected because of a constraint."""
        for uid in [uid for uid in self._row_of if uid not in self._asked]:
            del self._row_of[uid]  # its value stays +inf

    def _overdue_rows(self) -> list[int]:
        """Return the unfinished rows of the batch that count as lost."""
        n_rows, n_running = len(self._values), len(self._asked)
        return [
            row
            for row in sorted(set(self._row_of.values()))
            if is_overdue(self._n_fillers - self._assigned_at[row], n_rows, n_running)
        ]

    def _next_batch(self, state: SolverState) -> None:
        if state.pending is not None:
            self._solver.tell(state, state.pending, self._values)
        if self._others:
            points, values = zip(*self._others, strict=True)
            self._solver.tell(state, np.array(points), values)
            self._others.clear()
        n = self._solver.ask(state).shape[0]
        self._queue.extend(range(n))
        self._values = np.full(n, np.inf)
        self._assigned_at.clear()


class ZooptOptimizer(base.ConfiguredOptimizer):  # type: ignore[misc]
    """A solver of this package as a nevergrad optimizer, with options.

    Example:
        >>> optimizer = ZooptOptimizer(max_radius=0.5)(parametrization=2, budget=300)
        >>> recommendation = optimizer.minimize(lambda x: float(((x - 0.3) ** 2).sum()))
        >>> bool(abs(recommendation.value - 0.3).max() < 0.1)
        True

    Args:
        method: a name from ``SOLVERS`` or a ``Solver``.
        **options: fields of the solver by name. Lengths are in standard deviations of the
            parameters, which nevergrad's ``set_mutation(sigma=...)`` sets.

    Raises:
        InvalidValueError: an option is invalid.
        UnknownNameError: the solver or a field is unknown.
    """

    def __init__(self, method: str | Solver = "adaptive_gld", **options: Any) -> None:
        super().__init__(_SolverOptimizer, {"method": method, "options": options})


def _register() -> None:
    for kind in KINDS:
        name = f"Zoopt{kind.__name__}"
        base.registry.unregister(name)  # nevergrad rejects a registered name, as in a reload
        ZooptOptimizer(kind.name).set_name(name, register=True)


_register()
