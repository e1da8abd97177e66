"""``zoopt-nas report``: real runs on a page; watching; one line for wrong input."""

from __future__ import annotations

import json

import pytest
from zoopt_nas_cli import report

SEARCH = ("--space", "small_s3", "--algo", "gld", "--inner-steps", 1, "--n-samples", 1)
TINY = ("--epochs", 1, "--init-channels", 2, "--n-cells", 1, "--batch-size", 16, "--n-train", 32)


@pytest.fixture
def runs(cli, npz, small_spaces, tmp_path, monkeypatch):
    """A search and its retraining."""
    monkeypatch.chdir(tmp_path)
    data = ("--dataset", npz, "--device", "cpu", *TINY)
    assert cli("search", *data, *SEARCH, "--run-dir", "runs/a").code == 0
    assert cli("train", "runs/a", *data, "--no-auxiliary", "--run-dir", "runs/a/train").code == 0
    return tmp_path / "runs"


def test_a_page_of_real_runs(cli, runs):
    result = cli("report", "runs", "--out", "pages/all.html")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "Other results: 1 rows measured",
        "2 of 2 runs are finished",
        "pages/all.html",
        "pages/all.md",
    ]
    test_error = 1 - json.loads((runs / "a/train/result.json").read_text())["test_accuracy"]
    machine = json.loads((runs / "a/machine.json").read_text())
    for name in ("all.html", "all.md"):
        text = (runs.parent / "pages" / name).read_text()
        assert f"{100 * test_error:.2f}" in text
        assert machine["processor"] in text
        assert "search epochs 1 of 50" in text


def test_only_what_was_measured_without_pictures(cli, runs):
    assert cli("report", "runs").code == 0
    assert cli("report", "runs", "--only-measured", "--no-pictures", "--out", "few.html").code == 0
    whole, few = ((runs.parent / name).read_text() for name in ("report.html", "few.html"))
    assert (whole.count("<img"), few.count("<img")) == (4, 0)  # curves twice, two cells
    assert "R-DARTS (DP)" in whole
    assert "R-DARTS (DP)" not in few
    markdown = (runs.parent / "few.md").read_text()
    assert [line for line in markdown.splitlines() if line.startswith("## ")] == [
        *("## Other results", "## Run sets", "## All runs")
    ]
    assert "1 of 1 rows are measured" in markdown


def test_paths_on_a_page_begin_at_the_working_directory(cli, runs, monkeypatch):
    assert cli("report", "runs").code == 0
    text = (runs.parent / "report.md").read_text()
    assert "`zoopt-nas search --config runs/a/config.toml`" in text
    assert "| runs/a/train | train | finished |" in text
    monkeypatch.chdir(runs / "a")
    assert cli("report", runs, "--out", "report.html").code == 0
    text = (runs / "a/report.md").read_text()
    assert "`zoopt-nas search --config config.toml`" in text
    monkeypatch.chdir("/")
    assert cli("report", runs, "--out", runs / "report.html").code == 0
    assert f"| {str(runs)[1:]}/a/train |" in (runs / "report.md").read_text()


def test_json_counts_what_was_found(cli, runs):
    result = cli("report", "runs", "--json")
    found = json.loads(result.out)
    assert result.out.count("\n") == 1
    assert (found["runs"], found["finished"], found["not_started"]) == (2, 2, 0)
    assert found["measured"]["others"] == 1
    assert found["pages"] == ["report.html", "report.md"]


def test_a_finished_report_is_not_watched(cli, runs):
    result = cli("report", "runs", "--watch", 1000)
    assert result.out.splitlines()[-3] == "2 of 2 runs are finished"
    assert "refresh" not in (runs.parent / "report.html").read_text()


def test_watching_ends_with_the_last_run(cli, runs, monkeypatch):
    result = runs / "a/train/result.json"
    done = result.read_text()
    result.unlink()
    pages = []

    def wait(seconds, flag):
        assert seconds == 7
        pages.append((runs.parent / "report.html").read_text())
        if len(pages) == 2:
            result.write_text(done)

    monkeypatch.setattr(report, "_wait", wait)
    shown = cli("report", "runs", "--watch", 7)
    assert shown.code == 0
    assert len(pages) == 2
    for page in pages:
        assert '<meta http-equiv="refresh" content="7' in page
        assert "1 of 1 epochs" in page
    assert shown.out.splitlines()[:2] == ["1 of 2 runs are finished"] * 2
    assert "refresh" not in (runs.parent / "report.html").read_text()


def test_ctrl_c_ends_watching_with_a_last_page(cli, runs, monkeypatch):
    (runs / "a/train/result.json").unlink()

    def wait(seconds, flag):
        flag.raised = True

    monkeypatch.setattr(report, "_wait", wait)
    assert cli("report", "runs", "--watch", 7).code == 0
    assert "refresh" not in (runs.parent / "report.html").read_text()


def test_wrong_input_is_one_line(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a folder" in refused("report", "nowhere")
    assert "holds no run" in refused("report", "empty")
    assert "out must end in .html, got page.pdf" in refused("report", "empty", "--out", "page.pdf")
    assert "watch must be at least 1 second" in refused("report", "empty", "--watch", "0")
