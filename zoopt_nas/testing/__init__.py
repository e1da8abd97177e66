"""Test classes for solvers.

Subclass them in your tests, with one fixture::

    import pytest
    from zoopt_nas import CMA
    from zoopt_nas.testing import SolverConformance, SolverRobustness

    class TestCMA(SolverConformance, SolverRobustness):
        @pytest.fixture
        def solver(self):
            return CMA()

`SolverConformance` is for every solver, `SolverRobustness` for solvers that adapt their step
lengths (``adapts_steps``). Both require ``pip install 'zoopt-nas[test]'``.
"""

from zoopt_nas.testing.contract import (
    BACKENDS,
    Backend,
    SolverConformance,
    conformance_settings,
    run_steps,
    sphere,
)
from zoopt_nas.testing.robustness import SolverRobustness

__all__ = [
    "BACKENDS",
    "Backend",
    "SolverConformance",
    "SolverRobustness",
    "conformance_settings",
    "run_steps",
    "sphere",
]
