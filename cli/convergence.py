"""``zoopt-nas convergence``: retrains the networks of several epochs of a search."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated, Any

from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.paper_size import reductions_of_all

from . import console
from .options import (
    RETRAININGS,
    Json,
    Pictures,
    Runs,
    let_threads_sleep,
    make_folder,
    option,
    parse_pairs,
)

_NAME = "Folder in each RUN that the retrainings go into."
_EVERY = "Epochs between two genotypes. Every 25 epochs of 200 in the paper (section 5.1)."

_COLUMNS = {
    "epoch": "{0.epoch}",
    "test accuracy": "{0.test_accuracy:.2%}",
    "parameters": "{0.n_parameters:,}",
    "supernet val. accuracy": "{0.val_accuracy:.2%}",
    "skips": "{0.skip_connections}",
}


def convergence(
    runs: Runs,
    every: Annotated[int | None, option(_EVERY, shown="25")] = None,
    train_option: Annotated[list[str] | None, option(RETRAININGS, shown=False)] = None,
    name: Annotated[str, option(_NAME)] = "convergence",
    out: Pictures = None,
    json: Json = False,
) -> None:
    """Retrain the network of every k-th epoch of searches; compare accuracy and size (Fig. 2).

    Finished retrainings are kept: after an interruption the same command continues.
    """
    let_threads_sleep()
    from zoopt_nas import nas
    from zoopt_nas.nas.analyses import plots
    from zoopt_nas.nas.analyses.convergence import EVERY, plan_retrainings, run_retrainings
    from zoopt_nas.nas.drawing import figures

    every = EVERY if every is None else every
    settings = parse_pairs(train_option or [], "--train-option")
    names = console.short_names(runs)
    folders = [nas.RunFolder.open(run) for run in runs]
    plans = [plan_retrainings(run, every=every, name=name, **settings) for run in folders]

    options = [f"--train-option={pair}" for pair in train_option or []]
    options += [f"--every={every}", f"--name={name}"]
    again = shlex.join(["zoopt-nas", "convergence", *runs, *options])
    points: dict[str, list[Any]] = {}
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
    rows = [
        [run, *(form.format(point) for form in _COLUMNS.values())]
        for run, there in points.items()
        for point in there
    ]
    console.say_table("convergence", ["run", *_COLUMNS], rows)
    console.say_reduced(reduced)
    console.say(*pictures)
