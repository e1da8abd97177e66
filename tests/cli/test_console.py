"""What is shown while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading

import pytest
import torch
from rich.console import Console
from zoopt_nas_cli import console

from zoopt_nas.errors import DataError, RunInterrupted
from zoopt_nas.nas.runs.loop import Progress
from zoopt_nas.nas.steps.meter import Meter

ROW = {
    "epoch": 4,
    "train_loss": 1.23456,
    "train_accuracy": 0.5,
    "val_loss": 2.0,
    "val_accuracy": 0.25,
    "lr": 0.1,
    "sigma": 0.2,
    "n_effective": 3.5,
    "skip_connections": 2,
    "seconds": 1.04,
}


def progress(step: int = 3) -> Progress:
    meter = Meter(torch.device("cpu"))
    meter.update(torch.tensor(1.5), torch.eye(4), torch.tensor([0, 1, 2, 0]))
    return Progress(epoch=1, n_epochs=4, step=step, n_steps=6, meter=meter)


def test_an_epoch_is_one_line():
    assert console.epoch_line(ROW) == (
        "epoch 5: loss 1.2346, accuracy 50.00%, val loss 2.0000, val accuracy 25.00%, "
        "N_e 3.50, skips 2, 1.0 s"
    )
    rest = {**ROW, "n_effective": None, "val_loss": None}
    del rest["skip_connections"]
    assert console.epoch_line(rest) == (
        "epoch 5: loss 1.2346, accuracy 50.00%, val accuracy 25.00%, 1.0 s"
    )


def test_failed_candidates_are_shown_where_there_are_some():
    assert console.epoch_line({**ROW, "failures": 0}) == console.epoch_line(ROW)
    assert ", failed candidates 3, " in console.epoch_line({**ROW, "failures": 3})
    rows = [{"epoch": 0}, {"epoch": 1, "failures": 2}, {"epoch": 2, "failures": 0}]
    assert console.failures_line(rows) == "failed candidates: 2 in epoch 2"
    rows.append({"epoch": 3, "failures": 40})
    assert console.failures_line(rows) == "failed candidates: 2 in epoch 2, 40 in epoch 4"
    assert console.failures_line([rows[0], rows[2]]) is None


def test_a_terminal_shows_a_bar_with_loss_accuracy_and_time_left(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr(console, "out", terminal)
    with console.watched(quiet=False, resume_with="x") as report:
        report.on_step(progress())
        report._progress.refresh()
        report.on_epoch(ROW)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    shown = [line for line in re.split(r"[\r\n]+", text) if line.startswith("epoch 2/4")]
    assert "loss 1.500  accuracy 75.0%" in shown[-1]
    assert " 38%" in shown[-1]  # 9 of 24 steps
    assert re.search(r"\d:\d\d:\d\d (\d:\d\d:\d\d|-:--:--)", shown[-1])  # elapsed, left
    assert console.epoch_line(ROW) in text


def test_reading_the_meter_is_rare(monkeypatch):
    class Loud(Meter):
        @property
        def loss(self):
            reads.append(1)
            return 1.0

    reads: list[int] = []
    where = progress()._replace(meter=Loud(torch.device("cpu")))
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(console, "out", terminal)
    with console.watched(quiet=False, resume_with="x") as report:
        for _ in range(50):
            report.on_step(where)
    assert len(reads) == 1  # reading waits for the device


def test_a_pipe_gets_a_plain_line_an_epoch_and_quiet_gets_none(capsys):
    for quiet, expected in ((False, console.epoch_line(ROW) + "\n"), (True, "")):
        with console.watched(quiet=quiet, resume_with="x") as report:
            report.on_step(progress())
            report.on_epoch(ROW)
        assert capsys.readouterr() == (expected, "")


def test_the_first_signal_asks_and_the_second_interrupts(capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with console.watched(quiet=True, resume_with="x") as report:
        assert not report.should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert report.should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capsys.readouterr().err == (
        "stopping after this step; press Ctrl-C again to stop at once\n"
    )


def test_an_interruption_says_how_to_go_on():
    with (
        pytest.raises(RunInterrupted, match=r"^stopped here; resume with: zoopt-nas x --resume y$"),
        console.watched(quiet=True, resume_with="zoopt-nas x --resume y"),
    ):
        raise RunInterrupted("stopped here")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no [file]"), 2, "error: no [file]\n"),
        (RunInterrupted("stopped"), 130, "error: stopped\n"),
        (FileNotFoundError(2, "No such file", "x/y"), 1, "error: No such file (x/y)\n"),
        (OSError("odd"), 1, "error: odd\n"),
        (
            ModuleNotFoundError("No module named 'nope'", name="nope"),
            2,
            "error: this needs nope: pip install 'zoopt-nas[nas]'\n",
        ),
    ],
)
def test_expected_errors_are_one_line(error, code, line, capsys):
    assert console.report(error) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), ImportError("cycle")])
def test_bugs_are_raised(error):
    with pytest.raises(type(error)):
        console.report(error)


def test_a_real_terminal_shows_the_bar(npz, tmp_path):
    """The whole command on a pseudo-terminal."""
    main, worker = pty.openpty()
    code = "from zoopt_nas_cli.main import main; main()"
    arguments = ["search", "--dataset", npz, "--algo", "darts1", "--epochs", "2"]
    tiny = ["--init-channels", "2", "--n-cells", "1", "--batch-size", "16", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, *tiny, "--run-dir", tmp_path / "run"],
        stdout=worker,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(worker)
    read: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                piece = os.read(main, 65536)
            except OSError:  # the other end is closed
                return
            if not piece:
                return
            read.append(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert (process.wait(), error) == (0, "")
    reader.join()
    os.close(main)
    raw = b"".join(read).decode()
    assert "\x1b[" in raw  # it moves the cursor
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw)
    assert re.search(r"epoch 1/2 .*%.*loss \d\.\d{3}  accuracy [\d.]+% \d:\d\d:\d\d", text)
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(console.epoch_line(row) in text for row in rows)


def test_counting_shows_a_line_on_a_terminal_only(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for is_terminal, quiet in ((False, False), (True, True), (True, False)):
        screen = io.StringIO()
        monkeypatch.setattr(
            console,
            "err",
            Console(file=screen, force_terminal=is_terminal, force_interactive=is_terminal),
        )
        with console.counting("gld", quiet=quiet) as progress:
            progress(1, 4)
        shown = screen.getvalue()
        if is_terminal and not quiet:
            assert "gld" in shown
            assert "25%" in shown
        else:
            assert shown == ""
