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

# The status in SciPy of a run that its callback stopped.
_STOPPED_BY_CALLBACK = 99

# Arguments of `minimize` that SciPy passes as arguments, not as options.
_GIVEN_BY_SCIPY = frozenset({"fun", "x0", "method", "bounds", "callback", "options"})


def scipy_method(
    method: str | Solver = "adaptive_gld", **options: Any
) -> Callable[..., OptimizeResult]:
    """Return a solver as a ``method`` for ``scipy.optimize.minimize``.

    Example:
        >>> import scipy.optimize, zoopt_nas
        >>> method = zoopt_nas.scipy_method("adaptive_gld")
        >>> options = {"maxfev": 500, "rng": 0}
        >>> fun = lambda x: (x**2).sum()
        >>> result = scipy.optimize.minimize(fun, [1.0, -2.0], method=method, options=options)
        >>> bool(result.fun < 1e-2), result.status
        (True, 0)

    SciPy's ``args``, ``bounds`` and ``callback`` work as with the methods of SciPy. A start point
    outside of the bounds is moved to the nearest point inside. SciPy's ``options`` may hold
    arguments of ``zoopt_nas.minimize`` (``maxfev``, ``rng``, ``target``, ``workers``, ...) and
    fields of the solver. Unknown options and ``tol`` are ignored with an ``OptimizeWarning``.
    ``shgo`` does not pass its ``options`` on: give them here.

    The result has the fields of ``zoopt_nas.minimize``. As SciPy's tools expect, a successful run
    has status 0, including one that used its budget. A failed run (no finite value, or a
    ``target`` that was not reached) has its status of ``zoopt_nas.Status``. If the callback raised
    ``StopIteration``, the status is 99.

    Args:
        method: a name from ``SOLVERS`` or a ``Solver``.
        **options: arguments of ``zoopt_nas.minimize`` and fields of the solver by name; SciPy's
            ``options`` take precedence.

    Returns:
        A callable that can be pickled if ``method`` can.

    Raises:
        InvalidValueError: an option is invalid; when called, also if there are ``constraints``.
        UnknownNameError: the solver or an option is unknown.
    """
    solver = make_solver(method)
    known = _arguments() | {entry.name for entry in fields(solver)}
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {solver.name}", name, known)
    arguments, solver_options = _split(options)
    return _ScipyMethod(make_solver(solver, solver_options), arguments)


def _arguments() -> set[str]:
    """Return the arguments of `minimize` that SciPy's options may set."""
    return set(inspect.signature(minimize).parameters) - _GIVEN_BY_SCIPY


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into arguments of `minimize` and the rest."""
    names = _arguments()
    arguments = {name: value for name, value in options.items() if name in names}
    return arguments, {name: value for name, value in options.items() if name not in names}


@dataclass(frozen=True)
class _ScipyMethod:
    """The callable that SciPy calls as ``method(fun, x0, args=args, ..., **options)``."""

    solver: Solver
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def lower(self) -> str:
        """Return SciPy's name of a callable method, which ``shgo`` requires."""
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
                "constraints must be empty, since the solvers support only bounds; "
                f"got {constraints!r}"
            )
        # With jac=True, SciPy splits the value off: ignoring the gradient is then expected.
        is_split_off = jac is not None and getattr(jac, "__self__", None) is fun
        if (jac is not None and not is_split_off) or hess is not None or hessp is not None:
            warnings.warn(
                f"Method {self.solver.name} does not use jac, hess or hessp.",
                RuntimeWarning,
                stacklevel=3,
            )
        if tol is not None:
            options["tol"] = tol
        arguments, solver_options = self._known({**self.arguments, **options})
        x0 = np.asarray(x0)
        if bounds is not None:
            bounds = as_box(bounds)
            x0 = _clipped(x0, bounds)
        result = minimize(
            _WithArguments(fun, args) if args else fun,
            x0,
            method=make_solver(self.solver, solver_options),
            bounds=bounds,
            callback=callback,
            **arguments,
        )
        return _with_scipy_status(result)

    def _known(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the known options as `_split` does, and warn of the others."""
        from scipy.optimize import OptimizeWarning
        from scipy.optimize import minimize as scipy_minimize

        known = _arguments() | {entry.name for entry in fields(self.solver)}
        # SciPy may pass further parameters of its own in future versions: they cause no warning.
        passed_by_scipy = set(inspect.signature(scipy_minimize).parameters) - {"tol"}
        for name in sorted(set(options) - known - passed_by_scipy):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            warnings.warn(
                f"Unknown solver option of {self.solver.name}: {name}{hint}",
                OptimizeWarning,
                stacklevel=4,
            )
        return _split({name: value for name, value in options.items() if name in known})


@dataclass(frozen=True)
class _WithArguments:
    """``fun`` with SciPy's ``args``; a class, so that worker processes can pickle it."""

    fun: Callable[..., Any]
    args: tuple[Any, ...]

    def __call__(self, x: Any) -> Any:
        return self.fun(x, *self.args)


def _is_empty(constraints: Any) -> bool:
    try:
        return len(constraints) == 0
    except TypeError:  # a single constraint object, or None
        return constraints is None


def _clipped(x0: np.ndarray, box: Box) -> np.ndarray:
    """Clip ``x0`` to the box, as L-BFGS-B does: ``basinhopping`` ignores bounds in its steps."""
    if box.lower.shape not in ((), x0.shape):
        return x0  # `minimize` raises
    inside: np.ndarray = np.clip(x0, box.lower, box.upper)
    return inside.astype(x0.dtype) if x0.dtype.kind == "f" else inside


def _with_scipy_status(result: OptimizeResult) -> OptimizeResult:
    if result.status == Status.CALLBACK:
        result.success, result.status = False, _STOPPED_BY_CALLBACK
        result.message = "`callback` raised `StopIteration`."
    else:
        result.status = 0 if result.success else int(result.status)
    return result
