"""Every registered solver keeps the contract of a solver."""

import pytest

from zoopt_nas import GLD, MGS, RS, SOLVERS, QuasiNewton, Solver
from zoopt_nas.testing import SolverConformance, SolverRobustness


class TestRegisteredSolvers(SolverConformance, SolverRobustness):
    @pytest.fixture(params=list(SOLVERS))
    def solver(self, request: pytest.FixtureRequest) -> Solver:
        return SOLVERS[request.param]()


VARIANTS = {
    "rs-paper": RS(learning_rate=0.02, smoothing=0.01),
    "rs-few_samples": QuasiNewton(n_samples=4),
    "mgs-paper": MGS(temperature=0.01),
    "rs-one_point": RS(estimator="one_point", learning_rate=0.002, smoothing=0.5, n_samples=8),
    "rs-two_point": RS(estimator="two_point", direction="gaussian"),
    "rs-orthogonal": RS(learning_rate=0.02, orthogonal=True, direction="gaussian"),
    "mgs-exact": MGS(temperature=0.01, weighting="exact", mixing=0.3),
    "mgs-fixed_norm": MGS(temperature=0.01, weighting="fixed_norm", mixing=0.3),
    "gld-fast": GLD(schedule="fast", direction="ball"),
    "gld-search": GLD(schedule="search"),
    "gld-deterministic": GLD(schedule="search", deterministic=True, direction="gaussian"),
}


class TestVariants(SolverConformance):
    @pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
    def solver(self, request: pytest.FixtureRequest) -> Solver:
        variant: Solver = request.param
        return variant
