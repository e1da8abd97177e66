"""What a solver that finds its own step lengths is expected to solve, as a test class."""

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
    """Small problems of the kinds that users bring; supply the fixture ``solver``.

    The problems are drawn by hypothesis; see `zoopt_nas.testing.cases` for what they are.
    """

    @pytest.fixture
    def solver(self) -> Solver:
        """The solver under test."""
        raise NotImplementedError("override the fixture `solver`")

    @pytest.mark.parametrize("family", FAMILIES)
    @robustness_settings
    @given(seed=case_seeds)
    def test_it_solves(self, solver: Solver, family: str, seed: int) -> None:
        case = FAMILIES[family](seed)
        result = minimize(
            case.fun,
            case.x0,
            solver,
            bounds=case.bounds,
            maxfev=case.maxfev,
            target=case.target,
            rng=seed,
        )
        assert result.fun <= case.target, (case.x0, result.message)

    @robustness_settings
    @given(seed=case_seeds, maxfev=st.integers(1, 40))
    def test_a_result_is_never_worse_than_x0(self, solver: Solver, seed: int, maxfev: int) -> None:
        x0 = np.random.default_rng(seed).uniform(-0.02, 0.02, 3)
        result = minimize(lambda x: float((x**2).sum()), x0, solver, maxfev=maxfev, rng=seed)
        assert result.fun <= float((x0**2).sum())
        assert result.nfev == maxfev

    @robustness_settings
    @given(seed=case_seeds)
    def test_a_target_that_x0_meets_costs_one_evaluation(self, solver: Solver, seed: int) -> None:
        result = minimize(lambda x: float((x**2).sum()), np.ones(3), solver, target=3.0, rng=seed)
        assert (result.nfev, result.success) == (1, True)
        np.testing.assert_array_equal(result.x, np.ones(3))
