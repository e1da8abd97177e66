"""`minimize`: its arguments and their validation; the loop is in `_run`."""

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

# The default of maxfev per dimension.
MAXFEV_PER_DIM = 1000
# x0 may be outside of its box by this many units in the last place.
X0_SLACK = 8


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
    """Minimize a black-box function of real variables without gradients.

    Example:
        >>> import zoopt_nas
        >>> result = zoopt_nas.minimize(lambda x: (x**2).sum(), [1.0, -2.0], maxfev=500, rng=0)
        >>> bool(result.fun < 1e-2)
        True

    Args:
        fun: takes a point (dim,) and returns a real number; with ``vectorized``, takes points
            (n, dim) and returns (n,) values. NaN or an infinity marks a failed evaluation. Points
            have the namespace, dtype and device of ``x0``. If the function has a parameter
            ``eval_seed``, it gets a seed that all points of a batch share (common random numbers,
            which reduce the noise of comparisons), and counts as noisy.
        x0: the start point, (dim,), evaluated first: a floating-point NumPy array or torch tensor,
            or anything that converts to a float64 NumPy array.
        method: a name from ``SOLVERS`` or a ``Solver``. ``"auto"`` chooses by dimension, budget and
            noise; the message of the result names its choice.
        bounds: a sequence of pairs (lower, upper), one per coordinate, with None for no bound; a
            ``scipy.optimize.Bounds``; or a ``Box``, which also sets how points are kept inside
            (default: clipped). All evaluated points and ``x_iterate`` lie inside. ``x0`` must be
            inside; a violation by rounding is corrected.
        x_scale: the size of a sensible first step, one number or (dim,), for solvers that adapt
            their step lengths. Default: a quarter of the width between two bounds that are
            not loose (30 times the size of ``x0``), otherwise derived from ``x0``; no scaling if
            ``options`` set a length in units of x.
        maxfev: the maximum number of evaluations. Default: 1000 * dim, unless ``maxiter``,
            ``maxtime`` or ``maxstall`` is given.
        maxiter: the maximum number of iterations (one batch each).
        maxtime: seconds after which no further call starts, except for the first call of a batch
            and for whole batches (``vectorized`` or a map-like callable). A resumed run counts its
            earlier parts. A noisy run reserves a tenth of the time for its end.
        maxstall: the run ends after this many evaluations without a better value.
        target: the run ends at the first finite value of at most ``target``.
        rng: None, a non-negative int, a ``numpy.random.Generator`` or, for torch, a
            ``torch.Generator``. Global generators are never used.
        vectorized: see ``fun``.
        workers: a number of processes (-1: one per core) for the calls of a batch, for which
            ``fun`` must be picklable; any ``concurrent.futures.Executor``; or a map-like callable
            such as ``multiprocessing.Pool().map``. Executors and pools stay open. The result does
            not depend on the number of workers, except that a target ends the run only after the
            batch. If a process dies, only the evaluation of its candidate fails.
        timeout: seconds after which an evaluation fails. Worker processes (even one) are then
            killed and replaced; a call of an executor occupies its worker until it returns.
        on_error: ``"raise"``: an exception in ``fun`` ends the run; ``"fail"``: it makes the
            evaluation fail. Default: ``"raise"`` without workers. With workers, an exception fails
            the evaluation, but is raised if no call has ever returned.
        noisy: whether the value of a point differs from call to call. A tenth of the evaluations
            is then spent at the end on new values of the iterate and of the four best points;
            ``x`` is the best of them by its mean new value, ``fun``.
        n_reevaluations: the number of calls at each point, whose mean is its value; more than 1
            implies ``noisy``.
        warm_start: known points and values, ((n, dim), (n,)). The run starts from the best of them
            instead of ``x0``. They cost no evaluation.
        callback: called after every iteration with the best point or, as in SciPy, if its only
            parameter is ``intermediate_result``, with a result that has the fields
            ``x, fun, nfev, nit, x_iterate``. ``StopIteration`` ends the run.
        options: fields of the solver by name, such as ``{"max_radius": 0.5}``.
        history: whether the result has the field ``history``, (nfev,): all values in order, +inf
            for failures.
        progress: whether to show a progress bar on stderr.
        checkpoint: a file to save the run in. If it exists, the same call resumes the run, with the
            result of a run without interruption. Limits, target, workers and callback may differ.
            The file is replaced atomically, and is kept at the end.
        checkpoint_every: the minimum number of seconds between two writes; 0 writes after every
            iteration. The file is also written at the end.

    Returns:
        A ``scipy.optimize.OptimizeResult`` with

        * ``x``, ``fun``: the best evaluated point and its value, or the iterate and +inf if no
          value was finite.
        * ``x_iterate``, ``fun_iterate``: the final iterate of the solver and its value. One
          evaluation of the budget is reserved for it unless the solver evaluates its iterate. NaN
          if it was not evaluated, because the target or the time ended the run or because the
          solver moved between points under noise.
        * ``nfev``, ``nit``, ``n_failed``: the numbers of evaluations, iterations and failed
          evaluations.
        * ``status``, ``message``, ``success``: see ``Status``. A run succeeds if it reaches its
          target or, without a target, if some value was finite.

    Raises:
        InvalidValueError: an argument is invalid, or ``fun`` does not return real numbers.
        UnknownNameError: ``method`` or an option is unknown.
        RunError: the checkpoint cannot be written or read, or belongs to another run.
        Exception: whatever ``fun`` or ``callback`` raises, with the result so far in its attribute
            ``partial_result``.
    """
    solver = make_solver(method, options)
    x0 = as_point("x0", x0)
    known = None if warm_start is None else _finite_warm_start(warm_start, x0)
    if known is not None:
        x0 = known[0][int(np.argmin(known[1]))]
    box = None
    if bounds is not None:
        bounds = as_box(bounds)
        x0 = _undo_rounding(x0, bounds)
        box = bounds.at(x0)
    on_iteration = None if callback is None else as_callback(callback)
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
    is_scaled = x_scale is not None or (prepared.adapts_steps and not prepared.has_lengths)
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
            objective.add_known(point, value)
        prepared.tell(state, start[None, :], [min(known[1])])
    run = Run(prepared, state, objective, coordinates, noisy)
    if checkpoint is not None:
        run.resume(Checkpoint(checkpoint, checkpoint_every, identity))
    return _run_to_end(run, limits, on_iteration, progress)


def _run_to_end(
    run: Run, limits: Limits, callback: Callable[[Any], object] | None, progress: bool
) -> OptimizeResult:
    """Run until a limit is reached, and return the result."""
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
            # The last evaluations reached the target: the callback has not seen it yet.
            if objective.reached_target and status not in (Status.TARGET_REACHED, Status.CALLBACK):
                with contextlib.suppress(StopIteration):
                    after()
        except BaseException as error:  # also Ctrl-C, which must not lose the evaluations
            with contextlib.suppress(AttributeError):  # a class with __slots__
                error.partial_result = run.intermediate_result()  # type: ignore[attr-defined]
            error.add_note(
                f"minimize: raised after {objective.nfev} evaluations; "
                "the best point so far is in the attribute partial_result"
            )
            raise
        finally:
            objective.close()
    return run.result(status)


def _undo_rounding(x0: Array, box: Box) -> Array:
    """Move coordinates to their bound that are outside by a few units in the last place."""
    if box.lower.shape not in ((), tuple(x0.shape)):
        return x0  # `Box.at` raises
    xp = array_namespace(x0)
    eps = float(xp.finfo(x0.dtype).eps)
    x = np.asarray(to_numpy(x0), dtype=np.float64)
    ends = [np.where(np.isfinite(end), np.abs(end), 0.0) for end in (box.lower, box.upper)]
    slack = X0_SLACK * eps * np.maximum(*ends)
    inside = np.clip(x, box.lower, box.upper)
    moves = (inside != x) & (np.abs(inside - x) <= slack)
    if not moves.any():
        return x0
    return as_like("x0", np.where(moves, inside, x), x0, tuple(x0.shape))


def _finite_warm_start(warm_start: Any, x0: Array) -> tuple[list[Array], list[float]] | None:
    """Return the known points with finite values, like ``x0``, and these values."""
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
    """Draw the seed from which the values of ``eval_seed`` are generated."""
    if is_torch_array(state.x):
        return int(state.rng.initial_seed() % 2**63)
    return int(state.rng.integers(2**63 - 1))
