"""Prints results, tables, progress and one-line errors; nothing else prints."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from zoopt_nas._files import as_json
from zoopt_nas.errors import (
    FailedRunsError,
    InvalidValueError,
    RunInterrupted,
    ZooptNasError,
)

out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(soft_wrap=True, highlight=False, emoji=False, stderr=True)

_WIDE = 1000
USAGE_ERROR = 2  # a wrong name, path or value
INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended
_BAR = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"))


def say(*lines: object) -> None:
    """Print each line as it is."""
    for line in lines:
        out.print(str(line), markup=False)


def say_reduced(reduced: Sequence[str]) -> None:
    """Print what is smaller than in the paper, if anything is."""
    if reduced:
        say(f"reduced size: {', '.join(reduced)}")


def be_silent() -> None:
    """Print nothing more in this process."""
    out.quiet = err.quiet = True


def say_json(value: object) -> None:
    """Print a value as one line of JSON; non-finite numbers become null."""
    sys.stdout.write(json.dumps(as_json(value), allow_nan=False) + "\n")


def say_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    # A row wraps on a terminal, but is one line if piped.
    console = out if out.is_terminal else Console(width=_WIDE, highlight=False, emoji=False)
    console.print(table)


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the last part of each path, or the whole paths if two have the same one."""
    names = [os.path.basename(os.path.normpath(path)) for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def fail(message: str, code: int = USAGE_ERROR) -> int:
    """Print one line of error and return the exit code."""
    _complain("error", "red", message)
    return code


def _complain(what: str, color: str, message: object) -> None:
    one_line = " ".join(str(message).split())
    err.print(f"[bold {color}]{what}:[/bold {color}] {escape(one_line)}")


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print a warning as one line on stderr, without its location."""

    def show(message: Warning | str, *args: object, **kwargs: object) -> None:
        _complain("warning", "yellow", message)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def report(error: Exception) -> int:
    """Print an error of the package or the system as one line, and return the exit code."""
    if isinstance(error, RunInterrupted):
        return fail(str(error), INTERRUPTED)
    if isinstance(error, ZooptNasError):
        return fail(str(error), 1 if isinstance(error, FailedRunsError) else USAGE_ERROR)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("zoopt_nas"):
        return fail(f"this needs {error.name}: pip install 'zoopt-nas[nas]'")
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return fail(f"{error.strerror or error}{where}", 1)
    raise error


class StopFlag:
    """Whether the user has asked to stop."""

    raised = False


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Raise a flag at the first Ctrl-C (or SIGTERM); a second one interrupts at once."""
    flag = StopFlag()
    owner = os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _on_signal_in_worker(number)
            return
        if flag.raised:
            raise KeyboardInterrupt
        flag.raised = True
        if err.is_terminal:
            err.line()  # below the progress bar
        err.print("stopping after this step; press Ctrl-C again to stop at once")

    previous = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _on_signal_in_worker(number: int) -> None:
    """End a forked process, which inherits the handler, at SIGTERM; ignore Ctrl-C.

    A terminal sends Ctrl-C to all its processes, and the parent decides; pools end theirs by
    SIGTERM.
    """
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def counting(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback ``(n_done, n_all)`` that shows a count on a terminal, unless ``quiet``."""
    # Auto-refresh would start a thread, and forking workers beside a thread is not safe.
    bar = Progress(
        TextColumn("{task.description}"),
        *_BAR,
        TimeRemainingColumn(),
        console=err,
        auto_refresh=False,
        transient=True,
        disable=quiet or not err.is_terminal,
    )
    with bar:
        task = bar.add_task(label)

        def update(n_done: int, n_all: int) -> None:
            bar.update(task, completed=n_done, total=n_all, refresh=True)

        yield update


class LiveReport:
    """Shows a progress bar on a terminal, or one line per epoch if piped.

    It has the methods of ``zoopt_nas.nas.StartObserver`` but is no subclass, so that the command
    line starts without torch.
    """

    def __init__(self, flag: StopFlag, quiet: bool) -> None:
        self._flag = flag
        self._quiet = quiet
        self._next_read = 0.0
        self._progress: Progress | None = None
        if out.is_terminal and not quiet:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                *_BAR,
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=out,
            )
            self._task = self._progress.add_task("", epoch="", numbers="", total=None)

    def __enter__(self) -> LiveReport:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def should_stop(self) -> bool:
        """Whether the user has asked to stop."""
        return self._flag.raised

    def on_start(self, start: Any) -> None:
        """Print the estimate."""
        if not self._quiet:
            say(start)

    def on_step(self, progress: Any) -> None:
        """Update the progress bar."""
        now = time.monotonic()
        if self._progress is None or now < self._next_read:
            return
        self._next_read = now + 0.5  # reading the meter waits for the device
        self._progress.update(
            self._task,
            total=progress.n_epochs * progress.n_steps,
            completed=progress.epoch * progress.n_steps + progress.step,
            epoch=f"{progress.epoch + 1}/{progress.n_epochs}",
            numbers=f"loss {progress.meter.loss:.3f}  accuracy {progress.meter.accuracy:.1%}",
        )

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Print the row of the epoch."""
        if not self._quiet:
            say(epoch_line(row))


@contextmanager
def watched(*, quiet: bool, resume_with: str) -> Iterator[LiveReport]:
    """Show a run's progress, let Ctrl-C stop it, and then print the command that resumes it.

    ``quiet`` shows nothing, for machine-readable output.
    """
    with one_line_warnings(), stop_on_signals() as flag, LiveReport(flag, quiet) as observer:
        try:
            yield observer
        except RunInterrupted as interrupted:
            raise RunInterrupted(f"{interrupted}; resume with: {resume_with}") from interrupted


def logged(observer: LiveReport, log: str | None, run: Path | None) -> Any:
    """Return an observer that also writes a log in a run folder, if asked or if there is one."""
    from zoopt_nas import nas

    if log not in (None, "tensorboard"):
        raise InvalidValueError(f"log must be tensorboard, got {log}")
    folder = Path(run or ".") / "tensorboard"
    if log is None and not folder.is_dir():
        return observer
    return nas.Observers(observer, nas.TensorBoardLog(folder))


_COLUMNS = (
    ("train_loss", "loss {:.4f}"),
    ("train_accuracy", "accuracy {:.2%}"),
    ("test_accuracy", "test accuracy {:.2%}"),
    ("best_on_test_set", "best on the test set {:.2%}"),
    ("val_loss", "val loss {:.4f}"),
    ("val_accuracy", "val accuracy {:.2%}"),
    ("n_effective", "N_e {:.2f}"),
    ("skip_connections", "skips {}"),
    ("true_cifar10", "true accuracy {:.2%} on CIFAR-10"),
    ("true_cifar100", "{:.2%} on CIFAR-100"),
    ("true_imagenet16", "{:.2%} on ImageNet16-120"),
    ("failures", "failed candidates {}"),
    ("seconds", "{:.1f} s"),
)


def epoch_line(row: Mapping[str, Any]) -> str:
    """Return an epoch's row of ``metrics.jsonl`` as one line, without empty columns."""
    known = {key: value for key, value in row.items() if value is not None}
    if not known.get("failures"):
        known.pop("failures", None)
    return f"epoch {row['epoch'] + 1}: " + metrics_line(known, known)


def metrics_line(row: Mapping[str, Any], names: Collection[str]) -> str:
    """Return the named columns of a row, those that it has, as one line."""
    return ", ".join(form.format(row[key]) for key, form in _COLUMNS if key in names and key in row)


def failures_line(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return how many candidates failed, by epoch; None if none did."""
    rows = [row for row in rows if row.get("failures")]
    failed = [f"{row['failures']} in epoch {row['epoch'] + 1}" for row in rows]
    return f"failed candidates: {', '.join(failed)}" if failed else None
