"""Auto: picks solvers for a task and races them (ZARTS, section 6 i)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from zoopt_nas._arrays import Array, array_namespace, copy
from zoopt_nas._checks import check_bool, check_positive_int
from zoopt_nas.solvers.adaptive_gld import AdaptiveGLD
from zoopt_nas.solvers.adaptive_mgs import AdaptiveMGS
from zoopt_nas.solvers.base import Solver, SolverState, Task
from zoopt_nas.solvers.cma import CMA
from zoopt_nas.solvers.quasi_newton import QuasiNewton


class Plan(NamedTuple):
    """The solvers of a run, and the reason for them, as it reads in a message.

    The first begins. When it has converged, or makes too little progress, the second begins where
    it is, and so on; from then on the turn goes to that which has had the fewest evaluations
    whenever a solver starts anew or is stuck.
    """

    reason: str
    solvers: tuple[Solver, ...]


PLANS = (
    Plan("", (QuasiNewton(), CMA())),
    Plan("", (QuasiNewton(),)),
    Plan(", small budget", (AdaptiveGLD(),)),
    Plan(", small budget", (QuasiNewton(n_samples=8),)),
    Plan(", noisy", (AdaptiveMGS(),)),
    Plan(", slightly noisy", (QuasiNewton(), AdaptiveMGS())),
)
FEW, MANY, SMALL, SMALL_MANY, NOISY, QUIET = range(len(PLANS))

# Up to here a whole gradient and a matrix are cheap.
MAX_FEW = 100
# The evaluations for each dimension with which whole gradients pay: up to MAX_FEW dimensions
# QuasiNewton needs 2 before its first step, and above it takes steps in subspaces.
ENOUGH_FEW = 2.5
ENOUGH_MANY = 1.5
# Below so many dimensions comparisons serve a small budget better than subspaces.
MIN_SUBSPACE = 30
# Noise below this part of the values around the start leaves a descent its differences.
LITTLE_NOISE = 1e-6

# A solver is looked at each time that it has had so many evaluations for each dimension. It is slow
# if it gained less than this part of all that it has gained, or nothing, and the gains do not
# shrink as those of a run that converges do. It is stuck if it was slow so often in a row. The
# next solver has as many looks to gain more than that one gained last. Else the turn goes back,
# and the one that was slow may be so twice as often until it counts as stuck again.
EVALUATIONS_PER_LOOK = 15
SLOW = 0.05
SHRINKING = 0.5
N_SLOW = 3

# Beyond, as where the objective falls for ever, cmaes refuses to start.
FARTHEST = 1e30

_OWN = "auto."


@dataclass(frozen=True)
class Auto(Solver):
    """The choice of a solver left to the package: the default of `minimize`.

    The first rule that applies says which solvers run:

    1. The objective is noisy: ``adaptive_mgs``. It is if the caller says so, or if quasi_newton has
       found that its start point has two values that differ by more than rounding. If they differ
       by less than 1e-6 of the values around it, ``quasi_newton`` goes on and ``adaptive_mgs``
       takes over from it.
    2. There are few evaluations for each dimension, less than 2.5 up to 100 dimensions and less
       than 1.5 above: ``adaptive_gld`` below 30 dimensions, and ``quasi_newton`` with 8 directions
       a step.
    3. There are at most 100 dimensions: ``quasi_newton``, and ``cma`` from where it converges or is
       stuck. From then on the two race: whenever one has converged and starts anew, or is stuck,
       the turn goes to that which has had fewer evaluations.
    4. Else: ``quasi_newton``.

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
        told = list(zip(plan.solvers, self._counts(state), strict=True))
        names = [solver.name for solver, n in told if n] or [plan.solvers[0].name]
        counts = [n for _, n in told if n] or [0]
        dim = state.x.shape[0]
        task = f"{dim} dimension{'' if dim == 1 else 's'}{plan.reason}"
        spent = " and ".join(map(str, counts))
        before = int(memory[_OWN + "n_before"])
        found = f", after {before} to detect the noise" if before else ""
        return f"auto chose {' and '.join(names)} ({task}): {spent} evaluations{found}."

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
        state.x = self._arm(state)._tell(state, candidates, values)
        if plan == FEW and self.noisy is None and float(memory.get("noise", 0.0)) > 0:
            self._meet_noise(state, told)
        elif n_arms > 1:
            if int(memory.get("n_restarts", 0)) > n_restarts:
                memory[_OWN + "challenged"] = math.nan
                self._forget_progress(state)
                self._give_turn(state, min(range(n_arms), key=self._counts(state).__getitem__))
            elif self._is_stuck(state, told):
                self._give_turn(state, (int(memory[_OWN + "arm"]) + 1) % n_arms)
        return state.x

    def _meet_noise(self, state: SolverState, told: list[float]) -> None:
        """Goes over to a plan for noise, which the first batch has shown."""
        memory = state.memory
        finite = [value for value in told if math.isfinite(value)]
        if float(memory["noise"]) < LITTLE_NOISE * (max(finite) - min(finite)):
            memory[_OWN + "plan"] = QUIET
            return
        n_before = int(memory[_OWN + "n_told.0"])
        memory.clear()
        self._begin(state, NOISY)
        memory[_OWN + "n_before"] = n_before
        state.metrics["is_noisy"] = True

    def _is_stuck(self, state: SolverState, told: list[float]) -> bool:
        """Takes in the values of a batch; returns whether the solver that has the turn is stuck."""
        memory = state.memory
        low = min(told)
        if not math.isfinite(float(memory[_OWN + "first"])):
            memory[_OWN + "first"] = memory[_OWN + "mark"] = low
        memory[_OWN + "low"] = low = min(low, float(memory[_OWN + "low"]))
        memory[_OWN + "n_unmarked"] = int(memory[_OWN + "n_unmarked"]) + len(told)
        if int(memory[_OWN + "n_unmarked"]) < EVALUATIONS_PER_LOOK * (state.x.shape[0] + 2):
            return False
        gain = float(memory[_OWN + "mark"]) - low
        total = float(memory[_OWN + "first"]) - low
        is_slow = gain <= SLOW * total and gain >= SHRINKING * float(memory[_OWN + "gain"])
        n_slow = int(memory[_OWN + "n_slow"]) + 1 if is_slow or gain <= 0 else 0
        n_looks = int(memory[_OWN + "n_looks"]) + 1
        memory.update({_OWN + "mark": low, _OWN + "gain": gain, _OWN + "n_unmarked": 0})
        memory.update({_OWN + "n_slow": n_slow, _OWN + "n_looks": n_looks})
        challenged = float(memory[_OWN + "challenged"])  # the gain of a look to beat
        if n_looks == N_SLOW and not math.isnan(challenged):
            memory[_OWN + "challenged"] = math.nan
            gained = float(memory[_OWN + "best_before"]) - float(memory[_OWN + "best_value"])
            if gained <= N_SLOW * challenged:
                memory[_OWN + "patience"] = 2 * int(memory[_OWN + "patience"])
                return True
            memory[_OWN + "patience"] = N_SLOW
        if n_slow < int(memory[_OWN + "patience"]):
            return False
        memory[_OWN + "challenged"] = max(gain, 0.0)
        memory[_OWN + "best_before"] = memory[_OWN + "best_value"]
        return True

    def _forget_progress(self, state: SolverState) -> None:
        for name in ("first", "mark", "low"):
            state.memory[_OWN + name] = math.inf
        state.memory.update({_OWN + "gain": 0.0, _OWN + "n_unmarked": 0})
        state.memory.update({_OWN + "n_slow": 0, _OWN + "n_looks": 0})

    def _plan(self, dim: int) -> int:
        if self.noisy:
            return NOISY
        is_few = dim <= MAX_FEW
        enough = ENOUGH_FEW if is_few else ENOUGH_MANY
        if self.maxfev is not None and self.maxfev < enough * dim:
            return SMALL if dim < MIN_SUBSPACE else SMALL_MANY
        return FEW if is_few else MANY

    def _begin(self, state: SolverState, plan: int) -> None:
        memory = state.memory
        memory.update({_OWN + "plan": plan, _OWN + "arm": 0, _OWN + "n_before": 0})
        for k in range(len(PLANS[plan].solvers)):
            memory[f"{_OWN}n_told.{k}"] = 0
        memory.update({_OWN + "best_value": math.inf, _OWN + "best_before": math.inf})
        memory.update({_OWN + "challenged": math.nan, _OWN + "patience": N_SLOW})
        self._forget_progress(state)
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

    def _give_turn(self, state: SolverState, following: int) -> None:
        """Gives the turn to another arm, or to the same; puts the memory of this one away.

        An arm sees its own entries of the memory and those of `Auto`, which it does not know.
        """
        memory = state.memory
        arm = int(memory[_OWN + "arm"])
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
        self._forget_progress(state)
        if "x" in back:
            state.x = back.pop("x")
            memory.update(back)
        else:  # its first turn
            state.x = own[_OWN + "best"]
            self._arm(state)._init(state)
