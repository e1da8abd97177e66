"""`minimize`: the only loop of the core."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from zoopt_nas._arrays import Array, as_point, copy, encode_generator
from zoopt_nas._checks import check_positive, check_positive_int
from zoopt_nas.bounds import FittedBox, as_box
from zoopt_nas.checkpoint import Checkpoint, fingerprint
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.objective import Objective
from zoopt_nas.solvers import Solver, SolverState, make_solver

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# The default of maxfev, per dimension, if no limit is given.
MAXFEV_PER_DIM = 1000


class Status(IntEnum):
    """Why a run ended. ``Status.MAXFEV.message`` is the sentence for people."""

    TARGET_REACHED = 0
    MAXFEV = 1
    MAXITER = 2
    CALLBACK = 3
    NO_FINITE_VALUE = 4
    MAXTIME = 5

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
}


def minimize(
    fun: Callable[[Any], Any],
    x0: Any,
    method: str | Solver = "gld",
    *,
    bounds: Any = None,
    maxfev: int | None = None,
    maxiter: int | None = None,
    maxtime: float | None = None,
    target: float | None = None,
    rng: Any = None,
    vectorized: bool = False,
    workers: Any = 1,
    timeout: float | None = None,
    callback: Callable[..., object] | None = None,
    options: Mapping[str, Any] | None = None,
    history: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
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
        bounds: every point evaluated, and ``x_iterate``, lies inside: a sequence of pairs (lower,
            upper), one for each coordinate, with None where open; a ``scipy.optimize.Bounds``; or a
            ``Box``, which also says how points are kept inside (by reflection, unless told
            otherwise). ``x0`` must be inside.
        maxfev: the most evaluations ever made, and all of them are made if nothing else ends the
            run. Default: 1000 * dim, if neither ``maxiter`` nor ``maxtime`` is given.
        maxiter: the most iterations (one batch each).
        maxtime: the seconds after which no other iteration starts, so that the last one may end
            later. A resumed run counts those of the part before.
        target: stop as soon as a value at or below it was seen.
        rng: None, a non-negative int, a ``numpy.random.Generator``, or, for torch, a
            ``torch.Generator``. The global generators are never used.
        vectorized: see ``fun``.
        workers: who makes the calls of a batch side by side: a number of processes (-1: one for
            each core; ``fun`` must then be a function of a module, not a lambda), any
            ``concurrent.futures.Executor``, or a map-like callable such as
            ``multiprocessing.Pool().map``; the last two stay open. The run is the same, bit for
            bit, whatever the number, except that a target ends it only after the batch. A process
            that dies costs the one candidate: its evaluation has failed.
        timeout: the seconds after which the evaluation of a candidate has failed; the run goes on.
            A number of processes (even 1, then) are stopped and replaced. The calls of an executor
            cannot be: they are given up, but keep their worker busy until they return.
        callback: called as ``callback(intermediate_result=...)`` after every iteration, with the
            fields ``x, fun, nfev, nit, x_iterate``; may raise ``StopIteration`` to end the run.
        options: fields of the solver, by name: ``{"max_radius": 0.5}``.
        history: also return the field ``history``, (nfev,): each value in order, +inf where failed.
        checkpoint: a file to save the run in, and to resume it from if the file exists: the same
            call again goes on from there, and ends in the very result of a run that was never
            killed. Limits, target, workers and callback may differ. The file is replaced
            atomically, and stays after the end: another call with a larger limit goes on.
        checkpoint_every: the least seconds between two writes of it, which are made after an
            iteration. 0 writes after every one. A last one is made at the end.

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
        RunError: the checkpoint cannot be written or read, or belongs to another run.
        Exception: whatever ``fun`` or ``callback`` raises, with the result so far in its attribute
            ``partial_result``.
    """
    solver = make_solver(method, options)
    x0 = as_point("x0", x0)
    box = None if bounds is None else as_box(bounds).fit(x0)
    state = solver.init(x0 if box is None else box.start, rng=rng)
    if callback is not None and not callable(callback):
        raise InvalidValueError(f"callback must be callable, got {callback!r}")
    maxiter = None if maxiter is None else check_positive_int("maxiter", maxiter)
    maxtime = None if maxtime is None else check_positive("maxtime", maxtime)
    if maxfev is maxiter is maxtime is None:
        maxfev = MAXFEV_PER_DIM * x0.shape[0]
    objective = Objective(
        fun,
        maxfev=maxfev,
        target=target,
        vectorized=vectorized,
        history=history,
        workers=workers,
        timeout=timeout,
    )
    run = _Run(solver, state, objective, box)
    if checkpoint is not None:
        identity = {
            "method": solver.name,
            "options": asdict(solver),
            "x0": fingerprint(x0),
            "bounds": "none" if box is None else [box.method, fingerprint(box.lower, box.upper)],
            "rng": None if rng is None else encode_generator(state.rng),
            "history": history,
        }
        run.resume(Checkpoint(checkpoint, checkpoint_every, identity))
    try:
        status = run.loop(maxiter, maxtime, callback)
        run.save()
        run.evaluate_iterate()
    except BaseException as error:  # also Ctrl-C: hours of evaluations must not be lost
        with contextlib.suppress(AttributeError):  # an exception class with __slots__
            error.partial_result = run.intermediate_result()  # type: ignore[attr-defined]
        error.add_note(
            f"minimize: raised after {objective.nfev} evaluations; "
            "the best point so far is in the attribute partial_result"
        )
        raise
    finally:
        objective.close()
    return run.result(status)


class _Run:
    """One call of ``minimize``: a solver, where it is, what it minimizes, and in which box."""

    def __init__(
        self, solver: Solver, state: SolverState, objective: Objective, box: FittedBox | None
    ) -> None:
        self.solver = solver
        self.state = state
        self.objective = objective
        self.box = box
        self.fun_iterate = np.nan
        self.checkpoint: Checkpoint | None = None
        self.started = time.monotonic()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from the checkpoint if there is one, and saves into it from now on."""
        self.checkpoint = checkpoint
        saved = checkpoint.load()
        if saved is not None:
            self.state, record = saved
            self.objective.restore(record)
            self.started -= record["meta"]["seconds"]

    def save(self) -> None:
        """Saves the run where it is, if it has a checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.save(self.state, self.record())

    def record(self) -> dict[str, Any]:
        """Returns what a checkpoint holds beside the state of the solver."""
        record = self.objective.to_dict()
        record["meta"]["seconds"] = time.monotonic() - self.started
        return record

    def loop(
        self,
        maxiter: int | None,
        maxtime: float | None,
        callback: Callable[..., object] | None,
    ) -> Status:
        """Iterates until something ends the run, and says what."""
        objective = self.objective
        # A solver that never evaluates its iterate keeps one evaluation back for the last one.
        reserve = 0 if self.solver.evaluates_iterate else 1
        while True:
            if objective.reached_target:  # in this batch, or before the run was resumed
                return Status.TARGET_REACHED
            if maxiter is not None and self.state.n_steps >= maxiter:
                return Status.MAXITER
            if objective.maxfev is not None and objective.nfev + reserve >= objective.maxfev:
                return Status.MAXFEV
            if maxtime is not None and time.monotonic() - self.started >= maxtime:
                return Status.MAXTIME
            asked = self.solver.ask(self.state)
            points = self.points(asked)
            values = objective.evaluate(points, reserve=reserve)
            if objective.reached_target:
                continue
            self.tell(asked, points, values)
            if callback is not None:
                try:
                    callback(intermediate_result=self.intermediate_result())
                except StopIteration:
                    return Status.CALLBACK
            if self.checkpoint is not None:
                self.checkpoint.save_if_due(self.state, self.record)

    @property
    def iterate(self) -> Array:
        """Where the solver is, as a point of the function."""
        return self.state.x if self.box is None else self.box.inside(self.state.x)

    def points(self, asked: Array) -> Array:
        """Returns the points to evaluate for a batch of the solver."""
        if self.box is None:
            return asked
        return self.box.inside(asked, antithetic=self.solver.antithetic)

    def tell(self, asked: Array, points: Array, values: np.ndarray) -> None:
        """Moves the solver, and its iterate back into the box."""
        if self.box is None or not self.box.repairs:
            self.solver.tell(self.state, asked, values)
        else:
            self.solver.tell(self.state, points, values)
            self.state.x = self.box.project(self.state.x)

    def evaluate_iterate(self) -> None:
        """Finds the value of the final iterate, by the evaluation kept back where it takes one."""
        if self.solver.evaluates_iterate:
            self.fun_iterate = float(self.state.memory.get("value", np.nan))
        elif not self.objective.reached_target:
            self.fun_iterate = float(self.objective.evaluate(self.iterate[None, :])[0])

    def intermediate_result(self) -> OptimizeResult:
        """Returns the result so far, as the callback sees it."""
        from scipy.optimize import OptimizeResult  # slow to load: not at import

        best = self.objective.best_x
        return OptimizeResult(
            x=copy(self.iterate if best is None else best),
            fun=self.objective.best_fun,
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
            message=status.message,
            fun_iterate=self.fun_iterate,
            n_failed=objective.n_failed,
        )
        if objective.history is not None:
            result["history"] = np.array(objective.history)
        return result
