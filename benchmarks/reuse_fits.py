"""Searches with and without ``reuse_fits``, retrains what they found, and prints both.

    python benchmarks/reuse_fits.py [DATASET] [--methods gld mgs] [--seeds 0 1 2] [--epochs 6]
        [--train-epochs 5] [--search '{"n_train": 1000}'] [--train '{"n_train": 1000}']

A pair has one seed: the same first weights, split and batches. Processor time is that of this
process, so other work on the machine changes it little; run it with OMP_NUM_THREADS=1. Steps are
counted: those of the weights and those of the candidates, which cost the same.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch

from zoopt_nas import nas
from zoopt_nas.nas.runs.loop import load_run_dataset
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.reuse import renew_statistics
from zoopt_nas.nas.steps.meter import evaluate

COLUMNS = {  # heading, and how a number is shown
    "steps": ("weight steps", "{:.0f}"),
    "seconds": ("processor s", "{:.1f}"),
    "val_loss": ("supernet val. loss", "{:.3f}"),
    "val_accuracy": ("supernet val. acc.", "{:.2%}"),
    "test_accuracy": ("test acc.", "{:.2%}"),
    "skips": ("skips of 8", "{:.1f}"),
}


def measure(config: nas.SearchConfig, train: dict) -> dict[str, float]:
    """One search and the retraining of its architecture."""
    count = StepCount(config)
    start = time.process_time()
    search = Search(config, load_run_dataset(config, ("train",)), count)
    search.run()
    seconds = time.process_time() - start
    trained = nas.run_training(
        nas.TrainConfig.for_dataset(
            config.dataset, str(search.genotype), seed=config.seed, device="cpu", **train
        )
    )
    rows = search.rows
    return {
        "steps": count.own + count.candidates,
        "seconds": seconds,
        **supernet_quality(search),
        "test_accuracy": trained.test_accuracy,
        "skips": rows[-1]["skip_connections"],
    }


def supernet_quality(search: Search) -> dict[str, float]:
    """On the images that score alpha, with BatchNorm's statistics renewed for both kinds of run.

    A row of ``metrics.jsonl`` has renewed ones with reuse and running ones, which lag, without.
    """

    def forward(images: torch.Tensor) -> torch.Tensor:
        return search.supernet(images, search.alpha)

    stream = search._streams["train"]
    renew_statistics(search.supernet, forward, (stream.next_batch() for _ in range(19)))
    search.supernet.eval()
    meter = evaluate(forward, search._val_batches(), search.device)
    return {"val_loss": meter.loss, "val_accuracy": meter.accuracy}


class StepCount(nas.Observer):
    """Counts forward and backward passes for weights, of the supernet and of candidates."""

    def __init__(self, config: nas.SearchConfig) -> None:
        self.inner_steps, self.own, self.n_steps = config.inner_steps, 0, 0

    def on_step(self, progress: nas.Progress) -> None:
        self.n_steps = progress.n_steps

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        n_taken = round(row.get("fits_taken", 0) * row["updates"])
        self.own += max(0, self.n_steps - n_taken * self.inner_steps)
        self.candidates = row["evaluations"] * self.inner_steps


def print_table(results: list[dict]) -> None:
    """Markdown: means and standard deviations over seeds, then the differences of the pairs."""
    print("\n| method | reuse | n | " + " | ".join(head for head, _ in COLUMNS.values()) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for algo in dict.fromkeys(r["algo"] for r in results):
        pair = {
            reuse: [r for r in results if (r["algo"], r["reuse"]) == (algo, reuse)]
            for reuse in (False, True)
        }
        for reuse, own in pair.items():
            cells = [spread([r[key] for r in own], form) for key, (_, form) in COLUMNS.items()]
            print(f"| {algo} | {'yes' if reuse else 'no'} | {len(own)} | {' | '.join(cells)} |")
        cells = [
            spread([b[key] - a[key] for a, b in zip(*pair.values(), strict=True)], form)
            for key, (_, form) in COLUMNS.items()
        ]
        print(f"| {algo} | yes - no | {len(pair[True])} | {' | '.join(cells)} |")


def spread(values: list[float], form: str) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{form.format(statistics.mean(values))} ± {form.format(deviation)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", default="digits")
    parser.add_argument("--methods", nargs="+", default=["gld", "mgs"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--train-epochs", type=int, default=5)
    parser.add_argument("--search", type=json.loads, default={})
    parser.add_argument("--train", type=json.loads, default={})
    args = parser.parse_args()
    results = []
    for seed, algo, reuse in product(args.seeds, args.methods, (False, True)):
        config = nas.SearchConfig.for_dataset(
            args.dataset,
            algo,
            seed=seed,
            epochs=args.epochs,
            reuse_fits=reuse,
            device="cpu",
            **args.search,
        )
        run = measure(config, {"epochs": args.train_epochs, **args.train})
        results.append({"algo": algo, "seed": seed, "reuse": reuse, **run})
        print(json.dumps(results[-1]), flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
