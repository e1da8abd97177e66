"""Pictures of runs as data URIs, which a page shows without any other file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from zoopt_nas.errors import ZooptNasError
from zoopt_nas.nas.drawing import figures, plots
from zoopt_nas.nas.reports.collect import Group, Run
from zoopt_nas.nas.reports.published import TEST_ERROR
from zoopt_nas.nas.tabular.table import TRUE_ACCURACIES

_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        caption: what it shows.
        uri: its content.
        is_drawing: whether it is lines on white, which may be inverted on a dark page.
    """

    caption: str
    uri: str
    is_drawing: bool = True


class Gallery:
    """Draws the pictures of runs, and draws those of an unchanged run only once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int], list[Picture]] = {}

    def of_group(self, group: Group) -> list[Picture]:
        """Return curves and cells of the best result."""
        return [picture for run in best_runs(group) for picture in self.of_run(run)]

    def of_run(self, run: Run) -> list[Picture]:
        """Return the curves of a run, and the cells of a search."""
        key = run.path, len(run.rows) * 2 + run.is_finished
        if key not in self._known:
            self._known[key] = _draw(run)
        return self._known[key]

    def of_files(self, paths: Iterable[Path]) -> list[Picture]:
        """Return figures that other commands have drawn."""
        return [
            Picture(str(path), data_uri(path.suffix, path.read_bytes()), path.suffix == ".svg")
            for path in paths
        ]


class NoPictures(Gallery):
    """Draws nothing."""

    def of_run(self, run: Run) -> list[Picture]:
        """Return no picture."""
        return []

    def of_files(self, paths: Iterable[Path]) -> list[Picture]:
        """Return no picture."""
        return []


def best_runs(group: Group) -> list[Run]:
    """Return search and retraining of the best result: by test error, else by true accuracy."""
    if all(TEST_ERROR in result.numbers for result in group.results):
        return min(group.results, key=lambda result: result.numbers[TEST_ERROR]).runs
    first = TRUE_ACCURACIES[0]
    return max(group.results, key=lambda result: result.numbers.get(first, 0.0)).runs


def data_uri(suffix: str, content: bytes) -> str:
    """Return a file as a data URI."""
    return f"data:{_TYPES[suffix]};base64,{base64.b64encode(content).decode('ascii')}"


def _draw(run: Run) -> list[Picture]:
    drawn: list[Picture] = []
    name = f"{run.config.kind} {run.path.name}"

    def add(caption: str, draw: Callable[[], Figure]) -> None:
        """Add a picture, unless the run has nothing to draw yet."""
        try:
            content = figures.render(draw(), "svg")
        except ZooptNasError:
            return
        drawn.append(Picture(caption, data_uri(".svg", content)))

    add(f"Curves of {name}", lambda: plots.draw_curves(run.rows))
    if run.config.kind == "search":
        try:
            genotype = run.folder.genotype()
        except ZooptNasError:
            return drawn
        for kind, graph in genotype.cells.items():
            title = graph.title.capitalize()
            add(f"{title} of {name}", lambda kind=kind: plots.draw_cell(genotype, kind))  # type: ignore[misc]
    return drawn
