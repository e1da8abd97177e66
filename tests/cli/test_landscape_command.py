"""``zoopt-nas landscape``: from a search to arrays, measures and a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from zoopt_nas import nas

SMALL = ("--inner", "first,1", "--step", 1, "--val-batches", 1, "--n-updates", 1, "--draws", 2)


@pytest.fixture
def run(search_config, tmp_path):
    nas.run_search(search_config("gld"), run_dir=tmp_path / "run")
    return tmp_path / "run"


def test_from_a_run_to_its_landscape(cli, run):
    result = cli("landscape", run, *SMALL, "--paths", "gld,darts1")
    assert (result.code, result.err) == (0, "")
    out = run / "landscape"
    names = ["landscape.json", "landscape.npz", "landscape.pdf", "landscape.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    title = "BatchNorm on batch statistics, 1 validation batches, mean of 2 draws of the training"
    assert title in result.out
    assert "Paths of 1 updates, losses of 1 inner steps" in result.out
    assert set(result.out.splitlines()[-4:]) == {str(out / name) for name in names}
    summary = json.loads((out / "landscape.json").read_text())
    with np.load(out / "landscape.npz") as file:
        assert file["values_first"].shape == file["values_1"].shape == (3, 3)
        assert file["path_gld"].shape == file["path_darts1"].shape == (2, 2)
        assert summary["panels"]["1"]["minimum_value"] == file["values_1"].min()

    again = cli("landscape", run, *SMALL, "--paths", "none", "--json")
    assert (again.code, again.err) == (0, "")
    printed = json.loads(again.out)
    assert printed["panels"] == summary["panels"]
    assert printed["paths"] == {}
    assert printed["pictures"] == [str(out / "landscape.png"), str(out / "landscape.pdf")]


def test_wrong_input_is_one_line(refused, run, tmp_path):
    assert refused("landscape", tmp_path / "no") == (
        f"{tmp_path / 'no'} is not a run folder: it has no config.toml"
    )
    assert "inner must be first, second or a positive number of steps, got third" in refused(
        "landscape", run, "--inner", "third"
    )
    assert "unknown method of a path 'mgd'; did you mean 'mgs'?" in refused(
        "landscape", run, "--paths", "mgd"
    )
    assert "step must be positive" in refused("landscape", run, "--step", 0)


def test_the_defaults_are_those_of_the_library(cli, monkeypatch):
    from zoopt_nas.nas.analyses.landscape.plane import LandscapeSettings

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    text = cli("landscape", "--help").out
    usual = LandscapeSettings()
    for shown in (
        ",".join(usual.inner),
        ",".join(usual.paths),
        *(
            usual.radius,
            "0.02 (paper); digits: 0.25",
            usual.n_draws,
            usual.n_updates,
            usual.path_lr,
            usual.seed,
        ),
    ):
        assert f"[default: {shown}]" in text or f"default: ({shown})" in text, shown
