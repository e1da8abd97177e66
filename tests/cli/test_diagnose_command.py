"""``zoopt-nas diagnose``: the numbers of run folders."""

from __future__ import annotations

import json

SEARCH = ("--space", "small_s3", "--epochs", 2, "--init-channels", 2, "--n-cells", 1)
SEARCH = (*SEARCH, "--batch-size", 16, "--inner-steps", 1, "--device", "cpu", "--n-train", 64)


def test_searches_with_several_n(cli, small_spaces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in (2, 3):
        assert cli("search", *SEARCH, "--n-samples", n, "--run-dir", f"n{n}").code == 0
    options = ("--condition-number", 2, "--radius", 0.5, "--radius", 0.01, "--draws", 2)
    shown = cli("diagnose", "n2", "n3", *options)
    assert (shown.code, shown.err) == (0, "")
    again = json.loads(cli("diagnose", "n2", "n3", *options, "--json").out)
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
            *(f"n{n}", str(n), "2", f"{last['n_effective']:.3f}", f"{ratio:.3f}"),
            *(f"{last['selection_ratio']:.3f}", "-", str(last["skip_connections"])),
        ]
    q = again["condition_numbers"]
    kinds = {"sgd": "inner steps (sgd)", "second": "one step (second)", "first": "first"}
    assert cells[4:] == [
        [
            *(run, text, f"{one['radius']:g}", f"{one['value']:.4g}"),
            "-" if kind == "first" else f"{one['standard_error']:.2g}",
            *(f"{one['floor']:.2g}", "yes" if one["value"] >= 2 * one["floor"] else "no"),
        ]
        for run in ("n2", "n3")
        for kind, text in kinds.items()
        for one in q[run][kind]
    ]
    assert [one["radius"] for one in q["n3"]["second"]] == [0.5, 0.01]
    assert all(
        one["is_above_floor"] == (one["value"] >= 2 * one["floor"]) for one in q["n2"]["sgd"]
    )
    assert "condition number Q, K = 2, 2 draws, seed 0" in shown.out
    assert "measures noise, not the slope" in shown.out
    svg = (tmp_path / "n2" / "pictures" / "diagnostics.svg").read_text()
    assert "Dominant eigenvalue" not in svg  # not measured
    assert all(text in svg for text in ("n2", "n3", "Skip connections"))


def test_what_is_refused(refused):
    assert refused("diagnose") == "Missing argument 'RUN...'."
    assert refused("diagnose", "x") == "x is not a run folder: it has no config.toml"
    assert refused("diagnose", "x", "--every", 0) == "every must be a positive integer, got 0"


def test_the_defaults_are_those_of_the_library(cli, monkeypatch):
    from zoopt_nas.nas.analyses.diagnose import N_DRAWS, RADII

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    text = cli("diagnose", "--help").out
    assert f"[default: ({', '.join(f'{radius:g}' for radius in RADII)})]" in text
    assert f"[default: {N_DRAWS}]" in text
