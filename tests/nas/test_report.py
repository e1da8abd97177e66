"""Reports: which runs count, what their numbers are, and where they stand."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import searching, write_both, write_search, write_three_seeds, write_training

from zoopt_nas.errors import RunError
from zoopt_nas.nas.analyses.sweep import Sweep
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.reports.collect import Collection, collect
from zoopt_nas.nas.reports.page import Report
from zoopt_nas.nas.reports.pictures import Gallery
from zoopt_nas.nas.reports.published import TABLES
from zoopt_nas.nas.reports.tables import duration, make_tables, mean_and_std
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.settings.config import TrainConfig

BY_KEY = {table.key: table for table in TABLES}


def measured(found: Collection, key: str) -> list[dict[str, str]]:
    """The measured rows of a table, by column."""
    (table,) = (table for table in make_tables(found) if table.key == key)
    return [
        dict(zip(table.columns, (cell.text for cell in row), strict=True))
        for row, known in zip(table.rows, table.is_measured, strict=True)
        if known
    ]


def keys_with_measurements(found: Collection) -> set[str]:
    return {table.key for table in make_tables(found) if table.n_measured}


@pytest.fixture
def three_seeds(tmp_path) -> Path:
    return write_three_seeds(tmp_path / "runs")


# ------------------------------------------------------------------------ the published figures


def test_the_published_tables_are_whole():
    sizes = {key: len(table.lines) for key, table in BY_KEY.items()}
    n_nasbench201 = 3 * 23
    assert sizes == {
        **{"table2": 12 * 8, "table3": 23, "table4": 17, "table5": 4, "table6": 4},
        **{"table7": 12 * 5, "nasbench201": n_nasbench201},
    }


def test_tables_that_publish_one_number_twice_agree():
    def figure(key: str, *labels: str) -> str:
        (line,) = (line for line in BY_KEY[key].lines if line.labels == labels)
        return line.figure

    default = figure("table3", "cifar10", "average", "ZARTS")
    assert default == figure("table5", "4") == figure("table6", "10") == "2.54 ± 0.07"
    assert figure("table2", "cifar10", "s1", "ZARTS-GLD") == "2.50"
    assert figure("table2", "svhn", "s4", "ZARTS-GLD") == "2.53"
    assert figure("table7", "cifar100", "s4", "SDARTS-ADV") == "15.46"
    assert figure("table4", "ZARTS (5.6M)") == "24.3"
    assert figure("nasbench201", "imagenet16", "GDAS") == "41.71 ± 0.98"


@pytest.mark.parametrize("key", BY_KEY)
def test_every_figure_is_a_percentage_and_every_method_exists(key):
    for line in BY_KEY[key].lines:
        mean, *deviation = map(float, line.figure.split(" ± "))
        assert 0 < mean < 100
        assert all(0 < one < 20 for one in deviation)
        assert set(line.methods) <= set(METHODS)
        assert len(line.labels) == len(BY_KEY[key].columns)
        assert len(line.others) == len(BY_KEY[key].others)


# ------------------------------------------------------------------------ which runs count


def test_seeds_become_mean_deviation_best_and_n(three_seeds):
    errors = [3.0, 4.0, 2.6]
    (row,) = measured(collect([three_seeds]), "table2")
    assert row["published error %"] == "2.65"
    assert row["published as"] == "ZARTS-MGS"
    mean, std = statistics.fmean(errors), statistics.stdev(errors)
    assert row["measured mean ± std"] == f"{mean:.2f} ± {std:.2f}"
    assert (row["best"], row["n"], row["seeds"]) == ("2.60", "3", "0, 1, 2")
    assert (row["parameters (M)"], row["hardware"]) == ("3.30 ± 0.00", "2 cores of Test Chip")
    assert row["search time"] == "8.3 min"  # 50 epochs of 10 s
    assert row["size"] == "as published"


def test_the_same_seed_counts_once(three_seeds):
    write_both(three_seeds / "again", searching(seed=1), 0.5)
    found = collect([three_seeds])
    (row,) = measured(found, "table2")
    assert (row["n"], row["best"]) == ("3", "2.60")
    assert [problem for problem in found.problems if "again" in problem]
    assert found.problems[0].endswith("it is not counted")


def test_a_folder_that_is_named_twice_counts_once(three_seeds):
    found = collect([three_seeds, three_seeds / "0", three_seeds])
    assert len(found.runs) == 6
    assert found.problems == []


def test_other_settings_are_another_group_with_their_name(three_seeds):
    write_both(three_seeds / "wide", searching(seed=0, init_channels=24), 0.98)
    rows = measured(collect([three_seeds]), "table2")
    assert {row["method"]: row["n"] for row in rows} == {
        "mgs, init_channels 16": "3",
        "mgs, init_channels 24": "1",
    }


def test_how_a_run_is_executed_makes_no_other_group(three_seeds):
    write_both(three_seeds / "3", searching(seed=3, threads=2, cpu_kernels="off"), 0.97)
    (row,) = measured(collect([three_seeds]), "table2")
    assert row["n"] == "4"


def test_an_unfinished_run_is_listed_and_not_counted(three_seeds):
    write_search(three_seeds / "late", searching(seed=9), n_epochs=7)
    found = collect([three_seeds])
    assert measured(found, "table2")[0]["n"] == "3"
    assert not found.is_complete
    (run,) = (run for run in found.runs if not run.is_finished)
    assert run.state == "7 of 50 epochs"


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "train/result.json"])
def test_a_damaged_run_hides_no_other(name, three_seeds):
    (three_seeds / "1" / name).write_text("{damaged\n{damaged\n")
    found = collect([three_seeds])
    assert measured(found, "table2")[0]["n"] == "2"
    (problem,) = found.problems
    assert str(Path("1") / name) in problem


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a folder"):
        collect([tmp_path / "missing"])
    with pytest.raises(RunError, match="holds no run"):
        collect([tmp_path])


def test_the_runs_that_a_sweep_has_not_started_are_missing(tmp_path):
    sweep = Sweep(vary={"algo": ("mgs", "gld")}, seeds=(0, 1), command="zoopt-nas sweep ...")
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "sweep.toml").write_text(sweep.to_toml())
    write_search(folder / "algo=mgs-seed0", sweep.runs()[0].config)
    found = collect([folder])
    assert [Path(name).name for name in found.missing] == [run.name for run in sweep.runs()[1:]]
    assert not found.is_complete
    assert "zoopt-nas sweep ..." in Report.of(found, Gallery()).to_markdown()


def test_retrainings_of_other_epochs_are_no_results(three_seeds):
    folder = three_seeds / "0"
    (folder / "convergence").mkdir()
    (folder / "train").rename(folder / "convergence" / "epoch-025")
    found = collect([three_seeds])
    assert measured(found, "table2")[0]["n"] == "2"
    assert len(found.runs) == 6


# ------------------------------------------------------------------------ where results stand


@pytest.mark.parametrize(("protocol", "keys"), [("rdarts", {"table2"}), ("sdarts", {"table7"})])
def test_the_protocol_decides_between_tables_2_and_7(protocol, keys, tmp_path):
    config = searching(dataset="cifar100")
    write_both(tmp_path / "run", config, 0.8, protocol)
    assert keys_with_measurements(collect([tmp_path])) == keys


def test_a_reduced_run_stands_in_both_tables_with_its_size(tmp_path):
    config = searching(dataset=str(tmp_path / "cifar100.npz"), epochs=5)
    write_both(tmp_path / "run", config, 0.8, "sdarts", n_cells=3, init_channels=4)
    found = collect([tmp_path])
    assert keys_with_measurements(found) == {"table2", "table7"}
    for row in [*measured(found, "table2"), *measured(found, "table7")]:
        assert "search epochs 5 of 50" in row["size"]
        assert "retraining n_cells 3 of 20" in row["size"]


def test_another_method_stands_only_where_it_was_published(tmp_path):
    write_both(tmp_path / "gdas", searching("gdas"), 0.9)
    write_both(tmp_path / "pc", searching("pc"), 0.9)
    found = collect([tmp_path])
    assert keys_with_measurements(found) == {"table7", "others"}
    (row,) = measured(found, "others")
    assert (row["method"], row["measured mean ± std"]) == ("gdas", "10.00")


def sweep_over(folder: Path, name: str, values: tuple[int, ...], **fixed) -> None:
    sweep = Sweep(
        vary={name: values},
        seeds=(0,),
        search={"dataset": "cifar10", "space": "darts", "algo": "mgs", **fixed},
    )
    folder.mkdir()
    (folder / "sweep.toml").write_text(sweep.to_toml())
    for run in sweep.runs():
        write_both(folder / run.name, run.config, 0.97, "darts")


def test_sweeps_over_n_and_m_fill_their_tables(tmp_path):
    sweep_over(tmp_path / "n", "n_samples", (2, 4))
    sweep_over(tmp_path / "m", "inner_steps", (5, 8))
    found = collect([tmp_path])
    assert [row["N"] for row in measured(found, "table5")] == ["2", "4"]
    assert [row["M"] for row in measured(found, "table6")] == ["5", "8", "10"]  # N = 4, M = 10
    zarts = {row["statistic"] for row in measured(found, "table3")}
    assert zarts == {"best", "average"}
    assert len(measured(found, "table3")) == 2  # N = 4 and M = 10 alone


def test_a_reduced_sweep_over_n_is_no_part_of_the_table_of_m(tmp_path):
    sweep_over(tmp_path / "n", "n_samples", (2, 4, 6), inner_steps=3)
    found = collect([tmp_path])
    assert [row["N"] for row in measured(found, "table5")] == ["2", "4", "6"]
    assert measured(found, "table6") == []


def test_imagenet_takes_the_method_of_the_search(tmp_path):
    write_search(tmp_path / "run", searching("darts2", space="darts"))
    config = TrainConfig.for_dataset("imagenet", str(GENOTYPES["DARTS_V2"]), protocol="imagenet")
    write_training(tmp_path / "run" / "imagenet", config, 0.733)
    (row,) = measured(collect([tmp_path]), "table4")
    assert (row["published as"], row["measured mean ± std"]) == ("DARTS (2nd)", "26.70")


def test_nasbench201_has_the_true_accuracies_of_every_method(tmp_path):
    for seed, accuracy in enumerate((0.9, 0.92)):
        config = searching("gdas", space="nasbench201", seed=seed)
        write_search(tmp_path / f"gdas{seed}", config, true=(accuracy, 0.7, 0.4))
    write_search(tmp_path / "mgs", searching(space="nasbench201"), true=(0.91, 0.71, 0.41))
    rows = measured(collect([tmp_path]), "nasbench201")
    assert [(row["data set"], row["published as"], row["measured mean ± std"]) for row in rows] == [
        ("cifar10", "GDAS", "91.00 ± 1.41"),
        ("cifar10", "–", "91.00"),
        ("cifar100", "GDAS", "70.00 ± 0.00"),
        ("cifar100", "–", "71.00"),
        ("imagenet16", "GDAS", "40.00 ± 0.00"),
        ("imagenet16", "–", "41.00"),
    ]
    assert rows[0]["best"] == "92.00"


# ------------------------------------------------------------------------ numbers in words


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=9))
def test_mean_and_deviation_are_those_of_statistics(hundredths):
    values = [one / 10_000 for one in hundredths]
    mean, std = map(float, mean_and_std(values, 100, 2).split(" ± "))
    # Half a unit of the last digit, and rounding of the sum.
    assert abs(mean - 100 * statistics.fmean(values)) <= 0.005 + 1e-9
    assert abs(std - 100 * statistics.stdev(values)) <= 0.005 + 1e-9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (90, "1.5 min"), (5400, "1.5 h"), (129600, "1.5 days")],
)
def test_a_time_has_a_suitable_unit(seconds, text):
    assert duration(seconds) == text
