"""The requirements on solvers that adapt their step lengths, as a test class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoopt_nas import Solver, minimize
from zoopt_nas.testing.cases import FAMILIES

robustness_settings = settings(
    deadline=None,
    derandomize=True,
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
case_seeds = st.integers(0, 10**6)


class SolverRobustness:
    """Tests on the problems of `zoopt_nas.testing.cases`; supply the fixture ``solver``."""

    @pytest.fixture
    def solver(self) -> Solver:
        """Return the solver under test."""
        raise NotImplementedError("override the fixture `solver`")

    @pytest.mark.parametrize("family", FAMILIES)
    @robustness_settings
    @given(seed=case_seeds)
    def test_it_solves(self, solver: Solver, family: str, seed: int) -> None:
        """Reach the target of a generated problem within its budget."""
        if not solver.adapts_steps:
            pytest.skip("the solver does not adapt its step lengths")
        case = FAMILIES[family](seed)
        result = minimize(**vars(case), method=solver, rng=seed)
        assert result.fun <= case.target, (case.x0, result.message)

    @robustness_settings
    @given(seed=case_seeds, maxfev=st.integers(1, 40))
    def test_a_result_is_never_worse_than_x0(self, solver: Solver, seed: int, maxfev: int) -> None:
        """Improve on x0, or return it, whatever the budget."""
        x0 = np.random.default_rng(seed).uniform(-0.02, 0.02, 3)
        result = minimize(lambda x: float((x**2).sum()), x0, solver, maxfev=maxfev, rng=seed)
        assert result.fun <= float((x0**2).sum())
        assert result.nfev == maxfev

    @robustness_settings
    @given(seed=case_seeds)
    def test_a_target_that_x0_meets_costs_one_evaluation(self, solver: Solver, seed: int) -> None:
        """Stop at x0 if it meets the target."""
        result = minimize(lambda x: float((x**2).sum()), np.ones(3), solver, target=3.0, rng=seed)
        assert (result.nfev, result.success) == (1, True)
        np.testing.assert_array_equal(result.x, np.ones(3))
