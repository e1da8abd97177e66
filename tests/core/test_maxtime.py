"""``maxtime`` ends a run within one call, by a simulated clock."""

import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest

from zoopt_nas import MGS, SOLVERS, AdaptiveGLD, AdaptiveMGS, Status, minimize
from zoopt_nas.problems import sphere


class Clock:
    """A clock that each call of the function advances by ``step`` seconds."""

    def __init__(self, step=1.0):
        self.now = 1000.0
        self.step = step
        self.n_calls = 0

    def __call__(self, x):
        self.n_calls += 1
        self.now += self.step
        return float((x**2).sum())


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize(("maxtime", "n"), [(0.5, 1), (1.0, 1), (6.5, 7), (30.0, 30)])
def test_no_call_starts_after_the_end(name, maxtime, n, clock):
    result = minimize(clock, np.ones(20), name, maxtime=maxtime, rng=0)
    assert clock.n_calls == result.nfev == n
    assert result.status == Status.MAXTIME
    assert result.message.startswith("The maximum time was used.")
    assert result.success


def test_other_limits_come_first(clock):
    assert (
        minimize(clock, [1.0, 2.0], "adaptive_gld", maxtime=100.0, maxiter=3).status
        == Status.MAXITER
    )
    first = minimize(clock, [1.0, 2.0], AdaptiveMGS(), maxtime=100.0, maxfev=1)
    assert (first.status, first.nfev) == (Status.MAXFEV, 1)


def test_a_target_in_the_batch_that_is_cut_is_reached(clock):
    solver = MGS(n_samples=16, sigma=0.1, temperature=0.1)
    result = minimize(clock, np.ones(20), solver, maxtime=3.5, target=1e9, rng=0)
    assert (result.status, result.nfev, result.success) == (Status.TARGET_REACHED, 1, True)


def test_the_calls_of_one_point_can_be_cut(clock):
    result = minimize(clock, np.ones(3), "adaptive_gld", maxtime=5.0, n_reevaluations=3, rng=0)
    # A noisy run reserves a tenth of its time, which is too short here for new values.
    assert result.nfev == clock.n_calls == 5
    assert result.status == Status.MAXTIME


def test_a_noisy_run_ends_with_its_measurements_in_time(clock):
    result = minimize(clock, np.ones(3), "adaptive_gld", maxtime=400.0, noisy=True, rng=0)
    assert 390 <= clock.n_calls <= 400
    assert clock.n_calls == result.nfev
    searched = minimize(clock, np.ones(3), "adaptive_gld", maxfev=360, rng=0)
    assert result.fun == pytest.approx(float((result.x**2).sum()))
    assert result.fun < 10 * searched.fun + 1e-3


def test_a_run_that_time_cut_goes_on_as_if_it_had_not(clock, tmp_path):
    solver = MGS(n_samples=16, sigma=0.1, temperature=0.1)
    run = {"x0": np.ones(5), "method": solver, "rng": 0, "history": True}
    whole = minimize(clock, **run, maxiter=4)
    n = 1 + solver.n_samples  # x0, and a batch
    cut = minimize(clock, **run, maxtime=n + 3.5, checkpoint=tmp_path / "run")
    assert (cut.nfev, cut.nit) == (n + 4, 1)
    resumed = minimize(clock, **run, maxiter=4, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(resumed.x_iterate, whole.x_iterate)
    # The second batch is repeated in full, after four of its rows were evaluated.
    again = np.concatenate([whole.history[: n + 4], whole.history[n:]])
    np.testing.assert_array_equal(resumed.history, again)


def test_a_batch_that_is_cut_keeps_its_seeds(clock, tmp_path):
    def fun(x, eval_seed):
        return clock(x) + eval_seed % 1000

    run = {"x0": np.ones(5), "method": AdaptiveGLD(n_directions=8), "rng": 0, "history": True}
    whole = minimize(fun, **run, maxiter=3)
    cut = minimize(fun, **run, maxtime=3.0, checkpoint=tmp_path / "run")
    assert cut.nfev == 3
    resumed = minimize(fun, **run, maxiter=3, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(resumed.history[3 : 3 + 9], whole.history[:9])


def test_a_vectorized_batch_is_one_call(clock):
    def fun(points):
        clock(points[0])
        return (points**2).sum(1)

    result = minimize(
        fun, np.ones(20), AdaptiveMGS(n_samples=8), maxtime=0.5, vectorized=True, rng=0
    )
    assert (clock.n_calls, result.nfev, result.nit) == (1, 8, 1)
    clock.n_calls = 0
    result = minimize(
        fun,
        np.ones(20),
        AdaptiveMGS(n_samples=8),
        maxtime=1.5,
        vectorized=True,
        n_reevaluations=3,
        rng=0,
    )
    assert (clock.n_calls, result.nfev) == (2, 16)


class AtOnce(Executor):
    """An executor that does not say how many workers it has; ``_max_workers`` is optional."""

    def __init__(self, n=None):
        if n is not None:
            self._max_workers = n

    def submit(self, fn, /, *args):
        future = Future()
        future.set_running_or_notify_cancel()
        future.set_result(fn(*args))
        return future


@pytest.mark.parametrize(("n_workers", "n_calls"), [(1, 3), (2, 4), (4, 4)])
def test_an_executor_starts_no_call_after_the_end(clock, n_workers, n_calls):
    solver = AdaptiveMGS(n_samples=20)
    result = minimize(clock, np.ones(20), solver, maxtime=2.5, workers=AtOnce(n_workers), rng=0)
    assert result.nfev == clock.n_calls == n_calls
    assert (result.status, result.nit) == (Status.MAXTIME, 0)


def test_calls_in_the_queue_of_an_executor_are_taken_back():
    """All twenty calls are submitted at once; one runs, and the others are cancelled."""
    started, may_end, calls = threading.Event(), threading.Event(), []

    def fun(x):
        calls.append(x)
        started.set()
        may_end.wait(30)
        return float((x**2).sum())

    with ThreadPoolExecutor(1) as executor:
        hidden = AtOnce()
        hidden.submit = executor.submit
        release = threading.Timer(0.5, may_end.set)
        release.start()
        result = minimize(
            fun, np.ones(20), AdaptiveMGS(n_samples=20), maxtime=0.1, workers=hidden, rng=0
        )
    assert len(calls) == result.nfev == 1
    assert result.status == Status.MAXTIME


def sleeps(x):
    time.sleep(0.3)
    return float((x**2).sum())


def test_processes_start_no_call_after_the_end():
    result = minimize(sleeps, np.ones(40), AdaptiveMGS(n_samples=40), maxtime=0.1, workers=2, rng=0)
    assert result.nfev == 2  # the calls that ran
    assert result.status == Status.MAXTIME


def test_without_maxtime_nothing_is_cut():
    assert minimize(sphere(3), np.ones(3), "adaptive_gld", maxfev=50, rng=0).nfev == 50
