"""Figures are written whole or not at all, and the same input gives the same bytes."""

from __future__ import annotations

import ast
import os
from pathlib import Path as FilePath
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from zoopt_nas.errors import UnknownNameError
from zoopt_nas.nas.analyses import plots as analysis_plots
from zoopt_nas.nas.analyses.landscape import figure as landscape_plot
from zoopt_nas.nas.drawing import figures, plots
from zoopt_nas.nas.drawing.figures import save
from zoopt_nas.nas.drawing.plots import draw_alpha, draw_cell, draw_curves, draw_genotype
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.networks.spaces import SPACES

V1, V2 = GENOTYPES["DARTS_V1"], GENOTYPES["DARTS_V2"]
SMALL = Figure(figsize=(1, 1))


def test_save_writes_text_svg_and_png(tmp_path):
    files = save(draw_genotype(V1), tmp_path / "cell.v1")
    assert files == [tmp_path / "cell.v1.svg", tmp_path / "cell.v1.png"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert files[1].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    root = ElementTree.parse(files[0]).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    texts = ["".join(text.itertext()).strip() for text in root.iter(f"{svg}text")]
    assert texts.count("sep_conv_3x3") == V1.count("sep_conv_3x3")
    assert texts.count("max_pool_3x3") == V1.count("max_pool_3x3", "reduce")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert "normal-edge-0" in ids


@pytest.mark.parametrize(
    ("draw", "formats"),
    [
        (lambda: draw_cell(V2, "reduce"), ["svg", "png"]),
        (
            lambda: draw_curves([{"epoch": 0, "train_loss": 2.0}, {"epoch": 1, "train_loss": 1.5}]),
            ["svg"],
        ),
        (lambda: draw_alpha(SPACES["s2"], SPACES["s2"].init_alpha(rng=0)), ["svg"]),
        (lambda: Figure(figsize=(1, 1)), ["pdf"]),
    ],
    ids=["cell", "curves", "alpha", "empty"],
)
def test_same_input_gives_the_same_bytes(tmp_path, draw, formats):
    first = save(draw(), tmp_path / "a", formats)
    before = matplotlib.rcParams.copy()
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "font.family": "serif"}):
        second = save(draw(), tmp_path / "b", formats)  # nor does the user's style matter
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]
    assert matplotlib.rcParams.copy() == before


def test_save_replaces_a_file(tmp_path):
    (tmp_path / "f.svg").write_text("old")
    save(SMALL, tmp_path / "f", ["svg"])
    ElementTree.parse(tmp_path / "f.svg")
    assert (tmp_path / "f.svg").stat().st_mode & 0o777 == 0o644


def test_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of the figure does not exist.*absent"):
        save(SMALL, tmp_path / "absent" / "f")
    assert list(tmp_path.iterdir()) == []


def test_unknown_format_writes_nothing(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown figure format 'jpg'"):
        save(SMALL, tmp_path / "f", ["svg", "jpg"])
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    (tmp_path / "f.svg").write_text("old")

    def fail(*paths):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk on fire"):
        save(SMALL, tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["f.svg"]
    assert (tmp_path / "f.svg").read_text() == "old"


@pytest.mark.parametrize("module", [plots, figures, analysis_plots, landscape_plot])
def test_no_pyplot(module):
    """It would keep every figure alive and pick a window system."""
    tree = ast.parse(FilePath(module.__file__).read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
    }
    assert "matplotlib.figure" in imported
    assert not any("pyplot" in (name or "") for name in imported)
