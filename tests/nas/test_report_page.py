"""The page of a report: self-contained, complete, and readable in a browser and as Markdown."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import searching, write_both, write_search, write_three_seeds

from zoopt_nas.nas.reports.collect import collect
from zoopt_nas.nas.reports.page import Report, write_report
from zoopt_nas.nas.reports.pictures import Gallery
from zoopt_nas.nas.settings.config import TrainConfig


@pytest.fixture
def three_seeds(tmp_path) -> Path:
    return write_three_seeds(tmp_path / "runs")


class Page(HTMLParser):
    """What a page refers to, its ids, and the cells of its rows."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.style = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        names = ("src", "href", "action", "data", "poster", "srcset", "formaction", "xlink:href")
        self.references += [known[name] for name in names if name in known]
        self.ids += [known["id"]] if "id" in known else []
        if tag == "section":
            self._section = known["id"]
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.rows[self._section][-1].append("")
        assert "style" not in known
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            self.style += data
        if {"td", "th"} & set(self._open):
            self.rows[self._section][-1][-1] += data.strip()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    folder = write_three_seeds(tmp_path_factory.mktemp("report") / "runs")
    write_search(folder / "late", searching("gld", seed=9), n_epochs=2)
    return Report.of(collect([folder]), Gallery())


def test_the_page_refers_to_nothing_outside_itself(report):
    text = report.to_html()
    page = Page(text)
    assert len(page.references) > 5
    for reference in page.references:
        assert reference.startswith(("#", "data:"))
    assert {"#" + one for one in page.ids} >= {r for r in page.references if r[0] == "#"}
    assert max(Counter(page.ids).values()) == 1
    outside_pictures = re.sub(r"data:[^\"]*", "", text)
    for word in ("http:", "https:", "//www", "@import", "url(", "fetch(", "XMLHttp", "<iframe"):
        assert word not in outside_pictures.replace("http-equiv", "")
    assert "default-src 'none'" in text  # the browser refuses what slipped through


def test_pictures_refer_to_nothing_outside_themselves(report):
    pictures = [picture for one in report.sets for picture in one.pictures]
    assert [picture.caption.split(" of ")[0] for picture in pictures] == [
        "Curves", "Normal cell", "Reduction cell", "Curves",
    ]  # fmt: skip
    for picture in pictures:
        svg = base64.b64decode(picture.uri.partition("base64,")[2]).decode()
        assert svg.rstrip().endswith("</svg>")
        assert not re.findall(r"(?:href|src)=\"(?!#)", svg)
        assert not re.findall(r"url\((?!#)|@import", svg)


def test_nothing_of_a_table_is_missing_on_the_page_or_in_markdown(report):
    page, markdown = Page(report.to_html()), report.to_markdown()
    for table in report.tables:
        texts = [list(table.columns), *([cell.text for cell in row] for row in table.rows)]
        assert page.rows[table.key] == texts
        section = markdown.partition(f"\n## {table.title}\n")[2].partition("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        assert [cells[0], *cells[2:]] == texts


def test_every_number_has_its_runs_with_command_and_hardware(report):
    text = report.to_markdown()
    page = Page(report.to_html())
    for run in report.found.runs:
        assert f"`{run.command}`".replace("|", "\\|") in text
        assert any(run.command in row for row in page.rows["runs"])
    for one in report.sets:
        assert len(page.rows[f"set{one.number}"]) == 1 + len(one.rows)
    assert "2 cores of Test Chip" in text


def test_the_command_of_a_run_has_its_settings(report):
    for run in report.found.runs:
        words = run.command.split()
        text = Path(words[-1]).read_text()
        cls = type(run.config)
        fields = cls.read_fields(text)
        if isinstance(run.config, TrainConfig):
            assert words[:2] == ["zoopt-nas", "train"]
        else:
            assert words[:3] == ["zoopt-nas", "search", "--config"]
        assert cls.for_dataset(**fields) == run.config


def test_names_cannot_break_the_page(tmp_path):
    path = tmp_path / "a<b>|c&'\""
    write_both(path, searching(dataset="<script>alert(1)</script>"), 0.9, "darts")
    report = Report.of(collect([tmp_path]), Gallery())
    text = report.to_html()
    assert "<script>alert" not in text
    rows = Page(text).rows["runs"]
    assert rows[1][0] == str(path)
    lines = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    for line in lines:
        assert line.endswith("|")
    runs = [line for line in lines if line.startswith(f"| {tmp_path}")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in runs} == {9}


def test_only_a_watched_page_is_loaded_again(report, tmp_path):
    assert 'http-equiv="refresh"' not in report.to_html()
    assert '<meta http-equiv="refresh" content="5">' in report.to_html(refresh=5)
    html, markdown = write_report(report, tmp_path / "new" / "page.html", refresh=5)
    assert (html.name, markdown.name) == ("page.html", "page.md")
    assert 'content="5"' in html.read_text()


def test_a_picture_is_drawn_again_only_when_its_run_has_changed(three_seeds):
    write_search(three_seeds / "late", searching(seed=9), n_epochs=2)
    gallery = Gallery()

    def pictures():
        return Report.of(collect([three_seeds]), gallery).unfinished[0][1]

    first = pictures()
    assert pictures() is first
    row = {"epoch": 2, "train_loss": 0.1, "seconds": 1.0}
    with (three_seeds / "late" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert pictures()[0].uri != first[0].uri


def test_a_run_of_an_unknown_machine_says_so(tmp_path):
    write_search(tmp_path / "run", searching(), machine=None)
    (run,) = collect([tmp_path]).runs
    assert run.machine == "not recorded"


def test_figures_of_other_commands_are_shown(three_seeds):
    folder = three_seeds / "0" / "landscape"
    folder.mkdir()
    (folder / "landscape.json").write_text("{}")
    found = collect([three_seeds])
    assert found.problems == [
        f"{folder} has no picture of its landscape; draw it with zoopt-nas landscape"
    ]
    (folder / "landscape.png").write_bytes(b"picture")
    found = collect([three_seeds])
    assert (found.problems, found.figures) == ([], [folder / "landscape.png"])
    (picture,) = Report.of(found, Gallery()).figures
    assert picture.uri == "data:image/png;base64,cGljdHVyZQ=="
    assert not picture.is_drawing
