"""The page of a report in a real browser, if there is one: headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from report_runs import write_both, write_search

from zoopt_nas.nas.reports.collect import collect
from zoopt_nas.nas.reports.page import Report, write_report
from zoopt_nas.nas.reports.pictures import Gallery
from zoopt_nas.nas.settings.config import SearchConfig

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")

# Looks at the loaded page, sorts the first table twice, and leaves what it saw in the page.
PROBE = """
<script>
addEventListener("load", () => {
  const luminance = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255)
      .map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const contrast = (one, other) => {
    const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)") return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("h1, h2, p, td, th button, a, code, figcaption, dt")];
  const table = document.querySelector("table");
  const heads = [...table.querySelectorAll("th button")];
  const column = heads.findIndex((one) => one.textContent === "measured mean ± std");
  const shown = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  const seen = {
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    requests: performance.getEntriesByType("resource").map((one) => one.name),
    pictures: [...document.images].map((one) => one.naturalWidth),
    contrast: Math.min(...texts.map((one) => contrast(getComputedStyle(one).color, back(one)))),
    before: shown(),
  };
  heads[column].click();
  seen.ascending = shown();
  heads[column].click();
  seen.descending = shown();
  seen.sorted = heads[column].closest("th").getAttribute("aria-sort");
  document.getElementById("only").click();
  seen.sections = [...document.querySelectorAll("main > section")]
    .filter((one) => one.offsetParent !== null).map((one) => one.id);
  seen.visible = [...table.tBodies[0].rows].filter((row) => row.offsetParent !== null).length;
  const pre = document.createElement("pre");
  pre.id = "seen";
  pre.textContent = JSON.stringify(seen);
  document.body.append(pre);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page with three measured rows in Table 2, curves, cells and an unfinished run."""
    folder = tmp_path_factory.mktemp("report")
    for algo, accuracy in (("mgs", 0.97), ("gld", 0.6), ("rs", 0.98)):
        config = SearchConfig.for_dataset("cifar10", algo, space="s1")
        write_both(folder / "runs" / algo, config, accuracy)
    write_search(folder / "runs" / "late", config.replace(seed=5), n_epochs=2)
    report = Report.of(collect([folder / "runs"]), Gallery())
    return write_report(report, folder / "report.html")[0]


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run Chromium on a page, with a profile of its own."""
    assert BROWSER is not None
    profile = page.parent / "profile"
    return subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *(f"--user-data-dir={profile}", "--virtual-time-budget=5000", *options, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_and_sorts_everything_without_a_request(dark, page):
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shown = browse(probed, scheme, "--dump-dom").stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', shown, re.DOTALL)
    assert found, shown[-2000:]
    seen = json.loads(unescape(found[1]))
    assert seen["dark"] == dark
    assert seen["requests"] == []
    assert len(seen["pictures"]) == 3 * 4 + 3
    assert min(seen["pictures"]) > 0
    assert seen["contrast"] >= 4.5  # WCAG AA
    measured = ["2.00", "3.00", "40.00"]
    assert len(seen["before"]) == 96
    assert sorted(seen["before"]) == sorted(seen["ascending"])
    assert seen["ascending"][:3] == measured
    assert seen["descending"][:3] == measured[::-1]
    assert seen["sections"] == ["table2", "table7", "sets", "unfinished", "runs"]
    assert (seen["sorted"], seen["visible"]) == ("descending", 3)


@pytest.mark.slow
def test_a_browser_prints_it(page):
    pdf = page.with_name("report.pdf")
    browse(page, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 20_000
