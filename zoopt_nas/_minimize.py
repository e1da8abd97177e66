"""`minimize`: its arguments, their rules and its result; the loop is in `_run`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from zoopt_nas._arrays import (
    Array,
    array_namespace,
    as_like,
    as_point,
    encode_generator,
    is_torch_array,
    to_numpy,
)
from zoopt_nas._calls import as_callback, takes_seed
from zoopt_nas._checks import check_bool, check_positive, check_positive_int
from zoopt_nas._run import N_ELITES, Limits, Run, Status
from zoopt_nas.bounds import Box, as_box
from zoopt_nas.checkpoint import Checkpoint, fingerprint
from zoopt_nas.coordinates import Coordinates, units
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.objective import Objective
from zoopt_nas.progress import ProgressBar
from zoopt_nas.solvers import Solver, SolverState, make_solver
from zoopt_nas.solvers.base import Task

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# The default of maxfev, per dimension, if no limit is given.
MAXFEV_PER_DIM = 1000
# How many units in the last place a start may be outside of its box.
ROUNDINGS = 8


def minimize(
    fun: Callable[[Any], Any],
    x0: Any,
    method: str | Solver = "auto",
    *,
    bounds: Any = None,
    x_scale: Any = None,
    maxfev: int | None = None,
    maxiter: int | None = None,
    maxtime: float | None = None,
    maxstall: int | None = None,
    target: float | None = None,
    rng: Any = None,
    vectorized: bool = False,
    workers: Any = 1,
    timeout: float | None = None,
    on_error: str | None = None,
    noisy: bool = False,
    n_reevaluations: int = 1,
    warm_start: tuple[Any, Any] | None = None,
    callback: Callable[..., object] | None = None,
    options: Mapping[str, Any] | None = None,
    history: bool = False,
    progress: bool = False,
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
            come in the namespace, dtype and device of ``x0``. A function with a parameter
            ``eval_seed`` gets a seed by it, the same for all points of a batch (common random
            numbers, under which noise hardly blurs who is better), and counts as noisy.
        x0: the start, (dim,), and the first point evaluated: a floating NumPy array or torch
            tensor, or anything that becomes a float64 NumPy array.
        method: a name from ``SOLVERS`` or a ``Solver``. The default, ``"auto"``, chooses by what it
            can know of the task, and says in the message what it chose.
        bounds: every point evaluated, and ``x_iterate``, lies inside: a sequence of pairs (lower,
            upper), one for each coordinate, with None where open; a ``scipy.optimize.Bounds``; or a
            ``Box``, which also says how points are kept inside (by clipping, unless told
            otherwise). ``x0`` must be inside; a few roundings outside, it is moved to the bound.
        x_scale: the size of a sensible first step, one number or one for each coordinate. Solvers
            that find the lengths of their steps begin with it. Default: a quarter of the width
            between two bounds, elsewhere 1 or what the size of ``x0`` suggests; and no scaling if
            ``options`` give a length in units of x.
        maxfev: the most evaluations ever made, and all of them are made if nothing else ends the
            run. Default: 1000 * dim, if neither ``maxiter`` nor ``maxtime`` is given.
        maxiter: the most iterations (one batch each).
        maxtime: the seconds after which no other call starts, so that the run ends when those that
            run have ended. (The first call of a batch is always made. With ``vectorized`` a batch
            is one call, and a map-like callable is always given a whole batch.) The solver is not
            told of a batch that is cut, and a resumed run, which counts the seconds of the part
            before, evaluates it in full. A noisy run keeps a tenth of the time for its end.
        maxstall: the evaluations without a better value after which the run ends.
        target: stop as soon as a finite value at or below it was seen.
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
        on_error: what an exception in ``fun`` does: ``"raise"`` ends the run with it, ``"fail"``
            makes it a failed evaluation. By default it is raised, but where workers make the calls
            it fails, unless no call has ever returned.
        noisy: the value of a point differs from call to call. A tenth of the evaluations is then
            kept for the end, where the iterate and the four best points are measured anew, each
            equally often: ``x`` is the best of them, ``fun`` the mean of its new values.
        n_reevaluations: the calls made at each point, whose mean is its value; more than one says
            that the function is noisy.
        warm_start: known points and their values, ((n, dim), (n,)): the run starts from the best of
            them instead of ``x0``. They cost no evaluation.
        callback: called after every iteration, also the one that reaches the target, with the best
            point, as ``callback(x)``, or, as in SciPy, if the name of its only parameter is
            ``intermediate_result``, with a result so far by that name, which has the fields
            ``x, fun, nfev, nit, x_iterate``. It may raise ``StopIteration`` to end the run.
        options: fields of the solver, by name: ``{"max_radius": 0.5}``.
        history: also return the field ``history``, (nfev,): each value in order, +inf where failed.
        progress: show evaluations, best value and time on stderr while the run goes on.
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
          the target or the time ended the run before, or if GLD has just moved between points under
          noise.
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
    known = None if warm_start is None else _known(warm_start, x0)
    if known is not None:
        x0 = known[0][int(np.argmin(known[1]))]
    box = None
    if bounds is not None:
        bounds = as_box(bounds)
        x0 = _without_rounding(x0, bounds)
        box = bounds.fit(x0)
    tells = None if callback is None else as_callback(callback)
    limits = Limits(
        maxiter=None if maxiter is None else check_positive_int("maxiter", maxiter),
        maxtime=None if maxtime is None else check_positive("maxtime", maxtime),
        maxstall=None if maxstall is None else check_positive_int("maxstall", maxstall),
    )
    if maxfev is None and limits == Limits():
        maxfev = MAXFEV_PER_DIM * x0.shape[0]
    noisy = check_bool("noisy", noisy) or n_reevaluations != 1 or takes_seed(fun)
    task = Task(dim=x0.shape[0], maxfev=maxfev, bounded=box is not None, noisy=noisy)
    prepared = solver.prepared(task)
    chooses = prepared.adapts_steps and not prepared.has_lengths
    is_scaled = chooses or x_scale is not None
    coordinates = Coordinates(x0, box, units(x0, box, x_scale) if is_scaled else None)
    start = coordinates.start
    state = prepared.init(start, rng=rng, bounds=coordinates.bounds, is_scaled=is_scaled)
    identity = {
        "method": solver.name,
        "options": asdict(solver),
        "x0": fingerprint(x0),
        "bounds": "none" if box is None else [box.method, fingerprint(box.lower, box.upper)],
        "x_scale": "chosen" if x_scale is None else fingerprint(coordinates.start),
        "rng": None if rng is None else encode_generator(state.rng),
        "history": history,
        "n_reevaluations": n_reevaluations,
        "noisy": noisy,
    }
    objective = Objective(
        fun,
        maxfev=maxfev,
        target=target,
        vectorized=vectorized,
        history=history,
        workers=workers,
        timeout=timeout,
        n_reevaluations=n_reevaluations,
        on_error=on_error,
        seed=_draw_seed(state) if takes_seed(fun) else 0,
        n_elites=N_ELITES if noisy else 0,
    )
    if known is not None:
        for point, value in zip(*known, strict=True):
            objective.know(point, value)
        prepared.tell(state, start[None, :], [min(known[1])])
    run = Run(prepared, state, objective, coordinates, noisy)
    if checkpoint is not None:
        run.resume(Checkpoint(checkpoint, checkpoint_every, identity))
    return _carried_out(run, limits, tells, progress)


def _carried_out(
    run: Run, limits: Limits, callback: Callable[[Any], object] | None, progress: bool
) -> OptimizeResult:
    """Lets a run go on to its end, and returns its result."""
    objective = run.objective
    with ProgressBar(objective.maxfev) if progress else contextlib.nullcontext() as bar:

        def show() -> None:
            if bar is not None:
                bar.update(objective.nfev, objective.best_fun)

        def after() -> None:
            show()
            if callback is not None:
                callback(run.intermediate_result())

        show()
        try:
            status = run.loop(limits, after if progress or callback is not None else None)
            run.save()
            run.finish()
            show()
            # By the last call of all, and to a callback that has not ended the run.
            if objective.reached_target and status not in (Status.TARGET_REACHED, Status.CALLBACK):
                with contextlib.suppress(StopIteration):
                    after()
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


def _without_rounding(x0: Array, box: Box) -> Array:
    """Returns ``x0`` with coordinates that only rounding put outside of the box moved to the bound.

    That is by a few units in the last place, of its dtype, of the larger bound of the coordinate.
    """
    if box.lower.shape not in ((), tuple(x0.shape)):
        return x0  # `Box.fit` says what is wrong
    xp = array_namespace(x0)
    eps = float(xp.finfo(x0.dtype).eps)
    x = np.asarray(to_numpy(x0), dtype=np.float64)
    ends = [np.where(np.isfinite(end), np.abs(end), 0.0) for end in (box.lower, box.upper)]
    slack = ROUNDINGS * eps * np.maximum(*ends)
    inside = np.clip(x, box.lower, box.upper)
    moves = (inside != x) & (np.abs(inside - x) <= slack)
    if not moves.any():
        return x0
    return as_like("x0", np.where(moves, inside, x), x0, tuple(x0.shape))


def _known(warm_start: Any, x0: Array) -> tuple[Array, list[float]] | None:
    """Returns the known points (n, dim) beside ``x0`` whose value is finite, with their values."""
    try:
        points, values = warm_start
        n = len(points)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(
            f"warm_start must be a pair of points (n, dim) and values (n,), got {warm_start!r}"
        ) from error
    points = as_like("the points of warm_start", points, x0, (n, x0.shape[0]))
    values = as_like("the values of warm_start", values, np.zeros(0), (n,)).tolist()
    rows = [row for row in range(n) if np.isfinite(values[row])]
    known = [as_point("a point of warm_start", points[row]) for row in rows]
    return (known, [values[row] for row in rows]) if rows else None


def _draw_seed(state: SolverState) -> int:
    """Draws the seed of the seeds that ``eval_seed`` gets."""
    if is_torch_array(state.x):
        return int(state.rng.initial_seed() % 2**63)
    return int(state.rng.integers(2**63 - 1))
