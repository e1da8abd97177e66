"""Workers: runs that do not depend on their number; dead, hanging and failing workers."""

import functools
import math
import multiprocessing
import os
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from zoopt_nas import GLD, SOLVERS, InvalidValueError, Status, minimize
from zoopt_nas.objective import Objective

X0 = [1.0, -2.0]
SEARCH = GLD(schedule="search", min_radius=1e-3)  # 11 evaluations a step
POINTS = np.arange(12.0).reshape(6, 2)  # first coordinates 0, 2, 4, 6, 8, 10


def bowl(x):
    return float((x**2).sum())


def slowest_first(x):
    time.sleep(0.02 * (5 - x[0] / 2))
    return float(x[0])


def dies(x, path=None):
    if x[0] == 4:
        if path is not None:
            with open(path, "a") as file:
                file.write("x")
        os._exit(3)
    return float(x[0])


def dies_once(x, path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return float(x[0])
    os._exit(3)


def dies_left(x):
    return os._exit(1) if x[0] < 0 else bowl(x)


def nan_left(x):
    return math.nan if x[0] < 0 else bowl(x)


FACTOR = []


def prepare(factor):
    FACTOR.append(factor)


def prepared_or_dies(x):
    return dies(x) * FACTOR[0] / 2


def hangs(x):
    if x[0] == 4:
        time.sleep(60)
    return float(x[0])


def hangs_shortly(x):
    if x[0] == 4:
        time.sleep(0.5)
    return float(x[0])


def fails_on_half(x):
    return bowl(x) if x[0] > 0 else math.nan


class FunError(Exception):
    pass


def raises(x):
    if x[0] == 4:
        raise FunError("no more memory")
    return float(x[0])


def raises_timeout(x):
    raise TimeoutError("of the function itself")


def process_of(x):
    time.sleep(0.05)
    return float(os.getpid())


def equal(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)


@pytest.mark.parametrize("method", list(SOLVERS))
def test_the_run_is_the_same_with_any_workers(method):
    run = functools.partial(
        minimize, fails_on_half, X0, method, maxfev=61, rng=0, history=True, bounds=[(-3, 3)] * 2
    )
    one = run(workers=1)
    assert one.nfev == 61
    equal(run(workers=3), one)
    with ThreadPoolExecutor(3) as threads:
        equal(run(workers=threads), one)
    equal(run(workers=map), one)


def test_a_map_and_an_executor_of_the_caller_stay_open():
    plain = minimize(bowl, X0, maxfev=60, rng=0)
    with multiprocessing.Pool(2) as pool:
        equal(minimize(bowl, X0, maxfev=60, rng=0, workers=pool.map), plain)
        assert pool.map(abs, [-1]) == [1]
    with ProcessPoolExecutor(2) as executor:
        equal(minimize(bowl, X0, maxfev=60, rng=0, workers=executor), plain)
        assert executor.submit(abs, -1).result() == 1


def test_torch_points_go_to_processes_and_threads():
    torch = pytest.importorskip("torch")
    x0 = torch.tensor(X0)
    plain = minimize(bowl, x0, maxfev=30, rng=0)
    equal(minimize(bowl, x0, maxfev=30, rng=0, workers=2), plain)
    with ThreadPoolExecutor(2) as threads:
        equal(minimize(bowl, x0, maxfev=30, rng=0, workers=threads), plain)


def test_processes_are_several_start_late_and_end():
    before = multiprocessing.active_children()
    objective = Objective(process_of, workers=2)
    assert multiprocessing.active_children() == before
    values = objective.evaluate(POINTS)
    assert os.getpid() not in values
    assert len(set(values)) == 2
    objective.close()
    assert multiprocessing.active_children() == before
    assert -1 not in Objective(process_of, workers=-1).evaluate(POINTS[:1])


@pytest.mark.parametrize("workers", [2, 4])
def test_the_order_of_the_record_is_that_of_the_batch(workers):
    with ThreadPoolExecutor(workers) as threads:
        objective = Objective(slowest_first, workers=threads, history=True)
        np.testing.assert_array_equal(objective.evaluate(POINTS), POINTS[:, 0])
    assert objective.history == POINTS[:, 0].tolist()


@pytest.mark.parametrize(("maxfev", "reserve", "n"), [(2, 0, 2), (3, 1, 2), (9, 0, 6), (1, 1, 0)])
def test_budget_cuts_the_batch(maxfev, reserve, n):
    objective = Objective(lambda x: x[0], maxfev=maxfev, workers=map)
    values = objective.evaluate(POINTS, reserve=reserve)
    np.testing.assert_array_equal(values[:n], POINTS[:n, 0])
    assert np.all(np.isposinf(values[n:]))
    assert (objective.nfev, objective.n_failed) == (n, 0)


def test_a_target_ends_the_run_after_the_batch():
    solver = SEARCH
    n = len(solver.radii(2)) + 1
    result = minimize(bowl, X0, solver, target=1.0, rng=0, workers=map)
    assert result.status == Status.TARGET_REACHED
    assert result.fun <= 1.0
    assert result.nfev % n == 0


def test_a_dead_process_costs_its_candidate_only(tmp_path):
    deaths = tmp_path / "deaths"
    objective = Objective(functools.partial(dies, path=deaths), workers=2)
    for n_batches in (1, 2):
        np.testing.assert_array_equal(objective.evaluate(POINTS), [0, 2, np.inf, 6, 8, 10])
        assert (objective.nfev, objective.n_failed) == (6 * n_batches, n_batches)
        # Once in parallel, then once alone.
        assert len(deaths.read_text()) == 2 * n_batches
    objective.close()


def test_a_call_that_was_only_beside_a_death_keeps_its_value(tmp_path):
    objective = Objective(functools.partial(dies_once, path=tmp_path / "died"), workers=3)
    np.testing.assert_array_equal(objective.evaluate(POINTS), POINTS[:, 0])
    assert objective.n_failed == 0
    objective.close()


def test_a_death_between_two_batches_costs_nothing():
    objective = Objective(process_of, workers=2)
    first = objective.evaluate(POINTS)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    second = objective.evaluate(POINTS)
    assert set(first).isdisjoint(second)
    assert objective.n_failed == 0
    objective.close()


def test_a_death_in_a_pool_of_the_caller_costs_its_candidate_only():
    with (
        ProcessPoolExecutor(2) as executor,
        pytest.warns(RuntimeWarning, match="2 new ones replace it"),
    ):
        result = minimize(dies_left, X0, "adaptive_gld", maxfev=40, rng=0, workers=executor)
    equal(result, minimize(nan_left, X0, "adaptive_gld", maxfev=40, rng=0))
    assert result.n_failed > 0


def test_the_new_processes_start_like_those_of_the_pool():
    with ProcessPoolExecutor(1, initializer=prepare, initargs=(3.0,)) as executor:
        objective = Objective(prepared_or_dies, workers=executor)
        with pytest.warns(RuntimeWarning, match="1 new ones replace it"):
            values = objective.evaluate(POINTS)
        np.testing.assert_array_equal(values, [0, 3, np.inf, 9, 12, 15])
        objective.close()


def test_an_initializer_that_fails_ends_the_run():
    with (
        ProcessPoolExecutor(1, initializer=dies, initargs=([4.0, 0.0],)) as executor,
        pytest.raises(BrokenExecutor) as caught,
    ):
        minimize(bowl, X0, workers=executor)
    assert caught.value.partial_result.nfev == 0


def test_a_run_goes_on_after_deaths():
    result = minimize(dies_left, X0, "adaptive_gld", maxfev=40, rng=0, workers=2)
    assert result.nfev == 40
    assert result.n_failed > 0
    assert result.fun < bowl(np.array(X0))
    equal(result, minimize(nan_left, X0, "adaptive_gld", maxfev=40, rng=0))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_call_past_the_timeout_costs_its_candidate_only(workers):
    start = time.monotonic()
    objective = Objective(hangs, workers=workers, timeout=1.0)
    np.testing.assert_array_equal(objective.evaluate(POINTS), [0, 2, np.inf, 6, 8, 10])
    assert (objective.nfev, objective.n_failed) == (6, 1)
    objective.close()
    assert time.monotonic() - start < 30  # not 60: the process was killed


def test_a_thread_past_the_timeout_is_given_up():
    with ThreadPoolExecutor(3) as threads:
        objective = Objective(hangs_shortly, workers=threads, timeout=0.2)
        np.testing.assert_array_equal(objective.evaluate(POINTS), [0, 2, np.inf, 6, 8, 10])
    assert objective.n_failed == 1


class KilledWorkerError(RuntimeError):
    """The exception of a cluster for a call whose worker died."""


class Cluster(ThreadPoolExecutor):
    """An executor whose worker dies at one point, as in a cluster."""

    def submit(self, fn, job):
        def call():
            if job.point[0] == 4:
                raise KilledWorkerError("the worker died")
            return fn(job)

        return super().submit(call)


def test_a_worker_that_a_cluster_lost_costs_its_candidate_only():
    with Cluster(2) as cluster:
        objective = Objective(lambda x: float(x[0]), workers=cluster)
        np.testing.assert_array_equal(objective.evaluate(POINTS), [0, 2, np.inf, 6, 8, 10])
        assert objective.n_failed == 1
        assert isinstance(objective.last_error, KilledWorkerError)
        strict = Objective(lambda x: float(x[0]), workers=cluster, on_error="raise")
        with pytest.raises(KilledWorkerError):
            strict.evaluate(POINTS)


@pytest.mark.parametrize("kind", [2, "threads", "map"])
def test_an_exception_propagates_with_what_is_known(kind):
    with ThreadPoolExecutor(2) as threads:
        workers = {"threads": threads, "map": map}.get(kind, kind)
        objective = Objective(raises, workers=workers, on_error="raise")
        with pytest.raises(FunError, match="no more memory"):
            objective.evaluate(POINTS)
        # Row 2, which raises, starts when row 0 or row 1 has ended.
        assert objective.best_fun in ([math.inf] if kind == "map" else [0.0, 2.0])
        objective.close()
        with pytest.raises(FunError) as caught:
            minimize(raises, [4.0, 0.0], SEARCH, workers=workers, rng=0, on_error="raise")
    assert caught.value.partial_result.nfev < len(SEARCH.radii(2)) + 1
    notes = "".join(getattr(caught.value, "__notes__", []))
    assert ("in raises\n" in notes) == (kind == 2)  # the traceback of the worker process
    assert not multiprocessing.active_children()


def test_a_timeout_error_of_the_function_is_an_exception():
    with pytest.raises(TimeoutError, match="of the function itself"):
        minimize(raises_timeout, X0, workers=2, timeout=20.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers must be a positive integer, -1, an Executor or a map-like"),
        ({"workers": -2}, "an Executor or a map-like callable, got -2"),
        ({"workers": 2.0}, "an Executor or a map-like callable, got 2.0"),
        ({"workers": True}, "an Executor or a map-like callable, got True"),
        ({"timeout": 0}, "timeout must be a positive finite number, got 0"),
        ({"workers": map, "timeout": 1.0}, "timeout must be None if workers is a map-like"),
        ({"workers": 2, "vectorized": True}, "vectorized must be False with workers or a timeout"),
        ({"workers": 2}, "fun must be picklable, such as .* ThreadPoolExecutor as workers"),
        ({"workers": lambda f, xs: [1.0]}, "workers must return one value for each of 11 points"),
        ({"workers": lambda f, xs: ["a"] * 11}, "the value of fun must be a real number, got 'a'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InvalidValueError, match=message) as caught:
        minimize(lambda x: 1.0, X0, SEARCH, **arguments)
    assert "\n" not in str(caught.value)


def test_a_lambda_is_refused_in_processes_of_the_caller_too():
    with ProcessPoolExecutor(1) as executor, pytest.raises(InvalidValueError, match="of a module"):
        minimize(lambda x: 1.0, X0, workers=executor)
