"""Searches with several methods, spaces and seeds, and prints one table of all.

    python benchmarks/compare_methods.py DATASET --out FOLDER [--methods rs mgs gld darts1]
        [--spaces s2 s3] [--seeds 0 1] [--jobs 2] [--search '...'] [--train '...' | --table FILE]

Each cell found is retrained, or its true accuracy is looked up in the NAS-Bench-201 table. A method
may have options: ``LABEL=ALGO OPTIONS``, for example ``'fresh=gld --preset robust'``.

Every search and every retraining is one command of ``zoopt-nas``, printed as it is run, with one
thread each. What is finished in FOLDER is not run again and what was cut off is resumed, so the
script may be stopped and started; ``--only-print`` runs nothing and shows what is there. The tables
are for the size given here and for nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

SEARCH = "--n-train 2000 --init-channels 4 --n-cells 3 --epochs 15 --inner-steps 5 --batch-size 64"
TRAIN = (
    "--n-train 2000 --init-channels 8 --n-cells 3 --epochs 15 --batch-size 64 "
    "--no-auxiliary --drop-path 0 --cutout 0"
)
TRUE = ("true_cifar10", "true_cifar100", "true_imagenet16")
N_MOMENTS = 5  # of a search, in the table over epochs


def command(*arguments: str) -> None:
    """Runs one ``zoopt-nas`` command with one thread; what it prints is shown only if it fails."""
    print("zoopt-nas", shlex.join(arguments), flush=True)
    run = subprocess.run(
        [sys.executable, "-c", "from zoopt_nas_cli.main import main; main()", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        sys.exit(f"failed with {run.returncode}: {run.stderr}")


def search_and_train(run: Path, job: dict, args: argparse.Namespace) -> None:
    """Searches, and retrains the cell unless a table knows it."""
    if not (run / "genotype.json").exists():
        algo, *options = shlex.split(job["method"].partition("=")[2] or job["method"])
        fresh = ["--space", job["space"], "--dataset", args.dataset, "--algo", algo]
        fresh += ["--seed", str(job["seed"]), *shlex.split(args.search), *options]
        fresh += ["--table", args.table] if args.table else []
        command(
            "search", *(["--resume", str(run)] if run.exists() else [*fresh, "--run-dir", str(run)])
        )
    train = run / "train"
    if not args.table and not (train / "result.json").exists():
        fresh = [str(run), *shlex.split(args.train), "--run-dir", str(train)]
        command("train", *(["--resume", str(train)] if train.exists() else fresh))


def result_of(run: Path, job: dict) -> dict | None:
    """One row of the table, or None if the run has no finished epoch."""
    metrics = run / "metrics.jsonl"
    rows = [json.loads(x) for x in metrics.read_text().splitlines()] if metrics.exists() else []
    if not rows:
        return None
    is_done, trained = (run / "genotype.json").exists(), run / "train" / "result.json"
    cell = json.loads((run / "genotype.json").read_text()) if is_done else {}
    test = json.loads(trained.read_text()) if trained.exists() else {}
    return {
        **job,
        "label": job["method"].partition("=")[0] if "=" in job["method"] else job["method"],
        "done": is_done,
        "rows": rows,
        "skips": rows[-1]["skip_connections"],
        "val": rows[-1]["val_accuracy"],
        "evaluations": rows[-1]["evaluations"],
        "seconds": sum(row["seconds"] for row in rows),
        "test": test.get("test_accuracy"),
        "parameters": test.get("n_parameters"),
        "train_seconds": test.get("seconds"),
        "cells": drawn(cell),
    }


def drawn(cell: dict) -> str:
    """A cell in one line."""
    if "normal" not in cell:
        return str(cell.get("arch", cell or "unfinished"))
    short = [
        " ".join(f"{name.replace('_connect', '').replace('_conv_3x3', '')}@{k}" for name, k in part)
        for part in (cell["normal"], cell["reduce"])
    ]
    return " | ".join(short)


def mean_std(values: list[float], form: str = "{:.2f}") -> str:
    """Mean ± standard deviation with n - 1."""
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def table(header: list[str], rows: list[list[str]]) -> None:
    """Prints a Markdown table."""
    print("\n| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def print_runs(results: list[dict], column: str) -> None:
    """Prints a row for each search, with the cell that it found."""
    header = ["space", "method", "seed", "epochs", "skips", "validation %", column]
    rows = []
    for r in results:
        tested = "-" if accuracy_of(r) is None else f"{accuracy_of(r):.2f}"
        row = [r["space"], r["label"], str(r["seed"]), str(len(r["rows"])), str(r["skips"])]
        row += [f"{100 * r['val']:.1f}", tested, str(r["evaluations"]), f"{r['seconds']:.0f}"]
        retrained = r["parameters"]
        row += ["-", "-"] if retrained is None else [f"{retrained:,}", f"{r['train_seconds']:.0f}"]
        rows.append([*row, r["cells"]])
    more = ["evaluations", "search s", "parameters", "retraining s", "cell"]
    table([*header, *more], rows)


def accuracy_of(r: dict) -> float | None:
    """The accuracy that counts, in percent: after retraining, or the true one on CIFAR-10."""
    value = r["test"] if r["test"] is not None else r["rows"][-1].get(TRUE[0])
    return None if value is None else 100 * value


def print_means(results: list[dict], column: str) -> None:
    """Prints means over the seeds of each method and space, finished runs only."""
    rows = []
    for space, label in dict.fromkeys((r["space"], r["label"]) for r in results):
        own = [r for r in results if (r["space"], r["label"]) == (space, label) and r["done"]]
        own = [r for r in own if accuracy_of(r) is not None]
        if own:
            tested = [accuracy_of(r) for r in own]
            row = [space, label, str(len(own)), mean_std(tested), f"{min(tested):.2f}"]
            others = [n for n in TRUE[1:] if n in own[0]["rows"][-1]]
            row += [mean_std([100 * r["rows"][-1][n] for r in own]) for n in others]
            row += ["-"] * (len(TRUE) - 1 - len(others))
            row += [mean_std([float(r["skips"]) for r in own], "{:.1f}")]
            row += [mean_std([r[n] for r in own], "{:.0f}") for n in ("evaluations", "seconds")]
            rows.append(row)
    more = ["CIFAR-100", "ImageNet16", "skips", "evaluations", "search s"]
    table(["space", "method", "n", column, "worst", *more], rows)


def print_epochs(results: list[dict]) -> None:
    """Prints skips and true accuracy at some epochs of each run: a collapse shows here."""
    rows = []
    for r in results:
        n = len(r["rows"])
        at = sorted({max(round(n * k / N_MOMENTS), 1) for k in range(1, N_MOMENTS + 1)})
        for epoch in at:
            row = r["rows"][epoch - 1]
            accuracy, eigenvalue = row.get(TRUE[0]), row.get("eigenvalue")
            cells = [r["space"], r["label"], str(r["seed"]), str(epoch)]
            cells += [str(row["skip_connections"])]
            cells += ["-" if accuracy is None else f"{100 * accuracy:.2f}"]
            rows.append([*cells, "-" if eigenvalue is None else f"{eigenvalue:.3f}"])
    table(["space", "method", "seed", "epoch", "skips", "true %", "eigenvalue"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["mgs", "gld", "darts1", "rs"])
    parser.add_argument("--spaces", nargs="+", default=["s2", "s3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--search", default=SEARCH)
    parser.add_argument("--train", default=TRAIN)
    parser.add_argument("--table", help="NAS-Bench-201 table, instead of retraining")
    parser.add_argument("--only-print", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed, method, space in product(args.seeds, args.methods, args.spaces):
        label = method.partition("=")[0]
        job = {"space": space, "method": method, "seed": seed}
        runs.append((args.out / f"{space}-{label}-seed{seed}", job))
    if not args.only_print:
        with ThreadPoolExecutor(args.jobs) as pool:
            futures = [pool.submit(search_and_train, run, job, args) for run, job in runs]
            for future in futures:
                future.result()
    found = [result for run, job in runs if (result := result_of(run, job)) is not None]
    found.sort(key=lambda r: (r["space"], r["label"], r["seed"]))
    column = "true CIFAR-10 %" if args.table else "test %"
    print_runs(found, column)
    print_means(found, column)
    print_epochs(found)


if __name__ == "__main__":
    main()
