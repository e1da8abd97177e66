"""An algorithm that is run step by step: its points, its errors, and its thread, which ends."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from zoopt_nas.solvers.inversion import SteppedCall


def n_threads():
    """The threads of algorithms; one that has answered for the last time may need a moment."""
    deadline = time.monotonic() + 5
    while True:
        gc.collect()
        n = sum(t.name == "zoopt-nas-algorithm" for t in threading.enumerate())
        if n == 0 or time.monotonic() > deadline:
            return n
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert n_threads() == 0
    yield
    assert n_threads() == 0


def three_batches(evaluate):
    values = evaluate(np.array([[1.0, 2.0]]))
    values = evaluate(np.outer(values, [1.0, -1.0]))
    evaluate(np.array([values, values]))


def test_points_and_values_go_back_and_forth():
    call = SteppedCall(three_batches)
    np.testing.assert_array_equal(call.wanted, [[1.0, 2.0]])
    call.send(np.array([3.0]))
    np.testing.assert_array_equal(call.wanted, [[3.0, -3.0]])
    call.send(np.array([5.0]))
    np.testing.assert_array_equal(call.wanted, [[5.0], [5.0]])
    assert call.n_told == 2
    assert call.is_live
    call.send(np.array([0.0, 0.0]))
    assert call.wanted is None
    assert call.n_told == 4
    assert call.is_live


def test_the_points_are_a_copy():
    reused = np.zeros((1, 1))

    def algorithm(evaluate):
        evaluate(reused)

    call = SteppedCall(algorithm)
    reused[0] = 7.0
    np.testing.assert_array_equal(call.wanted, [[0.0]])


def test_close_ends_the_thread_and_runs_its_finally():
    ended = []

    def algorithm(evaluate):
        try:
            evaluate(np.zeros((1, 1)))
        finally:
            ended.append("finally")
            evaluate(np.zeros((1, 1)))

    call = SteppedCall(algorithm)
    assert call.is_live
    call.close()
    call.close()
    assert ended == ["finally"]
    assert not call.is_live
    assert not call._thread.is_alive()


def test_garbage_ends_the_thread():
    calls = [SteppedCall(three_batches) for _ in range(20)]
    assert sum(t.name == "zoopt-nas-algorithm" for t in threading.enumerate()) == 20
    calls.append(calls)  # a cycle: only the collector finds it
    del calls
    gc.collect()
    assert n_threads() == 0


def test_a_point_that_is_nan_ends_the_algorithm():
    def algorithm(evaluate):
        evaluate(np.ones((1, 2)))
        evaluate(np.array([[0.0, np.nan]]))
        raise AssertionError("not reached")

    call = SteppedCall(algorithm)
    call.send(np.array([1.0]))
    assert call.wanted is None


def test_an_error_of_the_algorithm_is_raised_where_it_is_waited_for():
    def algorithm(evaluate):
        if evaluate(np.zeros((1, 1)))[0] > 0:
            raise ZeroDivisionError("of the algorithm")

    call = SteppedCall(algorithm)
    with pytest.raises(ZeroDivisionError, match="of the algorithm"):
        call.send(np.array([1.0]))
    assert not call.is_live

    def broken(evaluate):
        raise OSError("at once")

    with pytest.raises(OSError, match="at once"):
        SteppedCall(broken)


def test_warning_filters_stay_those_of_each_thread():
    def algorithm(evaluate):
        warnings.warn("of the algorithm", stacklevel=1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            evaluate(np.zeros((1, 1)))
            np.float64(1) / np.float64(0)

    before = list(warnings.filters)
    call = SteppedCall(algorithm)
    assert warnings.filters == before
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=ImportWarning)
        inside = list(warnings.filters)
        call.send(np.zeros(1))
        assert warnings.filters == inside
    assert warnings.filters == before
    call = SteppedCall(algorithm)
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=ImportWarning)
        inside = list(warnings.filters)
        call.close()
        assert warnings.filters == inside
    assert warnings.filters == before


@pytest.mark.skipif(os.name == "nt", reason="no pthread_kill")
def test_ctrl_c_while_it_computes():
    may_go_on = threading.Event()
    main = threading.main_thread().ident

    def algorithm(evaluate):
        evaluate(np.zeros((1, 1)))
        signal.pthread_kill(main, signal.SIGINT)
        may_go_on.wait(5)
        evaluate(np.zeros((1, 1)))

    call = SteppedCall(algorithm)
    threading.Timer(0.2, may_go_on.set).start()
    # A shell starts what it runs in the background with SIGINT ignored, and Python leaves it so.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            call.send(np.zeros(1))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert not call.is_live


# A state is alive at the end of the interpreter, another one lives on in a forked process.
SCRIPT = """
import os, sys, numpy as np
from zoopt_nas.solvers.nelder_mead import NelderMead
solver = NelderMead()
def step(state):
    candidates = solver.ask(state)
    solver.tell(state, candidates, (candidates**2).sum(1))
    return candidates.tolist()
idle, state = (solver.init(np.ones(3), rng=0) for _ in range(2))
step(idle)
for _ in range(30):
    step(state)
read, write = os.pipe()
child = os.fork()
rows = repr([step(state) for _ in range(20)])
if child == 0:
    os.write(write, rows.encode())
    os._exit(0)
os.close(write)
assert os.waitpid(child, 0)[1] == 0
assert os.read(read, 10**6).decode() == rows
print("ends")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_goes_on_and_the_interpreter_exits():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
