"""Searches whose candidates are evaluated in other processes, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.settings.config import SearchConfig

MAIN = "from zoopt_nas_cli.main import main; main()"
EPOCHS = 20
SEARCH = (
    *("search", "--space", "small_s3", "--algo", "gld", "--inner-steps", 1, "--n-samples", 2),
    *("--batch-size", 16, "--epochs", EPOCHS, "--warmup-epochs", 0, "--init-channels", 2),
    *("--n-cells", 1, "--device", "cpu", "--cpu-kernels", "off", "--candidates-per-batch", 1),
    *("--run-dir", "run"),
)


def start(server, cwd: Path, *arguments: object) -> subprocess.Popen[str]:
    """A command in a group of processes of its own, as a shell starts it in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        cwd=cwd,
        env=server.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rows_written(cwd: Path) -> int:
    path = cwd / "run" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def members(group: int) -> set[int]:
    """The processes of a group that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = path.read_text().split(" (", 1)
        except OSError:  # it has ended
            continue
        state, _, its_group = rest.rpartition(") ")[2].split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.add(int(pid))
    return found


def end_of(run: Path) -> tuple[list[dict[str, object]], bytes]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "seconds": None} for row in rows]
    return rows, (run / "architectures.jsonl").read_bytes() + (run / "genotype.json").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_search_that_is_interrupted_and_killed_leaves_no_process_and_ends_the_same(
    server, npz, tmp_path, wait_until
):
    whole = tmp_path / "whole"
    assert server.run(*SEARCH, "--dataset", npz, cwd=whole).code == 0

    process = start(server, tmp_path, *SEARCH, "--dataset", npz, "--candidate-devices", "cpu")
    wait_until(lambda: rows_written(tmp_path) >= 1)
    assert len(members(process.pid)) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does in a terminal
    _, err = process.communicate()
    assert process.returncode == 130
    notice, error = err.splitlines()
    assert notice == "stopping after this step; press Ctrl-C again to stop at once"
    assert error.endswith("saved in run; resume with: zoopt-nas search --resume run")
    wait_until(lambda: not members(process.pid))
    assert rows_written(tmp_path) < EPOCHS

    n_rows = rows_written(tmp_path)
    process = start(server, tmp_path, "search", "--resume", "run")
    wait_until(lambda: rows_written(tmp_path) > n_rows)
    process.kill()
    wait_until(lambda: not members(process.pid))
    assert process.communicate()[1] == ""
    assert process.returncode == -signal.SIGKILL

    result = server.run("search", "--resume", "run", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert end_of(tmp_path / "run") == end_of(whole / "run")
    assert RunFolder(tmp_path / "run").config(SearchConfig).candidate_devices == "cpu"


def test_a_wrong_device_is_one_line(refused, npz):
    arguments = ("search", "--dataset", npz, "--device", "cpu", "--candidate-devices", "cpu,cuda:1")
    assert refused(*arguments) == (
        "candidate_devices must be of the same kind as the device of the search, cpu, got cuda:1"
    )
