"""A search by P-DARTS on the command line, from the search to a landscape."""

from __future__ import annotations

import json

import pytest

from zoopt_nas import nas

SMALL = ("--epochs", 3, "--warmup-epochs", 0, "--init-channels", 2, "--batch-size", 16)
DIGITS = ("--dataset", "digits", "--n-train", 64, "--device", "cpu")


@pytest.mark.parametrize(("space", "n_cells"), [("s3", 1), ("nasbench201", 3)])
def test_from_a_search_in_three_stages_to_pictures(space, n_cells, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates = ("--skip-dropout", 0.1, 0.2, 0.3)
    named = ("--algo", "p_darts", "--space", space, "--n-cells", n_cells, *rates)
    found = cli("search", *named, *SMALL, *DIGITS, "--run-dir", "run")
    assert (found.code, found.err) == (0, "")
    folder = nas.RunFolder.open("run")
    assert folder.config(nas.SearchConfig).skip_dropout == (0.1, 0.2, 0.3)
    assert f"\n{folder.genotype()}\n" in found.out
    assert folder.genotype().count("skip_connect") <= 2
    last = folder.rows("metrics.jsonl")[-1]
    assert (last["epoch"], last["updates"]) == (2, 2)

    shown = cli("show", "run", "--json")
    assert (shown.code, shown.err) == (0, "")
    output = json.loads(shown.out)
    assert output["genotype"] == folder.genotype().to_dict()
    assert "run/pictures/alpha.svg" in output["pictures"]
    again = cli("search", "--resume", "run", "--json")
    assert (again.code, again.err) == (0, "")
    assert json.loads(again.out)["genotype"] == folder.genotype().to_dict()
    trained = cli("train", "run", *SMALL[:2], *SMALL[4:], "--n-cells", n_cells, "--run-dir", "t")
    assert (trained.code, trained.err) == (0, "")


def test_what_a_wrong_number_says(refused):
    line = refused("search", "--algo", "p_darts", "--epochs", 2)
    assert line == "epochs must be at least 3 with p_darts, which has 3 stages, got 2"
    line = refused("search", "--algo", "darts1", "--skip-dropout", 0, 0, 0.5)
    assert line == "skip_dropout must be 0, 0, 0 with darts1, which has none, got 0, 0, 0.5"
    line = refused("search", "--algo", "p_darts", "--skip-dropout", 0, 0, 1)
    assert line == "skip_dropout must lie in [0, 1), got (0.0, 0.0, 1.0)"


def test_it_is_listed(cli):
    listed = cli("list", "methods")
    assert "P-DARTS: darts1 in three stages" in " ".join(listed.out.split())
