"""Real processes that are killed or interrupted, and go on as if nothing had happened."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from zoopt_nas.nas.runs.folder import RunFolder

MAIN = "from zoopt_nas_cli.main import main; main()"
EPOCHS = 3
TINY = ("--epochs", EPOCHS, "--init-channels", 2, "--n-cells", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def searching(npz):
    """The arguments of a search of 3 epochs: the noise of S4, a guide, momentum, a schedule."""
    more = ("--space", "small_s4", "--algo", "mgs", "--inner-steps", 1, "--n-samples", 1)
    return ("search", "--dataset", npz, *more, *TINY, "--batch-size", 16, "--run-dir", "run")


@pytest.fixture(scope="module")
def training(npz):
    more = ("--auxiliary", "--drop-path", 0.3, "--cutout", 3, "--batch-size", 16)
    return ("train", "DARTS_V2", "--dataset", npz, *more, *TINY, "--run-dir", "run")


def end_of(run: Path) -> dict[str, object]:
    """What a finished run left, byte for byte but for the seconds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left: dict[str, object] = {"rows": [{**row, "seconds": None} for row in rows]}
    for name in ("architectures.jsonl", "genotype.json", "config.toml"):
        path = run / name
        left[name] = path.read_bytes() if path.exists() else None
    if (run / "result.json").exists():
        left["result"] = {**json.loads((run / "result.json").read_text()), "seconds": None}
    return left


@pytest.fixture(scope="module")
def whole_search(server, searching, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("whole") / "search"
    result = server.run(*searching, cwd=cwd)
    assert (result.code, result.err) == (0, "")
    end = end_of(cwd / "run")
    assert [row["epoch"] for row in end["rows"]] == list(range(EPOCHS))
    assert end["rows"][-1]["updates"] == 2
    return end


@pytest.fixture(scope="module")
def whole_training(server, training, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("whole") / "train"
    result = server.run(*training, cwd=cwd)
    assert (result.code, result.err) == (0, "")
    return end_of(cwd / "run")


def resume(server, command: str, cwd: Path) -> None:
    result = server.run(command, "--resume", "run", cwd=cwd)
    assert (result.code, result.err) == (0, "")


# ------------------------------------------------------------------------ at every write


FOLDER = 9  # writes that make the folder
SHORT = ("--n-train", 32, "--batch-size", 16, "--epochs", 2, *TINY[2:], "--run-dir", "run")


@pytest.mark.parametrize(
    ("arguments", "n_writes"),
    [
        # The folder, with three files; an epoch: two rows and the checkpoint; the genotype.
        (
            (
                "search",
                "--space",
                "small_s3",
                "--algo",
                "gld",
                "--inner-steps",
                1,
                "--n-samples",
                1,
            ),
            FOLDER + 2 * 4 + 2,
        ),
        # An epoch has one row; weights, genotype and result at the end.
        (("train", "DARTS_V2", "--no-auxiliary"), FOLDER + 2 * 3 + 6),
    ],
)
def test_a_kill_before_any_write_of_a_run_changes_nothing_of_its_end(
    arguments, n_writes, server, npz, tmp_path
):
    """One process is killed before its first write, one before its second, ..., until one ends."""
    arguments = (*arguments, "--dataset", npz, *SHORT)
    assert server.run(*arguments, cwd=tmp_path / "whole").code == 0
    whole = end_of(tmp_path / "whole" / "run")
    for n in range(1, n_writes + 1):
        cwd = tmp_path / str(n)
        result = server.run(*arguments, cwd=cwd, at_write=[(n, signal.SIGKILL)])
        assert (result.code, result.err) == (-signal.SIGKILL, "")
        assert (cwd / "run").exists() == (n > FOLDER)  # before, there is nothing to resume
        if n > FOLDER:
            if n % 4 == 0:  # dies again, when it has cut away the rows of an unfinished epoch
                server.run(arguments[0], "--resume", "run", cwd=cwd, at_write=[(4, signal.SIGKILL)])
            resume(server, arguments[0], cwd)
            assert end_of(cwd / "run") == whole, n
    assert (
        server.run(*arguments, cwd=tmp_path / "all", at_write=[(n_writes + 1, signal.SIGKILL)]).code
        == 0
    )
    assert end_of(tmp_path / "all" / "run") == whole


# ------------------------------------------------------------------------ SIGKILL


def rows_written(cwd: Path) -> int:
    path = cwd / "run" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


MOMENTS = {
    "before the first checkpoint": lambda cwd: (cwd / "run" / "config.toml").exists(),
    "while a checkpoint is written": lambda cwd: any((cwd / "run").glob(".checkpoint.pt-*")),
    "after a checkpoint": lambda cwd: (cwd / "run" / "checkpoint.pt").exists(),
    "after the second row": lambda cwd: rows_written(cwd) >= 2,
    "after the last row": lambda cwd: rows_written(cwd) >= EPOCHS,
}


def start_and_kill(server, arguments, moment, tmp_path, wait_until) -> Path:
    """A run that is killed at a moment; again, should it have ended before the signal came."""
    for attempt in range(5):
        cwd = tmp_path / str(attempt)
        process = server.start(*arguments, cwd=cwd)
        wait_until(lambda cwd=cwd: moment(cwd))
        if process.kill().code == -signal.SIGKILL:
            return cwd
    pytest.fail("it was never killed in time")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_search_goes_on_bit_for_bit(
    moment, server, searching, whole_search, tmp_path, wait_until
):
    cwd = start_and_kill(server, searching, MOMENTS[moment], tmp_path, wait_until)
    resume(server, "search", cwd)
    assert end_of(cwd / "run") == whole_search


@pytest.mark.parametrize("seed", [0])
def test_a_search_that_is_killed_again_and_again_ends_the_same(
    seed, server, searching, whole_search, tmp_path, wait_until
):
    moment = MOMENTS["before the first checkpoint"]
    cwd = start_and_kill(server, searching, moment, tmp_path, wait_until)
    delays = random.Random(seed)
    for _ in range(5):
        process = server.start("search", "--resume", "run", cwd=cwd)
        time.sleep(delays.uniform(0.0, 0.2))
        assert process.kill().code in (-signal.SIGKILL, 0)
    resume(server, "search", cwd)
    assert end_of(cwd / "run") == whole_search


def test_a_killed_retraining_goes_on_bit_for_bit(
    server, training, whole_training, tmp_path, wait_until
):
    moment = MOMENTS["after the second row"]
    cwd = start_and_kill(server, training, moment, tmp_path, wait_until)
    resume(server, "train", cwd)
    assert end_of(cwd / "run") == whole_training


def test_a_process_of_the_installed_command_is_killed_and_goes_on(
    server, searching, whole_search, tmp_path, wait_until
):
    """As above, but each time in a fresh Python, as a shell would start it."""
    command = [sys.executable, "-c", MAIN]
    process = subprocess.Popen(
        [*command, *map(str, searching)],
        cwd=tmp_path,
        env=server.environment,
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: rows_written(tmp_path) >= 1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(
        [*command, "search", "--resume", "run"],
        cwd=tmp_path,
        env=server.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert end_of(tmp_path / "run") == whole_search


# ------------------------------------------------------------------------ SIGINT


FIRST_ROW = FOLDER + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_names_the_command_that_goes_on(
    number, server, searching, whole_search, tmp_path
):
    cwd = tmp_path / "cwd"
    arguments = (*searching[:-1], "a run")  # the name needs quotes
    result = server.run(*arguments, cwd=cwd, at_write=[(FIRST_ROW, number)])
    assert result.code == 130
    notice, line = result.err.splitlines()
    assert notice == "stopping after this step; press Ctrl-C again to stop at once"
    said, command = line.split("; resume with: ")
    assert said == f"error: stopped in epoch 2 of {EPOCHS} and saved in a run"
    assert command == "zoopt-nas search --resume 'a run'"
    state = RunFolder(cwd / "a run").load_checkpoint(torch.device("cpu"))
    assert (state["epoch"], state["step"]) == (1, 0)
    assert not (cwd / "a run" / "genotype.json").exists()

    resumed = server.run(*shlex.split(command)[1:], cwd=cwd)
    assert (resumed.code, resumed.err) == (0, "")
    assert end_of(cwd / "a run") == whole_search


def test_an_interrupted_retraining_goes_on_too(server, training, whole_training, tmp_path):
    cwd = tmp_path / "cwd"
    result = server.run(*training, cwd=cwd, at_write=[(FIRST_ROW, signal.SIGINT)])
    assert result.code == 130
    assert result.err.endswith("resume with: zoopt-nas train --resume run\n")
    resume(server, "train", cwd)
    assert end_of(cwd / "run") == whole_training


def test_a_second_interrupt_stops_at_once(server, searching, whole_search, tmp_path):
    """Here before the next step: while the rows and the checkpoint of an epoch are written."""
    second_row = FIRST_ROW + 4
    for n in range(second_row + 1, second_row + 4):
        cwd = tmp_path / str(n)
        signals = [(second_row, signal.SIGINT), (n, signal.SIGINT)]
        result = server.run(*searching, cwd=cwd, at_write=signals)
        assert result.code == 130
        assert result.err.splitlines()[1:] == ["error: interrupted"]
        state = RunFolder(cwd / "run").load_checkpoint(torch.device("cpu"))
        assert (state["epoch"], state["step"]) == (1, 0)
        assert list((cwd / "run").glob(".*")) == []  # no temporary file
        resume(server, "search", cwd)
        assert end_of(cwd / "run") == whole_search
