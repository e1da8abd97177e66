"""The figure of a benchmark: true accuracy against the number of queries."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoopt_nas.nas.drawing.figures import STYLE
from zoopt_nas.nas.tabular.searches import BASELINES

# Colours of Okabe and Ito and of Paul Tol for solvers, dashed greys for baselines.
_COLORS = (
    *("#0A66A8", "#B84A00", "#00755A", "#8E3B7A", "#B8860B"),
    *("#CC3311", "#332288", "#44AA99", "#882255", "#6B8E23"),
)
_GREYS = ("#999999", "#000000", "#666666", "#333333")
_DASHES = (":", "--", "-.", (0, (6, 1, 1, 1, 1, 1)))
# Each curve begins at this fraction of the budget, since the first cells are drawn at random.
_FIRST = 0.1
_MAX_POINTS = 60  # of a curve, for a small file


@matplotlib.rc_context(STYLE)
def draw_benchmark(panels: Mapping[str, Mapping[str, np.ndarray]], x_label: str) -> Figure:
    """Draw the mean of each method with a band of one standard error.

    Args:
        panels: for each title, the accuracies (n_runs, n) in percent of each method.
        x_label: what the columns of an array count.
    """
    figure = Figure(figsize=(3.0 * len(panels) + 1.5, 3.2), layout="constrained")
    all_axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for axes, (title, methods) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(f"{title} (%)")
        axes.set_xlabel(x_label)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        for name, accuracies in methods.items():
            _ink(axes, name, list(methods), accuracies)
    handles, labels = all_axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _ink(axes: Axes, name: str, names: list[str], accuracies: np.ndarray) -> None:
    n_runs, n = accuracies.shape
    counts = np.arange(n, max(1, math.ceil(_FIRST * n)) - 1, -math.ceil(n / _MAX_POINTS))[::-1]
    accuracies = accuracies[:, counts - 1]
    mean = accuracies.mean(axis=0)
    error = accuracies.std(axis=0, ddof=1) / np.sqrt(n_runs) if n_runs > 1 else np.zeros_like(mean)
    is_baseline = name in BASELINES
    rank = [other for other in names if (other in BASELINES) == is_baseline].index(name)
    color = (_GREYS if is_baseline else _COLORS)[rank % (4 if is_baseline else len(_COLORS))]
    dashes = _DASHES[rank % len(_DASHES)] if is_baseline else "-"
    axes.plot(counts, mean, color=color, linestyle=dashes, lw=1.3, label=name)
    axes.fill_between(counts, mean - error, mean + error, color=color, alpha=0.2, lw=0)
