"""Figures that compare runs: diagnostics by epoch, convergence, sweeps.

Each function returns a ``Figure`` for ``figures.save``, and raises InvalidValueError if there is
nothing to draw. Runs differ in colour, line style and marker. ``reduced`` lists what is smaller
than in the paper, for a line below the figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.analyses.convergence import ConvergencePoint
from zoopt_nas.nas.analyses.diagnose import EpochCurves
from zoopt_nas.nas.analyses.sweep import MeanStd
from zoopt_nas.nas.drawing.figures import STYLE, label_size

# Okabe and Ito's colours, darkened as in ``drawing/plots.py``.
_COLORS = ("#0A66A8", "#B84A00", "#00755A", "#8E3B7A", "#666666")
_DASHES = ("-", "--", ":", "-.")
_DIAGNOSTICS = {
    "n_effective": "Effective samples $N_e$",
    "effective_ratio": "Effective ratio $R_e$",
    "eigenvalue": "Dominant eigenvalue",
    "skip_connections": "Skip connections",
}
_MARKERS = ("o", "s", "^", "D", "v")


@matplotlib.rc_context(STYLE)
def draw_convergence(
    runs: Mapping[str, Sequence[ConvergencePoint]], reduced: Sequence[str] = ()
) -> Figure:
    """Draw test accuracy and parameters of the retrained networks against the epoch (Fig. 2).

    ``runs`` holds the points of each search, by its name in the legend.
    """
    if not any(runs.values()):
        raise InvalidValueError("runs must hold a point to draw, got none")
    figure = Figure(figsize=(7.6, 2.6), layout="constrained")
    accuracy, size = figure.subplots(1, 2, sharex=True)
    for i, (name, points) in enumerate(runs.items()):
        epochs = [point.epoch for point in points]
        _ink(accuracy, i, name, epochs, [100 * point.test_accuracy for point in points])
        _ink(size, i, name, epochs, [point.n_parameters / 1e6 for point in points])
    accuracy.set_title("Test accuracy (%)")
    size.set_title("Parameters (millions)")
    _finish(figure, [accuracy, size], "epoch of the search")
    label_size(figure, reduced)
    return figure


@matplotlib.rc_context(STYLE)
def draw_diagnostics(runs: Mapping[str, EpochCurves], reduced: Sequence[str] = ()) -> Figure:
    """Draw N_e and R_e (Fig. 4), dominant eigenvalue and skip connections against the epoch.

    ``runs`` holds the curves of each search, by its name in the legend. A panel without any number
    is left out.
    """
    if not runs:
        raise InvalidValueError("runs must hold curves to draw, got none")
    known = {
        name: title
        for name, title in _DIAGNOSTICS.items()
        if any(value is not None for curves in runs.values() for value in curves.columns[name])
    }
    figure = Figure(figsize=(3.0 * max(len(known), 1) + 1.2, 2.6), layout="constrained")
    panels = list(figure.subplots(1, len(known), squeeze=False)[0])
    for axes, (name, title) in zip(panels, known.items(), strict=True):
        axes.set_title(title)
        for i, (run, curves) in enumerate(runs.items()):
            column = [math.nan if value is None else value for value in curves.columns[name]]
            if np.isfinite(column).any():
                _ink(axes, i, run, curves.epochs, column)
    _finish(figure, panels, "epoch")
    label_size(figure, reduced)
    return figure


@matplotlib.rc_context(STYLE)
def draw_sweep(
    rows: Sequence[tuple[Mapping[str, Any], Mapping[str, MeanStd]]], reduced: Sequence[str] = ()
) -> Figure:
    """Draw test error and parameters against the varied setting (Tables 5, 6), with deviations.

    ``rows`` are as from ``summarize``. Without retrainings, draw the supernet's validation accuracy
    and the skip connections.
    """
    if not rows:
        raise InvalidValueError("rows must hold a combination to draw, got none")
    panels = {
        "test_error": ("Test error (%)", 100.0),
        "n_parameters": ("Parameters (millions)", 1e-6),
    }
    if not all("test_error" in numbers for _, numbers in rows):
        panels = {
            "val_accuracy": ("Supernet val. accuracy (%)", 100.0),
            "skip_connections": ("Skip connections", 1.0),
        }
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    labels = [", ".join(str(value) for value in point.values()) for point, _ in rows]
    places = range(len(rows))
    for i, (axes, (key, (title, unit))) in enumerate(
        zip(figure.subplots(1, 2), panels.items(), strict=True)
    ):
        found = [numbers.get(key, MeanStd(math.nan, None, 0, math.nan)) for _, numbers in rows]
        axes.errorbar(
            places,
            [unit * number.mean for number in found],
            [unit * (number.std or 0.0) for number in found],
            color=_COLORS[i],
            marker=_MARKERS[i],
            ms=3.5,
            lw=1.4,
            capsize=3,
        )
        axes.set_title(title)
        _finish_axes(axes, ", ".join(rows[0][0]))
        axes.set_xticks(places, labels)
    label_size(figure, reduced)
    return figure


def _ink(axes: Axes, i: int, name: str, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw the line of run ``i``, with markers if they are far enough apart."""
    axes.plot(
        x,
        y,
        color=_COLORS[i % len(_COLORS)],
        linestyle=_DASHES[i % len(_DASHES)],
        marker=_MARKERS[i % len(_MARKERS)] if np.isfinite(y).sum() <= 12 else "",
        ms=3.5,
        lw=1.4,
        label=name,
    )


def _finish_axes(axes: Axes, x_label: str) -> None:
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label)


def _finish(figure: Figure, panels: Sequence[Axes], x_label: str) -> None:
    """Add grids, axes of whole epochs, and one legend beside the panels."""
    for axes in panels:
        _finish_axes(axes, x_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    # The last panel shows every run.
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
