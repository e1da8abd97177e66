"""Auto: picks solvers for a task and races them (ZARTS, section 6 i)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from zoopt_nas._arrays import Array, array_namespace, copy
from zoopt_nas._checks import check_bool, check_positive_int
from zoopt_nas.solvers.adaptive_gld import AdaptiveGLD
from zoopt_nas.solvers.adaptive_mgs import AdaptiveMGS
from zoopt_nas.solvers.base import Solver, SolverState, Task
from zoopt_nas.solvers.cma import CMA
from zoopt_nas.solvers.engines.descent_state import DescentState
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


@dataclass(eq=False)
class Arm:
    """One solver of a plan.

    Attributes:
        inner: what the solver keeps.
        n_told: the finite values that it was told.
        x: where it gave up the turn, (dim,); None before.
        value: the value there, as in the state.
    """

    inner: Any = None
    n_told: int = 0
    x: Array = None
    value: Any = math.nan


@dataclass(eq=False)
class AutoState:
    """Who has the turn, and how it goes.

    Attributes:
        plan: the number in ``PLANS``.
        arms: one for each solver of the plan.
        turn: the number of the arm that has the turn.
        n_before: the evaluations that found the noise, before this plan.
        best: the best point told, (dim,), and ...
        best_value: ... its value.
        best_before: the best value when the last arm was stuck.
        challenged: the gain of a look that this arm has to beat; NaN if none.
        patience: how often in a row an arm may be slow.
        first: the first value of this turn.
        low: the least one.
        mark: the least one at the last look.
        gain: how much the last look found.
        n_unmarked: the values since the last look.
        n_slow: how many looks in a row were slow.
        n_looks: how many there were in this turn.
    """

    plan: int
    arms: list[Arm]
    turn: int = 0
    n_before: int = 0
    best: Array = None
    best_value: float = math.inf
    best_before: float = math.inf
    challenged: float = math.nan
    patience: int = N_SLOW
    first: float = math.inf
    low: float = math.inf
    mark: float = math.inf
    gain: float = 0.0
    n_unmarked: int = 0
    n_slow: int = 0
    n_looks: int = 0


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
    inner_states: ClassVar[tuple[type, ...]] = (
        AutoState,
        Arm,
        *{kind for plan in PLANS for solver in plan.solvers for kind in solver.inner_states},
    )

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
        inner: AutoState | None = state.inner
        if inner is None:
            return ""
        plan = PLANS[inner.plan]
        told = [(s, arm.n_told) for s, arm in zip(plan.solvers, inner.arms, strict=True)]
        names = [solver.name for solver, n in told if n] or [plan.solvers[0].name]
        counts = [n for _, n in told if n] or [0]
        dim = state.x.shape[0]
        task = f"{dim} dimension{'' if dim == 1 else 's'}{plan.reason}"
        spent = " and ".join(map(str, counts))
        before = inner.n_before
        found = f", after {before} to detect the noise" if before else ""
        return f"auto chose {' and '.join(names)} ({task}): {spent} evaluations{found}."

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        if state.inner is None:  # not before: a warm start may move x
            self._begin(state, self._plan(state.x.shape[0]))
        return _with_turn(state, "_ask", guide)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        inner: AutoState = state.inner
        told: list[float] = values.tolist()
        arm, n_arms = inner.arms[inner.turn], len(inner.arms)
        # Without those that failed or that a budget cut off, which look the same from here.
        arm.n_told += sum(map(math.isfinite, told))
        if n_arms == 1:
            state.x = _with_turn(state, "_tell", candidates, values)
            return state.x
        self._remember_best(inner, candidates, told)
        n_restarts = arm.inner.n_restarts
        state.x = _with_turn(state, "_tell", candidates, values)
        is_descent = isinstance(arm.inner, DescentState)
        if inner.plan == FEW and self.noisy is None and is_descent and arm.inner.noise > 0:
            self._meet_noise(state, told, arm.inner.noise)
        elif arm.inner.n_restarts > n_restarts:
            inner.challenged = math.nan
            _forget_progress(inner)
            self._give_turn(state, min(range(n_arms), key=lambda k: inner.arms[k].n_told))
        elif self._is_stuck(inner, told, state.x.shape[0]):
            self._give_turn(state, (inner.turn + 1) % n_arms)
        return state.x

    def _meet_noise(self, state: SolverState, told: list[float], noise: float) -> None:
        """Goes over to a plan for noise, which the first batch has shown."""
        inner: AutoState = state.inner
        finite = [value for value in told if math.isfinite(value)]
        if noise < LITTLE_NOISE * (max(finite) - min(finite)):
            inner.plan = QUIET
            inner.arms[1] = Arm()  # of another solver
            return
        state.value = math.nan
        self._begin(state, NOISY)
        state.inner.n_before = inner.arms[0].n_told
        state.metrics["is_noisy"] = True

    def _is_stuck(self, inner: AutoState, told: list[float], dim: int) -> bool:
        """Takes in the values of a batch; returns whether the solver that has the turn is stuck."""
        low = min(told)
        if not math.isfinite(inner.first):
            inner.first = inner.mark = low
        inner.low = low = min(low, inner.low)
        inner.n_unmarked += len(told)
        if inner.n_unmarked < EVALUATIONS_PER_LOOK * (dim + 2):
            return False
        gain = inner.mark - low
        total = inner.first - low
        is_slow = gain <= SLOW * total and gain >= SHRINKING * inner.gain
        inner.mark, inner.gain, inner.n_unmarked = low, gain, 0
        inner.n_slow = inner.n_slow + 1 if is_slow or gain <= 0 else 0
        inner.n_looks += 1
        challenged = inner.challenged  # the gain of a look to beat
        if inner.n_looks == N_SLOW and not math.isnan(challenged):
            inner.challenged = math.nan
            gained = inner.best_before - inner.best_value
            if gained <= N_SLOW * challenged:
                inner.patience = 2 * inner.patience
                return True
            inner.patience = N_SLOW
        if inner.n_slow < inner.patience:
            return False
        inner.challenged = max(gain, 0.0)
        inner.best_before = inner.best_value
        return True

    def _plan(self, dim: int) -> int:
        if self.noisy:
            return NOISY
        is_few = dim <= MAX_FEW
        enough = ENOUGH_FEW if is_few else ENOUGH_MANY
        if self.maxfev is not None and self.maxfev < enough * dim:
            return SMALL if dim < MIN_SUBSPACE else SMALL_MANY
        return FEW if is_few else MANY

    def _begin(self, state: SolverState, plan: int) -> None:
        state.inner = AutoState(plan, [Arm() for _ in PLANS[plan].solvers])
        _with_turn(state, "_init")

    def _remember_best(self, inner: AutoState, candidates: Array, told: list[float]) -> None:
        best = min(range(len(told)), key=told.__getitem__)
        if told[best] < inner.best_value:
            inner.best_value, inner.best = told[best], copy(candidates[best])

    def _give_turn(self, state: SolverState, following: int) -> None:
        """Gives the turn to another arm, or to the same."""
        inner: AutoState = state.inner
        best = inner.best
        is_far = not float(array_namespace(best).max(abs(best))) < FARTHEST
        if following == inner.turn or is_far:
            return
        before, arm = inner.arms[inner.turn], inner.arms[following]
        before.x, before.value = state.x, state.value
        inner.turn = following
        _forget_progress(inner)
        if arm.x is not None:
            state.x, state.value = arm.x, arm.value
        else:  # its first turn
            state.x, state.value = best, math.nan
            _with_turn(state, "_init")


def _with_turn(state: SolverState, method: str, *args: Any) -> Any:
    """Calls a method of the solver that has the turn, for which ``state.inner`` is its own."""
    inner: AutoState = state.inner
    solver, arm = PLANS[inner.plan].solvers[inner.turn], inner.arms[inner.turn]
    state.inner = arm.inner
    try:
        return getattr(solver, method)(state, *args)
    finally:
        arm.inner, state.inner = state.inner, inner


def _forget_progress(inner: AutoState) -> None:
    inner.first = inner.mark = inner.low = math.inf
    inner.gain = 0.0
    inner.n_unmarked = inner.n_slow = inner.n_looks = 0
