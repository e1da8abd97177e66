"""Solvers on an objective whose level drifts: those that compare batches are led astray."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from zoopt_nas.solvers import CMA, GLD, SOLVERS, Solver

SOLVERS_HERE = [
    *(SOLVERS[name]() for name in SOLVERS if name != "cma"),
    CMA(sigma=0.5, restart=False),
    GLD(deterministic=True),
]


def path(solver: Solver, levels: list[float]) -> np.ndarray:
    """The iterates on |x - 1|² plus a level for each batch."""
    state = solver.init(np.zeros(5), rng=0)
    state.has_contrast = solver.adapts_steps  # no values were looked at before
    found = []
    for level in levels:
        rows = solver.ask(state)
        solver.tell(state, rows, ((rows - 1) ** 2).sum(1) + level)
        found.append(np.array(state.x))
    return np.array(found)


@pytest.mark.parametrize("solver", SOLVERS_HERE, ids=repr)
def test_whether_a_drift_changes_a_run_is_as_the_solver_says(solver):
    still, drifting = path(solver, [0.0] * 12), path(solver, [64.0 * k for k in range(12)])
    if solver.compares_batches:
        assert np.abs(still - drifting).max() > 1e-3
    else:
        np.testing.assert_allclose(drifting, still, rtol=1e-6, atol=1e-9)
        assert not np.allclose(still[-1], 0.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_stretched_multiplies_the_lengths_that_are_given(name):
    kind = SOLVERS[name]
    solver = kind(**dict.fromkeys(kind.lengths, 0.25))
    wide = solver.stretched(8)
    for field in dataclasses.fields(solver):
        is_length = field.name in kind.lengths
        expected = 2.0 if is_length else getattr(solver, field.name)
        assert getattr(wide, field.name) == expected
    if all(getattr(kind(), length) is None for length in kind.lengths):
        assert kind().stretched(8) == kind()
    with pytest.raises(ValueError, match="factor must be"):
        solver.stretched(0)


@pytest.mark.parametrize("name", SOLVERS)
def test_scales_are_fields(name):
    fields = {field.name for field in dataclasses.fields(SOLVERS[name])}
    assert {*SOLVERS[name].lengths, *SOLVERS[name].value_scales} <= fields
