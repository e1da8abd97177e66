"""Scores of solvers and of other packages' optimizers on the BBOB functions, over several seeds.

    python benchmarks/bbob.py [METHOD ...] [--dims 2 5 10] [--instances 1 2 3] [--seeds 0]
        [--evals-per-dim 300] [--noise 0] [--noise-kind additive] [--bounded] [--workers 1]
        [--functions-too] [--out FOLDER]

METHOD is a name from ``SOLVERS`` or ``PEERS``; default: all solvers. Prints a Markdown table: the
mean score (area under the runtime ECDF, larger is better) with the standard deviation over seeds,
the mean scores of each dimension and each group of functions, and the seconds of one seed. A new
seed means new starts, so that the deviation has them in it; the problems are the same.

``--out`` writes ``results.json``, with all results so far after each method, and ``ecdf.png``, the
curves of the first seed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bbob_plot import draw_ecdf
from bbob_suite import NOISE_KINDS, BBOBResult, Method, Suite, run, save_results
from peers import PEERS

from zoopt_nas import SOLVERS, ZooptNasError
from zoopt_nas.solvers import make_solver


def mean_scores(
    results: Sequence[BBOBResult], scores_of: Callable[[BBOBResult], dict]
) -> dict[object, float]:
    """Means over seeds, by what ``scores_of`` tells apart."""
    per_seed = [scores_of(result) for result in results]
    return {key: statistics.mean(scores[key] for scores in per_seed) for key in per_seed[0]}


def row(results: Sequence[BBOBResult], seconds: float) -> str:
    """The line of a method, of one result for each seed."""
    scores = [result.score for result in results]
    spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    parts = [
        *mean_scores(results, BBOBResult.by_dim).values(),
        *mean_scores(results, BBOBResult.by_group).values(),
    ]
    cells = [results[0].method, f"{statistics.mean(scores):.4f}{spread}"]
    return "| " + " | ".join([*cells, *(f"{s:.3f}" for s in parts), f"{seconds:.0f}"]) + " |"


def parser_of_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", default=list(SOLVERS))
    parser.add_argument("--dims", nargs="+", type=int, default=[2, 5, 10])
    parser.add_argument("--instances", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--functions", nargs="+", type=int, default=list(range(1, 25)))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--evals-per-dim", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--noise-kind", choices=NOISE_KINDS, default="additive")
    parser.add_argument("--bounded", action="store_true", help="give solvers the bounds [-5, 5]")
    parser.add_argument("--workers", type=int, default=1, help="processes; -1 is one a core")
    parser.add_argument("--functions-too", action="store_true", help="a line for each function")
    parser.add_argument("--out", type=Path, help="a folder for results.json and ecdf.png")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of_arguments()
    args = parser.parse_args(arguments)
    names = ("dims", "instances", "functions", "evals_per_dim", "noise", "noise_kind", "bounded")
    try:
        suite = Suite(**{name: getattr(args, name) for name in names})
        for name in set(args.methods) - set(PEERS):  # a mistake shows before the minutes of a run
            make_solver(name)
    except ZooptNasError as error:
        parser.error(str(error))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    print(f"{suite}, seeds {args.seeds}\n", flush=True)
    every: list[BBOBResult] = []
    for name in args.methods:
        method: Method = PEERS.get(name, name)
        start = time.perf_counter()
        try:
            results = [run(method, suite, seed=seed, workers=args.workers) for seed in args.seeds]
        except ModuleNotFoundError as error:
            parser.error(f"{name} needs {error.name}; install it with: pip install -e '.[bench]'")
        seconds = (time.perf_counter() - start) / len(args.seeds)
        if not every:
            parts = [*(f"{dim}-D" for dim in suite.dims), *results[0].by_group(), "seconds"]
            print("| method | score |", " | ".join(parts), "|")
            print("|---" * (2 + len(parts)) + "|")
        print(row(results, seconds), flush=True)
        if args.functions_too:
            by_function = mean_scores(results, BBOBResult.by_function)
            print("  ", "  ".join(f"f{f} {score:.3f}" for f, score in by_function.items()))
        every += results
        if args.out is not None:
            save_results(args.out / "results.json", every)
    if args.out is not None:
        first = [result for result in every if result.seed == args.seeds[0]]
        draw_ecdf(first).savefig(args.out / "ecdf.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
