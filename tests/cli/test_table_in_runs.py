"""``--table`` of ``search`` and ``show``: the true accuracy of the cell of each epoch."""

from __future__ import annotations

import json

import pytest

from cell_tables import write_table
from zoopt_nas import nas
from zoopt_nas.nas.runs.folder import ARCHITECTURES, METRICS
from zoopt_nas.nas.tabular.table import TESTS, number_of, parse_cell

SMALL = ("--space", "nasbench201", "--algo", "gld", "--paths", "fair", "--threads", 1)
SIZES = ("--epochs", 3, "--warmup-epochs", 0, "--n-cells", 3, "--n-train", 64, "--init-channels", 2)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("nasbench201") / "table.csv")


@pytest.fixture
def run(cli, table, tmp_path):
    folder = tmp_path / "run"
    shown = cli("search", *SMALL, *SIZES, "--table", table, "--run-dir", folder)
    assert shown.code == 0
    return folder


def truths(folder, table) -> list[list[float]]:
    known = nas.CellTable.load(table)
    rows = nas.RunFolder.open(folder).rows(ARCHITECTURES)
    cells = [nas.NasBench201Genotype.from_dict(row["genotype"]) for row in rows]
    return [[known.accuracy(str(cell), name) / 100 for name in TESTS] for cell in cells]


def test_a_search_records_the_true_accuracy_of_every_epoch(run, table):
    rows = nas.RunFolder.open(run).rows(METRICS)
    columns = ("true_cifar10", "true_cifar100", "true_imagenet16")
    assert [[row[name] for name in columns] for row in rows] == truths(run, table)


def test_a_table_does_not_change_a_search(cli, run, tmp_path):
    assert cli("search", *SMALL, *SIZES, "--run-dir", tmp_path / "plain").code == 0
    with_table, without = (
        nas.RunFolder.open(folder).rows(METRICS) for folder in (run, tmp_path / "plain")
    )
    for row in with_table:
        for name in ("true_cifar10", "true_cifar100", "true_imagenet16"):
            del row[name]
    for row in (*with_table, *without):
        del row["seconds"]
    assert with_table == without


def test_show_has_the_true_accuracies_of_a_run(cli, run, table, tmp_path):
    shown = cli("show", run, "--table", table, "--out", tmp_path, "--json")
    found = json.loads(shown.out)["true_accuracies"]
    assert [list(found[str(epoch)].values()) for epoch in (1, 2, 3)] == truths(run, table)
    text = cli("show", run, "--table", table, "--out", tmp_path).out
    for first, *_ in truths(run, table):
        assert f"{first:.2%}" in text


def test_show_has_the_true_accuracies_of_a_cell(cli, table, tmp_path):
    cell = "|none~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|none~0|none~1|skip_connect~2|"
    shown = cli("show", cell, "--table", table, "--out", tmp_path, "--json")
    known = nas.CellTable.load(table)
    assert list(json.loads(shown.out)["true_accuracies"]["0"].values()) == [
        known.accuracy(cell, name) / 100 for name in TESTS
    ]


def test_a_method_without_epochs_has_the_true_accuracy_of_its_cell(cli, table, tmp_path):
    run = tmp_path / "run"
    settings = ("--space", "nasbench201", "--algo", "random", "--table", table, "--run-dir", run)
    shown = cli("search", *settings)
    cell = str(nas.RunFolder.open(run).genotype())
    known = [nas.CellTable.load(table).accuracy(cell, name) / 100 for name in TESTS]
    names = ("CIFAR-10", "CIFAR-100", "ImageNet16-120")
    on = [f"{value:.2%} on {name}" for value, name in zip(known, names, strict=True)]
    assert f"true accuracy {', '.join(on)}" in shown.out

    report = tmp_path / "report.md"
    assert cli("report", run, "--out", report.with_suffix(".html")).code == 0
    assert f"{100 * known[0]:.2f}" in report.read_text()
    table.rename(table.with_suffix(".away"))  # only this number is lost with the table
    try:
        assert cli("report", run, "--out", report.with_suffix(".html")).code == 0
    finally:
        table.with_suffix(".away").rename(table)
    assert f"{100 * known[0]:.2f}" not in report.read_text()


def test_cells_that_a_table_lacks_have_no_true_accuracy(cli, run, table, tmp_path):
    rows = nas.RunFolder.open(run).rows(ARCHITECTURES)
    cells = [str(nas.NasBench201Genotype.from_dict(row["genotype"])) for row in rows]
    missing = number_of(parse_cell(cells[-1]))
    part = write_table(tmp_path / "part.csv", [n for n in range(40) if n != missing])
    shown = cli("show", run, "--table", part, "--out", tmp_path, "--json")
    assert shown.code == 0
    assert "3" not in json.loads(shown.out).get("true_accuracies", {})


def test_what_is_refused(refused, table, tmp_path):
    search = ("search", "--run-dir", tmp_path / "run", "--algo", "gld", "--table")
    assert "table must be left out in space s3" in refused(*search, table, "--space", "s3")
    missing = refused(*search, tmp_path / "none.csv", "--space", "nasbench201")
    assert "there is no table" in missing
    assert "unless the genotype is a NAS-Bench-201 cell" in refused(
        "show", "DARTS_V2", "--table", table, "--out", tmp_path
    )
    assert not (tmp_path / "run").exists()
