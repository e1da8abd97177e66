"""A progress bar on stderr: evaluations, best value, rate and elapsed time."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Seconds between two updates of the screen, each of which takes about a millisecond.
_INTERVAL = 0.1


class ProgressBar:
    """Show the progress of a run on a terminal; do nothing if stderr is a file or a pipe.

    Example:
        >>> with ProgressBar(maxfev=100) as bar:
        ...     for nfev in range(1, 101):
        ...         bar.update(nfev, 1 / nfev)

    Args:
        maxfev: the evaluation budget of the run, or None.
        console: the ``rich.console.Console`` to draw on. Default: a new one on stderr.
    """

    def __init__(self, maxfev: int | None, *, console: Console | None = None) -> None:
        self._maxfev = maxfev
        self._console = console
        self._progress: Progress | None = None
        self._due = 0.0
        # The rate counts from the first update, since a resumed run starts above 0.
        self._first: tuple[float, int] | None = None
        self._last = (0, math.inf)

    def __enter__(self) -> ProgressBar:
        """Start the bar."""
        from rich.console import Console

        console = self._console or Console(stderr=True, highlight=False, emoji=False)
        if not console.is_terminal:
            return self
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.fields[count]}"),
            *([] if self._maxfev is None else [BarColumn(bar_width=24)]),
            TextColumn("best {task.fields[best]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=console,
            # A refresh thread could hold a lock while the run forks a process, which then hangs.
            auto_refresh=False,
            # If stdout is a file, the output of the user's function must go there.
            redirect_stdout=Console().is_terminal,
        )
        self._task = self._progress.add_task("", total=self._maxfev, **self._fields(0.0))
        self._progress.start()
        return self

    def update(self, nfev: int, fun: float) -> None:
        """Set the number of evaluations and the best value (+inf if none), and redraw if due."""
        if self._progress is None:
            return
        self._last = (nfev, fun)
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _INTERVAL
            self._draw(now)

    def __exit__(self, *exc: object) -> None:
        """Draw the final state, which stays on the screen."""
        if self._progress is not None:
            self._draw(time.monotonic())
            self._progress.stop()
            self._progress = None

    def _draw(self, now: float) -> None:
        assert self._progress is not None
        nfev = self._last[0]
        if self._first is None:
            self._first = (now, nfev)
        self._progress.update(self._task, completed=nfev, **self._fields(now))
        self._progress.refresh()

    def _fields(self, now: float) -> dict[str, Any]:
        nfev, fun = self._last
        of = "" if self._maxfev is None else f"/{self._maxfev:,}"
        since, before = self._first or (now, nfev)
        rate = (nfev - before) / (now - since) if nfev > before else 0.0
        return {
            "count": f"{nfev:,}{of} evaluations",
            "best": f"{fun:.6g}" if math.isfinite(fun) else "-",
            "rate": f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s" if rate else "-/s",
        }
