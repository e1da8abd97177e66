"""Real processes that are killed or interrupted, and go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zoopt_nas.nas.runs import RunFolder

MAIN = "from zoopt_nas_cli.main import main; main()"
EPOCHS = 4
TINY = ("--epochs", EPOCHS, "--init-channels", 2, "--n-cells", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def searching(npz):
    """The arguments of a search of 4 epochs: the noise of S4, a guide, momentum, a schedule."""
    more = ("--space", "s4", "--algo", "mgs", "--inner-steps", 1, "--n-samples", 1)
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


SHORT = ("--n-train", 32, "--batch-size", 16, "--epochs", 2, *TINY[2:], "--run-dir", "run")


@pytest.mark.parametrize(
    ("arguments", "n_writes"),
    [
        # The folder, its config and their names; an epoch's two rows and its checkpoint; the end.
        (("search", "--algo", "gld", "--inner-steps", 1, "--n-samples", 1), 4 + 2 * 4 + 2),
        # An epoch has one row; weights, genotype and result at the end.
        (("train", "DARTS_V2", "--no-auxiliary"), 4 + 2 * 3 + 6),
    ],
)
def test_dying_before_any_write_of_a_run_changes_nothing_of_its_end(
    arguments, n_writes, server, npz, tmp_path
):
    """One process dies before its first write, one before its second, and so on until one ends."""
    arguments = (*arguments, "--dataset", npz, *SHORT)
    assert server.run(*arguments, cwd=tmp_path / "whole").code == 0
    whole = end_of(tmp_path / "whole" / "run")
    for n in range(1, n_writes + 1):
        cwd = tmp_path / str(n)
        result = server.run(*arguments, cwd=cwd, die_at=n)
        assert (result.code, result.err) == (137, "")
        assert (cwd / "run").exists() == (n > 4)  # before, there is nothing to resume
        if n > 4:
            if n % 2 == 0:  # dies again, when it has cut away the rows of an unfinished epoch
                server.run(arguments[0], "--resume", "run", cwd=cwd, die_at=4)
            resume(server, arguments[0], cwd)
            assert end_of(cwd / "run") == whole, n
    assert server.run(*arguments, cwd=tmp_path / "all", die_at=n_writes + 1).code == 0
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


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_search_goes_on_bit_for_bit(
    moment, server, searching, whole_search, tmp_path, wait_until
):
    cwd = tmp_path / "cwd"
    process = server.start(*searching, cwd=cwd)
    wait_until(lambda: MOMENTS[moment](cwd))
    assert process.kill().code == -signal.SIGKILL
    resume(server, "search", cwd)
    assert end_of(cwd / "run") == whole_search


@pytest.mark.parametrize("seed", range(2))
def test_a_search_that_is_killed_again_and_again_ends_the_same(
    seed, server, searching, whole_search, tmp_path, wait_until
):
    cwd = tmp_path / "cwd"
    delays = random.Random(seed)
    process = server.start(*searching, cwd=cwd)
    wait_until((cwd / "run" / "config.toml").exists)
    kills = 0
    for _ in range(6):
        time.sleep(delays.uniform(0.0, 0.5))
        code = process.kill().code
        if code == 0:
            break
        kills += 1
        process = server.start("search", "--resume", "run", cwd=cwd)
    assert process.wait().code == 0
    assert kills > 0
    assert end_of(cwd / "run") == whole_search


def test_a_killed_retraining_goes_on_bit_for_bit(
    server, training, whole_training, tmp_path, wait_until
):
    cwd = tmp_path / "cwd"
    process = server.start(*training, cwd=cwd)
    wait_until(lambda: rows_written(cwd) >= 2)
    process.kill()
    assert not (cwd / "run" / "weights.pt").exists()
    resume(server, "train", cwd)
    assert end_of(cwd / "run") == whole_training


def test_a_process_of_the_installed_command_is_killed_and_goes_on(
    searching, whole_search, tmp_path, wait_until
):
    """As above, but started as a shell would start it."""
    command = [sys.executable, "-c", MAIN]
    process = subprocess.Popen(
        [*command, *map(str, searching)], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    wait_until(lambda: rows_written(tmp_path) >= 1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(
        [*command, "search", "--resume", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert end_of(tmp_path / "run") == whole_search


# ------------------------------------------------------------------------ SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_names_the_command_that_goes_on(
    number, server, searching, whole_search, tmp_path, wait_until
):
    cwd = tmp_path / "cwd"
    arguments = (*searching[:-1], "a run")  # the name needs quotes
    process = server.start(*arguments, cwd=cwd)
    rows = cwd / "a run" / "metrics.jsonl"
    wait_until(lambda: rows.exists() and b"\n" in rows.read_bytes())
    process.signal(number)
    result = process.wait()
    assert result.code == 130
    notice, line = result.err.splitlines()
    assert notice == "stopping after this step; press Ctrl-C again to stop at once"
    found = re.fullmatch(
        rf"error: stopped in epoch [2-{EPOCHS}] of {EPOCHS} and saved in a run; go on with: (.*)",
        line,
    )
    program, *command = shlex.split(found[1])
    assert program == "zoopt-nas"
    assert command == ["search", "--resume", "a run"]
    assert (cwd / "a run" / "checkpoint.pt").exists()
    assert not (cwd / "a run" / "genotype.json").exists()

    resumed = server.run(*command, cwd=cwd)
    assert (resumed.code, resumed.err) == (0, "")
    assert end_of(cwd / "a run") == whole_search


def test_an_interrupted_retraining_goes_on_too(
    server, training, whole_training, tmp_path, wait_until
):
    cwd = tmp_path / "cwd"
    process = server.start(*training, cwd=cwd)
    wait_until((cwd / "run" / "checkpoint.pt").exists)
    process.signal(signal.SIGINT)
    result = process.wait()
    assert result.code == 130
    assert result.err.endswith("go on with: zoopt-nas train --resume run\n")
    resume(server, "train", cwd)
    assert end_of(cwd / "run") == whole_training


def test_a_second_interrupt_stops_at_once(server, npz, tmp_path, wait_until):
    """Even in a step that takes long: here an update of alpha with very many inner steps."""
    cwd = tmp_path / "cwd"
    process = server.start(
        *("search", "--dataset", npz, "--algo", "rs", "--inner-steps", 100_000),
        *(*TINY, "--warmup-epochs", 0, "--batch-size", 16, "--run-dir", "run"),
        cwd=cwd,
    )
    wait_until((cwd / "run" / "config.toml").exists)
    process.signal(signal.SIGINT)
    wait_until(lambda: "stopping after this step" in (tmp_path / "cwd.err").read_text())
    time.sleep(0.2)
    os.kill(process.pid, 0)  # still in its step
    process.signal(signal.SIGINT)
    started = time.monotonic()
    result = process.wait()
    assert time.monotonic() - started < 20
    assert result.code == 130
    assert result.err.splitlines()[1:] == ["error: interrupted"]
    assert RunFolder.open(cwd / "run").rows("metrics.jsonl") == []
