"""The solvers, by name. A third-party package adds one in the entry-point group of ``SOLVERS``."""

from __future__ import annotations

from zoopt_nas.registry import Registry
from zoopt_nas.solvers.base import Solver, SolverState
from zoopt_nas.solvers.gld import GLD
from zoopt_nas.solvers.mgs import MGS
from zoopt_nas.solvers.rs import RS

SOLVERS: Registry[type[Solver]] = Registry(
    "solver", {"rs": RS, "mgs": MGS, "gld": GLD}, group="zoopt_nas.solvers"
)

__all__ = ["GLD", "MGS", "RS", "SOLVERS", "Solver", "SolverState"]
