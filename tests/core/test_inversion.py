"""An algorithm that is run step by step: its points, its end, its errors; no thread."""

import os
import subprocess
import sys

import numpy as np
import pytest

from zoopt_nas.solvers.inversion import SteppedCall


def three_batches():
    values = yield np.array([[1.0, 2.0]])
    values = yield np.outer(values, [1.0, -1.0])
    yield np.array([values, values])


def test_points_and_values_go_back_and_forth():
    call = SteppedCall(three_batches())
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

    def algorithm():
        yield reused

    call = SteppedCall(algorithm())
    reused[0] = 7.0
    np.testing.assert_array_equal(call.wanted, [[0.0]])


def test_a_point_that_is_nan_ends_the_algorithm_and_runs_its_finally():
    ended = []

    def algorithm():
        try:
            yield np.ones((1, 2))
            yield np.array([[0.0, np.nan]])
            raise AssertionError("not reached")
        finally:
            ended.append("finally")

    call = SteppedCall(algorithm())
    call.send(np.array([1.0]))
    assert call.wanted is None
    assert ended == ["finally"]


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_of_the_algorithm_is_raised_where_it_is_waited_for(kind):
    def algorithm():
        if (yield np.zeros((1, 1)))[0] > 0:
            raise kind("of the algorithm")

    call = SteppedCall(algorithm())
    with pytest.raises(kind, match="of the algorithm"):
        call.send(np.array([1.0]))
    assert not call.is_live

    def broken():
        raise OSError("at once")
        yield

    with pytest.raises(OSError, match="at once"):
        SteppedCall(broken())


# A state is alive at the end of the interpreter, another one lives on in a forked process.
SCRIPT = """
import os, sys, numpy as np
from zoopt_nas.solvers.bfgs import BFGS
solver = BFGS()
def step(state):
    candidates = solver.ask(state)
    solver.tell(state, candidates, (candidates**4).sum(1))
    return candidates.tolist()
idle, state = (solver.init(np.ones(3), rng=0) for _ in range(2))
step(idle)
for _ in range(5):
    step(state)
read, write = os.pipe()
child = os.fork()
rows = repr([step(state) for _ in range(5)])
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
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
