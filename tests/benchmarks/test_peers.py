"""The optimizers of other packages in the BBOB benchmark: they run, restart, and stop in time."""

import numpy as np
import pytest
from bbob_suite import Suite, run
from peers import PEERS

PACKAGES = {"nlopt": "nlopt", "pycma": "cma", "py": "pybobyqa", "nevergrad": "nevergrad"}


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_finds_the_sphere_and_stops(name):
    package = PACKAGES.get(name.partition("_")[0])
    if package is not None:
        pytest.importorskip(package)
    suite = Suite(dims=(2,), functions=(1,), instances=(1,), evals_per_dim=150)
    result = run(PEERS[name], suite, seed=0)
    target = 0 if name == "random_search" else 10  # distances of 100 and 1 to the optimal value
    assert np.isfinite(result.hit_times[0, target])


@pytest.mark.parametrize("name", ["scipy_slsqp", "nlopt_newuoa", "nlopt_bobyqa", "py_bobyqa"])
def test_local_peers_start_anew(name):
    package = PACKAGES.get(name.partition("_")[0])
    if package is not None:
        pytest.importorskip(package)
    seen = []

    class BudgetSpentError(Exception):
        pass

    def fun(x):
        if len(seen) == 400:
            raise BudgetSpentError
        seen.append(x.copy())
        return float(((x - 1) ** 2).sum())

    with pytest.raises(BudgetSpentError):
        PEERS[name](fun, np.array([2.0, 3.0]), 400, np.random.default_rng(0))
    jumps = np.abs(np.diff(np.array(seen), axis=0)).max(axis=1)
    assert (jumps[100:] > 1.0).any()  # local steps are below 1 by then
