"""The contract of a solver as test classes. Subclass them in your own tests with one fixture::

    from zoopt_nas.testing import SolverConformance, SolverRobustness

    class TestMySolver(SolverConformance, SolverRobustness):
        @pytest.fixture
        def solver(self):
            return MySolver(step=0.1)

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
