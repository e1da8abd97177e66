"""``zoopt-nas diagnose``: the numbers of run folders."""

from __future__ import annotations

import json

SEARCH = ("--space", "small_s3", "--epochs", 2, "--init-channels", 2, "--n-cells", 1)
SEARCH = (*SEARCH, "--batch-size", 16, "--inner-steps", 1, "--device", "cpu", "--n-train", 64)


def test_searches_with_several_n(cli, small_spaces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in (2, 3):
        assert cli("search", *SEARCH, "--n-samples", n, "--run-dir", f"n{n}").code == 0
    shown = cli("diagnose", "n2", "n3", "--condition-number", 2)
    assert (shown.code, shown.err) == (0, "")
    again = json.loads(cli("diagnose", "n2", "n3", "--condition-number", 2, "--json").out)
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in shown.out.splitlines()
        if line.startswith("│")
    ]
    for n, rows in ((2, cells[:2]), (3, cells[2:4])):
        there = again["runs"][f"n{n}"]
        last = json.loads((tmp_path / f"n{n}" / "metrics.jsonl").read_text().splitlines()[-1])
        assert there["n_effective"][-1] == last["n_effective"]
        assert there["skip_connections"][-1] == last["skip_connections"]
        ratio = last["n_effective"] / n
        assert rows[-1] == [
            *(f"n{n}", str(n), "2", f"{last['n_effective']:.3f}", f"{ratio:.3f}", "-"),
            str(last["skip_connections"]),
        ]
    q = again["condition_numbers"]
    assert cells[4:] == [
        [run, *(f"{q[run][kind]:.4g}" for kind in ("sgd", "second", "first"))]
        for run in ("n2", "n3")
    ]
    svg = (tmp_path / "n2" / "pictures" / "diagnostics.svg").read_text()
    assert "Dominant eigenvalue" not in svg  # not measured
    assert all(text in svg for text in ("n2", "n3", "Skip connections"))


def test_what_is_refused(refused):
    assert refused("diagnose") == "Missing argument 'RUN...'."
    assert refused("diagnose", "x") == "x is not a run folder: it has no config.toml"
    assert refused("diagnose", "x", "--every", 0) == "every must be a positive integer, got 0"
