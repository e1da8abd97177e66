"""The solvers as nevergrad optimizers: importing this module registers them.

``nevergrad.optimizers.registry`` then has ``ZooptRS``, ``ZooptQuasiNewton`` and so on, "Zoopt" with
the class of each solver of the package, and `ZooptOptimizer` makes an optimizer with other options.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoopt_nas.errors import MissingDependencyError
from zoopt_nas.integrations.spares import is_overdue, spare
from zoopt_nas.solvers import KINDS, Solver, SolverState, make_solver
from zoopt_nas.solvers.base import Task

try:
    from nevergrad.optimization import base
    from nevergrad.parametrization.core import Parameter
except ImportError as error:
    raise MissingDependencyError(
        "nevergrad is not installed; install it with: pip install 'zoopt-nas[nevergrad]'"
    ) from error

# What nevergrad puts in the place of a loss that is NaN, infinite or larger.
_LARGEST_LOSS = 5e20


class _SolverOptimizer(base.Optimizer):  # type: ignore[misc]
    """One run of a solver, in the standardized space of nevergrad; made by `ZooptOptimizer`.

    A batch of the solver is handed out candidate by candidate. When all are out but not all are
    back, ``ask`` returns a spare: a random point about the iterate. When many of those have come
    back since a row was handed out, it is handed out once more, as its worker may have died. The
    solver is told of spares, and of points that it was never asked for, between two batches.

    Args:
        parametrization: see nevergrad; the start is its initial value.
        budget: see nevergrad.
        num_workers: see nevergrad; the solver's batches do not depend on it.
        method: a name from ``SOLVERS`` or a ``Solver``.
        options: fields of the solver, by name.
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
        self._queue: deque[int] = deque()  # rows of the batch that are not handed out yet
        self._row_of: dict[str, int] = {}  # those that are out, by the uid of the candidate
        self._values = np.empty(0)
        self._spares: set[str] = set()  # those that are out, by the uid of the candidate
        self._n_spares = 0  # those that have come back
        self._handed_out: dict[int, int] = {}  # of each row: how many spares were back by then
        self._strangers: list[tuple[np.ndarray, float]] = []

    def _internal_ask_candidate(self) -> Parameter:
        state = self._run()
        if not self._queue:
            self._give_up_rejected()
            if state.pending is None or not self._row_of:
                self._next_batch(state)
            else:
                self._queue.extend(self._overdue_rows())
        child = self.parametrization.spawn_child()
        if self._queue:
            row = self._queue.popleft()
            self._row_of[child.uid] = row
            self._handed_out[row] = self._n_spares
            return child.set_standardized_data(state.pending[row])  # type: ignore[index]
        self._spares.add(child.uid)
        return child.set_standardized_data(spare(state, state.rng))

    def _internal_tell_candidate(self, candidate: Parameter, loss: float) -> None:
        value = loss if loss < _LARGEST_LOSS else math.inf
        row = self._row_of.get(candidate.uid)
        if row is None:
            if candidate.uid in self._spares:
                self._spares.remove(candidate.uid)
                self._n_spares += 1
            point = candidate.get_standardized_data(reference=self.parametrization)
            self._strangers.append((point, value))
        else:
            self._values[row] = value
            # Of a row that was handed out twice the first value counts.
            self._row_of = {uid: r for uid, r in self._row_of.items() if r != row}
            if row in self._queue:
                self._queue.remove(row)

    def _run(self) -> SolverState:
        """Returns the state, of a run that starts with the first ask.

        Not before, as the generator of a parametrization is often seeded after the optimizer was
        made.
        """
        if self._state is None:
            seed = int(self._rng.randint(2**31 - 1))
            self._state = self._solver.init(np.zeros(self.dimension), rng=seed)
        return self._state

    def _give_up_rejected(self) -> None:
        """Counts rows as failed that nevergrad asked for and dropped, by a cheap constraint."""
        for uid in [uid for uid in self._row_of if uid not in self._asked]:
            del self._row_of[uid]  # its value is +inf since the batch was drawn

    def _overdue_rows(self) -> list[int]:
        """Returns the rows of the batch that are out and taken for lost."""
        n_rows, n_out = len(self._values), len(self._asked)
        return [
            row
            for row in sorted(set(self._row_of.values()))
            if is_overdue(self._n_spares - self._handed_out[row], n_rows, n_out)
        ]

    def _next_batch(self, state: SolverState) -> None:
        if state.pending is not None:
            self._solver.tell(state, state.pending, self._values)
        if self._strangers:
            points, values = zip(*self._strangers, strict=True)
            self._solver.tell(state, np.array(points), values)
            self._strangers.clear()
        n = self._solver.ask(state).shape[0]
        self._queue.extend(range(n))
        self._values = np.full(n, np.inf)
        self._handed_out.clear()


class ZooptOptimizer(base.ConfiguredOptimizer):  # type: ignore[misc]
    """A solver of the package as a nevergrad optimizer, with options.

    Example:
        >>> optimizer = ZooptOptimizer(max_radius=0.5)(parametrization=2, budget=300)
        >>> recommendation = optimizer.minimize(lambda x: float(((x - 0.3) ** 2).sum()))
        >>> bool(abs(recommendation.value - 0.3).max() < 0.1)
        True

    Args:
        method: a name from ``SOLVERS`` or a ``Solver``.
        **options: fields of the solver, by name. They are in standard deviations of the parameters,
            which nevergrad's ``set_mutation(sigma=...)`` sets.

    Raises:
        InvalidValueError: an option is out of its range.
        UnknownNameError: no such solver or field; the message suggests the nearest.
    """

    def __init__(self, method: str | Solver = "adaptive_gld", **options: Any) -> None:
        super().__init__(_SolverOptimizer, {"method": method, "options": options})


def _register() -> None:
    for kind in KINDS:
        name = f"Zoopt{kind.__name__}"
        base.registry.unregister(name)  # nevergrad refuses a name twice, as in a reload
        ZooptOptimizer(kind.name).set_name(name, register=True)


_register()
