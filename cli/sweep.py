"""``zoopt-nas sweep``: searches over values of settings and over seeds."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.settings.setting import WHAT

from . import console, search
from .options import (
    RETRAININGS,
    RUN,
    Json,
    dated,
    let_threads_sleep,
    option,
    parse_pairs,
    parse_values,
)

# A mean is shown with one digit more than a single run.
_COLUMNS = {
    "test_error": ("test error %", 100.0, "{:.2f}"),
    "n_parameters": ("parameters (M)", 1e-6, "{:.4f}"),
    "true_cifar10": ("true CIFAR-10 %", 100.0, "{:.2f}"),
    "true_cifar100": ("true CIFAR-100 %", 100.0, "{:.2f}"),
    "true_imagenet16": ("true ImageNet16-120 %", 100.0, "{:.2f}"),
    "val_accuracy": ("val. accuracy %", 100.0, "{:.2f}"),
    "skip_connections": ("skips", 1.0, "{:.1f}"),
    "n_effective": ("N_e", 1.0, "{:.2f}"),
    "effective_ratio": ("R_e", 1.0, "{:.3f}"),
    "evaluations": ("evaluations", 1.0, "{:.0f}"),
    "seconds": ("search s", 1.0, "{:.0f}"),
}

_VARY = (
    "NAME=VALUE,VALUE,... of a search setting or solver option, for example n_samples=2,4,6,8; "
    "repeated, all combinations."
)
_FOLDER = "Folder of the sweep. An existing folder of the same sweep is continued."


def sweep(
    ctx: typer.Context,
    vary: Annotated[list[str] | None, option(_VARY, WHAT, False)] = None,
    seeds: Annotated[str | None, option("K,K,...: each is run.", WHAT, "0,1,2 (paper B.3)")] = None,
    retrain: Annotated[bool, option("Retrain each result.", WHAT, flag="--retrain")] = False,
    train_option: Annotated[list[str] | None, option(RETRAININGS, WHAT, False)] = None,
    run_dir: Annotated[Path | None, option(_FOLDER, RUN, "runs/<date>-sweep")] = None,
    resume: Annotated[Path | None, option("Resume this sweep; takes no other option.", RUN)] = None,
    json: Json = False,
) -> None:
    """Search with several values of a setting and several seeds (Tables 5 and 6 of the paper).

    All searches also take the given options of `zoopt-nas search`.
    """
    let_threads_sleep()
    from zoopt_nas.nas.analyses import plots
    from zoopt_nas.nas.analyses.sweep import Sweep, run_sweep, summarize
    from zoopt_nas.nas.drawing import figures

    if resume is not None:
        if any((vary, seeds, retrain, train_option, run_dir, ctx.args)):
            raise InvalidValueError(
                "--resume takes every setting from the sweep; leave out the others"
            )
        run_dir, asked = resume, Sweep.load(resume)
    else:
        settings = parse_pairs(train_option or [], "--train-option")
        asked = Sweep(
            vary=parse_values(vary or [], "--vary"),
            seeds=_whole_numbers(seeds or "0,1,2"),
            search=search.parse_settings(ctx.args),
            train=settings if retrain or settings else None,
            command=_command(ctx),
        )
        run_dir = run_dir or Path("runs") / dated("sweep")

    runs = asked.runs()
    results = []
    again = f"zoopt-nas sweep --resume {shlex.quote(str(run_dir))}"
    with console.watched(quiet=json, resume_with=again) as observer:
        for result in run_sweep(asked, run_dir, observer=observer):
            results.append(result)
            if not json:
                console.say(f"{len(results)} of {len(runs)} done: {result.name}")

    rows = summarize(results)
    reduced = asked.reductions()
    pictures = figures.save(plots.draw_sweep(rows, reduced), run_dir / "sweep")
    command = asked.command or again
    if json:
        found = {"run_dir": run_dir, "command": command, "seeds": list(asked.seeds)}
        means = [
            {"point": point, **{name: n._asdict() for name, n in numbers.items()}}
            for point, numbers in rows
        ]
        found |= {"reduced": reduced, "rows": means, "runs": [asdict(one) for one in results]}
        console.say_json({**found, "pictures": pictures})
        return
    header, table = _table(asked.vary, rows, len(asked.seeds))
    console.say_table("mean ± standard deviation over seeds", header, table)
    console.say(f"seeds: {', '.join(map(str, asked.seeds))}")
    console.say(f"command: {command}")
    console.say_reduced(reduced)
    console.say(f"run folder: {run_dir}")


def _table(vary: Collection[str], rows: Any, n_seeds: int) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of means; beside the mean test error, the smallest one."""
    columns = [name for name in _COLUMNS if any(name in numbers for _, numbers in rows)]
    header = [*vary, "n", *(_COLUMNS[name][0] for name in columns)]
    table = [
        [*map(str, point.values()), str(n_seeds)]
        + [_cell(name, numbers.get(name)) for name in columns]
        for point, numbers in rows
    ]
    if "test_error" in columns:
        header.insert(len(vary) + 2, "best %")
        for line, (_, numbers) in zip(table, rows, strict=True):
            line.insert(len(vary) + 2, f"{100 * numbers['test_error'].least:.2f}")
    return header, table


def _cell(name: str, number: Any) -> str:
    if number is None:
        return "-"
    _, unit, form = _COLUMNS[name]
    mean = form.format(unit * number.mean)
    return mean if number.std is None else f"{mean} ± {form.format(unit * number.std)}"


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidValueError(f"seeds must be whole numbers K,K,..., got {text}") from error


def _command(ctx: typer.Context) -> str:
    """Return the command line as given."""
    asked = ctx.params
    parts = [part for pair in asked["vary"] or [] for part in ("--vary", pair)]
    parts += [] if asked["seeds"] is None else ["--seeds", asked["seeds"]]
    parts += ["--retrain"] if asked["retrain"] else []
    parts += [part for pair in asked["train_option"] or [] for part in ("--train-option", pair)]
    return shlex.join(["zoopt-nas", "sweep", *parts, *ctx.args])
