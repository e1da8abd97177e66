"""The package of docs/extending.md: written to disk, and installed without pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTENDING = Path(__file__).parent.parent / "docs" / "extending.md"
_FILE = re.compile(r"^```\w+\n# ([\w./-]+\.\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files_of(page: str) -> dict[str, str]:
    """The files of the package that a page has, by name, which is their first line; often none."""
    files = dict(_FILE.findall(page))
    return files if "pyproject.toml" in files else {}


def write_package(page: str, folder: Path) -> None:
    """Write every file of the package that a page has."""
    for name, text in files_of(page).items():
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
