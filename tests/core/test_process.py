"""No solver touches what belongs to the process: many runs may live in it, in threads too."""

import locale
import os
import random
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zoopt_nas import SOLVERS, minimize
from zoopt_nas.testing import run_steps, sphere

each_solver = pytest.mark.parametrize("name", list(SOLVERS))


@pytest.fixture(autouse=True)
def everything_is_imported():
    """A library may set a filter of its own when it is first imported, as scipy.special does."""
    for name in SOLVERS:
        run_steps(SOLVERS[name](), SOLVERS[name]().init([1.0, 2.0], rng=0), 1)


def process():
    """What all threads share, and the error state of NumPy in this one."""
    return (
        list(warnings.filters),
        warnings.showwarning,
        np.geterr(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002 (its state is what we watch)
        random.getstate(),
        locale.setlocale(locale.LC_ALL),
        signal.getsignal(signal.SIGINT),
        sys.gettrace(),
        dict(os.environ),
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        threading.active_count(),
    )


def rosen(rows):
    return 100 * (rows[:, 1] - rows[:, 0] ** 2) ** 2 + (1 - rows[:, 0]) ** 2


@each_solver
@pytest.mark.parametrize("fun", [sphere, rosen, lambda rows: np.full(len(rows), np.nan)])
def test_no_step_touches_the_process(name, fun):
    solver = SOLVERS[name]()
    before = process()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImportWarning)
        inside = process()
        states = [solver.init([-1.0, 1.5], rng=k) for k in range(2)]
        for step in range(120):  # two runs in turn
            candidates = solver.ask(states[step % 2])
            assert process() == inside
            solver.tell(states[step % 2], candidates, fun(candidates))
            assert process() == inside
        copies = [solver.init([1.0], rng=k) for k in range(2)]
        solver.ask(copies[0])
        del copies, states
        assert process() == inside
    assert process() == before


@each_solver
def test_a_warning_filter_set_during_a_run_stays(name):
    solver = SOLVERS[name]()
    with warnings.catch_warnings():
        state = solver.init([1.0, 2.0], rng=0)
        run_steps(solver, state, 5)
        warnings.simplefilter("error", BytesWarning)
        set_meanwhile = list(warnings.filters)
        run_steps(solver, state, 60)
        del state
        assert warnings.filters == set_meanwhile


@each_solver
def test_runs_in_threads_are_those_of_one_thread(name):
    solver = SOLVERS[name]()

    def run(seed):
        return run_steps(solver, solver.init([1.0, -2.0, seed], rng=seed), 25)

    alone = [run(seed) for seed in range(12)]
    before = process()
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(run, range(12)))
    assert process() == before
    np.testing.assert_array_equal(together, alone)


def test_runs_of_all_solvers_interleave_in_threads():
    def run(k):
        name = list(SOLVERS)[k % len(SOLVERS)]
        return minimize(lambda x: float(x @ x), [1.0, -2.0], name, maxfev=60, rng=k).fun

    alone = [run(k) for k in range(24)]
    before = process()
    with ThreadPoolExecutor(6) as executor:
        assert list(executor.map(run, range(24))) == alone
    assert process() == before
