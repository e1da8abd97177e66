"""``zoopt-nas convergence``: two searches side by side, reproducible and resumable."""

from __future__ import annotations

import json

import pytest

SEARCH = ("--space", "small_s3", "--epochs", 2, "--init-channels", 2, "--n-cells", 1)
SEARCH = (*SEARCH, "--batch-size", 16, "--inner-steps", 1, "--device", "cpu", "--n-train", 64)
TINY = ("epochs=1", "init_channels=2", "n_cells=1", "batch_size=16", "n_train=48")
OPTIONS = [part for pair in TINY for part in ("--train-option", pair)]


@pytest.fixture
def runs(cli, small_spaces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for algo in ("gld", "darts1"):
        done = cli("search", "--algo", algo, *SEARCH, "--run-dir", f"runs/{algo}")
        assert (done.code, done.err) == (0, "")
    return ["runs/gld", "runs/darts1"]


def test_two_searches_side_by_side(cli, runs, tmp_path):
    shown = cli("convergence", *runs, "--every", 1, *OPTIONS)
    assert (shown.code, shown.err) == (0, "")
    again = json.loads(cli("convergence", *runs, "--every", 1, *OPTIONS, "--json").out)
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in shown.out.splitlines()
        if line.startswith("│")
    ]
    expected = [
        [
            run,
            str(point["epoch"]),
            f"{point['test_accuracy']:.2%}",
            f"{point['n_parameters']:,}",
            f"{point['val_accuracy']:.2%}",
            str(point["skip_connections"]),
        ]
        for run in ("gld", "darts1")
        for point in again["runs"][run]
    ]
    assert cells == expected
    assert [row[0] for row in cells] == ["gld", "gld", "darts1", "darts1"]
    assert [row[1] for row in cells] == ["1", "2", "1", "2"]
    for run in ("gld", "darts1"):
        for point in again["runs"][run]:
            result = json.loads((tmp_path / point["run_dir"] / "result.json").read_text())
            assert result["test_accuracy"] == point["test_accuracy"]
    reduced = again["reduced"]
    assert reduced[0] == "dataset digits"
    assert {"search epochs 2 of 50", "search n_train 64"} <= set(reduced)
    assert {"retraining epochs 1 of 600", "retraining n_cells 1 of 20"} <= set(reduced)
    assert f"reduced size: {', '.join(reduced)}" in shown.out.splitlines()
    assert again["pictures"] == [f"runs/gld/pictures/convergence.{form}" for form in ("svg", "png")]
    svg = (tmp_path / again["pictures"][0]).read_text()
    assert all(text in svg for text in ("Test accuracy (%)", "gld", "darts1"))


def test_what_is_refused_before_anything_is_trained(refused, cli, runs):
    assert refused("convergence", *runs, "--every", 3) == (
        "every must be at most the number of epochs of runs/gld (2), got 3"
    )
    message = refused("convergence", *runs, "--every", 1, "--train-option", "epoch=1")
    assert message == "unknown train setting 'epoch'; did you mean 'epochs'?"
    message = refused("convergence", "runs", "--every", 1)
    assert message == "runs is not a run folder: it has no config.toml"
    message = refused("convergence", runs[0], "--every", 1, "--train-option", "epochs")
    assert message == "--train-option must read NAME=VALUE, got epochs"
