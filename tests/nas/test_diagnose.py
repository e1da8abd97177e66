"""Curves of run folders, and Q with base and perturbed losses trained alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zoopt_nas import nas, sampling
from zoopt_nas._arrays import as_generator
from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.analyses.diagnose import epoch_curves, run_condition_numbers
from zoopt_nas.nas.analyses.plots import draw_diagnostics
from zoopt_nas.nas.analyses.snapshot import Snapshot


@pytest.fixture
def searched(search_config, tmp_path):
    """A finished search; candidates one by one, so that losses are exact."""
    config = search_config(
        "mgs", epochs=2, warmup_epochs=1, track_eigenvalue=True, candidates_per_batch=1
    )
    return nas.RunFolder.open(nas.run_search(config, run_dir=tmp_path / "run").run_dir)


def test_curves_are_the_columns_of_the_run(searched):
    curves, rows = epoch_curves(searched), searched.rows("metrics.jsonl")
    assert (curves.n_samples, curves.epochs) == (2, [1, 2])
    assert curves.columns["n_effective"][0] is None  # the warm-up
    for name, column in curves.columns.items():
        assert column == [row.get(name) for row in rows]
    assert curves.columns["effective_ratio"][1] == pytest.approx(
        curves.columns["n_effective"][1] / 2
    )
    assert None not in curves.columns["eigenvalue"]
    assert curves.columns["selection_ratio"][1] == rows[1]["selection_ratio"] != 0


def test_condition_numbers_are_those_of_losses_trained_alike(searched):
    before = {path: path.read_bytes() for path in searched.path.iterdir()}
    found = run_condition_numbers(searched, n_directions=3, radii=[0.1, 0.5], n_draws=2, seed=1)
    assert {path: path.read_bytes() for path in searched.path.iterdir()} == before
    assert list(found) == ["sgd", "second", "first"]
    search = Snapshot(searched)
    alpha = search.alpha
    draws = search.draws(2, n_train=search.config.inner_steps, n_val=1, noise_seed=1)
    directions = sampling.sphere(as_generator(1, alpha), 3, alpha)
    objective = search._objective
    for name, used in (("sgd", draws), ("first", draws[:1])):
        for one, radius in zip(found[name], (0.1, 0.5), strict=True):
            losses = []
            for draw in used:
                for point in (alpha, *(alpha + radius * directions)):
                    network = objective.fit(point, draw) if name == "sgd" else objective.start()
                    with torch.no_grad():
                        losses.append(objective.val_loss(network, point, draw).item())
            base, *around = np.reshape(losses, (len(used), 4)).mean(0)
            largest = max(abs(loss - base) for loss in around)
            assert one.radius == radius
            assert one.value == pytest.approx(
                largest * float(alpha.norm()) / (radius * base), rel=1e-5
            )
    # Only the training batches are drawn: no step, no error over the draws.
    assert all(math.isnan(one.standard_error) for one in found["first"])
    assert all(one.standard_error > 0 for name in ("sgd", "second") for one in found[name])


def test_the_floor_falls_with_the_radius_where_nothing_is_trained(searched):
    # Without training, only the rounding of float32 makes the loss rough: a relative error of about
    # 1e-7, far below the slope at a radius of 1. At 1e-6 the rounding is all there is to see.
    near, far = run_condition_numbers(searched, n_directions=4, radii=[1e-6, 1.0], n_draws=1)[
        "first"
    ]
    assert far.floor == pytest.approx(1e-6 * near.floor)
    assert far.is_above_floor


def test_what_is_refused(searched):
    with pytest.raises(InvalidValueError, match=r"n_draws must be positive, got 0 and 4"):
        run_condition_numbers(searched, n_directions=0)
    with pytest.raises(InvalidValueError, match=r"n_draws must be positive, got 50 and 0"):
        run_condition_numbers(searched, n_draws=0)
    with pytest.raises(InvalidValueError, match=r"radii must be positive and finite, got 0.1, -1"):
        run_condition_numbers(searched, radii=[0.1, -1])
    with pytest.raises(InvalidValueError, match=r"radii must be positive and finite, got none"):
        run_condition_numbers(searched, radii=[])
    (searched.path / "checkpoint.pt").unlink()
    with pytest.raises(RunError, match="has no checkpoint yet"):
        run_condition_numbers(searched)
    (searched.path / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="no epoch to read yet"):
        epoch_curves(searched)


def test_the_figure_has_a_panel_for_each_known_column(searched):
    curves = epoch_curves(searched)
    panels = draw_diagnostics({"a": curves, "b": curves}).axes
    assert len(panels) == 4
    drawn = ("n_effective", "effective_ratio", "eigenvalue", "skip_connections")
    for axes, name in zip(panels, drawn, strict=True):
        assert [line.get_label() for line in axes.get_lines()] == ["a", "b"]
        assert axes.get_lines()[0].get_ydata()[-1] == curves.columns[name][-1]
    with pytest.raises(InvalidValueError, match="must hold curves"):
        draw_diagnostics({})
