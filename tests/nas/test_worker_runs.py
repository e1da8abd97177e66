"""Searches with worker processes: real ones, which are killed and interrupted."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import StopAt

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas import Observer, SearchConfig, resume_search, run_search
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.search import replica
from zoopt_nas.nas.search.workers import CandidateWorkers, _Worker

SIZES = {"batch_size": 16, "init_channels": 2, "threads": 1}
MACHINE = {"device": "cpu", "cpu_kernels": "off", "candidates_per_batch": 1}
MIXED = SearchConfig(
    **SIZES, **MACHINE, dataset="digits", n_train=96, space="small_s4", algo="mgs", n_cells=1,
    inner_steps=2, epochs=3, warmup_epochs=1,
)  # fmt: skip
CELLS = SearchConfig(
    **SIZES, **MACHINE, dataset="bars.npz", space="nasbench201", algo="gld", n_cells=3,
    paths="fair", weights="fresh", inner_steps=4, inner_average=0.9, extrapolate=True,
    surrogate=True, epochs=2,
)  # fmt: skip


def same(run: Path, whole: Any, without_seconds: Any) -> bool:
    """Whether a run folder has the metrics, alpha and cell of a search, bit for bit."""
    folder = RunFolder.open(run)
    return (
        without_seconds(folder.rows("metrics.jsonl")) == without_seconds(whole.metrics)
        and folder.rows("architectures.jsonl")[-1]["alpha"] == whole.alpha.tolist()
        and folder.genotype() == whole.genotype
    )


def use(run: Path, devices: str | None) -> None:
    """Let a run go on with other workers."""
    config = RunFolder.open(run).config(SearchConfig).replace(candidate_devices=devices)
    (run / "config.toml").write_text(config.to_toml())


class KillsAt(Observer):
    """Kills a worker after some steps."""

    def __init__(self, *n_steps: int) -> None:
        self.at, self.n_steps = n_steps, 0

    def on_step(self, progress):
        self.n_steps += 1
        if self.n_steps in self.at:
            multiprocessing.active_children()[0].kill()


@pytest.mark.slow
def test_a_search_goes_on_with_workers_that_are_killed(
    small_spaces, tmp_path, monkeypatch, without_seconds
):
    whole = run_search(MIXED)
    with pytest.raises(RunInterrupted):
        run_search(MIXED, run_dir=tmp_path / "run", observer=StopAt(2))
    use(tmp_path / "run", "cpu,cpu")
    begin, jobs = _Worker.begin, []

    def begin_and_kill(worker, call, part):
        begin(worker, call, part)
        jobs.append(part)
        if len(jobs) == 1:
            worker.process._process.kill()

    monkeypatch.setattr(_Worker, "begin", begin_and_kill)
    with pytest.warns(RuntimeWarning, match="on cpu died; a new one replaces it") as warned:
        resume_search(tmp_path / "run", observer=KillsAt(3))
    assert len(warned) == 2  # one with a job, and one without
    assert multiprocessing.active_children() == []
    assert same(tmp_path / "run", whole, without_seconds)


@pytest.mark.slow
def test_a_search_over_cells_begins_with_workers_and_goes_on_without(
    npz, tmp_path, monkeypatch, without_seconds
):
    monkeypatch.chdir(npz.parent)  # a new process begins in the folder where Python was started
    whole = run_search(CELLS)
    workers = CELLS.replace(candidate_devices="cpu,cpu")
    with pytest.raises(RunInterrupted):
        run_search(workers, run_dir=tmp_path / "run", observer=StopAt(1))
    assert multiprocessing.active_children() == []
    use(tmp_path / "run", None)
    resume_search(tmp_path / "run")
    assert same(tmp_path / "run", whole, without_seconds)
    assert whole.metrics[0]["evaluations"] > 10  # the first update evaluates ten cells


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_a_process_ignores_requests_to_stop_from_its_start():
    """A terminal, or a job scheduler, sends them to all processes of a group."""
    worker = _Worker(replica.Plan(MIXED, "{}", "{}", {}, ".", device="cpu", threads=1))
    worker.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.process._process.pid, number)
    with pytest.raises(InvalidValueError, match="not the record of a data set"):
        worker.wait_until_ready()  # it has come as far as the plan, which is incomplete
    worker.close()


def test_an_error_of_a_process_arrives_in_one_line():
    plan = replica.Plan(MIXED, "{}", "{}", {}, ".", device="cuda:99", threads=1)
    workers = CandidateWorkers([plan], torch.device("cuda"), torch.nn.Linear(1, 1), None)
    with pytest.raises(InvalidValueError) as caught, workers.started(None):
        pytest.fail("there is no such device")
    assert str(caught.value) == (
        "candidate_devices: device must be auto or a device that this machine has, got cuda:99"
    )
    assert multiprocessing.active_children() == []


_UNGUARDED = """
from zoopt_nas.nas import SearchConfig, run_search
run_search(SearchConfig(space="s3", algo="gld", n_train=64, device="cpu", candidate_devices="cpu"))
"""


@pytest.mark.slow
def test_a_script_without_the_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_UNGUARDED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last == (
        "zoopt_nas.errors.WorkerError: the process that evaluates candidates on cpu ended before "
        'it was ready; a script that starts a search needs the line if __name__ == "__main__":'
    )
    assert done.returncode == 1
