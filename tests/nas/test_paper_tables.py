"""The sweeps of the paper's tables have its methods, spaces, data sets, seeds and sizes."""

from __future__ import annotations

import pytest

from zoopt_nas.errors import RunError, UnknownNameError
from zoopt_nas.nas.analyses.paper_tables import TABLES, read_sweep
from zoopt_nas.nas.analyses.sweep import Sweep

SPACES = {"s1", "s2", "s3", "s4"}
IMAGES = {"cifar10", "cifar100", "svhn"}
PUBLISHED_IN_TABLE_3 = (
    *("p_darts", "gdas", "rome", "merge_nas", "sgas2", "sdarts_adv", "amended_darts"),
)


@pytest.mark.parametrize(
    ("name", "n_runs", "methods", "spaces", "datasets", "n_seeds"),
    [
        ("table2", 384, {"darts2", "dp", "l2", "es", "ada", "rs", "mgs", "gld"}, SPACES, IMAGES, 4),
        (
            *("table3", 88),
            {"darts1", "darts2", "l2", "mgs", *PUBLISHED_IN_TABLE_3},
            *({"darts"}, {"cifar10", "cifar100"}, 4),
        ),
        ("table5", 12, {"mgs"}, {"darts"}, {"cifar10"}, 3),
        ("table6", 12, {"mgs"}, {"darts"}, {"cifar10"}, 3),
        ("table7", 192, {"pc", "sdarts_rs", "sdarts_adv", "mgs"}, SPACES, IMAGES, 4),
    ],
)
def test_what_a_table_consists_of(name, n_runs, methods, spaces, datasets, n_seeds):
    sweep = read_sweep(name)
    runs = sweep.runs()
    assert len(runs) == n_runs
    assert {run.config.algo for run in runs} == methods
    assert {run.config.space for run in runs} == spaces
    assert {run.config.dataset for run in runs} == datasets
    assert len(sweep.seeds) == n_seeds
    assert sweep.reductions() == []
    assert sweep.train is not None


def test_tables_5_and_6_vary_n_and_m():
    numbers = [run.config.solver["n_samples"] for run in read_sweep("table5").runs()]
    assert numbers == [n for n in (2, 4, 6, 8) for _ in range(3)]
    steps = [run.config.inner_steps for run in read_sweep("table6").runs()]
    assert steps == [m for m in (2, 5, 8, 10) for _ in range(3)]


@pytest.mark.parametrize("name", TABLES)
def test_a_folder_of_a_table_describes_the_same_sweep(name):
    assert Sweep.from_toml(read_sweep(name).to_toml()) == read_sweep(name)


def test_a_file_is_read_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(read_sweep("table5").to_toml())
    assert read_sweep(str(path)) == read_sweep("table5")
    with pytest.raises(UnknownNameError, match="unknown table or file 'table4'; did you mean"):
        read_sweep("table4")
    path.write_text("kind = 'search'")
    with pytest.raises(RunError, match=r"mine\.toml: not a sweep: 'vary'"):
        read_sweep(str(path))
