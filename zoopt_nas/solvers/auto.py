"""Auto: chooses solvers for a task and races them (ZARTS, section 6 i)."""

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
from zoopt_nas.solvers.engines import ruggedness
from zoopt_nas.solvers.quasi_newton import QuasiNewton
from zoopt_nas.solvers.trust_region import TrustRegion


class Plan(NamedTuple):
    """The solvers of a run, and the reason for them as it reads in a message.

    The first solver begins. When it has converged, or the objective is rugged, the race begins: the
    second one starts at the best point, and they take turns.
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
    Plan("", (TrustRegion(),)),
    Plan(", slightly noisy", (TrustRegion(), AdaptiveMGS())),
    Plan(", rugged", (QuasiNewton(), AdaptiveMGS())),
)
FEW, MANY, SMALL, SMALL_MANY, NOISY, QUIET, LOW, QUIET_LOW, RUGGED = range(len(PLANS))
# The plans that end if there is much noise, and the plans under little noise.
QUIET_PLANS = {FEW: QUIET, LOW: QUIET_LOW, QUIET: QUIET, QUIET_LOW: QUIET_LOW, RUGGED: QUIET}
NOISY_RACES = {QUIET, QUIET_LOW}

# The largest dim in which a quadratic model, of (dim + 1)(dim + 2) / 2 points, is cheap.
MAX_LOW = 2
# The largest dim in which a whole gradient and a matrix are cheap.
MAX_FEW = 100
# The budget per dimension of QuasiNewton: up to MAX_FEW dimensions it needs 2 evaluations per
# dimension before its first step; above, it takes steps in subspaces.
ENOUGH_FEW = 2.5
ENOUGH_MANY = 1.5
# The least dim for subspaces with a small budget; comparisons are better below.
MIN_SUBSPACE = 30
# Noise as a fraction of the range of values at the start. Below LITTLE_NOISE, differences over some
# distance still are good slopes. From TINY_NOISE on, `minimize` measures its result again.
LITTLE_NOISE = 0.02
TINY_NOISE = 1e-6
# Under noise, the first solver has converged if its value has not fallen by more than the noise in
# PATIENCE (dim + 2) evaluations.
PATIENCE = 5.0

# In a race, a turn lasts EVALUATIONS_PER_TURN (dim + 2) evaluations or until the solver restarts.
# The solver that has found the best point gets LEAD times as many evaluations as the other one.
EVALUATIONS_PER_TURN = 15
LEAD = 3.0
# If the objective is rugged, turns of the first solver are shorter by this factor, and its
# evaluations count so many times.
RARER = 5.0

# cmaes cannot start farther out, where a run gets to if the objective has no minimum.
FARTHEST = 1e30


@dataclass(eq=False)
class Arm:
    """One solver of a plan."""

    inner: Any = None  # the ``inner`` of its state
    n_told: int = 0  # the number of finite values it was told
    n_spent: int = 0  # the number of all values it was told
    x: Array = None  # the iterate where it last gave up the turn, (dim,); None before
    value: Any = math.nan  # the value of ``x``, as in ``SolverState``


@dataclass(eq=False)
class AutoState:
    """The solver in turn, and its progress."""

    plan: int  # the index in ``PLANS``
    arms: list[Arm]  # one for each solver of the plan
    turn: int = 0  # the index of the arm in turn
    n_before: int = 0  # the evaluations before this plan, which detected the noise
    best: Array = None  # the best point told, (dim,)
    best_value: float = math.inf  # the value of ``best``
    leader: int = 0  # the index of the arm that found ``best``
    is_race: bool = False  # whether the solvers take turns
    n_turn: int = 0  # the number of values of this turn
    mark: float = math.inf  # the value of the iterate when it last fell by more than the noise
    n_since: int = 0  # the number of values since then
    first: float = math.inf  # the least value of the first batch
    spread: float = 0.0  # the range of the values that showed noise first; 0 before
    line: ruggedness.LineTest | None = None  # the pending test for ruggedness, or None
    has_tested: bool = False  # whether a test has begun


@dataclass(frozen=True)
class Auto(Solver):
    """Chooses the solvers for a task: the default of `minimize`.

    The first rule that applies decides:

    1. The budget is below 2.5 evaluations per dimension, or 1.5 above 100 dimensions:
       ``adaptive_gld`` below 30 dimensions, ``quasi_newton`` with 8 directions a step from there.
       If the caller says that the objective is noisy: ``adaptive_mgs``.
    2. There are more than 100 dimensions: ``quasi_newton``, or ``adaptive_mgs`` if the caller says
       that the objective is noisy.
    3. There are at most 2 dimensions: ``trust_region``.
    4. Otherwise: ``quasi_newton`` until it has converged, then a race of it and ``cma``: the one
       that found the best point gets three quarters of the turns. When it first rejects a step,
       values along a line show whether the objective is rugged. If so, it races ``adaptive_mgs`` at
       once, and gets fewer turns.

    If two values of the start differ by more than rounding, under rules 3 and 4, there is noise.
    Below 2 % of the range of values around, the first solver races ``adaptive_mgs`` once its value
    does not fall by more than the noise any more; above 2 %, ``adaptive_mgs`` takes over at the
    best point.

    The run does not depend on the number of workers, and the choice not on bounds. The message of
    `minimize` names the solvers that ran, and their evaluations.

    Attributes:
        maxfev: the budget, for rule 1. None: the budget of `minimize`.
        noisy: whether the objective is noisy. None: what `minimize` was told, or find out. False:
            it is not, even if values of a point differ.
    """

    name: ClassVar[str] = "auto"
    adapts_steps: ClassVar[bool] = True
    inner_states: ClassVar[tuple[type, ...]] = (
        AutoState,
        Arm,
        ruggedness.LineTest,
        *{kind for plan in PLANS for solver in plan.solvers for kind in solver.inner_states},
    )

    maxfev: int | None = None
    noisy: bool | None = None

    def __post_init__(self) -> None:
        if self.maxfev is not None:
            check_positive_int("maxfev", self.maxfev)
        if self.noisy is not None:
            check_bool("noisy", self.noisy)

    @property
    def compares_batches(self) -> bool:
        """Yes: its solvers do, and so does their race."""
        return True

    def prepared(self, task: Task) -> Auto:
        """Return a copy that knows the budget, and whether the objective is noisy."""
        return replace(
            self,
            maxfev=task.maxfev if self.maxfev is None else self.maxfev,
            noisy=(task.noisy or None) if self.noisy is None else self.noisy,
        )

    def describe(self, state: SolverState) -> str:
        """Return which solvers ran, and for how many evaluations."""
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
        inner: AutoState = state.inner
        if self._may_be_rugged(inner):
            inner.has_tested = True
            scales = inner.arms[0].inner.look.scales
            inner.line = ruggedness.begin(state, inner.best, scales)
        if inner.line is not None:
            return ruggedness.side(inner.line)
        return _with_turn(state, "_ask", guide)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        inner: AutoState = state.inner
        told: list[float] = values.tolist()
        arm = inner.arms[inner.turn]
        # Failed evaluations do not count as told; they look like those that the budget cut off.
        arm.n_told += sum(map(math.isfinite, told))
        arm.n_spent += len(told)
        if inner.plan not in QUIET_PLANS:  # no other solver follows
            state.x = _with_turn(state, "_tell", candidates, values)
            return state.x
        self._remember_best(inner, candidates, told)
        if inner.line is not None:
            is_rugged = ruggedness.tell(inner.line, told)
            if is_rugged is not None:
                self._end_test(state, is_rugged)
            return state.x
        n_restarts = arm.inner.n_restarts
        state.x = _with_turn(state, "_tell", candidates, values)
        may_meet_noise = self.noisy is not False and inner.turn == 0 and n_restarts == 0
        if may_meet_noise and arm.inner.noise > 0 and self._meets_noise(state, told):
            return state.x
        if len(inner.arms) > 1:
            self._end_turn(state, told, has_restarted=arm.inner.n_restarts > n_restarts)
        return state.x

    def _end_turn(self, state: SolverState, told: list[float], *, has_restarted: bool) -> None:
        """Begin the race if the first solver has converged; in a race, end a long turn."""
        inner: AutoState = state.inner
        inner.n_turn += len(told)
        dim = state.x.shape[0]
        if not inner.is_race:
            is_noisy = inner.plan in NOISY_RACES
            inner.is_race = _stagnates(state, len(told)) if is_noisy else has_restarted
        rarer = RARER if inner.plan == RUGGED and inner.turn == 0 else 1.0
        is_long = rarer * inner.n_turn >= EVALUATIONS_PER_TURN * (dim + 2)
        if inner.is_race and (has_restarted or is_long):
            self._begin_turn(state)

    def _begin_turn(self, state: SolverState) -> None:
        """Give the turn to the solver that has had the least, for its lead."""
        inner: AutoState = state.inner
        inner.n_turn = 0
        arms = range(len(inner.arms))
        leads = [LEAD if k == inner.leader else 1.0 for k in arms]
        if inner.plan == RUGGED:
            leads[0] /= RARER
        self._give_turn(state, min(arms, key=lambda k: inner.arms[k].n_spent / leads[k]))

    def _may_be_rugged(self, inner: AutoState) -> bool:
        """Return whether to test the objective: when the first step is rejected."""
        is_new = inner.plan == FEW and not (inner.is_race or inner.has_tested)
        return is_new and inner.arms[0].inner.n_rejected > 0

    def _end_test(self, state: SolverState, is_rugged: bool) -> None:
        """Begin the race if the objective is rugged; otherwise the first solver goes on."""
        inner: AutoState = state.inner
        inner.line = None
        if is_rugged:
            inner.plan, inner.is_race = RUGGED, True
            inner.arms[1:] = [Arm()]  # for another solver
            self._begin_turn(state)

    def _meets_noise(self, state: SolverState, told: list[float]) -> bool:
        """Change to a plan for the noise that the first solver sees; return whether it is much."""
        inner: AutoState = state.inner
        noise = inner.arms[0].inner.noise
        if inner.spread == 0:
            known = [value for value in (*told, inner.first) if math.isfinite(value)]
            inner.spread = max(known) - min(known)
        share = noise / inner.spread if inner.spread > 0 else math.inf
        if share >= TINY_NOISE:
            state.metrics["is_noisy"] = True
        if share < LITTLE_NOISE:
            if inner.plan != QUIET_PLANS[inner.plan]:
                inner.plan = QUIET_PLANS[inner.plan]
                inner.arms[1:] = [Arm()]  # for another solver
            return False
        state.x, state.value = inner.best, math.nan
        self._begin(state, NOISY)
        state.inner.n_before = inner.arms[0].n_told
        return True

    def _plan(self, dim: int) -> int:
        is_few = dim <= MAX_FEW
        enough = ENOUGH_FEW if is_few else ENOUGH_MANY
        is_small = self.maxfev is not None and self.maxfev < enough * dim
        if self.noisy and (is_small or not is_few):
            return NOISY
        if is_small:
            return SMALL if dim < MIN_SUBSPACE else SMALL_MANY
        if dim <= MAX_LOW:
            return LOW
        return FEW if is_few else MANY

    def _begin(self, state: SolverState, plan: int) -> None:
        state.inner = AutoState(plan, [Arm() for _ in PLANS[plan].solvers])
        _with_turn(state, "_init")

    def _remember_best(self, inner: AutoState, candidates: Array, told: list[float]) -> None:
        best = min(range(len(told)), key=told.__getitem__)
        if not math.isfinite(inner.first):
            inner.first = told[best]
        if told[best] < inner.best_value:
            inner.best_value, inner.best = told[best], copy(candidates[best])
            inner.leader = inner.turn

    def _give_turn(self, state: SolverState, following: int) -> None:
        """Give the turn to an arm."""
        inner: AutoState = state.inner
        best = inner.best
        is_far = not float(array_namespace(best).max(abs(best))) < FARTHEST
        if following == inner.turn or is_far:
            return
        before, arm = inner.arms[inner.turn], inner.arms[following]
        before.x, before.value = state.x, state.value
        inner.turn = following
        if arm.x is not None:
            state.x, state.value = arm.x, arm.value
        else:  # its first turn
            state.x, state.value = best, math.nan
            _with_turn(state, "_init")


def _stagnates(state: SolverState, n_told: int) -> bool:
    """Return whether the iterate has not fallen by more than the noise for a while."""
    inner: AutoState = state.inner
    inner.n_since += n_told
    value, dim = float(state.value), int(state.x.shape[0])
    if value < inner.mark - inner.arms[0].inner.noise:
        inner.mark, inner.n_since = value, 0
    return inner.n_since >= PATIENCE * (dim + 2)


def _with_turn(state: SolverState, method: str, *args: Any) -> Any:
    """Call a method of the solver in turn, with its state in ``state.inner``."""
    inner: AutoState = state.inner
    solver, arm = PLANS[inner.plan].solvers[inner.turn], inner.arms[inner.turn]
    state.inner = arm.inner
    try:
        return getattr(solver, method)(state, *args)
    finally:
        arm.inner, state.inner = state.inner, inner
