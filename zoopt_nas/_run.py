"""The loop of `minimize`, its stopping rules and its result."""

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

# A noisy run ends by measuring the iterate and this many of the best points again.
N_ELITES = 4
# The fraction of the evaluations reserved for that, and the maximum number of calls per point.
FINAL_FRACTION = 0.1
MAX_FINAL_CALLS = 30


class Status(IntEnum):
    """The reason for which a run ended; ``message`` is a sentence."""

    message: str

    TARGET_REACHED = 0, "The target value was reached."
    MAXFEV = 1, "The maximum number of function evaluations was used."
    MAXITER = 2, "The maximum number of iterations was used."
    CALLBACK = 3, "The callback stopped the run."
    NO_FINITE_VALUE = 4, "The function returned no finite value."
    MAXTIME = 5, "The maximum time was used."
    STAGNATION = 6, "The best value has not improved for maxstall evaluations."

    def __new__(cls, value: int, message: str) -> Status:
        """Create a member with its message."""
        status = int.__new__(cls, value)
        status._value_ = value
        status.message = message
        return status


@dataclass(frozen=True)
class Limits:
    """Stopping rules beside the budget and the target of the objective; None for no limit."""

    maxiter: int | None = None
    maxtime: float | None = None
    maxstall: int | None = None


class Run:
    """One call of ``minimize``."""

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
        # The best value, and the number of evaluations when it was found.
        self.improved = (objective.best_fun, 0)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from the checkpoint if its file exists, and save into it from now on."""
        self.checkpoint = checkpoint
        saved = checkpoint.load(self.solver)
        if saved is not None:
            self.state, record = saved
            self.objective.restore(record)
            self.started -= record["meta"]["seconds"]
            self.improved = tuple(record["meta"]["improved"])

    def save(self) -> None:
        """Save the run if it has a checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.save(self.state, self.record())

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint holds in addition to the state of the solver."""
        record = self.objective.to_dict()
        record["meta"]["seconds"] = time.monotonic() - self.started
        record["meta"]["improved"] = list(self.improved)
        return record

    @property
    def reserve(self) -> int:
        """The evaluations reserved for the end of the run."""
        n_final = self.n_final_calls * (N_ELITES + 1)
        return n_final or (0 if self.solver.evaluates_iterate else 1)

    @property
    def n_final_calls(self) -> int:
        """The final calls at each of the best points of a noisy run; 0 if the budget is small."""
        if not self.noisy:
            return 0
        budget = self.objective.maxfev or self.objective.nfev
        n = int(budget * FINAL_FRACTION) // (N_ELITES + 1)
        return min(n, MAX_FINAL_CALLS) if n > 1 else 0

    def loop(self, limits: Limits, after: Callable[[], None] | None) -> Status:
        """Iterate until a stopping rule holds, and return its status.

        ``after`` is called after every iteration, and may raise ``StopIteration``.
        """
        objective, checkpoint = self.objective, self.checkpoint
        self.maxtime = limits.maxtime
        while True:
            self.look_for_noise()
            reserve = self.reserve if objective.maxfev is not None else 0
            status = self.ended(limits, reserve)
            if status is not None:
                return status
            # A resumed run first repeats the batch that its time limit cut.
            pending = self.state.pending
            asked = self.solver.ask(self.state) if pending is None else pending
            points = self.coordinates.points(asked, antithetic=self.solver.antithetic)
            objective.deadline = self.deadline
            values = self.evaluate(points, reserve)
            if objective.best_fun < self.improved[0]:
                self.improved = (objective.best_fun, objective.nfev)
            is_cut = objective.was_cut and not objective.reached_target
            if is_cut:  # the solver is not told, so that a resumed run can repeat the batch
                objective.reuse_seeds()
            else:
                self.tell(asked, points, values)
            if after is not None:
                try:
                    after()
                except StopIteration:
                    return Status.TARGET_REACHED if objective.reached_target else Status.CALLBACK
            if is_cut:
                return Status.MAXTIME
            if checkpoint is not None and not objective.reached_target:
                checkpoint.save_if_due(self.state, self.record)

    @property
    def deadline(self) -> float:
        """The end of the search on ``time.monotonic``; a noisy run reserves time for its end."""
        if self.maxtime is None:
            return np.inf
        is_measured = self.noisy and (self.objective.maxfev is None or self.n_final_calls > 0)
        return self.started + self.maxtime * (1 - FINAL_FRACTION if is_measured else 1)

    def look_for_noise(self) -> None:
        """Treat the run as noisy once the solver sets ``metrics["is_noisy"]``."""
        if not self.noisy and self.state.metrics.get("is_noisy", False):
            self.noisy = True
            self.objective.keep_elites(N_ELITES)

    def ended(self, limits: Limits, reserve: int) -> Status | None:
        """Return the status if a stopping rule holds before the next iteration, else None."""
        objective = self.objective
        if objective.reached_target:
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
        """The iterate of the solver as a point of the function."""
        return self.coordinates.points(self.state.x)

    def evaluate(self, points: Array, reserve: int) -> np.ndarray:
        """Return the values of a batch, (n,). In the first batch, x0 is evaluated first.

        Thus no result is worse than x0, and a target that x0 meets ends the run at once.
        """
        if self.objective.nfev == 0 and self.objective.best_x is None:
            xp = array_namespace(points)
            x0 = self.iterate[None, :]
            if not bool(xp.all(points[:1, :] == x0)):
                points = xp.concat([x0, points], axis=0)
                return self.objective.evaluate(points, reserve=reserve)[1:]
        return self.objective.evaluate(points, reserve=reserve)

    def tell(self, asked: Array, points: Array, values: np.ndarray) -> None:
        """Tell the solver the values, and keep its iterate inside the box."""
        told = self.coordinates.told(points)
        if told is None:
            self.solver.tell(self.state, asked, values)
        else:
            self.solver.tell(self.state, told, values, repaired=True)
            self.state.x = within_bounds(self.state, self.state.x)

    def finish(self) -> None:
        """Spend the reserved evaluations.

        A noisy run measures its best points and the iterate again, since the lowest of many noisy
        values is biased. Any other run evaluates the iterate unless the solver has done so.
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
            values = self.objective.measure(array_namespace(points[0]).stack(points), n_calls)
            best = int(np.argmin(values))
            self.fun_iterate = float(values[0])
            if np.isfinite(values[best]):
                self.recommended = (copy(points[best]), float(values[best]))
        elif not self.solver.evaluates_iterate and self.n_calls_left():
            self.fun_iterate = float(self.objective.evaluate(self.iterate[None, :])[0])

    def n_calls_left(self) -> int:
        """Return how many calls the time left allows, by their mean time so far."""
        if self.maxtime is None or self.objective.nfev == 0:
            return sys.maxsize
        spent = time.monotonic() - self.started
        left = max(self.maxtime - spent, 0.0)
        return int(left / max(spent, 1e-9) * self.objective.nfev)

    def intermediate_result(self) -> OptimizeResult:
        """Return the result so far, as passed to the callback."""
        from scipy.optimize import OptimizeResult  # slow to import

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
        """Return the final result of a run that ended with ``status``."""
        objective = self.objective
        found_any = objective.best_x is not None
        if objective.reached_target:  # possibly by the last evaluations
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
