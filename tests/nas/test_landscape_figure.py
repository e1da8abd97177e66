"""The figure and the summary of a landscape."""

from __future__ import annotations

import json

import numpy as np
import pytest

from zoopt_nas.nas.analyses.landscape.figure import draw_landscape
from zoopt_nas.nas.analyses.landscape.plane import Landscape, LandscapeSettings, Plane, Track


def toy(**fields) -> Landscape:
    """A landscape whose minimum is at x = 0.4, y = -0.2."""
    settings = LandscapeSettings(inner=("first", "3"), step=0.1, paths=("gld",))
    x, y = np.meshgrid(settings.axis, settings.axis, indexing="ij")
    values = (x - 0.4) ** 2 + 3 * (y + 0.2) ** 2
    track = Track(np.array([[-0.5, 0.5], [0.1, 0.2]]), np.array([2.0, 1.0]))
    made = {
        "settings": settings,
        "epoch": 3,
        "val_batches": 2,
        "axis": settings.axis,
        "plane": Plane.random(np.zeros(4), 0),
        "panels": {"first": values, "3": values.T},
        "tracks": {"gld": track},
    }
    return Landscape(**(made | fields))


def test_the_figure_has_direction_1_to_the_right():
    figure = draw_landscape(toy())
    first, second, paths, _ = figure.axes
    titles = ["(a) first order: ω* = ω", "(b) 3 steps", "(c) paths, on 3 steps"]
    assert [axes.get_title() for axes in (first, second, paths)] == titles
    assert (first.get_xlabel(), first.get_ylabel()) == ("direction 1", "direction 2")
    for axes, minimum in ((first, (0.4, -0.2)), (second, (-0.2, 0.4)), (paths, (-0.2, 0.4))):
        (star,) = [line for line in axes.lines if line.get_gid() == "minimum"]
        assert star.get_xydata()[0] == pytest.approx(minimum)
        (contours,) = [part for part in axes.collections if part.get_gid() == "contours"]
        inner = next(path for path in contours.get_paths() if len(path.vertices))
        assert inner.vertices.mean(axis=0) == pytest.approx(minimum, abs=0.1)
    (line,) = [line for line in paths.lines if line.get_gid() == "path-gld"]
    assert line.get_xydata().tolist() == [[-0.5, 0.5], [0.1, 0.2]]
    assert [text.get_text() for text in paths.get_legend().get_texts()] == ["gld"]


def test_panels_share_their_contour_levels():
    one = toy()
    figure = draw_landscape(
        toy(panels={"first": one.panels["first"], "3": 0.1 * one.panels["3"]}, tracks={})
    )
    levels, n_lines = [], []
    for axes in figure.axes[:2]:
        (contours,) = [part for part in axes.collections if part.get_gid() == "contours"]
        levels.append(contours.levels.tolist())
        n_lines.append(sum(len(path.vertices) > 0 for path in contours.get_paths()))
    assert levels[0] == levels[1]
    assert n_lines[0] > 5 * n_lines[1] > 0  # the flatter panel has fewer


def test_a_flat_landscape_and_missing_points_are_drawn():
    values = np.ones((21, 21))
    values[3, 4] = np.nan
    figure = draw_landscape(toy(panels={"first": values, "3": values}, tracks={}))
    assert len(figure.axes) == 3


def test_the_summary():
    summary = toy().summary()
    assert summary["reference"] == "3"
    assert summary["batch_norm"] == "batch statistics"
    assert (summary["epoch"], summary["settings"]["val_batches"]) == (3, 2)
    first, third = summary["panels"]["first"], summary["panels"]["3"]
    assert first["minimum"] == pytest.approx([0.4, -0.2])
    assert first["eigenvalues"] == pytest.approx([2, 6])
    assert first["distance_to_reference"] == pytest.approx(np.hypot(0.6, 0.6))
    assert third["distance_to_reference"] == 0
    path = summary["paths"]["gld"]
    assert (path["start"], path["end"]) == ([-0.5, 0.5], [0.1, 0.2])
    assert (path["start_value"], path["end_value"]) == (2.0, 1.0)
    assert path["distance_to_minimum"] == pytest.approx(np.hypot(0.3, 0.2))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_a_summary_has_no_nan():
    values = np.full((21, 21), np.nan)
    values[10, 12] = 1.0
    summary = toy(panels={"first": values, "3": values}, tracks={}).summary()
    assert summary["panels"]["first"]["mean_gradient_norm"] is None
    assert summary["panels"]["first"]["eigenvalues"] == [None, None]
