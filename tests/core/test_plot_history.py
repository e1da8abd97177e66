"""Plots of runs: the plotted numbers, the axes, and invalid arguments."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import OptimizeResult

from zoopt_nas import InvalidValueError, MissingDependencyError, minimize
from zoopt_nas.plots import plot_history

pytest.importorskip("matplotlib")


def run_of(*history: float) -> OptimizeResult:
    return OptimizeResult(fun=min(history), nfev=len(history), history=np.array(history))


def points_of(ax) -> list[list[tuple[float, float]]]:
    """The points of each line."""
    return [[tuple(point) for point in line.get_xydata().tolist()] for line in ax.lines]


def test_a_curve_is_the_best_value_so_far_at_its_corners():
    ax = plot_history(run_of(5, 7, 3, 3, 4, 1, 2, 2))
    assert points_of(ax) == [[(1, 5), (3, 3), (6, 1), (8, 1)]]  # with the end
    assert ax.lines[0].get_drawstyle() == "steps-post"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("evaluations", "best value")
    assert ax.get_legend() is None


@pytest.mark.parametrize("history", [(2.0,), (2.0, 1.0), (1.0, 2.0)])
def test_short_runs_have_their_ends(history):
    (points,) = points_of(plot_history(run_of(*history)))
    assert points[0] == (1, history[0])
    assert points[-1] == (len(history), min(history))


def test_a_curve_begins_where_evaluations_stop_failing():
    inf = math.inf
    (points,) = points_of(plot_history(run_of(inf, inf, 4, inf, 2)))
    assert math.isnan(points[0][1])
    assert points[1:] == [(3, 4), (5, 2)]


@pytest.mark.parametrize("fun_opt", [None, 0.0])
def test_a_run_that_only_failed_has_an_empty_curve(fun_opt):
    ax = plot_history({"failed": run_of(math.inf, math.inf), "ok": run_of(2, 1)}, fun_opt=fun_opt)
    failed, fine = points_of(ax)
    assert all(math.isnan(y) for _, y in failed)
    assert fine == [(1, 2), (2, 1)]
    ax = plot_history(run_of(math.inf, math.inf), fun_opt=fun_opt)
    assert ax.get_yscale() == "linear"


def test_differences_to_the_minimum_are_logarithmic_and_end_at_it():
    ax = plot_history(run_of(13, 11, 10, 9.5), fun_opt=10)
    (points,) = points_of(ax)
    assert points[:2] == [(1, 3), (2, 1)]
    assert all(math.isnan(y) for _, y in points[2:])
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "best value - minimum")


@pytest.mark.parametrize(
    ("history", "scale"),
    [
        ((100, 1), "log"),
        ((99, 1), "linear"),
        ((100, -1), "linear"),
        ((100, 0), "linear"),
        ((math.inf, 1e3, 1e-3), "log"),
    ],
)
def test_the_axis_is_logarithmic_where_positive_values_span_two_orders(history, scale):
    assert plot_history(run_of(*history)).get_yscale() == scale


def test_several_runs_have_a_line_and_a_label_each():
    ax = plot_history({"adaptive_gld": run_of(4, 2), "adaptive_mgs": run_of(3, 1, 0)})
    assert points_of(ax) == [[(1, 4), (2, 2)], [(1, 3), (2, 1), (3, 0)]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "adaptive_gld",
        "adaptive_mgs",
    ]


def test_a_run_of_minimize_into_given_axes(tmp_path):
    from matplotlib.figure import Figure

    result = minimize(
        lambda x: float((x**2).sum()), [1.0, -2.0], "adaptive_gld", maxfev=90, rng=0, history=True
    )
    ax = Figure().add_subplot()
    assert plot_history(result, ax=ax, fun_opt=0.0) is ax
    assert points_of(ax)[0][0] == (1, result.history[0])
    assert points_of(ax)[0][-1] == (90, result.fun)
    ax.figure.savefig(tmp_path / "history.svg")
    assert (tmp_path / "history.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (OptimizeResult(fun=1.0, nfev=2), r"^results must come from minimize\(..., history=True\)"),
        (
            {"adaptive_gld": OptimizeResult(fun=1.0, nfev=2)},
            r"^results\['adaptive_gld'\] must come from minimize",
        ),
        ({"adaptive_gld": 3}, r"^results\['adaptive_gld'\] must come from minimize"),
        ({}, r"^results must be a result of minimize or several by label, got {}"),
        ([1.0, 2.0], r"^results must be a result of minimize"),
    ],
)
def test_what_has_no_history_is_refused(results, message):
    with pytest.raises(InvalidValueError, match=message):
        plot_history(results)


@pytest.mark.parametrize("fun_opt", [math.nan, math.inf])
def test_the_minimum_must_be_finite(fun_opt):
    with pytest.raises(InvalidValueError, match=r"^fun_opt must be a finite number, got"):
        plot_history(run_of(2, 1), fun_opt=fun_opt)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'zoopt-nas\[plot\]'"):
        plot_history(run_of(2, 1))


def test_the_module_imports_no_matplotlib_and_drawing_no_pyplot():
    code = """
import sys
from scipy.optimize import OptimizeResult
from zoopt_nas.plots import plot_history
assert "matplotlib" not in sys.modules
plot_history(OptimizeResult(nfev=2, history=[2.0, 1.0]))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
