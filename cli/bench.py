"""``zoopt-nas bench``: measures optimizers on standard problems."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.solvers import make_solver

from . import console
from .options import Json, make_folder, option

if TYPE_CHECKING:
    from zoopt_nas.bbob import BBOBResult

app = typer.Typer(help="Measure optimizers on standard problems.", add_completion=False)


class NoiseKind(StrEnum):
    """The choices of ``--noise-kind``."""

    ADDITIVE = "additive"
    MULTIPLICATIVE = "multiplicative"


@app.callback()
def _group() -> None:
    # With a callback, a lone command keeps its name: `bench bbob`, not `bench`.
    pass


@app.command("bbob")
def bbob(
    algo: Annotated[list[str], option("A solver; give it once for each.")],
    dims: Annotated[str, option("Dimensions, such as 2,5,10.")] = "2,5,10",
    instances: Annotated[str, option("Instances, such as 1-3.")] = "1-3",
    functions: Annotated[str, option("Functions of the 24, such as 1,8,15.")] = "1-24",
    evals_per_dim: Annotated[int, option("Evaluations for each dimension.")] = 300,
    seed: Annotated[int, option("Seeds starts, solvers and noise.", min=0)] = 0,
    workers: Annotated[int, option("Processes; -1 is one for each core.")] = 1,
    noise: Annotated[float, option("Strength of noise in the values.")] = 0.0,
    noise_kind: Annotated[NoiseKind, option("What noise is.")] = NoiseKind.ADDITIVE,
    bounded: Annotated[bool, option("Give the bounds [-5, 5].", flag="--bounded")] = False,
    out: Annotated[
        Path | None, option("Folder for results.json and ecdf.png.", shown="write nothing")
    ] = None,
    json: Json = False,
) -> None:
    """Score solvers on the 24 noiseless BBOB functions: the area under the runtime ECDF."""
    from zoopt_nas import bbob as benchmark
    from zoopt_nas.bbob_plot import import_figure, save_ecdf

    suite = benchmark.Suite(
        dims=_integers("--dims", dims),
        instances=_integers("--instances", instances),
        functions=_integers("--functions", functions),
        evals_per_dim=evals_per_dim,
        noise=noise,
        noise_kind=noise_kind.value,
        bounded=bounded,
    )
    # Whatever is wrong shows now, not after the minutes of the first solver.
    names = list(dict.fromkeys(algo))
    for name in names:
        make_solver(name)
    benchmark.import_ioh()
    if out is not None:
        import_figure()
        make_folder(out)

    results: list[BBOBResult] = []
    seconds: list[float] = []
    for name in names:
        started = time.monotonic()
        with _interruptible(name, quiet=json) as progress:
            result = benchmark.run(name, suite, seed=seed, workers=workers, progress=progress)
        results.append(result)
        seconds.append(time.monotonic() - started)
        if out is not None:  # after each, so that Ctrl-C costs one solver
            benchmark.save_results(out / "results.json", results)
    if out is not None:
        save_ecdf(out / "ecdf.png", results)
    if json:
        console.say_json({result.method: _summary(result) for result in results})
        return
    _say_scores(results, seconds)
    if out is not None:
        console.say(out / "results.json", out / "ecdf.png")


@contextmanager
def _interruptible(name: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Gives the callback that shows the progress, and that Ctrl-C ends the run by."""
    # Between two problems, so that the workers end in order and leave no tracebacks.
    with console.stop_on_signals() as flag, console.counting(name, quiet=quiet) as count:

        def progress(n_done: int, n_all: int) -> None:
            count(n_done, n_all)
            if flag.raised:
                raise KeyboardInterrupt

        yield progress


def _summary(result: BBOBResult) -> dict[str, Any]:
    return {
        "score": result.score,
        "by_dim": {str(dim): score for dim, score in result.by_dim().items()},
        "by_group": result.by_group(),
    }


def _say_scores(results: list[BBOBResult], seconds: list[float]) -> None:
    suite = results[0].suite
    columns = ["solver", "score", *(f"{dim}-D" for dim in suite.dims), *results[0].by_group()]
    rows = []
    for result, duration in zip(results, seconds, strict=True):
        scores = [result.score, *result.by_dim().values(), *result.by_group().values()]
        rows.append([result.method, *(f"{score:.3f}" for score in scores), f"{duration:.1f}"])
    title = f"area under the ECDF, {len(suite.problems)} problems, seed {results[0].seed}"
    console.say_table(title, [*columns, "seconds"], rows)


def _integers(option: str, text: str) -> list[int]:
    """``"1,3-5"`` as ``[1, 3, 4, 5]``."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if match is None:
            raise InvalidValueError(f"{option} must read like 2,5,10 or 1-3, got {text}")
        first, last = int(match[1]), int(match[2] or match[1])
        numbers.extend(range(first, last + 1))
    return numbers
