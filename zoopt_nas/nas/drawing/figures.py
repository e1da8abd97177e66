"""Style and output of all figures."""

from __future__ import annotations

import errno
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from zoopt_nas._files import replacing
from zoopt_nas.errors import UnknownNameError

FORMATS = ("svg", "png", "pdf")

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "mathtext.fontset": "dejavusans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.edgecolor": "#555555",
    "hatch.linewidth": 0.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "zoopt-nas",  # the same figure gives the same bytes
    "pdf.fonttype": 42,
}
_NO_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_PNG_DPI = 200


def label_size(figure: Figure, reduced: Sequence[str]) -> None:
    """Add a line below a figure that lists what is smaller than in the paper, if anything is.

    The figure needs the layout ``constrained``, which makes room for the line.
    """
    if reduced:
        figure.supxlabel(f"reduced size: {', '.join(reduced)}", fontsize=7, color="#555555")


def save(figure: Figure, path: str | Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write ``<path>.<format>`` for each format, each file atomically; return the paths.

    Args:
        figure: the figure; equal figures give equal bytes.
        path: without a suffix.
        formats: any of ``svg``, ``png`` and ``pdf``.

    Raises:
        UnknownNameError: another format.
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "the folder of the figure does not exist", str(path.parent)
        )
    contents = {path.with_name(f"{path.name}.{name}"): render(figure, name) for name in formats}
    for file, content in contents.items():
        with replacing(file) as stream:
            stream.write(content)
    return list(contents)


def render(figure: Figure, name: str) -> bytes:
    """Return the figure as a file of the format ``name``; equal figures give equal bytes.

    Raises:
        UnknownNameError: there is no such format.
    """
    if name not in FORMATS:
        raise UnknownNameError("figure format", name, FORMATS)
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=name, dpi=_PNG_DPI, metadata=_NO_DATE[name])
    return buffer.getvalue()
