"""Every Python example of the docs runs, page by page, and prints what the page says.

A block after the line ``<!-- not run: reason -->`` is not run. A ``text`` block right after a
``python`` block is what that block prints, unless ``<!-- varies: reason -->`` stands between them.
A block whose first line is ``# path/of/a/file`` is that file of a package, which is installed for
the other blocks of the page.
"""

from __future__ import annotations

import ast
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
# A file of the package, a colon, and names in it: `solvers/rs.py`: `RS._tell`, `RS._ask`
FILE_AND_NAMES = re.compile(r"`([\w/]+\.py)`: (`[^`]+`(?:, `[^`]+`)*)")
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


def defined_names(path: Path) -> set[str]:
    """Return the functions, classes, methods and constants of a file: ``f``, ``C``, ``C.f``."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for part in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            before = "" if part is node else prefix
            if isinstance(part, ast.FunctionDef | ast.ClassDef):
                found.add(before + part.name)
            elif isinstance(part, ast.Assign | ast.AnnAssign):
                stored = [n for n in ast.walk(part) if isinstance(n, ast.Name)]
                found |= {before + n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return found


def test_every_name_of_the_paper_map_exists():
    text = (ROOT / "docs" / "paper-map.md").read_text(encoding="utf-8")
    assert len(re.findall(r"`[\w/]+\.py`", text)) == len(FILE_AND_NAMES.findall(text)) > 30
    for path, names in FILE_AND_NAMES.findall(text):
        file = ROOT / path if path.startswith("benchmarks/") else ROOT / "zoopt_nas" / path
        wanted = {name.partition("(")[0] for name in re.findall(r"`([^`]+)`", names)}
        assert wanted - defined_names(file) == set(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:zoopt_nas|cli|tests|benchmarks)/[\w/.]+\.(?:py|c|h)\b", text))
    missing = {name for name in named if not (ROOT / name).is_file()}
    examples_of_the_page = {"cli/hello.py", *files_of(text)}
    assert missing - examples_of_the_page == set(), page
