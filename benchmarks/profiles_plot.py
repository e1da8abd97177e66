"""The picture of the profiles: a row of performance profiles above one of data profiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from profiles_scores import end, performance_ratios, profile, simplex_gradients, work
from profiles_suite import Result

from zoopt_nas import InvalidValueError

# Okabe and Ito's colours, which the colour-blind tell apart; then the line styles change.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")


def draw_profiles(results: Sequence[Result], tolerance: float) -> Figure:
    """Draw the profiles of each feature at a tolerance, a line for each method.

    Args:
        results: of the same problems.
        tolerance: of the target, in (0, 1).

    Returns:
        A figure that belongs to no window: ``figure.savefig(...)`` writes it.

    Raises:
        InvalidValueError: there is no result.
    """
    if not results:
        raise InvalidValueError("results must be at least one")
    features = list(results[0].progress)
    figure = Figure(figsize=(max(2.2 * len(features), 5.0), 5.2), layout="constrained")
    grid = figure.subplots(2, len(features), squeeze=False, sharey=True)
    for j, feature in enumerate(features):
        runs = [result.progress[feature] for result in results]
        needed = work(runs, tolerance)
        dims = np.array([run.dim for run in runs[0]])
        kinds = (performance_ratios(needed), simplex_gradients(needed, dims))
        for axes, ratios in zip(grid[:, j], kinds, strict=True):
            for i, (result, row) in enumerate(zip(results, ratios, strict=True)):
                at = np.unique([0.0, *row[np.isfinite(row)], end(ratios)])
                fractions = profile(row[None, :], at)[0]
                axes.plot(
                    2**at,
                    fractions,
                    drawstyle="steps-post",
                    linewidth=1,
                    color=_COLORS[i % len(_COLORS)],
                    linestyle=_LINE_STYLES[i // len(_COLORS) % len(_LINE_STYLES)],
                    label=result.method,
                )
            axes.set_xscale("log", base=2)
            axes.grid(alpha=0.3)
        grid[0, j].set_title(feature, fontsize="medium")
    grid[0, 0].set_ylabel("performance profile")
    grid[1, 0].set_ylabel("data profile")
    for axes in grid[0]:
        axes.set_xlabel("work / least work", fontsize="small")
    for axes in grid[1]:
        axes.set_xlabel("1 + evaluations / (n + 1)", fontsize="small")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize="small")
    return figure
