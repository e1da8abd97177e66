"""``zoopt-nas show``: prints a genotype and draws it, with the curves and alphas of its run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .options import Json, make_folder, option

_SOURCE = "Run folder, file with a genotype, its published string, or a name like DARTS_V2."


def show(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_GENOTYPE", help=_SOURCE)],
    out: Annotated[
        Path | None, option("Folder for the pictures.", shown="RUN/pictures, or pictures")
    ] = None,
    json: Json = False,
) -> None:
    """Print a genotype as a table; draw its cells, and a run's curves and alphas (SVG and PNG)."""
    from zoopt_nas import nas
    from zoopt_nas.nas.drawing import plots
    from zoopt_nas.nas.drawing.figures import save
    from zoopt_nas.nas.runs.folder import ARCHITECTURES, METRICS

    folder = nas.RunFolder.open(source) if os.path.isdir(source) else None
    genotype = folder.genotype() if folder else nas.Genotype.load(source)
    out = out or (folder.path / "pictures" if folder else Path("pictures"))
    figures = {
        "normal": plots.draw_cell(genotype, "normal"),
        "reduction": plots.draw_cell(genotype, "reduce"),
    }
    rows = folder.rows(METRICS) if folder else []
    if rows:
        figures["curves"] = plots.draw_curves(rows)
    if folder and (architectures := folder.rows(ARCHITECTURES)):
        figures["alpha"] = plots.draw_alpha(folder.space(), architectures)

    make_folder(out)
    pictures = [path for name, figure in figures.items() for path in save(figure, out / name)]
    sizes = _sizes(genotype)
    if json:
        failed = {row["epoch"]: row["failures"] for row in rows if row.get("failures")}
        last = rows[-1] if rows else None
        found = {"genotype": genotype.to_dict(), "sizes": sizes, "last_epoch": last}
        console.say_json({**found, "failures": failed, "pictures": pictures})
        return
    for kind, title in (("normal", "normal cell"), ("reduce", "reduction cell")):
        console.say_table(title, ["node", "from", "operation"], _edge_rows(genotype, kind))
    if rows:
        console.say(console.epoch_line(rows[-1]))
    if failures := console.failures_line(rows):
        console.say(failures)
    for (name, settings, side), size in zip(_PUBLISHED, sizes.values(), strict=True):
        console.say(
            f"{name}, {settings['n_cells']} cells, {settings['init_channels']} channels, "
            f"{side}x{side}: {size['n_parameters'] / 1e6:.2f} M parameters, "
            f"{size['n_multiply_adds'] / 1e6:.1f} M multiply-adds"
        )
    console.say(*pictures)


# The networks that papers use to compare genotypes on CIFAR-10 and on ImageNet (DARTS).
_PUBLISHED: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("CIFAR-10", {"n_classes": 10, "init_channels": 36, "n_cells": 20, "stem": "cifar"}, 32),
    ("ImageNet", {"n_classes": 1000, "init_channels": 48, "n_cells": 14, "stem": "imagenet"}, 224),
)


def _sizes(genotype: Any) -> dict[str, dict[str, int]]:
    """Count parameters and multiply-adds of the published networks, without auxiliary heads."""
    from zoopt_nas import nas

    sizes = {}
    for name, settings, image_size in _PUBLISHED:
        network = nas.Network(genotype, **settings)
        sizes[name] = {
            "n_parameters": nas.count_parameters(network),
            "n_multiply_adds": nas.count_multiply_adds(network, image_size),
        }
    return sizes


def _edge_rows(genotype: Any, kind: str) -> list[list[str]]:
    """Return a row for each edge; nodes are named as in the paper's Fig. 5."""
    names = ["c_{k-2}", "c_{k-1}", *map(str, range(len(genotype.edges(kind))))]
    return [
        [names[2 + i // 2], names[node], operation]
        for i, (operation, node) in enumerate(genotype.edges(kind))
    ]
