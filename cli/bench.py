"""``zoopt-nas bench``: benchmarks of search methods, one command for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoopt_nas import SOLVERS
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.settings.setting import WHAT
from zoopt_nas.nas.tabular.benchmark import Benchmark, Traces, accuracies_of, summarize
from zoopt_nas.nas.tabular.searches import BASELINES
from zoopt_nas.nas.tabular.table import SIGNALS, TESTS, CellTable

from . import console
from .options import Json, make_folder, option

app = typer.Typer(help="Run benchmarks of search methods.", no_args_is_help=True)

_TITLES = dict(zip(TESTS, ("CIFAR-10", "CIFAR-100", "ImageNet16-120"), strict=True))
_METHODS = "NAME,NAME,... of baselines and solvers."
_TABLE = "CSV file with a row for each cell; see docs/nasbench201.md."
_QUERIES = "K,K,...: the budgets of the table; the largest is the budget of a run."
_EVERY = "Count every evaluation in table and figure, also of a cell that the run knows."
_OUT = "Folder of the figure nasbench201.svg and .png."


@app.command("nasbench201")
def nasbench201(
    table: Annotated[Path, option(_TABLE, WHAT, False)],
    methods: Annotated[str | None, option(_METHODS, WHAT, "all baselines and solvers")] = None,
    queries: Annotated[str, option(_QUERIES, WHAT)] = "100,150,200",
    runs: Annotated[int, option("Runs of each method.", WHAT)] = 500,
    seed: Annotated[int, option("Seeds the runs.", WHAT)] = 0,
    signal: Annotated[str, option("Column that the searches maximize.", WHAT)] = SIGNALS[0],
    every_evaluation: Annotated[bool, option(_EVERY, WHAT, flag="--every-evaluation")] = False,
    workers: Annotated[int, option("Processes; -1: one for each core.", WHAT)] = 1,
    out: Annotated[Path | None, option(_OUT, WHAT, "no figure")] = None,
    json: Json = False,
) -> None:
    """Search the table of NAS-Bench-201 by one accuracy, and report the true test accuracies."""
    budgets = _budgets(queries)
    benchmark = Benchmark(
        methods=tuple(methods.split(",") if methods else (*BASELINES, *_built_in_solvers())),
        n_queries=budgets[-1],
        n_runs=runs,
        seed=seed,
        signal=signal,
    )
    cells = CellTable.load(table)
    best = int(cells.column(signal).argmax())
    if out is not None:
        make_folder(out)
    with console.counting("runs", quiet=json) as on_progress:
        found = benchmark.run(cells, workers=workers, on_progress=on_progress)
    pictures = [] if out is None else _draw(cells, found, out, every_evaluation)
    top = {column: float(cells.column(column)[best]) for column in TESTS}
    if json:
        numbers = {name: _as_json(cells, traces, budgets) for name, traces in found.items()}
        console.say_json(
            {
                **{"table": table, "signal": signal, "runs": runs, "seed": seed},
                **{"queries": budgets, "best_signal": top, "methods": numbers},
                "pictures": pictures,
            }
        )
        return
    counted = "evaluations" if every_evaluation else "queries"
    header = ["method", *(f"{n} {counted}" for n in budgets)]
    for column, title in _TITLES.items():
        rows = []
        for name, traces in found.items():
            found_by = summarize(cells, traces, column, budgets, every_evaluation=every_evaluation)
            rows.append([name, *(f"{one.mean:.2f} ± {one.std:.2f}" for one in found_by)])
        console.say_table(f"{title}: test accuracy %, mean ± standard deviation", header, rows)
    console.say(f"runs: {runs}, seed: {seed}, signal: {signal}")
    named = ", ".join(f"{title} {top[column]:.2f}" for column, title in _TITLES.items())
    console.say(f"cell with the best signal: {named}")
    console.say(*pictures)


def _built_in_solvers() -> list[str]:
    return [name for name in SOLVERS if SOLVERS.is_built_in(name)]


def _budgets(text: str) -> list[int]:
    """Parse ``100,150`` as increasing budgets."""
    try:
        budgets = sorted({int(part) for part in text.split(",")})
    except ValueError:
        budgets = []
    if not budgets or budgets[0] < 1:
        raise InvalidValueError(f"queries must be positive whole numbers K,K,..., got {text}")
    return budgets


def _as_json(cells: CellTable, traces: Traces, budgets: list[int]) -> dict[str, Any]:
    """Return the numbers of a method, with both ways to count."""
    found: dict[str, Any] = {
        "n_queries": float(traces.n_queries.mean()),
        "n_evaluations": float(traces.n_evaluations.mean()),
    }
    for key, every in (("by_query", False), ("by_evaluation", True)):
        found[key] = {
            column: [
                {"n": n, **one._asdict()}
                for n, one in zip(
                    budgets,
                    summarize(cells, traces, column, budgets, every_evaluation=every),
                    strict=True,
                )
            ]
            for column in TESTS
        }
    return found


def _draw(
    cells: CellTable, found: dict[str, Traces], out: Path, every_evaluation: bool
) -> list[Path]:
    from zoopt_nas.nas.drawing import figures
    from zoopt_nas.nas.tabular.plots import draw_benchmark

    panels = {
        f"{title} test accuracy": {
            name: accuracies_of(cells, traces, column, every_evaluation=every_evaluation)
            for name, traces in found.items()
        }
        for column, title in _TITLES.items()
    }
    figure = draw_benchmark(panels, "evaluations" if every_evaluation else "queries")
    return figures.save(figure, out / "nasbench201")
