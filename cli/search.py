"""``zoopt-nas search``: searches an architecture and writes a run folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from zoopt_nas.nas.settings.config import SHARED, SearchConfig
from zoopt_nas.nas.settings.paper_size import reductions
from zoopt_nas.nas.settings.setting import ALPHA, WHAT

from . import console
from .options import (
    RUN,
    SUPERNET,
    ConfigFile,
    Json,
    Log,
    dated,
    given,
    let_threads_sleep,
    option,
    read_config_file,
    resume_alone,
    with_settings,
)

_PRESET = "Search of the paper, of its released scripts, or of cells: paper, released, robust. "
_N = "N: samples in an update of alpha (rs: pairs; gld: radii)."
_FOLDER = "runs/<date>-<space>-<dataset>-<algo>-seed<k>"


@with_settings(
    SearchConfig,
    first=("space", "dataset", "algo", "preset", "seed", "warmup_epochs"),
    network=SUPERNET,
)
def search(
    ctx: typer.Context,
    preset: Annotated[
        str | None,
        option(f"{_PRESET}Other options override it.", WHAT, "neither: see the docs, Deviations"),
    ] = None,
    config: ConfigFile = None,
    run_dir: Annotated[Path | None, option("Folder to create.", RUN, _FOLDER)] = None,
    resume: Annotated[Path | None, option("Resume this run; takes no other option.", RUN)] = None,
    json: Json = False,
    log: Log = None,
    n_samples: Annotated[int | None, option(_N, ALPHA, "4")] = None,
) -> None:
    """Search an architecture; without options, MGS on the bundled handwritten digits."""
    let_threads_sleep()
    from zoopt_nas import nas  # torch takes a second or two to import: not for --help
    from zoopt_nas.nas.analyses.run_once import last_row
    from zoopt_nas.nas.tabular.table import TRUE_ACCURACIES

    if resume is not None:
        resume_alone(ctx)
    else:
        resolved = SearchConfig.for_dataset(**_settings(ctx))
        name = dated(resolved.space, resolved.dataset, resolved.algo, f"seed{resolved.seed}")
        run_dir = run_dir or Path("runs") / name

    resume_with = f"zoopt-nas search --resume {shlex.quote(str(resume or run_dir))}"
    with console.watched(quiet=json, resume_with=resume_with) as live:
        observer = console.logged(live, log, resume or run_dir)
        if resume is not None:
            result = nas.resume_search(resume, observer=observer)
        else:
            result = nas.run_search(resolved, run_dir=run_dir, observer=observer)

    folder = nas.RunFolder.open(str(result.run_dir))
    last, done = last_row(folder), folder.config(SearchConfig)
    is_trained = bool(result.metrics)  # the method random trains nothing
    reduced = reductions(done) if is_trained else []
    if json:
        found = {"run_dir": result.run_dir, "genotype": result.genotype.to_dict()}
        console.say_json({**found, "reduced": reduced, **last})
        return
    console.say(result.genotype)
    if is_trained:
        what = "supernet" if done.weights == SHARED else "cell's"
        kind, graph = next(iter(result.genotype.cells.items()))
        console.say(
            f"{what} validation accuracy {last['val_accuracy']:.2%}, "
            f"{last['skip_connections']} of {len(graph.edges)} {kind} edges are skip connections"
        )
    elif accuracies := console.metrics_line(last, TRUE_ACCURACIES):
        console.say(accuracies)
    console.say_reduced(reduced)
    console.say(f"run folder: {result.run_dir}")
    run = shlex.quote(str(result.run_dir))
    console.say(f"next: zoopt-nas train {run}, zoopt-nas show {run}")


def parse_settings(arguments: list[str]) -> dict[str, Any]:
    """Return the settings in arguments of this command, for a command that forwards them."""
    app = typer.Typer(add_completion=False)
    app.command()(search)
    parsed = typer.main.get_command(app).make_context("search", list(arguments))
    return _settings(cast(typer.Context, parsed))


def _settings(ctx: typer.Context) -> dict[str, Any]:
    """Return what ``SearchConfig.for_dataset`` takes: the config file, then the options."""
    options = given(ctx, SearchConfig)
    solver = options.pop("solver", {})
    for name, where in (("preset", options), ("n_samples", solver)):
        if ctx.params[name] is not None:
            where[name] = ctx.params[name]
    settings = read_config_file(ctx.params["config"], SearchConfig) | options
    in_file = settings.get("solver", {})
    if solver and isinstance(in_file, dict):  # the config refuses anything else
        settings["solver"] = in_file | solver
    return settings
