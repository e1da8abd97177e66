"""A sweep runs every combination once, goes on after an interruption, and averages over seeds."""

from __future__ import annotations

import statistics

import pytest

from cell_tables import write_table
from zoopt_nas import nas
from zoopt_nas.errors import InvalidValueError, RunError, RunInterrupted, UnknownNameError
from zoopt_nas.nas.analyses import run_once as series
from zoopt_nas.nas.analyses.plots import draw_sweep
from zoopt_nas.nas.analyses.sweep import MeanStd, Sweep, SweepResult, run_sweep, summarize
from zoopt_nas.nas.tabular.table import TESTS, TRUE_ACCURACIES, CellTable

SEARCH = {
    "space": "small_s3",
    "algo": "mgs",
    "epochs": 2,
    "warmup_epochs": 0,
    "batch_size": 16,
    "init_channels": 2,
    "n_cells": 1,
    "inner_steps": 1,
    "device": "cpu",
}
TRAIN = {"epochs": 1, "batch_size": 16, "init_channels": 2, "n_cells": 1, "auxiliary": False}


@pytest.fixture
def make_sweep(npz, small_spaces):
    def make(**fields) -> Sweep:
        usual = {
            "vary": {"n_samples": (1, 2)},
            "seeds": (0, 1),
            "search": {"dataset": str(npz), **SEARCH},
        }
        return Sweep(**{**usual, **fields})

    return make


def test_a_run_for_each_combination_and_seed(make_sweep):
    vary = {"n_samples": (2, 8), "inner_steps": (1, 3), "sigma": (0.5,)}
    runs = make_sweep(vary=vary, seeds=(0, 7)).runs()
    assert [(run.point["n_samples"], run.point["inner_steps"], run.seed) for run in runs] == [
        (n, m, seed) for n in (2, 8) for m in (1, 3) for seed in (0, 7)
    ]
    for run in runs:
        assert run.config.solver["n_samples"] == run.point["n_samples"]
        assert run.config.solver["sigma"] == 0.5
        assert (run.config.inner_steps, run.config.seed) == (run.point["inner_steps"], run.seed)
        assert run.config.epochs == 2
    assert runs[0].name == "n_samples=2,inner_steps=1,sigma=0.5-seed0"
    methods = make_sweep(vary={"algo": ("rs", "darts1")}).runs()
    assert [run.config.algo for run in methods] == ["rs", "rs", "darts1", "darts1"]
    assert "temperature" not in methods[0].config.solver  # each method has its own options


def test_results_are_those_of_single_runs_and_are_kept(make_sweep, tmp_path, monkeypatch):
    sweep = make_sweep(train=TRAIN)
    results = list(run_sweep(sweep, tmp_path / "sweep"))
    assert [(result.point["n_samples"], result.seed) for result in results] == [
        *((1, 0), (1, 1), (2, 0), (2, 1))
    ]
    last = sweep.runs()[-1].config
    single = nas.run_search(last)
    retrained = nas.run_training(
        nas.TrainConfig.for_dataset(last.dataset, str(single.genotype), **TRAIN, seed=1).replace(
            device="cpu"
        )
    )
    numbers = results[-1].numbers
    for name in ("val_accuracy", "n_effective", "effective_ratio"):
        assert numbers[name] == single.metrics[-1][name]
    assert numbers["skip_connections"] == single.genotype.count("skip_connect")
    assert numbers["test_error"] == 1 - retrained.test_accuracy
    assert numbers["n_parameters"] == retrained.n_parameters
    for name in ("run_search", "resume_search", "run_training", "resume_training"):
        monkeypatch.setattr(series, name, None)  # nothing is done again
    assert list(run_sweep(sweep, tmp_path / "sweep")) == results
    assert list(run_sweep(Sweep.load(tmp_path / "sweep"), tmp_path / "sweep")) == results


def test_with_a_table_the_true_accuracies_are_averaged_too(npz, tmp_path):
    path = write_table(tmp_path / "table.csv")
    search = {**SEARCH, "dataset": str(npz), "space": "nasbench201", "n_cells": 3, "epochs": 1}
    search |= {"paths": "uniform", "table": str(path)}
    sweep = Sweep(vary={"algo": ("gld", "random")}, seeds=(0, 1), search=search)  # one trains
    results = list(run_sweep(sweep, tmp_path / "sweep"))
    table = CellTable.load(path)
    for result in results:
        cell = nas.RunFolder.open(tmp_path / "sweep" / result.name).genotype()
        for name, column in zip(TRUE_ACCURACIES, TESTS, strict=True):
            assert result.numbers[name] == table.accuracy(str(cell), column) / 100
    assert results[0].numbers["evaluations"] >= 1
    for (_, numbers), of_seeds in zip(summarize(results), (results[:2], results[2:]), strict=True):
        both = [result.numbers["true_cifar10"] for result in of_seeds]
        assert numbers["true_cifar10"].mean == statistics.fmean(both)


class StopAfter(nas.Observer):
    def __init__(self, n_steps: int) -> None:
        self.n_left = n_steps

    def should_stop(self) -> bool:
        self.n_left -= 1
        return self.n_left < 0


def test_an_interrupted_sweep_ends_as_one_that_was_not(make_sweep, tmp_path):
    sweep = make_sweep(vary={"inner_steps": (1, 2)}, seeds=(3,))
    done = []
    with pytest.raises(RunInterrupted, match="epoch 2 of 2"):
        # Each search has 2 epochs of 2 steps: it stops in the second epoch of the second search.
        done.extend(run_sweep(sweep, tmp_path / "stopped", observer=StopAfter(7)))
    resumed = list(run_sweep(sweep, tmp_path / "stopped"))
    whole = list(run_sweep(sweep, tmp_path / "whole"))
    for a, b in zip(resumed, whole, strict=True):
        assert a.name == b.name
        assert {**a.numbers, "seconds": 0} == {**b.numbers, "seconds": 0}


def test_means_and_deviations_over_seeds():
    def result(n: int, seed: int, **numbers: float) -> SweepResult:
        return SweepResult({"n_samples": n}, seed, f"{n}-{seed}", numbers)

    rows = summarize(
        [
            *(result(2, 0, error=0.1, n_effective=1.5), result(2, 1, error=0.2)),
            *(result(2, 2, error=0.6), result(4, 0, error=0.3)),
        ]
    )
    assert [point for point, _ in rows] == [{"n_samples": 2}, {"n_samples": 4}]
    assert rows[0][1]["error"] == MeanStd(
        pytest.approx(0.3), pytest.approx(statistics.stdev([0.1, 0.2, 0.6])), 3, 0.1
    )
    assert rows[0][1]["n_effective"] == MeanStd(1.5, None, 1, 1.5)
    assert rows[1][1] == {"error": MeanStd(0.3, None, 1, 0.3)}


def test_what_is_refused_before_anything_is_run(make_sweep):
    with pytest.raises(InvalidValueError, match="vary must name a setting"):
        make_sweep(vary={})
    with pytest.raises(InvalidValueError, match=r"n_samples must have .*, got \[2, 2\]"):
        make_sweep(vary={"n_samples": (2, 2)})
    with pytest.raises(InvalidValueError, match=r"seeds must have .*, got \[\]"):
        make_sweep(seeds=())
    with pytest.raises(InvalidValueError, match="seed must be left to seeds"):
        make_sweep(vary={"seed": (1, 2)})
    with pytest.raises(UnknownNameError, match="did you mean 'sigma'"):
        make_sweep(vary={"sigmaa": (1, 2)})
    with pytest.raises(UnknownNameError, match="unknown setting of darts1 'n_samples'"):
        make_sweep(vary={"n_samples": (1,), "algo": ("darts1",)})
    with pytest.raises(InvalidValueError, match="inner_steps must be at least 0, got -1"):
        make_sweep(vary={"inner_steps": (1, -1)})
    with pytest.raises(UnknownNameError, match="unknown space 'small_s5'"):
        make_sweep(vary={"space": ("small_s5",)})
    for space, algo, message in (
        ("nasbench201", "sgas", "space must have cells that keep some of their edges with sgas"),
        ("s3", "merge_nas", "merge_kernels must be false in space s3"),
        ("s3", "adaptive_gld", "algo must not compare values of different updates"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            make_sweep(vary={"space": (space,), "algo": ("darts1", algo)})
    with pytest.raises(InvalidValueError, match="weights must be shared with darts1"):
        make_sweep(vary={"algo": ("darts1",), "weights": ("fresh",)})
    with pytest.raises(InvalidValueError, match="epochs must be a positive integer, got 0"):
        make_sweep(train={"epochs": 0})


def test_a_folder_of_something_else_is_left_alone(make_sweep, tmp_path):
    sweep = make_sweep(vary={"inner_steps": (1,)}, seeds=(0,))
    list(run_sweep(sweep, tmp_path / "sweep"))
    with pytest.raises(RunError, match="is a sweep with other seeds"):
        next(run_sweep(make_sweep(vary={"inner_steps": (1,)}), tmp_path / "sweep"))
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"it has no sweep\.toml"):
        next(run_sweep(sweep, tmp_path / "other"))
    assert list((tmp_path / "other").iterdir()) == []
    for text in ("kind = 'search'", "kind = 'sweep'", "[", "kind='sweep'\nvary=1\nseeds=[0]"):
        (tmp_path / "other" / "sweep.toml").write_text(text)
        with pytest.raises(RunError, match=r"sweep\.toml: "):
            Sweep.load(tmp_path / "other")


def test_the_figure_has_means_and_bars():
    rows = [
        (
            {"n_samples": n},
            {
                "test_error": MeanStd(n / 100, 0.001, 3, n / 100),
                "n_parameters": MeanStd(n * 1e6, None, 1, n * 1e6),
            },
        )
        for n in (2, 4)
    ]
    error, size = draw_sweep(rows).axes
    assert list(error.containers[0].lines[0].get_ydata()) == [2.0, 4.0]
    (bars,) = error.containers[0].lines[2]
    heights = [path.vertices[1, 1] - path.vertices[0, 1] for path in bars.get_paths()]
    assert heights == pytest.approx([0.2, 0.2])
    assert list(size.containers[0].lines[0].get_ydata()) == [2.0, 4.0]
    assert [label.get_text() for label in size.get_xticklabels()] == ["2", "4"]
    assert size.get_xlabel() == "n_samples"
    accuracy = [({"algo": "rs"}, {"val_accuracy": MeanStd(0.5, None, 1, 0.5)})]
    assert draw_sweep(accuracy).axes[0].get_title() == "Supernet val. accuracy (%)"
    with pytest.raises(InvalidValueError, match="must hold a combination"):
        draw_sweep([])


def test_the_file_keeps_the_sweep(make_sweep, tmp_path):
    sweep = make_sweep(train={}, command="zoopt-nas sweep")
    assert Sweep.from_toml(sweep.to_toml()) == sweep
    assert Sweep.from_toml(make_sweep().to_toml()).train is None
