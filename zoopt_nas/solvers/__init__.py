"""The solvers by name. Another package adds one through the entry points of ``SOLVERS``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.registry import Registry
from zoopt_nas.solvers.adaptive_gld import AdaptiveGLD
from zoopt_nas.solvers.adaptive_mgs import AdaptiveMGS
from zoopt_nas.solvers.auto import Auto
from zoopt_nas.solvers.base import Solver, SolverState, Task
from zoopt_nas.solvers.cma import CMA
from zoopt_nas.solvers.gld import GLD
from zoopt_nas.solvers.lizo import LIZO
from zoopt_nas.solvers.mgs import MGS
from zoopt_nas.solvers.nelder_mead import NelderMead
from zoopt_nas.solvers.quasi_newton import QuasiNewton
from zoopt_nas.solvers.rs import RS
from zoopt_nas.solvers.trust_region import TrustRegion
from zoopt_nas.solvers.zo_adamm import ZOAdaMM
from zoopt_nas.solvers.zo_signsgd import ZOSignSGD

# The order in which solvers are listed; ``zoopt_nas`` exports these names too.
__all__ = [  # noqa: RUF022
    "RS", "MGS", "GLD", "LIZO", "ZOSignSGD", "ZOAdaMM",
    "QuasiNewton", "TrustRegion", "AdaptiveGLD", "AdaptiveMGS", "CMA", "NelderMead", "Auto",
]  # fmt: skip
KINDS: list[type[Solver]] = [globals()[name] for name in __all__]
SOLVERS: Registry[type[Solver]] = Registry(
    "solver",
    {kind.name: kind for kind in KINDS},
    group="zoopt_nas.solvers",
    check=lambda entry: isinstance(entry, type) and issubclass(entry, Solver),
)
__all__ += ["SOLVERS", "Solver", "SolverState", "Task"]


def make_solver(method: str | Solver, options: Mapping[str, Any] | None = None) -> Solver:
    """Return a new solver by name, or a copy of a given one, with some fields set.

    Args:
        method: a name in ``SOLVERS``, or a ``Solver``.
        options: the fields to set, by name.

    Raises:
        InvalidValueError: ``method`` is neither, or a value is out of its range.
        UnknownNameError: no such solver or field; the message suggests the nearest.
    """
    if not isinstance(method, str | Solver):
        raise InvalidValueError(f"method must be the name of a solver or a Solver, got {method!r}")
    kind = SOLVERS[method] if isinstance(method, str) else type(method)
    known = [field.name for field in dataclasses.fields(kind)]
    options = dict(options or {})
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {kind.name}", option, known)
    return kind(**options) if isinstance(method, str) else dataclasses.replace(method, **options)
