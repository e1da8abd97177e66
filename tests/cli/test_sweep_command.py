"""``zoopt-nas sweep``: options of the search are handed on; a table of means; resuming."""

from __future__ import annotations

import json
import shlex
import statistics

import pytest
from zoopt_nas_cli.main import run

from zoopt_nas.nas.analyses.sweep import Sweep

SEARCH = ("--space", "small_s3", "--algo", "mgs", "--epochs", 2, "--init-channels", 2)
SEARCH = (*SEARCH, "--n-cells", 1, "--batch-size", 16, "--inner-steps", 1, "--n-train", 64)
SEARCH = (*SEARCH, "--device", "cpu", "--solver-option", "sigma=0.3", "--no-edge-normalization")
TRAIN = ("epochs=1", "init_channels=2", "n_cells=1", "batch_size=16", "n_train=48")
OPTIONS = [part for pair in TRAIN for part in ("--train-option", pair)]


@pytest.fixture(autouse=True)
def in_tmp_path(small_spaces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def table(out: str) -> list[list[str]]:
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_a_table_over_n_samples(cli):
    arguments = ("sweep", "--vary", "n_samples=1,2", "--seeds", "0,5", *SEARCH, *OPTIONS)
    shown = cli(*arguments, "--run-dir", "s")
    assert (shown.code, shown.err) == (0, "")
    again = json.loads(cli("sweep", "--resume", "s", "--json").out)
    assert [(one["point"], one["seed"]) for one in again["runs"]] == [
        ({"n_samples": n}, seed) for n in (1, 2) for seed in (0, 5)
    ]
    for n, row, cells in zip((1, 2), again["rows"], table(shown.out), strict=True):
        errors = [
            one["numbers"]["test_error"] for one in again["runs"] if one["point"] == row["point"]
        ]
        assert row["test_error"]["mean"] == pytest.approx(statistics.fmean(errors))
        assert row["test_error"]["std"] == pytest.approx(statistics.stdev(errors))
        assert row["test_error"]["n"] == 2
        mean, std = 100 * statistics.fmean(errors), 100 * statistics.stdev(errors)
        best = f"{100 * min(errors):.2f}"
        assert cells[:4] == [str(n), "2", f"{mean:.2f} ± {std:.2f}", best]
        assert row["test_error"]["least"] == min(errors)
        assert row["n_effective"]["mean"] <= n
    lines = shown.out.splitlines()
    assert "seeds: 0, 5" in lines
    (command,) = [line for line in lines if line.startswith("command: ")]
    words = shlex.split(command.removeprefix("command: "))
    assert sorted(words) == sorted(["zoopt-nas", *map(str, arguments)])
    (reduced,) = [line for line in lines if line.startswith("reduced size: ")]
    assert "search epochs 2 of 50, " in reduced
    assert "retraining epochs 1 of 600, " in reduced
    assert again["command"] == command.removeprefix("command: ")
    # The command that the table gives describes the same sweep.
    assert run([*words[1:], "--run-dir", "s"]) == 0


def test_options_of_the_search_are_handed_on(cli, tmp_path):
    few = ("--vary", "inner_steps=1,2", "--seeds", "4")
    assert cli("sweep", *few, *SEARCH, "--n-samples", 3, "--run-dir", "s").code == 0
    sweep = Sweep.load(tmp_path / "s")
    assert (sweep.vary, sweep.seeds, sweep.train) == ({"inner_steps": (1, 2)}, (4,), None)
    for one, m in zip(sweep.runs(), (1, 2), strict=True):
        assert (one.config.inner_steps, one.config.n_train, one.config.seed) == (m, 64, 4)
        assert (one.config.solver["n_samples"], one.config.solver["sigma"]) == (3, 0.3)
        assert one.config.edge_normalization is False
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        *("inner_steps=1-seed4", "inner_steps=2-seed4", "sweep.png", "sweep.svg", "sweep.toml")
    ]


def test_what_is_refused_before_anything_is_run(refused):
    few = ("--vary", "n_samples=2")
    assert refused("sweep") == "vary must name a setting, got none"
    assert refused("sweep", "--vary", "n_samples") == (
        "--vary must read NAME=VALUE,VALUE,... once, got n_samples"
    )
    assert refused("sweep", *few, "--seeds", "a") == "seeds must be whole numbers K,K,..., got a"
    assert refused("sweep", *few, "--epoch", "3").startswith("No such option: --epoch")
    assert refused("sweep", *few, "--seed", "3") == (
        "seed must be left to seeds, got it as a setting"
    )
    assert refused("sweep", *few, "--train-option", "epoch=1") == (
        "unknown train setting 'epoch'; did you mean 'epochs'?"
    )
    assert refused("sweep", *few, "--train-option", "genotype=DARTS_V1") == (
        "genotype must be left to the search that is retrained, got DARTS_V1"
    )
    assert refused("sweep", *few, "--train-option", "protocol=3") == (
        "protocol must be of type str, got 3"
    )
    assert refused("sweep", "--vary", "preset=1,2") == "preset must be of type str, got 1"
    assert refused("sweep", *few, "--space", "s9").startswith("unknown space 's9'")
    assert refused("sweep", "--resume", "s") == (
        "s is not the folder of a sweep: it has no sweep.toml"
    )
    assert refused("sweep", "--resume", "s", *few) == (
        "--resume takes every setting from the sweep; leave out the others"
    )
