"""``zoopt-nas bench nasbench201``: tables, JSON, the figure, and what it refuses."""

from __future__ import annotations

import json

import pytest

from cell_tables import HEADER, SIGNAL, separable_table, write_table
from zoopt_nas.nas.tabular.benchmark import Benchmark, summarize
from zoopt_nas.nas.tabular.table import SIGNALS, TESTS

FEW = ("--methods", "random,gld", "--queries", "30,10", "--runs", 4, "--seed", 3)


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("nasbench201") / "table.csv")


def rows_of(out: str) -> list[list[str]]:
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_json_has_the_true_accuracies(cli, table):
    shown = cli("bench", "nasbench201", "--table", table, *FEW, "--json")
    assert (shown.code, shown.err) == (0, "")
    found = json.loads(shown.out)
    assert found["queries"] == [10, 30]
    assert (found["runs"], found["seed"], found["signal"]) == (4, 3, SIGNALS[0])
    assert found["table"] == str(table)
    assert found["pictures"] == []
    best = float(SIGNAL.max())
    assert found["best_signal"] == dict(zip(TESTS, (best + 10, best + 20, best + 30), strict=True))
    assert list(found["methods"]) == ["random", "gld"]
    runs = Benchmark(("random", "gld"), n_queries=30, n_runs=4, seed=3).run(separable_table())
    for name, numbers in found["methods"].items():
        assert numbers["n_queries"] == 30
        assert numbers["n_evaluations"] == runs[name].n_evaluations.mean()
        for key, every in (("by_query", False), ("by_evaluation", True)):
            for column in TESTS:
                wanted = summarize(
                    separable_table(), runs[name], column, [10, 30], every_evaluation=every
                )
                assert numbers[key][column] == [
                    {"n": n, "mean": pytest.approx(one.mean), "std": pytest.approx(one.std)}
                    for n, one in zip((10, 30), wanted, strict=True)
                ]


def test_the_tables_and_the_figure(cli, table, tmp_path):
    arguments = ("bench", "nasbench201", "--table", table, *FEW)
    found = json.loads(cli(*arguments, "--json").out)
    for flags, key in (((), "by_query"), (("--every-evaluation",), "by_evaluation")):
        shown = cli(*arguments, *flags, "--out", tmp_path / "figure" / key)
        assert (shown.code, shown.err) == (0, "")
        rows = rows_of(shown.out)
        for k, column in enumerate(TESTS):
            for row, (name, numbers) in zip(
                rows[2 * k : 2 * k + 2], found["methods"].items(), strict=True
            ):
                cells = [f"{one['mean']:.2f} ± {one['std']:.2f}" for one in numbers[key][column]]
                assert row == [name, *cells]
        assert len(rows) == 6
        assert "runs: 4, seed: 3, signal: cifar10_valid_12ep" in shown.out.splitlines()
        for suffix in ("svg", "png"):
            assert (tmp_path / "figure" / key / f"nasbench201.{suffix}").stat().st_size > 1000
        label = "queries" if key == "by_query" else "evaluations"
        assert f">{label}<" in (tmp_path / "figure" / key / "nasbench201.svg").read_text()


def test_what_is_refused(refused, table, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text(HEADER + "\n" + table.read_text().splitlines()[1] + "\n")
    bench = ("bench", "nasbench201")
    assert refused(*bench) == "Missing option '--table'."
    assert refused(*bench, "--table", "none.csv") == "there is no table none.csv"
    assert refused(*bench, "--table", "few.csv", "--out", "here").startswith(
        "few.csv lacks 15624 of 15625 cells, first |none~0|+"
    )
    assert refused(*bench, "--table", table, "--methods", "gdl") == (
        "unknown method 'gdl'; did you mean 'gld'?"
    )
    assert refused(*bench, "--table", table, "--signal", "cifar10_valid_12").endswith(
        "did you mean 'cifar10_valid_12ep'?"
    )
    for queries in ("a", "10,", "10,0"):
        assert refused(*bench, "--table", table, "--queries", queries) == (
            f"queries must be positive whole numbers K,K,..., got {queries}"
        )
    assert refused(*bench, "--table", table, "--runs", 0).startswith("n_runs must be a positive")
    assert refused(*bench, "--table", table, "--workers", 0).startswith("workers must be")
    assert refused("bench", "nasbench200", "--table", table).startswith(
        "No such command 'nasbench200'"
    )


def test_the_group_lists_its_benchmarks(cli):
    for arguments in (["bench"], ["bench", "--help"]):
        result = cli(*arguments)
        assert (result.code, result.err) == (0, "")
        assert "nasbench201" in result.out
