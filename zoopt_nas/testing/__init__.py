"""The contract of a solver as test classes. Subclass them in your own tests with one fixture::

    import pytest
    from zoopt_nas import CMA
    from zoopt_nas.testing import SolverConformance, SolverRobustness

    class TestCMA(SolverConformance, SolverRobustness):
        @pytest.fixture
        def solver(self):
            return CMA()

`SolverConformance` holds for every solver. `SolverRobustness` is for solvers that find the lengths
of their steps by themselves (``adapts_steps``). Both need ``pip install 'zoopt-nas[test]'``.
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
