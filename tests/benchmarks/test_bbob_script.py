"""The script of the BBOB benchmark: its options, its files, and its mistakes."""

import sys

import bbob
import numpy as np
import pytest
from bbob_suite import Suite, load_results, run

TINY = ["--dims", "2", "3", "--functions", "1", "6", "--instances", "1", "--evals-per-dim", "15"]


def test_a_tiny_suite_with_its_files(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    bbob.main(["gld", "rs", *TINY, "--seeds", "4", "5", "--functions-too", "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["ecdf.png", "results.json"]
    assert (out / "ecdf.png").read_bytes().startswith(b"\x89PNG")
    loaded = load_results(out / "results.json")
    assert [(r.method, r.seed) for r in loaded] == [("gld", 4), ("gld", 5), ("rs", 4), ("rs", 5)]
    suite = Suite([2, 3], [1], [1, 6], evals_per_dim=15)
    expected = run("gld", suite, seed=4)
    assert loaded[0].suite == suite
    np.testing.assert_array_equal(loaded[0].hit_times, expected.hit_times)

    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert rows[0][:4] == ["method", "score", "2-D", "3-D"]
    scores = [result.score for result in loaded[:2]]
    assert rows[2][0] == "gld"
    assert rows[2][1] == f"{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}"
    by_dim = [np.mean([result.by_dim()[dim] for result in loaded[:2]]) for dim in (2, 3)]
    assert rows[2][2:4] == [f"{score:.3f}" for score in by_dim]
    assert [row[0] for row in rows[3:]] == ["rs"]
    assert sum(line.lstrip().startswith("f1 ") for line in lines) == 2


def test_every_option_reaches_the_suite(tmp_path):
    options = ["--seeds", "5", "--noise", "0.1", "--noise-kind", "multiplicative", "--bounded"]
    bbob.main(["rs", *TINY, *options, "--workers", "2", "--out", str(tmp_path)])
    suite = Suite([2, 3], [1], [1, 6], 15, noise=0.1, noise_kind="multiplicative", bounded=True)
    (found,) = load_results(tmp_path / "results.json")
    assert found.suite == suite
    np.testing.assert_array_equal(found.hit_times, run("rs", suite, seed=5).hit_times)


def test_what_is_finished_is_saved(tmp_path, monkeypatch):
    def run_and_interrupt(method, *args, **kwargs):
        if method == "rs":
            raise KeyboardInterrupt
        return run(method, *args, **kwargs)

    monkeypatch.setattr(bbob, "run", run_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        bbob.main(["gld", "rs", *TINY, "--out", str(tmp_path)])
    assert [r.method for r in load_results(tmp_path / "results.json")] == ["gld"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("gdl", "unknown solver 'gdl'; did you mean 'gld'?"),
        ("gld mg", "unknown solver 'mg'; did you mean 'mgs'?"),
        ("gld --dims 1", "dims must be distinct integers from 2 on, got [1]"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, line, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        bbob.main([*arguments.split(), "--out", str(tmp_path / "out")])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nlopt", None)
    with pytest.raises(SystemExit):
        bbob.main(["nlopt_newuoa", *TINY])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("nlopt_newuoa needs nlopt; install it with: pip install -e '.[bench]'")
