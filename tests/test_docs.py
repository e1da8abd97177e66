"""Every Python example of the docs runs, page by page, and prints what the page says.

A block after the line ``<!-- not run: reason -->`` is not run. A ``text`` block right after a
``python`` block is what that block prints, unless ``<!-- varies: reason -->`` stands between them.
A block whose first line is ``# path/of/a/file`` is that file of a package, which is installed for
the other blocks of the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from page_package import files_of, install, write_package

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
END = "\n=== end of a block ===\n"


class Example(NamedTuple):
    """A block of Python, and what it prints if the page says so."""

    code: str
    printed: str | None


def examples(text: str) -> list[Example]:
    """The blocks of a page that run, in order."""
    found = []
    fences, files = list(FENCE.finditer(text)), set(files_of(text).values())
    for k, fence in enumerate(fences):
        if fence["language"] != "python" or NOT_RUN.search(text[: fence.start()]):
            continue
        if fence["body"].partition("\n")[2] in files:
            continue
        printed = None
        if k + 1 < len(fences) and fences[k + 1]["language"] == "text":
            between = text[fence.end() : fences[k + 1].start()]
            if not between.strip():
                printed = fences[k + 1]["body"]
        found.append(Example(fence["body"], printed))
    return found


def run(blocks: list[Example], folder: Path, site: Path | None = None) -> list[str]:
    """Runs the blocks of a page in one interpreter; returns what each printed.

    Args:
        blocks: of the page.
        folder: in which they run.
        site: where the package of the page is installed.
    """
    script = "".join(f"{block.code}\nprint({END!r}, end='')\n" for block in blocks)
    # Processes that the examples start import the page as a module: it must be a file.
    page = folder / "page.py"
    page.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(page)],
        cwd=folder,
        env=os.environ if site is None else {**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split(END)[:-1]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if examples(page.read_text(encoding="utf-8"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_examples_of_a_page_run(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    blocks = examples(text)
    site = None
    if files_of(text):
        write_package(text, tmp_path / "package")
        site = install(tmp_path / "package")
    outputs = run(blocks, tmp_path, site)
    assert len(outputs) == len(blocks)
    for block, output in zip(blocks, outputs, strict=True):
        if block.printed is not None:
            assert output.strip() == block.printed.strip()


def test_how_examples_are_found(tmp_path):
    page = """
```python
print("a")
```

```text
a
```

<!-- not run: needs a cluster -->
```python
import no_such_module
```

```python
print("b")
```

<!-- varies: it is the time -->
```text
c
```
"""
    found = examples(page)
    assert [block.printed for block in found] == ["a\n", None]
    assert run(found, tmp_path) == ["a\n", "b\n"]
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run([Example("1 / 0", None)], tmp_path)
