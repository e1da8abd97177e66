"""Pictures of runs of ``minimize``. Needs matplotlib: ``pip install 'zoopt-nas[plot]'``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoopt_nas.errors import InvalidValueError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Without `fun_opt`, values that are all positive get a logarithmic axis from this ratio on.
_LOG_RATIO = 100.0


def plot_history(results: Any, *, ax: Axes | None = None, fun_opt: float | None = None) -> Axes:
    """Draws the best value so far against the number of evaluations.

    The curve of a run is a staircase, because the best value holds until a better one comes. It
    begins at the first evaluation that did not fail.

    Example:
        >>> import zoopt_nas
        >>> from zoopt_nas.plots import plot_history
        >>> from zoopt_nas.problems import sphere
        >>> runs = {
        ...     name: zoopt_nas.minimize(sphere(5), [1.0] * 5, name, rng=0, history=True)
        ...     for name in ("adaptive_mgs", "adaptive_gld")
        ... }
        >>> ax = plot_history(runs, fun_opt=0.0)
        >>> ax.figure.savefig("history.svg")  # doctest: +SKIP

    Args:
        results: a result of ``minimize(..., history=True)``, or several by label:
            ``{"cma": result, "auto": other}``.
        ax: matplotlib axes to draw into. Default: those of a new figure, which belongs to no window
            and no pyplot state.
        fun_opt: the minimum of the function, if it is known. The differences to it are then drawn
            on a logarithmic axis, which has no place for a difference of 0 or less: there the curve
            ends. Without it the axis is logarithmic if all values are positive and span two orders
            of magnitude.

    Returns:
        The axes, to be labelled further or saved by ``ax.figure.savefig``.

    Raises:
        InvalidValueError: a result has no history, there is no result, or ``fun_opt`` is not
            finite.
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
    """The results by label; a single one, itself a mapping of its fields, has an empty label."""
    if isinstance(results, Mapping) and results and "nfev" not in results:
        return {str(label): run for label, run in results.items()}
    if isinstance(results, Mapping) and results:
        return {"": results}
    raise InvalidValueError(
        f"results must be a result of minimize or several by label, got {results!r}"
    )


def _best_so_far(label: str, run: Any) -> np.ndarray:
    """(nfev,), the least of the first values; +inf as long as all have failed."""
    history = run.get("history") if isinstance(run, Mapping) else None
    if history is None:
        name = f"results[{label!r}]" if label else "results"
        raise InvalidValueError(
            f"{name} must be of minimize(..., history=True), got one without history"
        )
    return np.minimum.accumulate(np.asarray(history, dtype=np.float64))


def _corners(best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a staircase changes, and its end: runs of a million evaluations have few corners.

    Args:
        best: (nfev,), not rising.

    Returns:
        Numbers of evaluations, from 1, and the values there.
    """
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
