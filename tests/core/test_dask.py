"""``client.get_executor()`` of dask.distributed as workers: same run, errors, late calls."""

from __future__ import annotations

import itertools
import math
import threading
import time

import numpy as np
import pytest

from zoopt_nas import minimize
from zoopt_nas.objective import Objective

distributed = pytest.importorskip("distributed")

X0 = [1.0, -2.0]  # at the edge of where `fails_on_half` does
POINTS = np.arange(12.0).reshape(6, 2)  # first coordinates 0, 2, 4, 6, 8, 10


@pytest.fixture(scope="module")
def client():
    """A cluster of two worker threads in this process."""
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address=None,
            silence_logs=50,  # a call that raises is logged, beside being raised
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def fails_on_half(x):
    return float((x**2).sum()) if x[1] > -2.0 else math.nan


def thread_of(x):
    time.sleep(0.05)
    return float(threading.get_ident())


COUNTER = itertools.count(1)
RELEASED = threading.Event()


def counted(x):
    return float(next(COUNTER))


def hangs(x):
    if x[0] == 4:
        RELEASED.wait(20)
    return float(x[0])


class FunError(Exception):
    pass


def raises(x):
    if x[0] == 4:
        raise FunError("no more memory")
    return float(x[0])


def raises_below(x):
    if x[0] < 0.5:
        raise FunError("too small")
    return float(x[0])


@pytest.mark.parametrize("method", ["adaptive_gld", "adaptive_mgs", "quasi_newton"])
def test_the_run_is_that_of_one_worker(client, method):
    limits = {"maxfev": 61, "rng": 0, "history": True, "bounds": [(-3, 3)] * 2}
    plain = minimize(fails_on_half, X0, method, **limits)
    assert plain.n_failed > 0
    result = minimize(fails_on_half, X0, method, workers=client.get_executor(), **limits)
    for key in plain:
        np.testing.assert_array_equal(result[key], plain[key], err_msg=key)


def test_the_calls_run_side_by_side_on_the_cluster(client):
    values = Objective(thread_of, workers=client.get_executor(pure=False)).evaluate(POINTS)
    assert len(set(values)) == 2
    assert float(threading.get_ident()) not in values


def test_equal_points_are_evaluated_again_only_if_the_calls_are_not_pure(client):
    same = np.zeros((4, 2))
    pure = Objective(counted, workers=client.get_executor()).evaluate(same)
    assert len(set(pure)) == 1
    fresh = Objective(counted, workers=client.get_executor(pure=False)).evaluate(same)
    assert len(set(fresh)) == 4


def test_an_exception_of_the_function_costs_the_point_or_ends_the_run(client):
    executor = client.get_executor(pure=False)
    objective = Objective(raises, workers=executor)
    np.testing.assert_array_equal(objective.evaluate(POINTS), [0, 2, math.inf, 6, 8, 10])
    assert (objective.nfev, objective.n_failed) == (6, 1)

    with pytest.raises(FunError, match=r"^too small") as caught:
        # The radius keeps the first batch above what raises: of a later one, values may be missing.
        minimize(
            raises_below,
            [1.0, -2.0],
            "adaptive_gld",
            options={"max_radius": 0.3},
            rng=0,
            workers=executor,
            on_error="raise",
        )
    partial = caught.value.partial_result
    assert partial.fun == partial.x[0] >= 0.5
    assert executor.submit(abs, -1).result() == 1  # the cluster goes on


def test_a_late_call_has_failed_and_the_run_goes_on(client):
    RELEASED.clear()
    start = time.monotonic()
    objective = Objective(hangs, workers=client.get_executor(pure=False), timeout=1.0)
    try:
        values = objective.evaluate(POINTS)
    finally:
        RELEASED.set()  # a thread cannot be stopped from outside
    assert time.monotonic() - start < 10
    np.testing.assert_array_equal(values, [0, 2, math.inf, 6, 8, 10])
    assert (objective.nfev, objective.n_failed) == (6, 1)
