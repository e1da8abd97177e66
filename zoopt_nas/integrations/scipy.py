"""Solvers as methods of ``scipy.optimize.minimize``.

Source: the protocol of custom minimizers in the notes of ``scipy.optimize.minimize``.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from zoopt_nas._minimize import minimize
from zoopt_nas._run import Status
from zoopt_nas.bounds import Box, as_box
from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.solvers import Solver, make_solver

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# The status that SciPy gives to a run that its callback stopped, whatever the method.
_STOPPED_BY_CALLBACK = 99

# What `minimize` takes but an option of SciPy cannot set, as SciPy has its own argument for it.
_GIVEN_BY_SCIPY = frozenset({"fun", "x0", "method", "bounds", "callback", "options"})


def scipy_method(
    method: str | Solver = "adaptive_gld", **options: Any
) -> Callable[..., OptimizeResult]:
    """Returns a solver as a ``method`` of ``scipy.optimize.minimize``.

    Example:
        >>> import scipy.optimize, zoopt_nas
        >>> method = zoopt_nas.scipy_method("adaptive_gld")
        >>> options = {"maxfev": 500, "rng": 0}
        >>> fun = lambda x: (x**2).sum()
        >>> result = scipy.optimize.minimize(fun, [1.0, -2.0], method=method, options=options)
        >>> bool(result.fun < 1e-2), result.status
        (True, 0)

    SciPy's ``args``, ``bounds`` (in all its forms) and ``callback`` (of both styles) work as with
    its own methods, and a start outside the bounds is moved to the nearest point inside. SciPy's
    ``options`` may hold the arguments of ``zoopt_nas.minimize`` (``maxfev``, ``rng``, ``target``,
    ``workers``, ...) and the fields of the solver. Anything else there, and ``tol``, gets an
    ``OptimizeWarning`` and is not used. ``shgo`` does not pass its ``options`` on: for it, give
    them here.

    The result has the fields of ``zoopt_nas.minimize``, with ``status`` and ``success`` as SciPy's
    tools read them: a run that ended as it should, which for a solver without a test of convergence
    is the end of its budget, has status 0 and is a success, so that ``basinhopping`` accepts it. No
    success, with the status of ``zoopt_nas.Status``: no value was finite, or a ``target`` was given
    and not reached. A callback that raised ``StopIteration`` gives status 99.

    Args:
        method: a name from ``SOLVERS`` or a ``Solver``.
        **options: arguments of ``zoopt_nas.minimize`` and fields of the solver, by name; SciPy's
            ``options`` win over them.

    Returns:
        A callable that can be pickled if ``method`` can.

    Raises:
        InvalidValueError: an option is out of its range. When called: also for ``constraints``.
        UnknownNameError: no such solver, argument or field; the message suggests the nearest.
    """
    solver = make_solver(method)
    arguments = {name: value for name, value in options.items() if name in _arguments()}
    known = _arguments() | {entry.name for entry in fields(solver)}
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {solver.name}", name, known)
    of_solver = {name: value for name, value in options.items() if name not in arguments}
    return _ScipyMethod(make_solver(solver, of_solver), arguments)


def _arguments() -> set[str]:
    """Returns the arguments of `minimize` that are options for SciPy."""
    return set(inspect.signature(minimize).parameters) - _GIVEN_BY_SCIPY


@dataclass(frozen=True)
class _ScipyMethod:
    """The callable that SciPy calls as ``method(fun, x0, args=args, ..., **options)``."""

    solver: Solver
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def lower(self) -> str:
        """Returns what SciPy calls a method that is a callable; ``shgo`` asks every method."""
        return "_custom"

    def __call__(
        self,
        fun: Callable[..., Any],
        x0: Any,
        args: tuple[Any, ...] = (),
        *,
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., object] | None = None,
        tol: float | None = None,
        disp: object = None,
        **options: Any,
    ) -> OptimizeResult:
        if not _is_empty(constraints):
            raise InvalidValueError(
                "constraints must be empty, since the solvers know only bounds; "
                f"got {constraints!r}"
            )
        # With jac=True SciPy wraps fun so that it returns the value alone: no loss, no warning.
        is_split_off = jac is not None and getattr(jac, "__self__", None) is fun
        if (jac is not None and not is_split_off) or hess is not None or hessp is not None:
            warnings.warn(
                f"Method {self.solver.name} does not use jac, hess or hessp.",
                RuntimeWarning,
                stacklevel=3,
            )
        if tol is not None:
            options["tol"] = tol
        arguments, solver_options = self._sorted_out({**self.arguments, **options})
        x0 = np.asarray(x0)
        if bounds is not None:
            bounds = as_box(bounds)
            x0 = _moved_inside(x0, bounds)
        result = minimize(
            _WithArguments(fun, args) if args else fun,
            x0,
            method=make_solver(self.solver, solver_options),
            bounds=bounds,
            callback=callback,
            **arguments,
        )
        return _as_scipy_reads_it(result)

    def _sorted_out(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the arguments of `minimize` and the fields of the solver among ``options``."""
        from scipy.optimize import OptimizeWarning
        from scipy.optimize import minimize as scipy_minimize

        arguments = _arguments()
        solver_fields = {entry.name for entry in fields(self.solver)}
        # SciPy: "the set of parameters may expand", and none of those is an option of the user.
        passed_by_scipy = set(inspect.signature(scipy_minimize).parameters) - {"tol"}
        unknown = set(options) - arguments - solver_fields - passed_by_scipy
        for name in sorted(unknown):
            near = difflib.get_close_matches(name, arguments | solver_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            warnings.warn(
                f"Unknown solver option of {self.solver.name}: {name}{hint}",
                OptimizeWarning,
                stacklevel=4,
            )
        return (
            {name: value for name, value in options.items() if name in arguments},
            {name: value for name, value in options.items() if name in solver_fields - arguments},
        )


@dataclass(frozen=True)
class _WithArguments:
    """``fun`` with SciPy's ``args`` behind the point; a class, as worker processes pickle it."""

    fun: Callable[..., Any]
    args: tuple[Any, ...]

    def __call__(self, x: Any) -> Any:
        return self.fun(x, *self.args)


def _is_empty(constraints: Any) -> bool:
    try:
        return len(constraints) == 0
    except TypeError:  # a single constraint object, or None
        return constraints is None


def _moved_inside(x0: np.ndarray, box: Box) -> np.ndarray:
    """Returns the point of the box next to ``x0``: where L-BFGS-B starts too.

    ``basinhopping`` relies on it, as its steps know nothing of the bounds.
    """
    if box.lower.shape not in ((), x0.shape):
        return x0  # `minimize` says what is wrong
    inside: np.ndarray = np.clip(x0, box.lower, box.upper)
    return inside.astype(x0.dtype) if x0.dtype.kind == "f" else inside


def _as_scipy_reads_it(result: OptimizeResult) -> OptimizeResult:
    if result.status == Status.CALLBACK:
        result.success, result.status = False, _STOPPED_BY_CALLBACK
        result.message = "`callback` raised `StopIteration`."
    else:
        result.status = 0 if result.success else int(result.status)
    return result
