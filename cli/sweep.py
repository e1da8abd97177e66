"""``zoopt-nas sweep``: searches over values of settings and over seeds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopt_nas.errors import FailedRunsError, InvalidValueError, UnknownNameError
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

if TYPE_CHECKING:
    from zoopt_nas.nas.analyses.engines import Engine
    from zoopt_nas.nas.analyses.sweep import Sweep, SweepResult

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
_FROM = (
    "The sweep of a table of the paper (table2, table3, table5, table6, table7) or in a TOML file; "
    "other options override it."
)
_FOLDER = "Folder of the sweep. An existing folder of the same sweep is continued."
_RESUME = "Resume this sweep; takes no other option of its searches."
_ENGINE = "What runs the searches: processes of this machine, or ray, tasks of a Ray cluster."
_JOBS = "Processes side by side; with GPUs, each has one. 1: this process."
_ADDRESS = "Address of the Ray cluster; auto: the one of this machine."
_CPUS = "CPU cores of each search."
_RETRIES = "How often a failed search is continued before it is reported."
PROCESSES, RAY = ENGINES = ("processes", "ray")
EXECUTION = "Execution"


def sweep(
    ctx: typer.Context,
    source: Annotated[str | None, option(_FROM, WHAT, False, flag="--from")] = None,
    vary: Annotated[list[str] | None, option(_VARY, WHAT, False)] = None,
    seeds: Annotated[str | None, option("K,K,...: each is run.", WHAT, "0,1,2 (paper B.3)")] = None,
    retrain: Annotated[bool, option("Retrain each result.", WHAT, flag="--retrain")] = False,
    train_option: Annotated[list[str] | None, option(RETRAININGS, WHAT, False)] = None,
    run_dir: Annotated[Path | None, option(_FOLDER, RUN, "runs/<date>-sweep")] = None,
    resume: Annotated[Path | None, option(_RESUME, RUN)] = None,
    engine: Annotated[str, option(_ENGINE, EXECUTION)] = PROCESSES,
    jobs: Annotated[int | None, option(_JOBS, EXECUTION, "1")] = None,
    address: Annotated[str | None, option(_ADDRESS, EXECUTION, "start Ray here")] = None,
    cpus: Annotated[int | None, option(_CPUS, EXECUTION, "processes: an even part; ray: 1")] = None,
    retries: Annotated[int, option(_RETRIES, EXECUTION)] = 1,
    json: Json = False,
) -> None:
    """Search with several values of a setting and several seeds (Tables 2, 3, 5-7 of the paper).

    All searches also take the given options of `zoopt-nas search`.
    """
    let_threads_sleep()
    from zoopt_nas.nas.analyses.sweep import Sweep, run_sweep

    if resume is not None:
        if any((source, vary, seeds, retrain, train_option, run_dir, ctx.args)):
            raise InvalidValueError(
                "--resume takes every setting from the sweep; leave out the others"
            )
        run_dir, asked = resume, Sweep.load(resume)
    else:
        asked = _asked(ctx)
        run_dir = run_dir or Path("runs") / dated("sweep")
    executed_by = _engine(engine, jobs, address, cpus, asked.needs_gpu())

    order = [run.name for run in asked.runs()]
    results, failure = [], None
    again = f"zoopt-nas sweep --resume {shlex.quote(str(run_dir))}"
    is_quiet = json or executed_by is not None  # there is no single run to watch
    # Ray prints the death of a worker on standard output, where JSON must be alone.
    stray = redirect_stdout(sys.stderr) if json else nullcontext()
    with stray, console.watched(quiet=is_quiet, resume_with=again) as observer:
        try:
            for result in run_sweep(
                asked, run_dir, observer=observer, engine=executed_by, retries=retries
            ):
                results.append(result)
                if not json:
                    console.say(f"{len(results)} of {len(order)} done: {result.name}")
        except FailedRunsError as error:
            failure = error
    if results:
        results.sort(key=lambda result: order.index(result.name))
        _report(asked, results, run_dir, asked.command or again, failure, json=json)
    if failure is not None:
        raise failure


def _asked(ctx: typer.Context) -> Sweep:
    """Return the sweep that the options describe, on top of the one of ``--from``."""
    from zoopt_nas.nas.analyses.paper_tables import read_sweep
    from zoopt_nas.nas.analyses.sweep import Sweep

    given = ctx.params
    vary = parse_values(given["vary"] or [], "--vary")
    training = parse_pairs(given["train_option"] or [], "--train-option")
    seeds = None if given["seeds"] is None else _whole_numbers(given["seeds"])
    settings, command = search.parse_settings(ctx.args), _command(ctx)
    if given["source"] is None:
        train = training if given["retrain"] or training else None
        return Sweep(vary, seeds or (0, 1, 2), settings, train, command)
    base = read_sweep(given["source"])
    solver = {**base.search.get("solver", {}), **settings.get("solver", {})}
    settings = {**base.search, **settings} | ({"solver": solver} if solver else {})
    if base.train is not None or given["retrain"] or training:
        training = {**(base.train or {}), **training}
    return replace(
        base,
        vary={**base.vary, **vary},
        seeds=seeds or base.seeds,
        search=settings,
        train=training or base.train,
        command=command,
    )


def _engine(
    name: str, jobs: int | None, address: str | None, cpus: int | None, needs_gpu: bool | None
) -> Engine | None:
    """Return what runs the searches; None is this process."""
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    if name == RAY:
        from zoopt_nas.nas.analyses.ray_engine import RayCluster

        if jobs is not None:
            raise InvalidValueError("jobs must be left to Ray, which knows its cores and GPUs")
        return RayCluster(address, 1 if cpus is None else cpus, needs_gpu)
    if address is not None:
        raise InvalidValueError("address must be used with --engine ray")
    from zoopt_nas.nas.analyses.engines import Processes

    processes = Processes(
        1 if jobs is None else jobs, gpus=() if needs_gpu is False else None, threads=cpus
    )
    return None if processes.jobs == 1 and cpus is None else processes


def _report(
    asked: Sweep,
    results: Sequence[SweepResult],
    run_dir: Path,
    command: str,
    failure: FailedRunsError | None,
    *,
    json: bool,
) -> None:
    """Draw and print the means over the seeds."""
    from zoopt_nas.nas.analyses import plots
    from zoopt_nas.nas.analyses.sweep import summarize
    from zoopt_nas.nas.drawing import figures

    rows, reduced = summarize(results), asked.reductions()
    pictures = figures.save(plots.draw_sweep(rows, reduced), run_dir / "sweep")
    if json:
        found = {"run_dir": run_dir, "command": command, "seeds": list(asked.seeds)}
        means = [
            {"point": point, **{name: n._asdict() for name, n in numbers.items()}}
            for point, numbers in rows
        ]
        found |= {"reduced": reduced, "rows": means, "runs": [asdict(one) for one in results]}
        failed = {} if failure is None else failure.failures
        console.say_json({**found, "failed": failed, "pictures": pictures})
        return
    header, table = _table(asked.vary, rows)
    console.say_table("mean ± standard deviation over seeds", header, table)
    console.say(f"seeds: {', '.join(map(str, asked.seeds))}")
    console.say(f"command: {command}")
    console.say_reduced(reduced)
    console.say(f"run folder: {run_dir}")


def _table(vary: Collection[str], rows: Any) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of means; beside the mean test error, the smallest one."""
    columns = [name for name in _COLUMNS if any(name in numbers for _, numbers in rows)]
    header = [*vary, "n", *(_COLUMNS[name][0] for name in columns)]
    table = [
        [*map(str, point.values()), str(max(number.n for number in numbers.values()))]
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
    parts = [] if asked["source"] is None else ["--from", asked["source"]]
    parts += [part for pair in asked["vary"] or [] for part in ("--vary", pair)]
    parts += [] if asked["seeds"] is None else ["--seeds", asked["seeds"]]
    parts += ["--retrain"] if asked["retrain"] else []
    parts += [part for pair in asked["train_option"] or [] for part in ("--train-option", pair)]
    return shlex.join(["zoopt-nas", "sweep", *parts, *ctx.args])
