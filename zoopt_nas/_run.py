"""One run of `minimize`: a solver, where it is, what it minimizes, and what ends it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, copy
from zoopt_nas.checkpoint import Checkpoint
from zoopt_nas.coordinates import Coordinates
from zoopt_nas.objective import Objective
from zoopt_nas.solvers import Solver, SolverState
from zoopt_nas.solvers.state import within_bounds

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# The end of a noisy run: how many of the best points are measured again beside the iterate, with
# which share of the evaluations, and at the most how often each.
N_ELITES = 4
FINAL_SHARE = 0.1
MAX_FINAL_CALLS = 30


class Status(IntEnum):
    """Why a run ended. ``Status.MAXFEV.message`` is the sentence for people."""

    TARGET_REACHED = 0
    MAXFEV = 1
    MAXITER = 2
    CALLBACK = 3
    NO_FINITE_VALUE = 4
    MAXTIME = 5
    STAGNATION = 6

    @property
    def message(self) -> str:
        """What the status means, in one sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.TARGET_REACHED: "The target value was reached.",
    Status.MAXFEV: "The maximum number of function evaluations was used.",
    Status.MAXITER: "The maximum number of iterations was used.",
    Status.CALLBACK: "The callback stopped the run.",
    Status.NO_FINITE_VALUE: "The function returned no finite value.",
    Status.MAXTIME: "The maximum time was used.",
    Status.STAGNATION: "The best value has not improved for maxstall evaluations.",
}


@dataclass(frozen=True)
class Limits:
    """What ends a run, beside the budget and the target of its objective; None is no limit."""

    maxiter: int | None = None
    maxtime: float | None = None
    maxstall: int | None = None


class Run:
    """One call of ``minimize``: a solver, where it is, what it minimizes, in which coordinates."""

    def __init__(
        self,
        solver: Solver,
        state: SolverState,
        objective: Objective,
        coordinates: Coordinates,
        noisy: bool = False,
    ) -> None:
        self.solver = solver
        self.state = state
        self.objective = objective
        self.coordinates = coordinates
        self.noisy = noisy
        self.checkpoint: Checkpoint | None = None
        self.started = time.monotonic()
        self.maxtime: float | None = None
        self.fun_iterate = np.nan
        self.recommended: tuple[Array, float] | None = None
        # When the best value improved last: the value, and the evaluations until then.
        self.improved = (objective.best_fun, 0)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from the checkpoint if there is one, and saves into it from now on."""
        self.checkpoint = checkpoint
        saved = checkpoint.load(self.solver)
        if saved is not None:
            self.state, record = saved
            self.objective.restore(record)
            self.started -= record["meta"]["seconds"]
            self.improved = tuple(record["meta"]["improved"])

    def save(self) -> None:
        """Saves the run where it is, if it has a checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.save(self.state, self.record())

    def record(self) -> dict[str, Any]:
        """Returns what a checkpoint holds beside the state of the solver."""
        record = self.objective.to_dict()
        record["meta"]["seconds"] = time.monotonic() - self.started
        record["meta"]["improved"] = list(self.improved)
        return record

    @property
    def reserve(self) -> int:
        """The evaluations kept back for the end of the run."""
        n_final = self.n_final_calls * (N_ELITES + 1)
        return n_final or (0 if self.solver.evaluates_iterate else 1)

    @property
    def n_final_calls(self) -> int:
        """How often each finalist of a noisy run is measured; 0 where the budget is too small."""
        if not self.noisy:
            return 0
        budget = self.objective.maxfev or self.objective.nfev
        n = int(budget * FINAL_SHARE) // (N_ELITES + 1)
        return min(n, MAX_FINAL_CALLS) if n > 1 else 0

    def loop(self, limits: Limits, after: Callable[[], None] | None) -> Status:
        """Iterates until something ends the run, and says what.

        Args:
            limits: what may end it.
            after: called after every iteration; may raise ``StopIteration``.
        """
        objective, checkpoint = self.objective, self.checkpoint
        self.maxtime = limits.maxtime
        while True:
            self.look_for_noise()
            reserve = self.reserve if objective.maxfev is not None else 0
            status = self.ended(limits, reserve)
            if status is not None:
                return status
            # Pending is what the end of the time cut, before the run was resumed.
            pending = self.state.pending
            asked = self.solver.ask(self.state) if pending is None else pending
            points = self.coordinates.points(asked, antithetic=self.solver.antithetic)
            objective.deadline = self.deadline
            values = self.evaluate(points, reserve)
            if objective.best_fun < self.improved[0]:
                self.improved = (objective.best_fun, objective.nfev)
            is_cut = objective.was_cut and not objective.reached_target
            if is_cut:  # the solver is not told, so that a resumed run can make the whole batch
                objective.take_back()
            else:
                self.tell(asked, points, values)
            if after is not None:
                try:
                    after()
                except StopIteration:
                    return Status.TARGET_REACHED if objective.reached_target else Status.CALLBACK
            if is_cut:
                return Status.MAXTIME
            if objective.reached_target:
                continue
            if checkpoint is not None:
                checkpoint.save_if_due(self.state, self.record)

    @property
    def deadline(self) -> float:
        """When the search ends, on the clock of ``time.monotonic``.

        A noisy run keeps as large a part of its time for the end as it keeps of its evaluations.
        """
        if self.maxtime is None:
            return np.inf
        is_measured = self.noisy and (self.objective.maxfev is None or self.n_final_calls > 0)
        return self.started + self.maxtime * (1 - FINAL_SHARE if is_measured else 1)

    def look_for_noise(self) -> None:
        """Takes the run for noisy once the solver says that it has found noise.

        It does so by ``metrics["is_noisy"]``.
        """
        if not self.noisy and self.state.metrics.get("is_noisy", False):
            self.noisy = True
            self.objective.remember(N_ELITES)

    def ended(self, limits: Limits, reserve: int) -> Status | None:
        """Returns what ends the run before the next iteration, or None."""
        objective = self.objective
        if objective.reached_target:  # in this batch, or before the run was resumed
            return Status.TARGET_REACHED
        if limits.maxiter is not None and self.state.n_steps >= limits.maxiter:
            return Status.MAXITER
        if objective.maxfev is not None and objective.nfev + reserve >= objective.maxfev:
            return Status.MAXFEV
        if time.monotonic() >= self.deadline:
            return Status.MAXTIME
        if limits.maxstall is not None and objective.nfev - self.improved[1] >= limits.maxstall:
            return Status.STAGNATION
        return None

    @property
    def iterate(self) -> Array:
        """Where the solver is, as a point of the function."""
        return self.coordinates.points(self.state.x)

    def evaluate(self, points: Array, reserve: int) -> np.ndarray:
        """Returns the values of a batch, (n,); in the first one, x0 is evaluated before all others.

        So no result is worse than x0, and a target that x0 meets ends the run, whatever the solver.
        """
        if self.objective.nfev > 0 or self.objective.best_x is not None:
            return self.objective.evaluate(points, reserve=reserve)
        xp = array_namespace(points)
        x0 = self.iterate[None, :]
        if bool(xp.all(points[:1, :] == x0)):
            return self.objective.evaluate(points, reserve=reserve)
        return self.objective.evaluate(xp.concat([x0, points], axis=0), reserve=reserve)[1:]

    def tell(self, asked: Array, points: Array, values: np.ndarray) -> None:
        """Moves the solver, and its iterate back into the box."""
        told = self.coordinates.told(points)
        if told is None:
            self.solver.tell(self.state, asked, values)
        else:
            self.solver.tell(self.state, told, values, repaired=True)
            self.state.x = within_bounds(self.state, self.state.x)

    def finish(self) -> None:
        """Spends the evaluations that were kept back.

        A noisy run measures its finalists anew, all with the same seeds: the lowest of many noisy
        values was lucky, and says little of its point. Another run evaluates the iterate, where the
        solver has not.
        """
        if self.solver.evaluates_iterate:
            self.fun_iterate = float(self.state.value)
        if self.objective.reached_target:
            return
        n_calls = self.n_final_calls
        if self.maxtime is not None:
            self.objective.deadline = self.started + self.maxtime
            n_calls = min(n_calls, self.n_calls_left() // (len(self.objective.elites) + 1))
        if n_calls and self.objective.elites:
            points = [self.iterate, *(x for _, x in self.objective.elites)]
            stacked = array_namespace(points[0]).stack(points)
            values = self.objective.measure(stacked, n_calls)
            best = int(np.argmin(values))
            self.fun_iterate = float(values[0])
            if np.isfinite(values[best]):
                self.recommended = (copy(points[best]), float(values[best]))
        elif not self.solver.evaluates_iterate and self.n_calls_left():
            self.fun_iterate = float(self.objective.evaluate(self.iterate[None, :])[0])

    def n_calls_left(self) -> int:
        """Returns how many calls the rest of the time is enough for, by their mean time so far."""
        if self.maxtime is None or self.objective.nfev == 0:
            return sys.maxsize
        spent = time.monotonic() - self.started
        left = max(self.maxtime - spent, 0.0)
        return int(left / max(spent, 1e-9) * self.objective.nfev)

    def intermediate_result(self) -> OptimizeResult:
        """Returns the result so far, as the callback sees it."""
        from scipy.optimize import OptimizeResult  # slow to load: not at import

        best, fun = self.objective.best_x, self.objective.best_fun
        if self.recommended is not None:
            best, fun = self.recommended
        return OptimizeResult(
            x=copy(self.iterate if best is None else best),
            fun=fun,
            nfev=self.objective.nfev,
            nit=self.state.n_steps,
            x_iterate=copy(self.iterate),
        )

    def result(self, status: Status) -> OptimizeResult:
        """Returns the final result of a run that ended with ``status``."""
        objective = self.objective
        found_any = objective.best_x is not None
        if objective.reached_target:  # perhaps only by the evaluation of the final iterate
            status = Status.TARGET_REACHED
        elif not found_any:
            status = Status.NO_FINITE_VALUE
        result = self.intermediate_result()
        result.update(
            success=objective.reached_target if objective.target is not None else found_any,
            status=status,
            message=" ".join(filter(None, [status.message, self.solver.describe(self.state)])),
            fun_iterate=self.fun_iterate,
            n_failed=objective.n_failed,
        )
        if objective.history is not None:
            result["history"] = np.array(objective.history)
        return result
