"""``zoopt-nas convergence``: retrains what a search had found along its way."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.paper_size import reductions_of_all

from . import console
from .options import RETRAININGS, Json, let_threads_sleep, make_folder, option, parse_pairs

_NAME = "Folder in each RUN that the retrainings go into."
_EVERY = "Epochs between two genotypes. Every 25 epochs of 200 in the paper (section 5.1)."


def convergence(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders of searches to compare.")
    ],
    every: Annotated[int | None, option(_EVERY, shown="25")] = None,
    train_option: Annotated[list[str] | None, option(RETRAININGS, shown=False)] = None,
    name: Annotated[str, option(_NAME)] = "convergence",
    out: Annotated[
        Path | None, option("Folder of the figure.", shown="pictures of the first RUN")
    ] = None,
    json: Json = False,
) -> None:
    """Retrain the network of every k-th epoch of searches; compare accuracy and size (Fig. 2).

    Retrainings that have ended are kept: the same command goes on after an interruption.
    """
    let_threads_sleep()
    from zoopt_nas import nas
    from zoopt_nas.nas.analyses import plots
    from zoopt_nas.nas.analyses.convergence import (
        EVERY,
        ConvergencePoint,
        plan_retrainings,
        run_retrainings,
    )
    from zoopt_nas.nas.drawing import figures

    every = EVERY if every is None else every
    settings = parse_pairs(train_option or [], "--train-option")
    names = console.short_names(runs)
    folders = [nas.RunFolder.open(run) for run in runs]
    plans = [plan_retrainings(run, every=every, name=name, **settings) for run in folders]

    options = [f"--train-option={pair}" for pair in train_option or []]
    options += [f"--every={every}", f"--name={name}"]
    again = shlex.join(["zoopt-nas", "convergence", *runs, *options])
    points: dict[str, list[ConvergencePoint]] = {}
    with console.watched(quiet=json, resume_with=again) as observer:
        for run, plan in zip(names, plans, strict=True):
            points[run] = []
            for point in run_retrainings(plan, observer=observer):
                points[run].append(point)
                if not json:
                    console.say(f"{run}, epoch {point.epoch}: test {point.test_accuracy:.2%}")

    reduced = reductions_of_all(
        (folder.config(SearchConfig), plan[0].config)
        for folder, plan in zip(folders, plans, strict=True)
    )
    out = out or folders[0].path / "pictures"
    make_folder(out)
    pictures = figures.save(plots.draw_convergence(points, reduced), out / "convergence")
    if json:
        result = {run: [asdict(point) for point in there] for run, there in points.items()}
        console.say_json({"runs": result, "reduced": reduced, "pictures": pictures})
        return
    columns = ["run", "epoch", "test accuracy", "parameters", "supernet val. accuracy", "skips"]
    rows = [
        [
            run,
            str(point.epoch),
            f"{point.test_accuracy:.2%}",
            f"{point.n_parameters:,}",
            f"{point.val_accuracy:.2%}",
            str(point.skip_connections),
        ]
        for run, there in points.items()
        for point in there
    ]
    console.say_table("convergence", columns, rows)
    console.say_reduced(reduced)
    console.say(*pictures)
