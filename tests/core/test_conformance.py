"""Every registered solver keeps the contract of a solver."""

import pytest

from zoopt_nas import GLD, MGS, RS, SOLVERS, QuasiNewton, Solver, TrustRegion, ZOAdaMM
from zoopt_nas.testing import SolverConformance, SolverRobustness


class TestRegisteredSolvers(SolverConformance, SolverRobustness):
    @pytest.fixture(params=list(SOLVERS))
    def solver(self, request: pytest.FixtureRequest) -> Solver:
        return SOLVERS[request.param]()


VARIANTS = {
    "rs-one_point": RS(estimator="one_point", learning_rate=0.002, smoothing=0.5, n_samples=8),
    "rs-one_pair": RS(n_samples=1, direction="gaussian"),
    "rs-orthogonal": RS(orthogonal=True, direction="gaussian"),
    "mgs-exact": MGS(weighting="exact", mixing=0.3),
    "mgs-fixed_norm": MGS(weighting="fixed_norm", mixing=0.3),
    "gld-fast": GLD(schedule="fast", direction="ball"),
    "gld-deterministic": GLD(deterministic=True, direction="gaussian"),
    "quasi_newton-few_samples": QuasiNewton(n_samples=4),
    "zo_adamm-one_point": ZOAdaMM(estimator="one_point", smoothing=0.5, beta1=0.0, beta2=0.99),
    "trust_region-batches": TrustRegion(n_samples=5),
}


class TestVariants(SolverConformance):
    @pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
    def solver(self, request: pytest.FixtureRequest) -> Solver:
        variant: Solver = request.param
        return variant
