"""The picture of BBOB results: runtime ECDFs, one panel for each dimension and one for all."""

from __future__ import annotations

from collections.abc import Sequence

from bbob_suite import BBOBResult
from matplotlib.figure import Figure

from zoopt_nas import InvalidValueError

# Okabe and Ito's colours, which the colour-blind tell apart; then the line styles change.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")


def draw_ecdf(results: Sequence[BBOBResult]) -> Figure:
    """Fraction of the targets reached against evaluations per dimension, a line for each result.

    Args:
        results: all of the same suite; the legend names their ``method`` and score, best first.

    Returns:
        A figure that belongs to no window: ``figure.savefig(...)`` writes it.

    Raises:
        InvalidValueError: there is no result, or the suites differ.
    """
    if not results or any(result.suite != results[0].suite for result in results):
        raise InvalidValueError("results must be at least one, all of the same suite")
    suite = results[0].suite
    panels: list[tuple[str, Sequence[int]]] = [(f"{dim}-D", [dim]) for dim in suite.dims]
    if len(suite.dims) > 1:
        panels.append(("all", suite.dims))
    n_columns = 2 if len(panels) == 4 else min(len(panels), 3)
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(max(3.2 * n_columns, 4.0), 2.6 * n_rows + 0.6), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    ranked = sorted(results, key=lambda result: -result.score)
    for axes, (title, dims) in zip(grid.flat, panels, strict=False):
        for i, result in enumerate(ranked):
            budgets, fractions = result.ecdf(dims=dims)
            axes.plot(
                budgets,
                fractions,
                color=_COLORS[i % len(_COLORS)],
                linestyle=_LINE_STYLES[i // len(_COLORS) % len(_LINE_STYLES)],
                label=f"{result.method} ({result.score:.3f})",
            )
        axes.set(title=title, xscale="log")
        axes.set_ylim(0, None)
        axes.tick_params(labelbottom=True)  # also above a panel that is left empty
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("evaluations / dimension")
    figure.supylabel("fraction of targets reached")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=n_columns, fontsize="small")
    return figure
