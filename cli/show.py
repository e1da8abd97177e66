"""``zoopt-nas show``: prints a genotype and draws it, with the curves and alphas of its run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zoopt_nas.errors import InvalidValueError

from . import console
from .options import Json, make_folder, option

_TABLE = "NAS-Bench-201 table: print the true accuracy of each epoch's cell."
_SOURCE = "Run folder, file with a genotype, its published string, or a name like DARTS_V2."


def show(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_GENOTYPE", help=_SOURCE)],
    out: Annotated[
        Path | None, option("Folder for the pictures.", shown="RUN/pictures, or pictures")
    ] = None,
    table: Annotated[Path | None, option(_TABLE)] = None,
    json: Json = False,
) -> None:
    """Print a genotype as a table; draw its cells, and a run's curves and alphas (SVG and PNG)."""
    from zoopt_nas import nas
    from zoopt_nas.nas.drawing import plots
    from zoopt_nas.nas.drawing.figures import save
    from zoopt_nas.nas.runs.folder import ARCHITECTURES, METRICS

    folder = nas.RunFolder.open(source) if os.path.isdir(source) else None
    genotype = folder.genotype() if folder else nas.load_architecture(source)
    out = out or (folder.path / "pictures" if folder else Path("pictures"))
    figures = {_FILES.get(kind, kind): plots.draw_cell(genotype, kind) for kind in genotype.cells}
    rows = folder.rows(METRICS) if folder else []
    true = _true_accuracies(table, genotype, folder)
    for row in rows:
        row.update(true.get(row["epoch"] + 1, {}))
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
        known = {"true_accuracies": true} if true else {}
        console.say_json({**found, **known, "failures": failed, "pictures": pictures})
        return
    for graph in genotype.cells.values():
        console.say_table(graph.title, ["node", "from", "operation"], _edge_rows(graph))
    if true:
        skips = {row["epoch"] + 1: row["skip_connections"] for row in rows}
        console.say_table("true accuracy (NAS-Bench-201)", _TRUE, _true_rows(true, skips))
    if rows:
        console.say(console.epoch_line(rows[-1]))
    if failures := console.failures_line(rows):
        console.say(failures)
    for published, size in zip(genotype.published_sizes, sizes.values(), strict=True):
        side = published.image_size
        console.say(
            f"{published.dataset}, {published.n_cells} cells, {published.init_channels} channels, "
            f"{side}x{side}: {size['n_parameters'] / 1e6:.2f} M parameters, "
            f"{size['n_multiply_adds'] / 1e6:.1f} M multiply-adds"
        )
    console.say(*pictures)


# Names of the pictures, if not by the kind of cell.
_FILES = {"reduce": "reduction"}


def _sizes(genotype: Any) -> dict[str, dict[str, int]]:
    """Count parameters and multiply-adds of the published networks, without auxiliary heads."""
    from zoopt_nas import nas

    sizes = {}
    for dataset, image_size, *shape, stem in genotype.published_sizes:
        network = nas.make_network(genotype, *shape, stem=stem)
        sizes[dataset] = {
            "n_parameters": nas.count_parameters(network),
            "n_multiply_adds": nas.count_multiply_adds(network, image_size),
        }
    return sizes


_TRUE = ["epoch", "CIFAR-10", "CIFAR-100", "ImageNet16-120", "skips"]


def _true_accuracies(table: Path | None, genotype: Any, folder: Any) -> dict[int, dict[str, float]]:
    """Return the true accuracies of the cell of each epoch from 1; of one genotype, at 0.

    Cells that the table lacks have none.
    """
    if table is None:
        return {}
    from zoopt_nas import nas
    from zoopt_nas.nas.networks.architectures import architecture_from_dict
    from zoopt_nas.nas.runs.folder import ARCHITECTURES

    if not isinstance(genotype, nas.NasBench201Genotype):
        raise InvalidValueError(
            "table must be left out unless the genotype is a NAS-Bench-201 cell"
        )
    known = nas.CellTable.load(table)
    rows = folder.rows(ARCHITECTURES) if folder else []
    cells = {row["epoch"] + 1: architecture_from_dict(row["genotype"]) for row in rows}
    found = {
        epoch: known.true_accuracies(str(cell)) for epoch, cell in (cells or {0: genotype}).items()
    }
    return {epoch: accuracies for epoch, accuracies in found.items() if accuracies}


def _true_rows(
    true: Mapping[int, Mapping[str, float]], skips: Mapping[int, int]
) -> list[list[str]]:
    return [
        [str(epoch or "-"), *(f"{a:.2%}" for a in accuracies.values()), str(skips.get(epoch, "-"))]
        for epoch, accuracies in true.items()
    ]


def _edge_rows(graph: Any) -> list[list[str]]:
    """Return a row for each edge."""
    return [
        [graph.nodes[target], graph.nodes[source], operation]
        for operation, source, target in graph.edges
    ]
