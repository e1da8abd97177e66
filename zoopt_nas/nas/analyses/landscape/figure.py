"""The figure of a loss landscape: contours for each approximation, and the paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoopt_nas.nas.analyses.landscape.plane import Landscape, Track
from zoopt_nas.nas.analyses.landscape.sharpness import Array, Sharpness
from zoopt_nas.nas.drawing.figures import STYLE, label_size

_N_LEVELS = 24  # contours between the lowest and the highest loss of all panels
_TITLES = {"first": "first order: ω* = ω", "second": "second order: one step"}
# Okabe and Ito's colours, and markers for greyscale print.
_LINES = {
    "darts1": ("#D55E00", "o"),
    "darts2": ("#E69F00", "v"),
    "rs": ("#0072B2", "s"),
    "mgs": ("#009E73", "^"),
    "gld": ("#CC79A7", "D"),
}
_STAR = "#C00000"


@matplotlib.rc_context(STYLE)
def draw_landscape(landscape: Landscape) -> Figure:
    """Draw the panels side by side, and one more with the paths if there are any (Fig. 1 and 3).

    The axes are the two directions of the plane. All panels have the same contour levels, so denser
    contours mean a sharper landscape. A star marks the minimum of the grid, a cross the alpha of
    the search. Paths are clipped at the border.
    """
    measures = landscape.sharpness()
    panels: list[tuple[str, str, Mapping[str, Track]]] = [
        (name, _TITLES.get(name, f"{name} steps"), {}) for name in landscape.panels
    ]
    reference = landscape.settings.reference
    if landscape.tracks and reference is not None:
        panels.append((reference, f"paths, on {reference} steps", landscape.tracks))
    levels = _common_levels(list(landscape.panels.values()))
    figure = Figure(figsize=(3.0 * len(panels) + 0.7, 3.3), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for i, (axes, (name, title, tracks)) in enumerate(zip(row, panels, strict=True)):
        axes.set_title(f"({chr(ord('a') + i)}) {title}")
        filled = _ink_contours(axes, landscape.axis, landscape.panels[name], levels)
        _ink_marks(axes, measures[name])
        for method, track in tracks.items():
            _ink_track(axes, method, track)
        if tracks:
            axes.legend(fontsize=7, loc="best")
        limit = float(landscape.axis[-1])
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="direction 1")
    row[0].set_ylabel("direction 2")
    figure.colorbar(filled, ax=list(row), label="validation loss", fraction=0.04, pad=0.02)
    label_size(figure, landscape.reduced)
    return figure


def _common_levels(grids: Sequence[Array]) -> Array:
    known = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    low, high = float(known.min()), float(known.max())
    margin = 0.0 if high > low else 1e-3 * max(abs(low), 1.0)  # for a flat landscape
    levels = MaxNLocator(_N_LEVELS).tick_values(low - margin, high + margin)
    return np.asarray(levels, dtype=np.float64)


def _ink_contours(axes: Axes, axis: Array, values: Array, levels: Array) -> Any:
    z = np.ma.masked_invalid(values.T)  # matplotlib's rows run along y
    filled = axes.contourf(axis, axis, z, levels=levels, cmap="viridis")
    lines = axes.contour(axis, axis, z, levels=levels, colors="white", linewidths=0.5)
    lines.set_gid("contours")
    return filled


def _ink_marks(axes: Axes, measure: Sharpness) -> None:
    axes.plot(0.0, 0.0, "+", color="white", ms=8, mew=1.2, gid="centre")
    x, y = measure.minimum
    style: dict[str, Any] = {"color": _STAR, "mec": "white", "ms": 13, "mew": 0.8, "zorder": 4}
    axes.plot(x, y, "*", clip_on=False, gid="minimum", **style)


def _ink_track(axes: Axes, method: str, track: Track) -> None:
    color, marker = _LINES[method]
    x, y = track.coordinates.T
    axes.plot(x, y, marker=marker, color=color, ms=3, lw=1.2, label=method, gid=f"path-{method}")
