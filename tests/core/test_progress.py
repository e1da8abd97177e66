"""The progress bar: its content, its updates, and no output without a terminal."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from zoopt_nas import progress
from zoopt_nas.progress import ProgressBar


class Screen(io.StringIO):
    """A terminal of 120 columns that keeps what was written."""

    def isatty(self) -> bool:
        return True

    def console(self) -> Console:
        return Console(file=self, force_terminal=True, width=120, highlight=False)

    def lines(self) -> list[str]:
        """The output without colours and cursor movements."""
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())
        return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.fixture
def clock(monkeypatch):
    """Return a clock whose ``seconds`` are the time of the bar."""

    class Clock:
        seconds = 50.0

        def monotonic(self) -> float:
            return self.seconds

    fake = Clock()
    monkeypatch.setattr(progress, "time", fake)
    return fake


def test_the_line_shows_evaluations_best_value_rate_and_time(clock):
    screen = Screen()
    with ProgressBar(2000, console=screen.console()) as bar:
        bar.update(1000, 0.5)
        clock.seconds += 2
        bar.update(1500, 1.25e-7)
    assert screen.lines()[0].startswith("0/2,000 evaluations ")
    assert re.fullmatch(
        r"1,500/2,000 evaluations [━╺╸]+ best 1.25e-07 250/s 0:00:0\d", screen.lines()[-1].strip()
    )


def test_no_limit_no_value_and_no_rate_yet(clock):
    screen = Screen()
    with ProgressBar(None, console=screen.console()) as bar:
        bar.update(3, math.inf)
    assert re.fullmatch(r"3 evaluations best - -/s 0:00:00", screen.lines()[-1].strip())


def test_drawing_is_throttled_and_the_last_state_is_drawn(clock, monkeypatch):
    drawn = []
    original = ProgressBar._draw
    monkeypatch.setattr(
        ProgressBar, "_draw", lambda self, now: (drawn.append(self._last), original(self, now))
    )
    with ProgressBar(100, console=Screen().console()) as bar:
        for nfev in range(1, 101):
            clock.seconds += 0.01
            bar.update(nfev, 1 / nfev)
    # At 0 s, then every 0.1 s, and at the end.
    assert [nfev for nfev, _ in drawn] == pytest.approx([*range(1, 100, 10), 100], abs=10)
    assert 8 <= len(drawn) <= 12
    assert drawn[0] == (1, 1.0)
    assert drawn[-1] == (100, 0.01)


def test_an_exception_leaves_the_terminal_in_order():
    screen = Screen()
    bar = ProgressBar(5, console=screen.console())

    def fail() -> None:
        with bar:
            bar.update(2, 1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "2/5 evaluations" in screen.lines()[-1]
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")  # cursor
    n_lines = len(screen.lines())
    bar.update(3, 1.0)
    assert len(screen.lines()) == n_lines


def test_a_pipe_gets_nothing(capfd):
    with ProgressBar(10) as bar:
        bar.update(10, 0.0)
    bar.update(11, 0.0)  # has no effect after the end
    assert capfd.readouterr() == ("", "")


def test_it_starts_no_thread(clock):
    before = threading.active_count()
    with ProgressBar(10, console=Screen().console()):
        assert threading.active_count() == before


def test_on_a_terminal_it_writes_to_stderr_and_stdout_is_the_functions():
    code = """
from zoopt_nas.progress import ProgressBar
with ProgressBar(10) as bar:
    print("of the function")
    bar.update(10, 0.25)
"""
    main, worker = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=worker,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        check=True,
    )
    os.close(worker)
    drawn = b""
    while piece := _read(main):
        drawn += piece
    os.close(main)
    assert done.stdout == b"of the function\n"
    assert b"10/10 evaluations" in drawn
    assert b"best 0.25" in drawn


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed, and everything is read
        return b""


def test_rich_is_imported_only_when_a_bar_is_shown():
    code = "import sys, zoopt_nas.progress; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
