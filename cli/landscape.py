"""``zoopt-nas landscape``: draws and measures the loss around the alpha of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoopt_nas.nas.settings.config import SearchConfig

from . import console
from .options import Json, let_threads_sleep, option

_GRID, _PATHS = "Grid", "Paths"
_INNER = "Panels, separated by commas: first, second, or a number of inner steps."
_STEP = "0.02 (paper); digits: 0.25"
_METHODS = "Methods whose paths are drawn: darts1, darts2, rs, mgs, gld; or none."


def landscape(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a search.")],
    inner: Annotated[str, option(_INNER, _GRID)] = "first,second,10",
    radius: Annotated[float, option("Half of the square's side.", _GRID)] = 1.0,
    step: Annotated[float | None, option("Spacing of the grid.", _GRID, _STEP)] = None,
    val_batches: Annotated[
        int | None,
        option("Batches whose mean loss is drawn.", _GRID, "those that score alpha, at most 16"),
    ] = None,
    draws: Annotated[int, option("Draws of the inner batches, whose mean is drawn.", _GRID)] = 1,
    paths: Annotated[str, option(_METHODS, _PATHS)] = "darts1,rs,mgs,gld",
    n_updates: Annotated[int, option("Updates of each path.", _PATHS)] = 10,
    path_lr: Annotated[float, option("Adam's learning rate in DARTS's paths.", _PATHS)] = 0.1,
    seed: Annotated[int, option("Seeds directions, start and solvers.")] = 0,
    out: Annotated[
        Path | None, option("Folder for arrays and pictures.", shown="RUN/landscape")
    ] = None,
    json: Json = False,
) -> None:
    """Draw the loss around a search's alpha, by approximation of the weights, and the paths there.

    After Ctrl-C, the same command continues.
    """
    let_threads_sleep()
    from zoopt_nas.nas.analyses.landscape.compute import compute_landscape
    from zoopt_nas.nas.analyses.landscape.figure import draw_landscape
    from zoopt_nas.nas.analyses.landscape.plane import LandscapeSettings
    from zoopt_nas.nas.drawing import figures
    from zoopt_nas.nas.runs.folder import RunFolder

    settings = LandscapeSettings.for_dataset(
        RunFolder.open(run).config(SearchConfig).dataset,
        **({} if step is None else {"step": step}),
        inner=_names(inner),
        radius=radius,
        val_batches=val_batches,
        n_draws=draws,
        paths=() if paths == "none" else _names(paths),
        n_updates=n_updates,
        path_lr=path_lr,
        seed=seed,
    )
    out = out or run / "landscape"
    with (
        console.one_line_warnings(),
        console.stop_on_signals() as flag,
        console.counting("landscape", quiet=json) as count,
    ):
        found = compute_landscape(
            run, settings, out=out, on_progress=count, should_stop=lambda: flag.raised
        )
    summary = found.summary()
    pictures = figures.save(draw_landscape(found), out / "landscape", ("png", "pdf"))
    if json:
        console.say_json({"out": out, **summary, "pictures": pictures})
        return
    _say_tables(summary)
    console.say_reduced(summary["reduced"])
    console.say(out / "landscape.npz", out / "landscape.json", *pictures)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _say_tables(summary: dict[str, Any]) -> None:
    reference = summary["reference"]
    panels = []
    for name, panel in summary["panels"].items():
        curvatures = ", ".join(map(_shown, panel["eigenvalues"]))
        minimum = _point(panel["minimum"]) + (", on the border" if panel["is_on_border"] else "")
        loss, distance = _shown(panel["minimum_value"]), _shown(panel["distance_to_reference"])
        gradient = _shown(panel["mean_gradient_norm"])
        panels.append([name, gradient, curvatures, minimum, loss, distance])
    header = ["inner", "mean gradient", "curvatures at the minimum", "minimum", "loss"]
    settings = summary["settings"]
    console.say_table(
        f"BatchNorm on batch statistics, {settings['val_batches']} validation batches, "
        f"mean of {settings['n_draws']} draws of the training batches",
        [*header, f"distance to the minimum of {reference}"],
        panels,
    )
    if not summary["paths"]:
        return
    numbers = ("start_value", "end_value", "distance_to_minimum")
    ends = [
        [name, _point(path["start"]), _point(path["end"]), *(_shown(path[key]) for key in numbers)]
        for name, path in summary["paths"].items()
    ]
    console.say_table(
        f"Paths of {settings['n_updates']} updates, losses of {reference} inner steps",
        ["method", "start", "end", "loss before", "after", "distance to the minimum"],
        ends,
    )


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.4g}"


def _point(coordinates: list[float]) -> str:
    return "({:.2f}, {:.2f})".format(*coordinates)
