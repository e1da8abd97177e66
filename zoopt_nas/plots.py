"""Plots of runs of ``minimize``; requires ``pip install 'zoopt-nas[plot]'``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoopt_nas.errors import InvalidValueError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Without `fun_opt`, positive values get a logarithmic axis if they span at least this ratio.
_LOG_RATIO = 100.0


def plot_history(results: Any, *, ax: Axes | None = None, fun_opt: float | None = None) -> Axes:
    """Plot the best value so far against the number of evaluations.

    Example:
        >>> import zoopt_nas
        >>> from zoopt_nas.plots import plot_history
        >>> from zoopt_nas.problems import sphere
        >>> runs = {
        ...     name: zoopt_nas.minimize(sphere(5), [1.0] * 5, name, rng=0, history=True)
        ...     for name in ("adaptive_mgs", "adaptive_gld")
        ... }
        >>> ax = plot_history(runs, fun_opt=0.0)
        >>> ax.figure.savefig("history.svg")

    Args:
        results: a result of ``minimize(..., history=True)``, or several by label:
            ``{"cma": result, "auto": other}``.
        ax: the axes to draw into. Default: a new figure outside of pyplot.
        fun_opt: the known minimum of the function. The difference to it is then plotted on a
            logarithmic axis; a curve ends where the difference is 0 or less. Without it, the axis
            is logarithmic if all values are positive and span two orders of magnitude.

    Returns:
        The axes; ``ax.figure.savefig`` saves the figure.

    Raises:
        InvalidValueError: a history is missing, there is no result, or ``fun_opt`` is not finite.
        MissingDependencyError: matplotlib is not installed.
    """
    if fun_opt is not None and not math.isfinite(fun_opt):
        raise InvalidValueError(f"fun_opt must be a finite number, got {fun_opt}")
    curves = {label: _best_so_far(label, run) for label, run in _by_label(results).items()}
    if ax is None:
        ax = _new_axes()
    lowest, highest = math.inf, -math.inf
    for label, best in curves.items():
        nfev, values = _corners(best)
        if fun_opt is not None:
            values = values - fun_opt
            values[values <= 0] = math.nan
        values[np.isinf(values)] = math.nan
        lowest = min(lowest, np.nanmin(values, initial=math.inf))
        highest = max(highest, np.nanmax(values, initial=-math.inf))
        ax.plot(nfev, values, drawstyle="steps-post", label=label or None)
    is_wide = 0 < _LOG_RATIO * lowest <= highest
    if is_wide or (fun_opt is not None and highest > 0):
        ax.set_yscale("log")
    ax.set_xlabel("evaluations")
    ax.set_ylabel("best value" if fun_opt is None else "best value - minimum")
    if any(curves):
        ax.legend()
    return ax


def _by_label(results: Any) -> dict[str, Any]:
    """Return the results by label; a single result gets an empty label."""
    if not isinstance(results, Mapping) or not results:
        raise InvalidValueError(
            f"results must be a result of minimize or several by label, got {results!r}"
        )
    if "nfev" in results:
        return {"": results}
    return {str(label): run for label, run in results.items()}


def _best_so_far(label: str, run: Any) -> np.ndarray:
    """Return the running minimum, (nfev,); +inf until the first success."""
    history = run.get("history") if isinstance(run, Mapping) else None
    if history is None:
        name = f"results[{label!r}]" if label else "results"
        raise InvalidValueError(
            f"{name} must come from minimize(..., history=True), got a result without history"
        )
    return np.minimum.accumulate(np.asarray(history, dtype=np.float64))


def _corners(best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the evaluation numbers and values at which ``best`` changes, and its two ends."""
    is_corner = np.ones(len(best), dtype=bool)
    is_corner[1:-1] = best[1:-1] != best[:-2]
    rows = np.flatnonzero(is_corner)
    return rows + 1, best[rows]


def _new_axes() -> Axes:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "plots need matplotlib: pip install 'zoopt-nas[plot]'"
        ) from error
    return Figure(figsize=(6.4, 4.0), layout="constrained").add_subplot()
