"""``zoopt-nas sweep``: options of the search are handed on; a table of means; resuming."""

from __future__ import annotations

import json
import os
import shlex
import signal
import statistics
from pathlib import Path

import pytest
from zoopt_nas_cli.main import run

from zoopt_nas.nas.analyses.paper_tables import read_sweep
from zoopt_nas.nas.analyses.sweep import Sweep

SMALL_SPACES = Path(__file__).parents[1] / "small_spaces"

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


@pytest.fixture
def asked(monkeypatch) -> list[Sweep]:
    """The sweeps that commands ask for; nothing is run."""
    from zoopt_nas.nas.analyses import sweep as module

    found: list[Sweep] = []
    monkeypatch.setattr(module, "run_sweep", lambda sweep, *_, **__: found.append(sweep) or [])
    return found


def test_a_sweep_from_a_file_takes_other_options_on_top(cli, asked, tmp_path):
    text = """
        kind = "sweep"
        seeds = [0, 1]
        [vary]
        algo = ["mgs", "gld"]
        cutout = [0]
        [search]
        space = "small_s4"
        epochs = 7
        solver = { n_samples = 2 }
        """
    (tmp_path / "mine.toml").write_text(text)
    more = ("--seeds", "3", "--vary", "algo=mgs", "--space", "small_s3")
    command = ("sweep", "--from", "mine.toml", *more, "--solver-option", "sigma=0.3")
    shown = cli(*command)
    assert (shown.code, shown.err) == (0, "")
    (sweep,) = asked
    assert (sweep.vary, sweep.seeds) == ({"algo": ("mgs",), "cutout": (0,)}, (3,))
    solver = {"n_samples": 2, "sigma": 0.3}
    assert sweep.search == {"space": "small_s3", "epochs": 7, "solver": solver}
    assert sweep.train is None
    assert sorted(shlex.split(sweep.command)) == sorted(["zoopt-nas", *command])


def test_tables_of_the_paper_can_be_made_smaller(cli, asked):
    arguments = ("--vary", "dataset=digits", "--epochs", 3, "--train-option", "epochs=2")
    assert cli("sweep", "--from", "table7", *arguments).code == 0
    (found,) = asked
    assert len(found.runs()) == 4 * 4 * 4
    assert found.train == {"protocol": "sdarts", "epochs": 2}
    assert {run.config.epochs for run in found.runs()} == {3}
    assert found.seeds == read_sweep("table7").seeds


@pytest.fixture
def in_processes(monkeypatch):
    """The processes of a sweep know the small spaces, and have one thread."""
    path = [str(SMALL_SPACES), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("in_processes")
def test_processes_give_the_same_table_and_report_failures_last(cli, tmp_path):
    arguments = ("sweep", "--vary", "n_samples=1,2", "--seeds", "0", *SEARCH)
    assert cli(*arguments, "--run-dir", "one").code == 0
    one = json.loads(cli("sweep", "--resume", "one", "--json").out)
    broken = tmp_path / "two" / "n_samples=2-seed0"
    broken.mkdir(parents=True)
    (tmp_path / "two" / "sweep.toml").write_text((tmp_path / "one" / "sweep.toml").read_text())
    shown = cli("sweep", "--resume", "two", "--jobs", 2, "--retries", 0, "--json")
    assert shown.code == 1
    reason = "two/n_samples=2-seed0 is not a run folder: it has no config.toml"
    assert shown.err == f"error: 1 of 2 runs failed: n_samples=2-seed0: {reason}\n"
    two = json.loads(shown.out)
    assert two["failed"] == {"n_samples=2-seed0": reason}
    assert one["failed"] == {}
    (row,) = two["rows"]
    assert row["val_accuracy"] == one["rows"][0]["val_accuracy"]
    broken.rmdir()
    shown = cli("sweep", "--resume", "two", "--jobs", 2)
    assert (shown.code, shown.err) == (0, "")
    assert [line for line in shown.out.splitlines() if " done: " in line] == [
        *("1 of 2 done: n_samples=1-seed0", "2 of 2 done: n_samples=2-seed0")
    ]
    assert [cells[1] for cells in table(shown.out)] == ["1", "1"]


@pytest.mark.usefixtures("in_processes")
def test_ctrl_c_stops_the_processes_after_a_step(server, tmp_path, wait_until):
    endless = ("--epochs", 100_000, "--warmup-epochs", 0)
    few = ("sweep", "--vary", "n_samples=1,2", "--seeds", "0", *SEARCH, *endless)
    started = server.start(*few, "--jobs", 2, "--run-dir", "s", cwd=tmp_path / "here")
    rows = [tmp_path / "here" / "s" / f"n_samples={n}-seed0" / "metrics.jsonl" for n in (1, 2)]
    wait_until(lambda: all(path.exists() for path in rows))
    started.signal(signal.SIGINT)
    ended = started.wait()
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == (
        "error: stopped with 2 runs to finish; resume with: zoopt-nas sweep --resume s"
    )
    sizes = [path.stat().st_size for path in rows]
    assert [path.stat().st_size for path in rows] == sizes
    for n in (1, 2):
        text = (tmp_path / "here" / "s" / "logs" / f"n_samples={n}-seed0.log").read_text()
        assert text == ""


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
    assert refused("sweep", "--from", "table22") == (
        "unknown table or file 'table22'; did you mean 'table2'?"
    )
    assert refused("sweep", *few, "--engine", "rey") == "unknown engine 'rey'; did you mean 'ray'?"
    assert refused("sweep", *few, "--jobs", 0) == "jobs must be a positive integer, got 0"
    assert (
        refused("sweep", *few, "--retries", -1)
        == "retries must be a finite number of at least 0, got -1"
    )
    assert refused("sweep", *few, "--address", "auto") == "address must be used with --engine ray"
    assert refused("sweep", *few, "--engine", "ray", "--jobs", 2) == (
        "jobs must be left to Ray, which knows its cores and GPUs"
    )
    assert refused("sweep", "--resume", "s") == (
        "s is not the folder of a sweep: it has no sweep.toml"
    )
    assert refused("sweep", "--resume", "s", *few) == (
        "--resume takes every setting from the sweep; leave out the others"
    )
