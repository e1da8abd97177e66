"""Uses the installed package with every value typed; CI checks it with mypy --strict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, assert_type

import numpy as np

import zoopt_nas
from zoopt_nas import Solver, SolverState


@dataclass(frozen=True)
class Still(Solver):
    """A solver of another package: it evaluates its iterate and stays there."""

    name: ClassVar[str] = "still"

    def _ask(self, state: SolverState, guide: Any) -> Any:
        return state.x[None, :]

    def _tell(self, state: SolverState, candidates: Any, values: Any) -> Any:
        return state.x


def sphere(x: np.ndarray) -> float:
    """The squared distance to the origin."""
    return float((x**2).sum())


zoopt_nas.minimize(sphere, [1.0, -2.0], method="gld", maxfev=50, rng=0)
assert_type(zoopt_nas.GLD(max_radius=1.0).max_radius, float)
state = Still().init([0.0, 1.0], rng=0)
assert_type(state, SolverState)
assert_type(Still().tell(state, Still().ask(state), [1.0]), SolverState)
