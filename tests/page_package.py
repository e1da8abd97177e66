"""The package of docs/extending.md: written to disk, and installed without pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTENDING = Path(__file__).parent.parent / "docs" / "extending.md"
# A block whose first line names the file that it is.
FILE = re.compile(r"^```\w+\n# ([\w./-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_package(page: str, folder: Path) -> None:
    """Write every file that a page has."""
    for name, text in FILE.findall(page):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def install(package: Path) -> Path:
    """Write the metadata that pip would write; return the folder that belongs on ``sys.path``."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    info = package / "src" / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return package / "src"
