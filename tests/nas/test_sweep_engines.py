"""Runs of a sweep in processes side by side: GPUs, failures, stopping, and a dead parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest
from filelock import FileLock

from zoopt_nas import nas
from zoopt_nas.errors import (
    DivergedError,
    FailedRunsError,
    InvalidValueError,
    RunError,
    RunInterrupted,
)
from zoopt_nas.nas.analyses import run_once
from zoopt_nas.nas.analyses.engines import Outcome, Processes, visible_gpus
from zoopt_nas.nas.analyses.sweep import Sweep, run_sweep
from zoopt_nas.nas.analyses.sweep_worker import run_alone

SMALL_SPACES = Path(__file__).parents[1] / "small_spaces"
# Stands for a run: writes down its variables, does what its name says, and records what it did.
_RUN = """
import os, signal, sys, time
from pathlib import Path

folder, name = Path(sys.argv[1]), sys.argv[2]
gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
(folder / f"{name}.started").write_text(f"{gpu} {os.environ['OMP_NUM_THREADS']} {os.getpid()}")
if name.startswith("both"):
    busy = folder / f"busy-{gpu}"
    busy.touch(exist_ok=False)  # no other process has this GPU now
    end = time.monotonic() + 60
    while len(list(folder.glob("both*.started"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    busy.unlink()
    sys.exit(time.monotonic() >= end)
if name == "fail":
    sys.exit("sigma must be positive")
if name == "bug":
    raise ValueError("of no kind")
if name == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if name.startswith("wait"):
    sys.stdin.read()
    (folder / f"{name}.stopped").touch()
    sys.exit(130)
if name.startswith("hang"):
    time.sleep(600)
"""
SEARCH = {
    **{"space": "small_s3", "algo": "mgs", "epochs": 2, "warmup_epochs": 0, "batch_size": 16},
    **{"init_channels": 2, "n_cells": 1, "inner_steps": 1, "device": "cpu", "cpu_kernels": "off"},
}


def never() -> bool:
    return False


@pytest.fixture
def engine(tmp_path):
    """``engine(jobs, ...)``: an engine of processes that only pretend to search."""
    script = tmp_path / "run.py"
    script.write_text(_RUN)

    def make(jobs: int, **fields) -> Processes:
        return Processes(jobs, **{"gpus": (), **fields}, command=(sys.executable, str(script)))

    return make


def started(folder: Path, name: str) -> list[str]:
    """GPU, threads and process id of a run."""
    return (folder / f"{name}.started").read_text().split()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not (path.exists() and (path.stat().st_size or path.suffix == ".stopped")):
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


def test_each_process_has_a_gpu_for_itself_and_a_part_of_the_cores(engine, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("zoopt_nas.nas.analyses.engines.n_cores", lambda: 7)
    names = [f"both{i}" for i in range(5)]
    outcomes = engine(2, gpus=("5", "7", "9")).execute(tmp_path, deque(names), never)
    assert sorted(outcomes) == [Outcome(name, None) for name in names]
    gpus = {started(tmp_path, name)[0] for name in names}
    assert gpus == {"5", "7"}
    assert {started(tmp_path, name)[1] for name in names} == {"3"}


def test_threads_are_those_asked_for(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    list(engine(1).execute(tmp_path, deque(["a"]), never))
    list(engine(1, threads=2).execute(tmp_path, deque(["b"]), never))
    assert [started(tmp_path, name)[1] for name in "ab"] == ["5", "2"]


def test_the_visible_gpus_are_handed_out(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,GPU-8f")
    assert visible_gpus() == ("6", "GPU-8f")
    with pytest.raises(InvalidValueError, match="jobs must be at most 2, one for each GPU, got 3"):
        Processes(3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert visible_gpus() == ()
    assert Processes(3).jobs == 3
    with pytest.raises(InvalidValueError, match="jobs must be a positive integer, got 0"):
        Processes(0)
    with pytest.raises(InvalidValueError, match="threads must be a positive integer, got 0"):
        Processes(1, threads=0)


def test_a_failed_or_killed_run_costs_no_other_one(engine, tmp_path):
    names = ("fail", "a", "bug", "kill", "b")
    outcomes = dict(engine(2).execute(tmp_path, deque(names), never))
    assert outcomes == {
        "fail": "sigma must be positive",
        "bug": "ValueError: of no kind",
        "kill": "its process was killed by SIGKILL",
        "a": None,
        "b": None,
    }


def test_a_run_may_be_repeated(engine, tmp_path):
    queue, found = deque(["fail", "a"]), []
    for name, error in engine(1).execute(tmp_path, queue, never):
        found.append(name)
        if error and found.count(name) < 3:
            queue.append(name)
    assert found == ["fail", "a", "fail", "fail"]
    log = (tmp_path / "logs" / "fail.log").read_text()
    assert log.splitlines() == ["sigma must be positive"] * 3


def test_stopping_waits_for_the_running_processes(engine, tmp_path):
    def should_stop() -> bool:
        return all((tmp_path / f"{name}.started").exists() for name in ("wait0", "wait1"))

    queue = deque(["wait0", "wait1", "later"])
    with pytest.raises(RunInterrupted, match="stopped with 3 runs to finish"):
        list(engine(2).execute(tmp_path, queue, should_stop))
    assert (tmp_path / "wait0.stopped").exists()
    assert (tmp_path / "wait1.stopped").exists()
    assert not (tmp_path / "later.started").exists()


def test_a_run_that_is_finished_when_it_is_to_stop_counts(engine, tmp_path):
    def should_stop() -> bool:
        return (tmp_path / "a.started").exists()

    assert list(engine(1).execute(tmp_path, deque(["a"]), should_stop)) == [("a", None)]


def test_an_error_of_the_caller_kills_the_processes(engine, tmp_path):
    outcomes = engine(2).execute(tmp_path, deque(["hang", "a"]), never)
    assert next(outcomes).name == "a"
    wait_for(tmp_path / "hang.started")
    pid = int(started(tmp_path, "hang")[2])
    assert is_alive(pid)
    outcomes.close()
    assert not is_alive(pid)


def test_processes_stop_when_the_engine_is_killed(tmp_path):
    (tmp_path / "run.py").write_text(_RUN)
    script = f"""
from collections import deque
from pathlib import Path
from zoopt_nas.nas.analyses.engines import Processes
engine = Processes(2, gpus=(), command=({sys.executable!r}, {str(tmp_path / "run.py")!r}))
list(engine.execute(Path({str(tmp_path)!r}), deque(["wait0", "wait1"]), lambda: False))
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        for name in ("wait0", "wait1"):
            wait_for(tmp_path / f"{name}.started")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for name in ("wait0", "wait1"):
        wait_for(tmp_path / f"{name}.stopped")


# The worker, which kills itself after the first epoch of a search with seed 0, once.
_KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
from zoopt_nas.nas.analyses import sweep_worker
from zoopt_nas.nas.runs.folder import RunFolder

def save_checkpoint(self, state):
    save(self, state)
    mark = self.path.with_suffix(".killed")
    if self.path.name.endswith("seed0") and state["epoch"] == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

save, RunFolder.save_checkpoint = RunFolder.save_checkpoint, save_checkpoint
sweep_worker.main()
"""


@pytest.fixture
def sweep(npz, small_spaces, monkeypatch) -> Sweep:
    path = [str(SMALL_SPACES), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Sweep(
        {"n_samples": (1, 2)},
        seeds=(0,),
        search={"dataset": str(npz), **SEARCH},
        train={"epochs": 1, "batch_size": 16, "init_channels": 2, "n_cells": 1},
    )


def test_a_killed_search_continues_and_ends_as_one_that_was_not(sweep, tmp_path):
    (tmp_path / "worker.py").write_text(_KILLED_ONCE)
    engine = Processes(2, gpus=(), command=(sys.executable, str(tmp_path / "worker.py")))
    with pytest.warns(UserWarning, match="failed and will be continued: its process was killed by"):
        results = list(run_sweep(sweep, tmp_path / "processes", engine=engine))
    whole = {one.name: one for one in run_sweep(sweep, tmp_path / "whole")}
    assert len(list((tmp_path / "processes").glob("*.killed"))) == 2
    for result in results:
        same = {**whole.pop(result.name).numbers, "seconds": 0}
        assert {**result.numbers, "seconds": 0} == same
    assert whole == {}
    # Everything is finished, so no process starts.
    idle = Processes(2, gpus=(), command=("false",))
    again = run_sweep(sweep, tmp_path / "processes", engine=idle)
    assert sorted(one.name for one in again) == sorted(one.name for one in results)


class _StopAtOnce(nas.Observer):
    def should_stop(self) -> bool:
        return True


def test_a_run_waits_for_the_process_that_has_it_until_it_is_to_stop(sweep, tmp_path):
    (tmp_path / "sweep.toml").write_text(sweep.to_toml())
    (tmp_path / "logs").mkdir()
    name = "n_samples=1-seed0"
    with (
        FileLock(tmp_path / "logs" / f"{name}.lock"),
        pytest.raises(RunInterrupted, match="stopped before the run has started"),
    ):
        run_alone(tmp_path, name, _StopAtOnce())
    assert not (tmp_path / name).exists()
    with pytest.raises(RunInterrupted, match="stopped in epoch 1 of 2"):
        run_alone(tmp_path, name, _StopAtOnce())
    assert (tmp_path / name).is_dir()
    with pytest.raises(RunError, match="has no run other"):
        run_alone(tmp_path, "other", _StopAtOnce())


def test_failed_runs_are_reported_after_the_others(sweep, tmp_path, monkeypatch):
    calls = []

    def run_search(config, **keywords):
        calls.append(config.solver["n_samples"])
        if config.solver["n_samples"] == 1:
            raise DivergedError("the loss is not finite")
        return real(config, **keywords)

    real = run_once.run_search
    monkeypatch.setattr(run_once, "run_search", run_search)
    done = []
    with (
        pytest.warns(UserWarning, match="n_samples=1-seed0 failed and will be continued"),
        pytest.raises(FailedRunsError) as failed,
    ):
        done.extend(run_sweep(sweep, tmp_path / "sweep", retries=2))
    assert str(failed.value) == ("1 of 2 runs failed: n_samples=1-seed0: the loss is not finite")
    assert failed.value.failures == {"n_samples=1-seed0": "the loss is not finite"}
    assert [one.name for one in done] == ["n_samples=2-seed0"]
    assert calls == [1, 2, 1, 1]
    monkeypatch.setattr(run_once, "run_search", real)
    assert len(list(run_sweep(sweep, tmp_path / "sweep"))) == 2
