"""Worker processes: how they start, die, hang and end."""

import functools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from zoopt_nas._calls import Call, Job
from zoopt_nas.objective import Objective
from zoopt_nas.parallel import _ProcessWorkers

POINTS = np.arange(12.0).reshape(6, 2)  # first coordinates 0, 2, 4, 6, 8, 10
FACTOR = []


def prepare(factor):
    FACTOR.append(factor)


def prepared_or_dies(x):
    return os._exit(3) if x[0] == 4 else float(x[0]) * FACTOR[0] / 2


def exits(x):
    return os._exit(0) if x[0] == 4 else float(x[0])


def leaves_a_child_and_dies(x, path):
    if x[0] == 4:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        with open(path, "a") as file:
            file.write(f"{child.pid} ")
        os._exit(3)
    return float(x[0])


def counts_and_hangs(x, path):
    with open(path, "a") as file:
        file.write(f"{x[0]:.0f} ")
    time.sleep(60 if x[0] == 4 else 0.05)
    return float(x[0])


def test_a_call_past_the_timeout_disturbs_no_other(tmp_path):
    calls = tmp_path / "calls"
    objective = Objective(functools.partial(counts_and_hangs, path=calls), workers=2, timeout=2.0)
    np.testing.assert_array_equal(objective.evaluate(POINTS), [0, 2, np.inf, 6, 8, 10])
    assert sorted(map(int, calls.read_text().split())) == [0, 2, 4, 6, 8, 10]
    objective.close()


def test_a_process_that_ends_by_itself_costs_its_candidate_only():
    objective = Objective(exits, workers=2)
    np.testing.assert_array_equal(objective.evaluate(POINTS), [0, 2, np.inf, 6, 8, 10])
    objective.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a child inherits no pipe there")
def test_a_death_shows_where_a_child_of_the_process_holds_its_pipe(tmp_path):
    children = tmp_path / "children"
    objective = Objective(functools.partial(leaves_a_child_and_dies, path=children), workers=2)
    np.testing.assert_array_equal(objective.evaluate(POINTS), [0, 2, np.inf, 6, 8, 10])
    for pid in children.read_text().split():
        os.kill(int(pid), signal.SIGKILL)  # they are still alive
    objective.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_start_afresh(method):
    context = multiprocessing.get_context(method)
    workers = _ProcessWorkers(2, None, context, prepare, (3.0,))
    jobs = [Job(point) for point in POINTS]
    for _ in range(2):
        values = dict(workers.map(Call(prepared_or_dies), jobs))
        assert {row: values.pop(row) for row in (0, 1, 3, 4, 5)} == {0: 0, 1: 3, 3: 9, 4: 12, 5: 15}
        assert math.isnan(values.pop(2))
        assert not values
    workers.close()
    assert not multiprocessing.active_children()


_UNCLOSED = """
from zoopt_nas.parallel import make_workers
workers = make_workers(2)
print(sorted(value for _, value in workers.map(abs, [-1, 2])))
"""


def test_an_interpreter_ends_with_processes_that_nobody_closed():
    done = subprocess.run(
        [sys.executable, "-c", _UNCLOSED], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("[1, 2]\n", "")
