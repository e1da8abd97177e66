"""No option without an effect: each field of each solver changes its runs, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from zoopt_nas import GLD, SOLVERS, InvalidValueError, Solver, sampling
from zoopt_nas.solvers.base import Task


def values_to_try(default: Any) -> list[Any]:
    """Other values that a field may have; those that it may not have are refused."""
    numbers = [1, 2, 7, 0.37, 3.0, 1e-3]
    words = ["one_point", "gaussian", "fast", "exact", "fixed_norm", "diagonal"]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, str):
        return [word for word in words if word != default]
    return [False, *numbers] if default is None else [n for n in numbers if n != default]


def objectives() -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """A smooth one, and one that is noisy and fails here and there, each with a fixed seed."""
    yield lambda rows: ((rows - 0.3) ** 2 * np.arange(1.0, rows.shape[1] + 1)).sum(1)
    rng = np.random.default_rng(1)
    yield lambda rows: (rows**2).sum(1) + 0.1 * rng.standard_normal(len(rows))


def runs(solver: Solver) -> list[list[float]]:
    """What the solver asks for on the way to convergence, with guides where it takes them."""
    told = []
    for fun in objectives():
        prepared = solver.prepared(Task(dim=4))
        state = prepared.init(np.linspace(-0.5, 1.0, 4), rng=0)
        rows: list[float] = []
        for _ in range(400):
            guide = -0.1 * state.x if prepared.uses_guide else None
            candidates = prepared.ask(state, guide=guide)
            rows += candidates.reshape(-1).tolist()
            prepared.tell(state, candidates, fun(candidates))
        told.append(rows)
    return told


def without_effect(solver: Solver) -> list[str]:
    """Returns the fields of which no other value that is allowed changes a run."""
    usual = runs(solver)
    idle = []
    for field in fields(solver):
        others = []
        for value in values_to_try(getattr(solver, field.name)):
            try:
                others.append(replace(solver, **{field.name: value}))
            except InvalidValueError:
                continue
        # None that is allowed: the field belongs to another form, which refuses it.
        if others and all(runs(other) == usual for other in others):
            idle.append(field.name)
    return idle


FORMS = {name: SOLVERS[name]() for name in SOLVERS} | {"gld-fast": GLD(schedule="fast")}


@pytest.mark.parametrize("solver", FORMS.values(), ids=FORMS.keys())
def test_every_field_has_an_effect(solver):
    assert without_effect(solver) == []


@dataclass(frozen=True)
class WithADummy(Solver):
    name: ClassVar[str] = "with_a_dummy"
    step: float = 0.1
    dummy: float = 1.0

    def _ask(self, state, guide):
        return state.x + self.step * sampling.gaussian(state.rng, 2, state.x)

    def _tell(self, state, candidates, values):
        return state.x


def test_a_field_without_effect_is_found():
    assert without_effect(WithADummy()) == ["dummy"]
