"""The networks of every k-th epoch are retrained once each, and kept."""

from __future__ import annotations

import json

import pytest

from zoopt_nas import nas
from zoopt_nas.errors import InvalidValueError, RunError, RunInterrupted, UnknownNameError
from zoopt_nas.nas.analyses import run_once as series
from zoopt_nas.nas.analyses.convergence import plan_retrainings, run_retrainings
from zoopt_nas.nas.analyses.plots import draw_convergence

TINY = {"epochs": 1, "batch_size": 16, "init_channels": 2, "n_cells": 1, "auxiliary": False}


@pytest.fixture
def searched(search_config, tmp_path):
    """The folder of a search of four epochs."""
    config = search_config("gld", epochs=4, warmup_epochs=0, seed=2)
    return nas.RunFolder.open(nas.run_search(config, run_dir=tmp_path / "run").run_dir)


def test_a_plan_takes_every_kth_epoch_with_the_data_of_the_search(searched):
    plan = plan_retrainings(searched, every=2, **TINY)
    assert [step.epoch for step in plan] == [2, 4]
    architectures, metrics = searched.rows("architectures.jsonl"), searched.rows("metrics.jsonl")
    for step in plan:
        row = step.epoch - 1
        genotype = nas.Genotype.from_dict(architectures[row]["genotype"])
        assert step.config.genotype == str(genotype)
        assert step.val_accuracy == metrics[row]["val_accuracy"]
        assert (step.config.seed, step.config.device, step.config.epochs) == (2, "cpu", 1)
        assert step.config.dataset == searched.config(nas.SearchConfig).dataset
    assert [step.epoch for step in plan_retrainings(searched, every=3, **TINY)] == [3]


def test_points_are_the_results_of_the_retrainings_and_are_kept(searched, monkeypatch):
    plan = plan_retrainings(searched, every=2, **TINY)
    points = list(run_retrainings(plan))
    assert [point.epoch for point in points] == [2, 4]
    for point, step in zip(points, plan, strict=True):
        result = json.loads((step.run_dir / "result.json").read_text())
        assert point.test_accuracy == result["test_accuracy"]
        assert point.n_parameters == result["n_parameters"]
        assert point.genotype == result["genotype"] == step.config.genotype
        genotype = nas.Genotype.load(point.genotype)
        assert point.skip_connections == genotype.count("skip_connect")
    monkeypatch.setattr(series, "run_training", None)  # nothing is trained again
    monkeypatch.setattr(series, "resume_training", None)
    assert list(run_retrainings(plan_retrainings(searched, every=2, **TINY))) == points


def test_epochs_with_one_genotype_share_a_retraining(searched):
    rows = searched.rows("architectures.jsonl")
    for row in rows:
        row["genotype"] = rows[0]["genotype"]
    searched.write("architectures.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    plan = plan_retrainings(searched, every=1, **TINY)
    assert {step.run_dir.name for step in plan} == {"epoch-001"}
    points = list(run_retrainings(plan))
    assert [point.epoch for point in points] == [1, 2, 3, 4]
    assert len({point.test_accuracy for point in points}) == 1
    assert [path.name for path in (searched.path / "convergence").iterdir()] == ["epoch-001"]


class StopAtOnce(nas.Observer):
    def should_stop(self) -> bool:
        return True


def test_an_interrupted_retraining_ends_as_one_that_was_not(searched):
    plan = plan_retrainings(searched, every=4, **TINY)
    with pytest.raises(RunInterrupted, match="epoch 1 of 1"):
        list(run_retrainings(plan, observer=StopAtOnce()))
    assert (plan[0].run_dir / "checkpoint.pt").is_file()
    (resumed,) = run_retrainings(plan)
    (whole,) = run_retrainings(plan_retrainings(searched, every=4, name="whole", **TINY))
    assert resumed.run_dir != whole.run_dir
    assert (resumed.test_accuracy, resumed.genotype) == (whole.test_accuracy, whole.genotype)


def test_what_is_refused(searched, train_config, tmp_path):
    with pytest.raises(InvalidValueError, match="every must be a positive integer, got 0"):
        plan_retrainings(searched, every=0)
    with pytest.raises(InvalidValueError, match=r"every must be at most .* \(4\), got 5"):
        plan_retrainings(searched, every=5)
    with pytest.raises(UnknownNameError, match="did you mean 'epochs'"):
        plan_retrainings(searched, every=4, epoch=3)
    plan = plan_retrainings(searched, every=4, **TINY)
    list(run_retrainings(plan))
    other = plan_retrainings(searched, every=4, **{**TINY, "epochs": 2})
    with pytest.raises(RunError, match="is a run with epochs 1, not 2"):
        list(run_retrainings(other))
    (plan[0].run_dir / "result.json").write_text('{"genotype": 1}')
    with pytest.raises(RunError, match="not the result of a retraining"):
        list(run_retrainings(plan))


def test_a_search_is_done_once_and_goes_on(search_config, tmp_path, monkeypatch):
    config = search_config("gld")
    with pytest.raises(RunInterrupted):
        series.search_once(config, tmp_path / "run", observer=StopAtOnce())
    folder = series.search_once(config, tmp_path / "run")
    assert folder.genotype() == nas.run_search(config).genotype
    monkeypatch.setattr(series, "resume_search", None)
    assert series.search_once(config, tmp_path / "run") == folder
    with pytest.raises(RunError, match="is a run with seed 0, not 1"):
        series.search_once(config.replace(seed=1), tmp_path / "run")


def test_the_figure_draws_accuracy_and_size_of_each_run(searched):
    points = list(run_retrainings(plan_retrainings(searched, every=2, **TINY)))
    figure = draw_convergence({"gld": points, "darts1": points[:1]})
    accuracy, size = figure.axes
    drawn = [(line.get_label(), list(line.get_xdata())) for line in accuracy.get_lines()]
    assert drawn == [("gld", [2, 4]), ("darts1", [2])]
    expected = [100 * point.test_accuracy for point in points]
    assert list(accuracy.get_lines()[0].get_ydata()) == expected
    expected = [point.n_parameters / 1e6 for point in points]
    assert list(size.get_lines()[0].get_ydata()) == expected
    assert len({line.get_color() for line in size.get_lines()}) == 2
    assert len({line.get_linestyle() for line in size.get_lines()}) == 2
    with pytest.raises(InvalidValueError, match="must hold a point"):
        draw_convergence({"gld": []})
