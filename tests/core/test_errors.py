"""Every exception of the package can be copied and pickled."""

import copy
import importlib
import multiprocessing
import pickle
import pkgutil
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import zoopt_nas_cli

import zoopt_nas
from zoopt_nas import InvalidValueError, UnknownNameError, minimize
from zoopt_nas._calls import Call, Job
from zoopt_nas.errors import FailedRunsError, ZooptNasError

# The arguments of constructors that take more than the message.
ARGUMENTS = {
    UnknownNameError: ("solver", "gdl", ["rs", "gld"]),
    FailedRunsError: ({"mgs-seed0": "out of memory"}, 3),
}


def all_errors():
    for package in (zoopt_nas, zoopt_nas_cli):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                try:
                    importlib.import_module(module.name)
                except ImportError:  # the extra is not installed
                    continue
    found, waiting = [], [ZooptNasError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(kind.__subclasses__())
    return sorted(
        {k for k in found if not k.__module__.startswith("test")}, key=lambda k: k.__name__
    )


def make(kind):
    error = kind(*ARGUMENTS.get(kind, ("n must be positive, got 'ä'",)))
    error.add_note("a note")
    error.partial_result = {"nfev": 3}
    return error


def check_same(error, other):
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert other.args == error.args
    assert vars(other) == vars(error)


def raise_it(kind):
    raise make(kind)


def test_many_known_names_are_cut():
    names = [f"name_{k:02}" for k in range(50)]
    few = ", ".join(names[:17])  # 151 characters
    assert str(UnknownNameError("thing", "zzz", names[:16])).endswith(", ".join(names[:16]))
    error = UnknownNameError("thing", "zzz", names)
    assert str(error) == f"unknown thing 'zzz'; known: {few.rpartition(',')[0]}, ... (50 names)"
    assert error.known == names


def test_the_list_is_complete():
    names = {kind.__name__ for kind in all_errors()}
    assert {"UnknownNameError", "RunInterrupted", "MissingDependencyError"} <= names
    assert ("KernelError" in names) == (find_spec("torch") is not None)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_a_copy_is_the_same_error(kind):
    error = make(kind)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        check_same(error, pickle.loads(pickle.dumps(error, protocol)))  # noqa: S301
    check_same(error, copy.copy(error))
    check_same(error, copy.deepcopy(error))


def test_a_process_hands_every_error_back():
    kinds = all_errors()
    with ProcessPoolExecutor(1) as executor:
        for kind in kinds:
            check_same(make(kind), executor.submit(raise_it, kind).exception(timeout=60))
    with multiprocessing.Pool(1) as pool:
        for kind in kinds:
            with pytest.raises(kind) as caught:
                pool.apply_async(raise_it, (kind,)).get(timeout=60)
            assert str(caught.value) == str(make(kind))


class NoWayBackError(Exception):
    """An exception that cannot be unpickled: pickle passes one of its two arguments."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")


def fails_on_the_left(x):
    if x[0] < 0:
        raise NoWayBackError(7, "on the left")
    return float(x @ x)


def unknown_solver(x):
    zoopt_nas.SOLVERS["gdl"]


@pytest.mark.parametrize("kind", ["count", "executor", "map"])
def test_an_exception_that_pickle_loses_costs_its_evaluation_only(kind):
    alone = minimize(
        fails_on_the_left, [1.0, 1.0], "adaptive_gld", maxfev=60, rng=0, on_error="fail"
    )
    assert alone.n_failed > 0
    run = {"x0": [1.0, 1.0], "method": "adaptive_gld", "maxfev": 60, "rng": 0, "on_error": "fail"}
    if kind == "count":
        result = minimize(fails_on_the_left, **run, workers=2)
    elif kind == "executor":
        with ProcessPoolExecutor(2) as executor:
            result = minimize(fails_on_the_left, **run, workers=executor)
    else:
        with multiprocessing.Pool(2) as pool:
            result = minimize(fails_on_the_left, **run, workers=pool.map)
    assert (result.fun, result.n_failed) == (alone.fun, alone.n_failed)
    np.testing.assert_array_equal(result.x, alone.x)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_new_makes_every_error(kind):
    """Pickle the context of an exception too, as dask does."""
    assert type(kind.__new__(kind)) is kind


def test_what_is_sent_in_place_of_an_exception_does_not_carry_it_along():

    class LocalError(Exception):
        """A local class, which cannot be pickled."""

    def fun(x):
        raise LocalError("on the left")

    with pytest.raises(RuntimeError, match="LocalError: on the left") as caught:
        Call(fun, pid=-1)(Job(np.zeros(1)))  # as in another process
    assert caught.value.__context__ is None


def test_an_exception_that_pickle_loses_is_told():
    # dask, if imported, extends pickle so that it survives.
    with pytest.raises((RuntimeError, NoWayBackError), match="7: on the left"):
        minimize(fails_on_the_left, [-9.0, 0.0], "adaptive_gld", workers=2, on_error="raise", rng=0)


@pytest.mark.parametrize("on_error", [None, "raise"])
def test_an_unknown_name_in_a_worker_is_raised_as_it_is(on_error):
    with pytest.raises(UnknownNameError, match="did you mean 'gld'") as caught:
        minimize(
            unknown_solver, [1.0], "adaptive_gld", maxfev=4, rng=0, workers=2, on_error=on_error
        )
    assert (caught.value.kind, caught.value.name) == ("solver", "gdl")


def test_an_invalid_value_in_a_worker_keeps_its_class():
    with ProcessPoolExecutor(1) as executor:
        error = executor.submit(zoopt_nas.GLD, max_radius=-1).exception(timeout=60)
    assert isinstance(error, InvalidValueError)
    assert str(error) == "max_radius must be a positive finite number, got -1"
