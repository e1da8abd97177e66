"""`minimize`: the only loop of the core."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from zoopt_nas._arrays import copy
from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.objective import Objective
from zoopt_nas.solvers import Solver, SolverState, make_solver

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# The default of maxfev, per dimension, if neither limit is given.
MAXFEV_PER_DIM = 1000


class Status(IntEnum):
    """Why a run ended. ``Status.MAXFEV.message`` is the sentence for people."""

    TARGET_REACHED = 0
    MAXFEV = 1
    MAXITER = 2
    CALLBACK = 3
    NO_FINITE_VALUE = 4

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
}


def minimize(
    fun: Callable[[Any], Any],
    x0: Any,
    method: str | Solver = "gld",
    *,
    maxfev: int | None = None,
    maxiter: int | None = None,
    target: float | None = None,
    rng: Any = None,
    vectorized: bool = False,
    callback: Callable[..., object] | None = None,
    options: Mapping[str, Any] | None = None,
    history: bool = False,
) -> OptimizeResult:
    """Minimizes a black-box function of real variables without gradients.

    Example:
        >>> import zoopt_nas
        >>> result = zoopt_nas.minimize(lambda x: (x**2).sum(), [1.0, -2.0], maxfev=500, rng=0)
        >>> bool(result.fun < 1e-2)
        True

    Args:
        fun: takes a point (dim,) and returns a real number; with ``vectorized``, takes points
            (n, dim) and returns (n,). NaN or an infinity says that the evaluation failed. Points
            come in the namespace, dtype and device of ``x0``.
        x0: the start, (dim,): a floating NumPy array or torch tensor, or anything that becomes a
            float64 NumPy array.
        method: a name from ``SOLVERS`` or a ``Solver``.
        maxfev: the most evaluations ever made, and all of them are made if nothing else ends the
            run. Default: 1000 * dim, if ``maxiter`` is not given either.
        maxiter: the most iterations (one batch each).
        target: stop as soon as a value at or below it was seen.
        rng: None, a non-negative int, a ``numpy.random.Generator``, or, for torch, a
            ``torch.Generator``. The global generators are never used.
        vectorized: see ``fun``.
        callback: called as ``callback(intermediate_result=...)`` after every iteration, with the
            fields ``x, fun, nfev, nit, x_iterate``; may raise ``StopIteration`` to end the run.
        options: fields of the solver, by name: ``{"max_radius": 0.5}``.
        history: also return the field ``history``, (nfev,): each value in order, +inf where failed.

    Returns:
        A ``scipy.optimize.OptimizeResult`` with

        * ``x``, ``fun``: the best point evaluated and its value. If no value was finite, the
          iterate and +inf.
        * ``x_iterate``, ``fun_iterate``: where the solver ended, and its value. A solver that never
          evaluates its iterate gets one evaluation of the budget for it at the end; it is NaN if
          the target ended the run before.
        * ``nfev``, ``nit``, ``n_failed``: evaluations, iterations, and evaluations that failed.
        * ``status``, ``message``, ``success``: see ``Status``. Success means that the target was
          reached or, where none is given, that some value was finite.

    Raises:
        InvalidValueError: an argument breaks a rule, or ``fun`` does not return real numbers.
        UnknownNameError: ``method`` or an option is unknown; the message suggests the nearest.
        Exception: whatever ``fun`` or ``callback`` raises, with the result so far in its attribute
            ``partial_result``.
    """
    solver = make_solver(method, options)
    state = solver.init(x0, rng=rng)
    if callback is not None and not callable(callback):
        raise InvalidValueError(f"callback must be callable, got {callback!r}")
    if maxiter is not None:
        maxiter = check_positive_int("maxiter", maxiter)
    elif maxfev is None:
        maxfev = MAXFEV_PER_DIM * state.x.shape[0]
    objective = Objective(fun, maxfev=maxfev, target=target, vectorized=vectorized, history=history)
    run = _Run(solver, state, objective)
    try:
        status = run.loop(maxiter, callback)
        run.evaluate_iterate()
    except BaseException as error:  # also Ctrl-C: hours of evaluations must not be lost
        with contextlib.suppress(AttributeError):  # an exception class with __slots__
            error.partial_result = run.intermediate_result()  # type: ignore[attr-defined]
        error.add_note(
            f"minimize: raised after {objective.nfev} evaluations; "
            "the best point so far is in the attribute partial_result"
        )
        raise
    return run.result(status)


class _Run:
    """One call of ``minimize``: a solver, where it is, and what it minimizes."""

    def __init__(self, solver: Solver, state: SolverState, objective: Objective) -> None:
        self.solver = solver
        self.state = state
        self.objective = objective
        self.fun_iterate = np.nan

    def loop(self, maxiter: int | None, callback: Callable[..., object] | None) -> Status:
        """Iterates until something ends the run, and says what."""
        objective = self.objective
        # A solver that never evaluates its iterate keeps one evaluation back for the last one.
        reserve = 0 if self.solver.evaluates_iterate else 1
        while True:
            if maxiter is not None and self.state.n_steps >= maxiter:
                return Status.MAXITER
            if objective.maxfev is not None and objective.nfev + reserve >= objective.maxfev:
                return Status.MAXFEV
            candidates = self.solver.ask(self.state)
            values = objective.evaluate(candidates, reserve=reserve)
            if objective.reached_target:
                return Status.TARGET_REACHED
            self.solver.tell(self.state, candidates, values)
            if callback is not None:
                try:
                    callback(intermediate_result=self.intermediate_result())
                except StopIteration:
                    return Status.CALLBACK

    def evaluate_iterate(self) -> None:
        """Finds the value of the final iterate, by the evaluation kept back where it takes one."""
        if self.solver.evaluates_iterate:
            self.fun_iterate = float(self.state.memory.get("value", np.nan))
        elif not self.objective.reached_target:
            self.fun_iterate = float(self.objective.evaluate(self.state.x[None, :])[0])

    def intermediate_result(self) -> OptimizeResult:
        """Returns the result so far, as the callback sees it."""
        from scipy.optimize import OptimizeResult  # slow to load: not at import

        best = self.objective.best_x
        return OptimizeResult(
            x=copy(self.state.x if best is None else best),
            fun=self.objective.best_fun,
            nfev=self.objective.nfev,
            nit=self.state.n_steps,
            x_iterate=copy(self.state.x),
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
            message=status.message,
            fun_iterate=self.fun_iterate,
            n_failed=objective.n_failed,
        )
        if objective.history is not None:
            result["history"] = np.array(objective.history)
        return result
