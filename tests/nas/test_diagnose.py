"""Curves of run folders, and Q with base and perturbed losses fitted alike."""

from __future__ import annotations

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
    config = search_config("mgs", epochs=2, warmup_epochs=1, track_eigenvalue=True)
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


def test_condition_numbers_are_those_of_losses_fitted_alike(searched):
    before = {path: path.read_bytes() for path in searched.path.iterdir()}
    found = run_condition_numbers(searched, n_directions=3, radius=0.1, seed=1)
    assert {path: path.read_bytes() for path in searched.path.iterdir()} == before
    assert list(found) == ["sgd", "second", "first"]
    search = Snapshot(searched)
    draw = search.draw_once(search.config.inner_steps, 1, 1)
    alpha = search.alpha
    losses = []
    steps = 0.1 * sampling.sphere(as_generator(1, alpha), 3, alpha)
    objective = search._objective
    with torch.no_grad():
        for point in (alpha, *(alpha + steps)):
            losses.append(objective.val_loss(objective.start(), point, draw).item())
    base, around = losses[0], losses[1:]
    expected = max(abs(loss - base) for loss in around) * float(alpha.norm()) / (0.1 * base)
    assert found["first"] == pytest.approx(expected, rel=1e-3)
    assert found["sgd"] != found["first"]


def test_what_is_refused(searched):
    with pytest.raises(InvalidValueError, match=r"must be positive, got 0 and 0\.01"):
        run_condition_numbers(searched, n_directions=0)
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
    for axes, name in zip(panels, curves.columns, strict=True):
        assert [line.get_label() for line in axes.get_lines()] == ["a", "b"]
        assert axes.get_lines()[0].get_ydata()[-1] == curves.columns[name][-1]
    with pytest.raises(InvalidValueError, match="must hold curves"):
        draw_diagnostics({})
