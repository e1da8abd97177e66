"""Checkpoints of `minimize`: runs that are killed, resumed, extended or rejected."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from zoopt_nas import (
    RS,
    AdaptiveGLD,
    AdaptiveMGS,
    Box,
    InvalidValueError,
    QuasiNewton,
    RunError,
    Status,
    minimize,
    save_state,
)
from zoopt_nas.checkpoint import Checkpoint

SOLVERS = [
    QuasiNewton(),
    RS(orthogonal=True, n_samples=3),
    AdaptiveMGS(),
    AdaptiveGLD(),
    AdaptiveGLD(deterministic=True),
]
X0 = np.array([1.0, -2.0, 0.5])

# A run of 400 evaluations, of which some fail; argv: the checkpoint (or "") and the pace.
SCRIPT = """
import json, sys, time
import numpy as np, zoopt_nas
def fun(x):
    time.sleep(float(sys.argv[2]))
    return float(np.sin(5 * x).sum() + x @ x) if x[0] < 1.2 else float("nan")
result = zoopt_nas.minimize(
    fun, [1.0, -2.0], sys.argv[3], bounds=[(-3, 3), (None, 0)], maxfev=400, rng=5, history=True,
    checkpoint=sys.argv[1] or None, checkpoint_every=0,
)
fields = ("x", "fun", "x_iterate", "fun_iterate", "nfev", "nit", "n_failed", "status", "history")
print(json.dumps({name: np.asarray(result[name]).tolist() for name in fields}))
"""


def bowl(x):
    return float((x**2).sum())


def equal(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)
        assert type(one[key]) is type(two[key])


class Killed(BaseException):
    pass


def kill_after(n_calls):
    """A quadratic function that exits the process at a call, before the run can save."""
    calls = 0

    def fun(x):
        nonlocal calls
        calls += 1
        if calls > n_calls:
            raise Killed
        return bowl(x)

    return fun


def start(path, pace, method):
    arguments = [sys.executable, "-c", SCRIPT, str(path), str(pace), method]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


def nfev_of(path):
    with np.load(path) as archive:
        return json.loads(str(archive["meta"]))["record"]["nfev"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("method", ["quasi_newton", "adaptive_gld"])
def test_a_run_that_was_killed_twice_is_the_uninterrupted_run(tmp_path, method):
    path = tmp_path / "run.npz"
    expected = finish(start("", 0, method))
    for at_least in (30, 120):
        process = start(path, 0.005, method)
        deadline = time.monotonic() + 60
        try:
            while not path.exists() or nfev_of(path) < at_least:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert nfev_of(path) < 400
    n_before = nfev_of(path)
    assert finish(start(path, 0, method)) == expected
    assert 120 <= n_before < 400
    # A write that was killed may leave a temporary file.
    assert all(p.name.removeprefix(".").startswith("run.npz") for p in tmp_path.iterdir())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bounds", [None, Box(-2.5, [1.5, None, 1.0], "transform")])
@pytest.mark.parametrize("namespace", ["numpy", "torch"])
def test_every_solver_resumes_bitwise(tmp_path, solver, bounds, namespace):
    x0 = X0.astype(np.float32)
    if namespace == "torch":
        x0 = pytest.importorskip("torch").tensor(x0)
    run = functools.partial(
        minimize, method=solver, x0=x0, bounds=bounds, maxfev=150, rng=1, history=True
    )
    path = tmp_path / "run.npz"
    for n_calls in (50, 40):
        with pytest.raises(Killed):
            run(kill_after(n_calls), checkpoint=path, checkpoint_every=0)
    equal(run(bowl, checkpoint=path), run(bowl))
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
def test_the_generator_of_the_caller_resumes(tmp_path, kind):
    path = tmp_path / "run.npz"
    with pytest.raises(Killed):
        minimize(
            kill_after(70),
            X0,
            rng=np.random.Generator(kind(3)),
            maxfev=150,
            checkpoint=path,
            checkpoint_every=0,
        )
    resumed = minimize(bowl, X0, rng=np.random.Generator(kind(3)), maxfev=150, checkpoint=str(path))
    equal(resumed, minimize(bowl, X0, rng=np.random.Generator(kind(3)), maxfev=150))


def test_a_finished_run_is_not_repeated_but_may_be_extended(tmp_path):
    path = tmp_path / "run.npz"
    run = functools.partial(minimize, x0=X0, method="adaptive_gld", rng=0, checkpoint=path)
    first = run(bowl, maxiter=5)
    equal(run(kill_after(0), maxiter=5), first)
    longer = run(bowl, maxiter=9)
    assert longer.nit == 9
    equal(longer, minimize(bowl, X0, "adaptive_gld", rng=0, maxiter=9))
    reached = run(bowl, maxiter=99, target=longer.fun / 2)
    assert reached.status == Status.TARGET_REACHED
    equal(run(kill_after(0), maxiter=99, target=reached.fun), reached)


def test_a_callback_may_stop_and_go_on(tmp_path):
    def stop(intermediate_result):
        if intermediate_result.nit == 4:
            raise StopIteration

    path = tmp_path / "run.npz"
    run = functools.partial(minimize, bowl, X0, "adaptive_mgs", rng=0, maxfev=80, checkpoint=path)
    assert run(callback=stop).nit == 4
    equal(run(), minimize(bowl, X0, "adaptive_mgs", rng=0, maxfev=80))


def test_it_is_written_every_so_many_seconds(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, state, record: saved.append(state.n_steps))
    run = functools.partial(minimize, bowl, X0, rng=0, maxiter=6, checkpoint=tmp_path / "run.npz")
    run()
    assert saved == [6]  # the next write is due after a minute
    saved.clear()
    run(checkpoint_every=0)
    assert saved == [1, 2, 3, 4, 5, 6, 6]


def test_the_seconds_of_the_first_part_count(tmp_path):
    path = tmp_path / "run.npz"

    def slow(x):
        time.sleep(0.01)
        return bowl(x)

    run = functools.partial(minimize, slow, X0, rng=0, checkpoint=path)
    assert run(maxtime=0.3).status == Status.MAXTIME
    n_steps = minimize(slow, X0, rng=0, maxtime=0.3, checkpoint=path).nit
    assert run(maxtime=0.3).nit == n_steps  # no time is left


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"method": "quasi_newton"}, "method"),
        ({"options": {"max_radius": 0.5}}, "options"),
        ({"x0": X0 + 1e-15}, "x0"),
        ({"x0": X0.astype(np.float32)}, "x0"),
        ({"x0": X0[:2]}, "x0"),
        ({"bounds": [(-5, 5)] * 3}, "bounds"),
        ({"rng": 1}, "rng"),
        ({"history": True}, "history"),
        ({"noisy": True}, "noisy"),
        ({"n_reevaluations": 3}, "n_reevaluations"),
        ({"noisy": True, "n_reevaluations": 3}, "n_reevaluations"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, changed, field):
    path = tmp_path / "run.npz"
    run = functools.partial(minimize, bowl, maxiter=2, checkpoint=path)
    run(x0=X0, method="adaptive_gld", rng=0)
    before = path.read_bytes()
    with pytest.raises(RunError) as caught:
        run(**{"x0": X0, "method": "adaptive_gld", "rng": 0, **changed})
    assert str(caught.value) == (
        f"{path} was saved by a run with another {field}; "
        f"give it the same {field}, or use another file"
    )
    assert path.read_bytes() == before
    assert run(x0=X0, method="adaptive_gld").nit == 2  # no seed was asked for


@pytest.mark.parametrize(
    ("first", "changed", "field"),
    [
        ({"noisy": True}, {"noisy": False}, "noisy"),
        ({"n_reevaluations": 2}, {"n_reevaluations": 3}, "n_reevaluations"),
        ({"n_reevaluations": 2}, {"n_reevaluations": 1}, "n_reevaluations"),
        ({"noisy": True}, {"n_reevaluations": 2}, "n_reevaluations"),
    ],
)
def test_the_checkpoint_of_a_noisy_run_is_resumed_as_such(tmp_path, first, changed, field):
    run = functools.partial(
        minimize, bowl, X0, method="adaptive_gld", rng=0, maxiter=2, checkpoint=tmp_path / "run.npz"
    )
    run(**first)
    with pytest.raises(RunError, match=f"saved by a run with another {field}; "):
        run(**changed)
    assert run(**first).nit == 2


@pytest.mark.parametrize("content", [b"", b"hello", "state", "truncated"])
def test_what_is_no_checkpoint_is_one_line(tmp_path, content):
    path = tmp_path / "run.npz"
    run = functools.partial(minimize, bowl, X0, rng=0, maxiter=2, checkpoint=path)
    if content == "state":
        save_state(path, AdaptiveGLD(), AdaptiveGLD().init(X0))
        message = "has format 'zoopt_nas.state.v1', expected 'zoopt_nas.run.v1'"
    else:
        if content == "truncated":
            run()
            content = path.read_bytes()[:-100]
        path.write_bytes(content)
        message = "is not a checkpoint of minimize, or is truncated"
    before = path.read_bytes()
    with pytest.raises(RunError) as caught:
        run()
    assert str(caught.value) == f"{path} {message}"
    assert path.read_bytes() == before


def test_bad_arguments_are_named_before_the_run(tmp_path):
    never = kill_after(0)
    with pytest.raises(RunError, match=r"cannot write .*: .*none is not a folder"):
        minimize(never, X0, checkpoint=tmp_path / "none" / "run.npz")
    with pytest.raises(InvalidValueError, match="checkpoint must be the path of a file, got 3"):
        minimize(never, X0, checkpoint=3)
    with pytest.raises(InvalidValueError, match="checkpoint_every must be a finite number of at"):
        minimize(never, X0, checkpoint=tmp_path / "run.npz", checkpoint_every=-1)
