"""Auto: picks solvers for a task and races them (ZARTS, section 6 i)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from zoopt_nas._arrays import Array, array_namespace, copy
from zoopt_nas._checks import check_bool, check_positive_int
from zoopt_nas.solvers.base import Solver, SolverState, Task
from zoopt_nas.solvers.cma import CMA
from zoopt_nas.solvers.gld import GLD
from zoopt_nas.solvers.mgs import MGS
from zoopt_nas.solvers.rs import RS


class Plan(NamedTuple):
    """The solvers of a run, and for which task.

    The first begins. When it has converged, the second begins where it ended, and so on; from then
    on, whenever a solver has converged and starts anew, the turn goes to that which has had the
    fewest evaluations.
    """

    task: str
    solvers: tuple[Solver, ...]


PLANS = (
    Plan("few dimensions", (RS(), CMA())),
    Plan("many dimensions", (RS(),)),
    Plan("a small budget", (GLD(),)),
    Plan("noise", (MGS(),)),
)
FEW, MANY, SMALL, NOISY = range(len(PLANS))

# Up to here a whole gradient and a matrix are cheap.
MAX_FEW = 100
# RS needs 2 evaluations for each coordinate before its first step.
SMALL_BUDGET_PER_DIM = 4

# Beyond, as where the objective falls for ever, cmaes refuses to start.
FARTHEST = 1e30

_OWN = "auto."


@dataclass(frozen=True)
class Auto(Solver):
    """The choice of a solver left to the package: the default of `minimize`.

    The first rule that applies says which solvers run:

    1. The objective is noisy: ``mgs``. It is if the caller says so, or if rs has found that its
       start point has two values.
    2. There are fewer than 4 evaluations for each dimension: ``gld``, which needs no gradient.
    3. There are at most 100 dimensions: ``rs``, and ``cma`` from where it converges. From then on
       the two race: whenever one has converged and starts anew, the turn goes to that which has had
       fewer evaluations.
    4. Else: ``rs``.

    The choice does not depend on the number of workers, so that neither does the run; nor on
    bounds. `minimize` says in its message which solvers ran, and for how many evaluations.

    Attributes:
        maxfev: the budget, for rule 2. `minimize` fills in its own.
        noisy: whether the objective is, for rule 1. None: find out, as `minimize` does if it is not
            told.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    name: ClassVar[str] = "auto"
    adapts_steps: ClassVar[bool] = True

    maxfev: int | None = None
    noisy: bool | None = None

    def __post_init__(self) -> None:
        if self.maxfev is not None:
            check_positive_int("maxfev", self.maxfev)
        if self.noisy is not None:
            check_bool("noisy", self.noisy)

    def prepared(self, task: Task) -> Auto:
        return replace(
            self,
            maxfev=task.maxfev if self.maxfev is None else self.maxfev,
            noisy=(task.noisy or None) if self.noisy is None else self.noisy,
        )

    def describe(self, state: SolverState) -> str:
        """Returns which solvers ran, and for how many evaluations."""
        memory = state.memory
        if _OWN + "plan" not in memory:
            return ""
        plan = PLANS[int(memory[_OWN + "plan"])]
        told = zip(self._counts(state), plan.solvers, strict=True)
        shares = [f"{n} by {solver.name}" for n, solver in told if n]
        before = int(memory[_OWN + "n_before"])
        if before:
            shares.insert(0, f"{before} to find the noise")
        return f"auto, for {plan.task}: {', '.join(shares) or 'no'} evaluations."

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        if _OWN + "plan" not in state.memory:  # not before: a warm start may move x
            self._begin(state, self._plan(state.x.shape[0]))
        return self._arm(state)._ask(state, guide)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        memory = state.memory
        told: list[float] = values.tolist()
        # Without those that failed or that a budget cut off, which look the same from here.
        n_told = f"{_OWN}n_told.{int(memory[_OWN + 'arm'])}"
        memory[n_told] = int(memory[n_told]) + sum(map(math.isfinite, told))
        plan = int(memory[_OWN + "plan"])
        n_arms = len(PLANS[plan].solvers)
        if n_arms > 1:
            self._remember_best(state, candidates, told)
        n_restarts = int(memory.get("n_restarts", 0))
        x = self._arm(state)._tell(state, candidates, values)
        is_first = state.n_steps == 0 and plan == FEW
        if is_first and self.noisy is None and float(memory.get("noise", 0.0)) > 0:
            state.x = x
            n_before = int(memory[_OWN + "n_told.0"])
            memory.clear()
            self._begin(state, NOISY)
            memory[_OWN + "n_before"] = n_before
            return state.x
        if n_arms > 1 and int(state.memory.get("n_restarts", 0)) > n_restarts:
            state.x = x
            self._next_turn(state)
            return state.x
        return x

    def _plan(self, dim: int) -> int:
        if self.noisy:
            return NOISY
        if self.maxfev is not None and self.maxfev < SMALL_BUDGET_PER_DIM * dim:
            return SMALL
        return FEW if dim <= MAX_FEW else MANY

    def _begin(self, state: SolverState, plan: int) -> None:
        memory = state.memory
        memory.update({_OWN + "plan": plan, _OWN + "arm": 0, _OWN + "n_before": 0})
        for k in range(len(PLANS[plan].solvers)):
            memory[f"{_OWN}n_told.{k}"] = 0
        memory[_OWN + "best_value"] = math.inf
        self._arm(state)._init(state)

    def _arm(self, state: SolverState) -> Solver:
        plan = PLANS[int(state.memory[_OWN + "plan"])]
        return plan.solvers[int(state.memory[_OWN + "arm"])]

    def _counts(self, state: SolverState) -> list[int]:
        """Returns the evaluations of each solver of the plan."""
        n_arms = len(PLANS[int(state.memory[_OWN + "plan"])].solvers)
        return [int(state.memory[f"{_OWN}n_told.{k}"]) for k in range(n_arms)]

    def _remember_best(self, state: SolverState, candidates: Array, told: list[float]) -> None:
        best = min(range(len(told)), key=told.__getitem__)
        if told[best] < float(state.memory[_OWN + "best_value"]):
            state.memory[_OWN + "best_value"] = told[best]
            state.memory[_OWN + "best"] = copy(candidates[best])

    def _next_turn(self, state: SolverState) -> None:
        """Gives the turn to the arm with the fewest evaluations; puts the memory of this one away.

        An arm sees its own entries of the memory and those of `Auto`, which it does not know.
        """
        memory = state.memory
        arm = int(memory[_OWN + "arm"])
        counts = self._counts(state)
        following = min(range(len(counts)), key=counts.__getitem__)
        best = memory[_OWN + "best"]
        is_far = not float(array_namespace(best).max(abs(best))) < FARTHEST
        if following == arm or is_far:
            return
        own = {key: value for key, value in memory.items() if key.startswith(_OWN)}
        away = {f"{_OWN}{arm}.{key}": v for key, v in memory.items() if not key.startswith(_OWN)}
        away[f"{_OWN}{arm}.x"] = state.x
        prefix = f"{_OWN}{following}."
        kept = [key for key in own if key.startswith(prefix)]
        back = {key.removeprefix(prefix): own.pop(key) for key in kept}
        own[_OWN + "arm"] = following
        memory.clear()
        memory.update(own | away)
        if "x" in back:
            state.x = back.pop("x")
            memory.update(back)
        else:  # its first turn
            state.x = own[_OWN + "best"]
            self._arm(state)._init(state)
