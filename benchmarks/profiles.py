"""Scores and profiles of solvers and of other packages' optimizers on the S2MPJ problems.

    python benchmarks/profiles.py [METHOD ...] [--features plain noisy ...] [--dims 1 50]
        [--problems 40] [--subset 0] [--half all] [--evals-per-dim 100] [--seeds 0]
        [--tolerance 1e-3] [--jobs 1] [--out FOLDER]

METHOD is a name from ``SOLVERS`` or ``PEERS``; default: all solvers. Prints a Markdown table with
the score of OptiProfiler for each feature, larger is better, and how many problems are solved to
the tolerance. Scores depend on which methods are compared. A run on a problem of dimension n has
``evals-per-dim * (n + 1)`` evaluations.

``--out`` writes ``results.json`` after each method, and ``profiles.svg``, the profiles at the
tolerance. Called again with the same folder and options, what is finished is not run again; delete
a method from the file to repeat it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from peers import PEERS
from profiles_plot import draw_profiles
from profiles_scores import scores, solved
from profiles_suite import FEATURES, HALVES, Progress, Result, Suite, run

from zoopt_nas import SOLVERS, ZooptNasError
from zoopt_nas._files import replacing
from zoopt_nas.solvers import make_solver

FILE = "results.json"


def table(results: Sequence[Result], tolerance: float) -> str:
    """Return the scores and, in brackets, the fractions that are solved; the best are bold."""
    features = list(results[0].progress)
    columns = []
    for feature in features:
        runs = [result.progress[feature] for result in results]
        points, ends = scores(runs), solved(runs, tolerance)
        columns.append(
            [
                f"**{score:.3f}** ({end:.2f})"
                if score == points.max()
                else f"{score:.3f} ({end:.2f})"
                for score, end in zip(points, ends, strict=True)
            ]
        )
    heads = [f"{feature} (n = {len(results[0].progress[feature])})" for feature in features]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    lines += [
        "| " + " | ".join([result.method, *cells]) + " |"
        for result, cells in zip(results, zip(*columns, strict=True), strict=True)
    ]
    return "\n".join(lines)


def save(path: Path, suite: Suite, seeds: Sequence[int], results: Sequence[Result]) -> None:
    """Write results as JSON; the file is replaced only once the new one is complete."""
    data = {
        "suite": _settings(suite, seeds),
        "results": {
            result.method: {
                feature: [[p.dim, p.first, p.when.tolist(), p.values.tolist()] for p in rows]
                for feature, rows in result.progress.items()
            }
            for result in results
        },
    }
    with replacing(path) as file:
        file.write(f"{json.dumps(data)}\n".encode())


def load(path: Path, suite: Suite, seeds: Sequence[int]) -> dict[str, Result]:
    """Return the results of a file, by method; none if there is no file.

    Raises:
        ZooptNasError: they are of another suite.
    """
    if not path.exists():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["suite"] != json.loads(json.dumps(_settings(suite, seeds))):
        raise ZooptNasError(f"{path} has results of other options; choose another folder")
    return {
        method: Result(
            method,
            {
                feature: [
                    Progress(dim, first, np.array(when, dtype=int), np.array(values, dtype=float))
                    for dim, first, when, values in rows
                ]
                for feature, rows in features.items()
            },
        )
        for method, features in data["results"].items()
    }


def _settings(suite: Suite, seeds: Sequence[int]) -> dict[str, Any]:
    settings = {**asdict(suite), "seeds": list(seeds)}
    del settings["features"]  # more can be added later
    return settings


def parser_of_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", default=list(SOLVERS))
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--dims", nargs=2, type=int, default=[1, 50], metavar=("MIN", "MAX"))
    parser.add_argument("--problems", type=int, default=40, help="how many are drawn")
    parser.add_argument("--subset", type=int, default=0, help="the seed of this draw")
    parser.add_argument("--half", choices=HALVES, default="all", help="names by their CRC-32")
    parser.add_argument("--evals-per-dim", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=1, help="processes; -1 is one a core")
    parser.add_argument("--out", type=Path, help="a folder for results.json and profiles.svg")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of_arguments()
    args = parser.parse_args(arguments)
    try:
        suite = Suite(
            args.features, *args.dims, args.evals_per_dim, args.problems, args.subset, args.half
        )
        for name in set(args.methods) - set(PEERS):  # a mistake shows before the minutes of a run
            make_solver(name)
        before = {} if args.out is None else load(args.out / FILE, suite, args.seeds)
    except ZooptNasError as error:
        parser.error(str(error))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    every = dict(before)
    for name in args.methods:
        try:
            result = run(name, suite, seeds=args.seeds, jobs=args.jobs, finished=before.get(name))
        except ModuleNotFoundError as error:
            parser.error(f"{error.name} is missing; install it with: pip install -e '.[bench]'")
        every[name] = result
        if args.out is not None:
            save(args.out / FILE, suite, args.seeds, list(every.values()))
        print(f"{name} has run", flush=True)
    shown = [
        Result(name, {feature: every[name].progress[feature] for feature in args.features})
        for name in args.methods
    ]
    print(f"\n{suite}, seeds {args.seeds}; in brackets: solved to {args.tolerance:g}\n")
    print(table(shown, args.tolerance))
    if args.out is not None:
        figure = draw_profiles(shown, args.tolerance)
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "profiles"}):  # small, the same
            figure.savefig(args.out / "profiles.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
