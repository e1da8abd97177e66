"""``zoopt-nas bench bbob``: a tiny suite, its files, and mistakes."""

from __future__ import annotations

import io
import json
import signal
import sys

import pytest
from rich.console import Console
from zoopt_nas_cli import console

from zoopt_nas import bbob

TINY = ["--dims", "2,3", "--functions", "1,6-7", "--instances", "1", "--evals-per-dim", "15"]


def test_a_tiny_suite_with_its_files(cli, tmp_path):
    pytest.importorskip("ioh")
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "folder"
    result = cli("bench", "bbob", "--algo", "gld", "--algo", "rs", *TINY, "--out", out)
    assert (result.code, result.err) == (0, "")
    loaded = bbob.load_results(out / "results.json")
    assert [r.method for r in loaded] == ["gld", "rs"]
    expected = bbob.run("gld", bbob.Suite([2, 3], [1], [1, 6, 7], evals_per_dim=15))
    assert loaded[0].suite == expected.suite
    assert (loaded[0].hit_times == expected.hit_times).all()
    assert (out / "ecdf.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["ecdf.png", "results.json"]

    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in result.out.splitlines()
        if line.startswith("│")
    ]
    scores = [expected.score, *expected.by_dim().values(), *expected.by_group().values()]
    assert rows[0][:-1] == ["gld", *(f"{score:.3f}" for score in scores)]
    assert len(rows) == 2
    assert "6 problems, seed 0" in result.out
    assert result.out.splitlines()[-2:] == [str(out / "results.json"), str(out / "ecdf.png")]


def test_json_and_every_option(cli, tmp_path, monkeypatch):
    pytest.importorskip("ioh")
    monkeypatch.chdir(tmp_path)
    options = ["--seed", "5", "--noise", "0.1", "--noise-kind", "multiplicative", "--bounded"]
    result = cli("bench", "bbob", "--algo", "rs", "--algo", "rs", *TINY, *options, "--json")
    assert (result.code, result.err) == (0, "")
    suite = bbob.Suite(
        [2, 3], [1], [1, 6, 7], 15, noise=0.1, noise_kind="multiplicative", bounded=True
    )
    expected = bbob.run("rs", suite, seed=5)
    assert json.loads(result.out) == {
        "rs": {
            "score": expected.score,
            "by_dim": {str(dim): score for dim, score in expected.by_dim().items()},
            "by_group": expected.by_group(),
        }
    }
    assert list(tmp_path.iterdir()) == []


def test_what_is_finished_is_saved(cli, tmp_path, monkeypatch):
    pytest.importorskip("ioh")
    plain_run = bbob.run

    def run_and_press_ctrl_c(method, *args, **kwargs):
        if method == "rs":
            signal.raise_signal(signal.SIGINT)
        return plain_run(method, *args, **kwargs)

    monkeypatch.setattr(bbob, "run", run_and_press_ctrl_c)
    result = cli("bench", "bbob", "--algo", "gld", "--algo", "rs", *TINY, "--out", tmp_path)
    assert result.code == 130
    assert result.err.startswith("stopping after this step")
    assert result.err.endswith("error: interrupted\n")
    assert [r.method for r in bbob.load_results(tmp_path / "results.json")] == ["gld"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--algo", "gdl"], "unknown solver 'gdl'; did you mean 'gld'?"),
        (["--algo", "gld", "--algo", "mg"], "unknown solver 'mg'; did you mean 'mgs'?"),
        (["--dims", "2;3"], "--dims must read like 2,5,10 or 1-3, got 2;3"),
        (["--dims", "1-3"], "dims must be distinct integers from 2 on, got [1, 2, 3]"),
        (["--functions", "3-1"], "functions must be distinct integers in 1..24, got []"),
        (["--instances", "1,1"], "instances must be distinct integers from 1 on, got [1, 1]"),
        (["--evals-per-dim", "0"], "evals_per_dim must be a positive integer, got 0"),
        (["--noise", "-1"], "noise must be a finite number of at least 0, got -1.0"),
        (
            ["--seed", "-1"],
            "Invalid value for '--seed': Input should be greater than or equal to 0",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, line, refused):
    pytest.importorskip("ioh")
    pytest.importorskip("matplotlib")
    algo = [] if "--algo" in arguments else ["--algo", "gld"]
    assert refused("bench", "bbob", *algo, *arguments, "--out", "folder") == line


@pytest.mark.parametrize("module", ["ioh", "matplotlib.figure"])
def test_a_missing_package_is_one_line(module, refused, monkeypatch):
    pytest.importorskip("ioh")
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    line = refused("bench", "bbob", "--algo", "gld", *TINY, "--out", "folder")
    assert line.endswith("install it with: pip install 'zoopt-nas[bench]'")
    assert module.partition(".")[0] in line


def test_a_folder_that_cannot_be_made(refused, tmp_path):
    pytest.importorskip("ioh")
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    line = refused("bench", "bbob", "--algo", "gld", *TINY, "--out", "file")
    assert line.startswith("cannot make the folder file: ")


def test_help(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in (["bench", "--help"], ["bench", "bbob", "--help"]):
        result = cli(*arguments)
        assert (result.code, result.err) == (0, "")
        assert f"Usage: zoopt-nas {' '.join(arguments[:-1])}" in result.out
    for flag in ("--algo", "--dims", "--evals-per-dim", "--workers", "--noise", "--out", "--json"):
        assert flag in result.out


def test_counting_shows_a_line_on_a_terminal_only(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for is_terminal, quiet in ((False, False), (True, True), (True, False)):
        screen = io.StringIO()
        monkeypatch.setattr(
            console,
            "err",
            Console(file=screen, force_terminal=is_terminal, force_interactive=is_terminal),
        )
        with console.counting("gld", quiet=quiet) as progress:
            progress(1, 4)
        shown = screen.getvalue()
        if is_terminal and not quiet:
            assert "gld" in shown
            assert "25%" in shown
        else:
            assert shown == ""
