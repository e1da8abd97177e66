"""``zoopt-nas sweep --engine ray`` on a real Ray of two workers, which are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from zoopt_nas.nas.analyses.sweep import Sweep, run_sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"),
]

SMALL_SPACES = Path(__file__).parents[1] / "small_spaces"
SEARCH = {
    **{"space": "small_s3", "algo": "mgs", "epochs": 2, "warmup_epochs": 0, "batch_size": 16},
    **{"init_channels": 2, "n_cells": 1, "inner_steps": 1, "device": "cpu", "cpu_kernels": "off"},
}
# The command line in a process with a Ray of two workers. A worker that saves the first epoch of a
# search with seed 0 is killed, or waits for it, unless a worker has done so before.
_COMMAND = """
import os, signal, sys, time
import ray

mode = sys.argv[1]

def hook():
    from zoopt_nas.nas.runs.folder import RunFolder
    save = RunFolder.save_checkpoint

    def save_checkpoint(self, state):
        save(self, state)
        mark = self.path.with_suffix(".mark")
        if self.path.name.endswith("seed0") and state["epoch"] == 1 and not mark.exists():
            mark.touch()
            if mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)

    RunFolder.save_checkpoint = save_checkpoint

if __name__ == "__main__":
    if mode != "plain":
        environment = {"worker_process_setup_hook": hook}
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment
        )
    from zoopt_nas_cli.main import run
    sys.exit(run(sys.argv[2:]))
"""


@pytest.fixture
def start(tmp_path):
    """``start("kill", "--resume", ...)`` starts ``zoopt-nas sweep --engine ray`` in a process."""
    (tmp_path / "command.py").write_text(_COMMAND)
    path = [str(SMALL_SPACES), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    processes = []

    def start(mode: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "command.py", mode, "sweep", "--engine", "ray", *arguments]
        processes.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def sweep(npz, small_spaces, tmp_path):
    """``sweep(seeds, ...)`` describes a sweep in the folder ``s``, of which nothing has run."""

    def make(*seeds: int, **search) -> Sweep:
        fields = {"dataset": str(npz), **SEARCH, **search}
        sweep = Sweep({"n_samples": (1,)}, seeds=seeds, search=fields)
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "sweep.toml").write_text(sweep.to_toml())
        return sweep

    return make


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)


def numbers_of_single_runs(sweep: Sweep, folder: Path) -> dict[str, object]:
    return {one.name: {**one.numbers, "seconds": 0} for one in run_sweep(sweep, folder)}


def test_a_killed_worker_costs_nothing_and_a_failed_run_no_other_one(sweep, start, tmp_path):
    asked = sweep(0, 1, 2)
    (tmp_path / "s" / "n_samples=1-seed2").mkdir()  # not the folder of a run
    process = start("kill", "--resume", "s", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    warned = "n_samples=1-seed0 failed and will be continued: its worker process died"
    assert warned in err
    reason = f"{tmp_path / 's' / 'n_samples=1-seed2'} is not a run folder: it has no config.toml"
    assert err.splitlines()[-1] == f"error: 1 of 3 runs failed: n_samples=1-seed2: {reason}"
    found = json.loads(out)
    assert found["failed"] == {"n_samples=1-seed2": reason}
    assert found["rows"][0]["val_accuracy"]["n"] == 2
    whole = numbers_of_single_runs(asked, tmp_path / "whole")
    assert [one["name"] for one in found["runs"]] == ["n_samples=1-seed0", "n_samples=1-seed1"]
    for one in found["runs"]:
        assert {**one["numbers"], "seconds": 0} == whole[one["name"]]


def test_a_killed_sweep_continues(sweep, start, tmp_path):
    asked = sweep(0)
    process = start("hold", "--resume", "s")
    wait_for(tmp_path / "s" / "n_samples=1-seed0.mark")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    process = start("hold", "--resume", "s", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (one,) = json.loads(out)["runs"]
    whole = numbers_of_single_runs(asked, tmp_path / "whole")
    assert {**one["numbers"], "seconds": 0} == whole[one["name"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_tasks_after_a_step(number, sweep, start, tmp_path):
    sweep(0, epochs=100_000)
    process = start("plain", "--resume", "s")  # starts Ray itself
    wait_for(tmp_path / "s" / "n_samples=1-seed0" / "metrics.jsonl")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == (
        "error: stopped with 1 runs to finish; resume with: zoopt-nas sweep --resume s"
    )
