"""Searches and retrains with several methods on several spaces, and prints one table of all.

    python benchmarks/compare_methods.py DATASET --out FOLDER [--methods rs mgs gld darts1]
        [--spaces s2 s3] [--seeds 0 1] [--jobs 2] [--search '...'] [--train '...']

Every search and every retraining is one command of ``zoopt-nas``, printed as it is run, with one
thread each. What is finished in FOLDER is not run again and what was cut off is resumed, so the
script may be stopped and started. The table is for the size given here and for nothing else.
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


def search_and_train(dataset: str, out: Path, space: str, algo: str, seed: int, flags: list[str]):
    """One row of the table, as a dict."""
    run = out / f"{space}-{algo}-seed{seed}"
    if not (run / "genotype.json").exists():
        fresh = ["--space", space, "--dataset", dataset, "--algo", algo, "--seed", str(seed)]
        fresh += [*shlex.split(flags[0]), "--run-dir", str(run)]
        command("search", *(["--resume", str(run)] if run.exists() else fresh))
    train = run / "train"
    if not (train / "result.json").exists():
        fresh = [str(run), *shlex.split(flags[1]), "--run-dir", str(train)]
        command("train", *(["--resume", str(train)] if train.exists() else fresh))

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    genotype = json.loads((run / "genotype.json").read_text())
    result = json.loads((train / "result.json").read_text())
    cells = " | ".join(
        " ".join(
            f"{name.replace('_connect', '').replace('_conv_3x3', '')}@{source}"
            for name, source in genotype[kind]
        )
        for kind in ("normal", "reduce")
    )
    return {
        "space": space,
        "algo": algo,
        "seed": seed,
        "skips": rows[-1]["skip_connections"],
        "supernet": rows[-1]["val_accuracy"],
        "test": result["test_accuracy"],
        "parameters": result["n_parameters"],
        "evaluations": rows[-1]["evaluations"],
        "seconds": sum(row["seconds"] for row in rows),
        "train_seconds": result["seconds"],
        "cells": cells,
    }


def print_table(results: list[dict]) -> None:
    """Markdown: a row for each search, the mean of each method, and the cells that were found."""
    print(
        "\n| space | method | seed | skips of 8 | supernet val. acc. | test acc. | parameters "
        "| evaluations | search s | retrain s |\n" + "|---" * 10 + "|"
    )
    for r in results:
        print(
            f"| {r['space']} | {r['algo']} | {r['seed']} | {r['skips']} | {r['supernet']:.1%} "
            f"| {r['test']:.1%} | {r['parameters']:,} | {r['evaluations']} | {r['seconds']:.0f} "
            f"| {r['train_seconds']:.0f} |"
        )
    print(
        "\n| method | n | skips | test acc., mean (min - max) | search s |\n|---|---|---|---|---|"
    )
    for algo in dict.fromkeys(r["algo"] for r in results):
        own = [r for r in results if r["algo"] == algo]
        test = [r["test"] for r in own]
        print(
            f"| {algo} | {len(own)} | {statistics.mean(r['skips'] for r in own):.1f} "
            f"| {statistics.mean(test):.1%} ({min(test):.1%} - {max(test):.1%}) "
            f"| {statistics.mean(r['seconds'] for r in own):.0f} |"
        )

    print()
    for r in results:
        print(f"{r['space']} {r['algo']} {r['seed']}: {r['cells']}")


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
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = list(product(args.seeds, args.methods, args.spaces))
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [
            pool.submit(
                search_and_train,
                args.dataset,
                args.out,
                space,
                algo,
                seed,
                [args.search, args.train],
            )
            for seed, algo, space in jobs
        ]
        results = [future.result() for future in futures]
    print_table(sorted(results, key=lambda r: (r["space"], r["algo"], r["seed"])))


if __name__ == "__main__":
    main()
