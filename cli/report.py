"""``zoopt-nas report``: the results of runs beside the published figures, as one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from zoopt_nas.errors import InvalidValueError

from . import console
from .options import Json, let_threads_sleep, option

_RUNS = "Run folders, sweeps, or folders that hold them."
_OUT = "The HTML page; the Markdown is written beside it."
_WATCH = "Write the page again every so many seconds, until all runs are finished or Ctrl-C."
_MEASURED = "Leave out published figures that no run measured."
_PICTURES = "Draw curves and cells, about 100 kB for each set of runs."


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help=_RUNS)],
    out: Annotated[Path, option(_OUT)] = Path("report.html"),
    watch: Annotated[float | None, option(_WATCH, shown="write it once")] = None,
    only_measured: Annotated[bool, option(_MEASURED, flag="--only-measured")] = False,
    pictures: Annotated[bool, option(_PICTURES, flag="--pictures/--no-pictures")] = True,
    json: Json = False,
) -> None:
    """Compare runs with the tables of the paper and of NAS-Bench-201: one HTML page, and Markdown.

    The page needs no other file and no network. An existing page is replaced.
    """
    let_threads_sleep()
    from zoopt_nas.nas.reports.collect import collect
    from zoopt_nas.nas.reports.page import Report, write_report
    from zoopt_nas.nas.reports.pictures import Gallery

    if out.suffix not in (".html", ".htm"):
        raise InvalidValueError(f"out must end in .html, got {out}")
    if watch is not None and not watch >= 1:
        raise InvalidValueError(f"watch must be at least 1 second, got {watch}")
    gallery = Gallery() if pictures else None
    with console.stop_on_signals() as flag:
        while True:
            found = collect(runs)
            written = Report.of(found, gallery, only_measured=only_measured)
            goes_on = watch is not None and not found.is_complete and not flag.raised
            pages = write_report(written, out, refresh=watch if goes_on else None)
            if not goes_on or watch is None:
                break
            if not json:
                console.say(_progress(found))
            _wait(watch, flag)
    if json:
        measured = {table.key: table.n_measured for table in written.tables}
        console.say_json({**_counts(found), "measured": measured, "pages": pages})
        return
    for problem in found.problems:
        console.say(f"problem: {problem}")
    for table in written.tables:
        if table.n_measured:
            console.say(f"{table.title}: {table.n_measured} rows measured")
    console.say(_progress(found), *pages)


def _wait(seconds: float, flag: console.StopFlag) -> None:
    """Wait, but not after the user has asked to stop."""
    end = time.monotonic() + seconds
    while not flag.raised and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))


def _counts(found: Any) -> dict[str, Any]:
    n_finished = sum(run.is_finished for run in found.runs)
    return {
        "runs": len(found.runs),
        "finished": n_finished,
        "not_started": len(found.missing),
        "problems": found.problems,
    }


def _progress(found: Any) -> str:
    counts = _counts(found)
    n_all = counts["runs"] + counts["not_started"]
    return f"{counts['finished']} of {n_all} runs are finished"
