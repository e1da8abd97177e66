"""How much the values of candidates differ by their distance from alpha (docs/noise.md).

    python benchmarks/noise_floor.py DATASET [--steps 5 60] [--distances 1e-6 0.1 0.4 1.6]

After so many weight steps at the first alpha of an `rs` search, four candidates in random
directions are evaluated at each distance, on one draw of four validation batches. Prints the
standard deviation of their values. Next to alpha it is the noise floor.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F

from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.noise import N_BATCHES, N_PROBES
from zoopt_nas.nas.settings.config import SearchConfig

SIZE = {
    "n_train": 2000, "init_channels": 8, "n_cells": 4, "inner_steps": 10, "batch_size": 64,
    "epochs": 50,
}  # fmt: skip


def main() -> None:
    """Print a table with a row for each number of weight steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 60])
    parser.add_argument("--distances", type=float, nargs="+", default=[1e-6, 0.1, 0.4, 1.6])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    config = SearchConfig.for_dataset(asked.dataset, "rs", seed=asked.seed, device="cpu", **SIZE)
    search = Search(config, prepare(config))
    search.begin_epoch()
    rng = torch.Generator().manual_seed(asked.seed)
    print("| weight steps | " + " | ".join(f"at {d:g}" for d in asked.distances) + " |")
    print("|---" * (1 + len(asked.distances)) + "|")
    n_done = 0
    for n_steps in asked.steps:
        for _ in range(n_steps - n_done):
            images, labels = search._streams["train"].next_batch()
            search._step(images, labels, search.supernet.edge_weights(search.alpha))
        n_done = n_steps
        draw = search._objective.draw(N_BATCHES)
        directions = F.normalize(torch.randn(N_PROBES, len(search.alpha), generator=rng), dim=1)
        spreads = []
        for distance in asked.distances:
            values = search._objective.batch_values(search.alpha + distance * directions, draw)
            spreads.append(f"{float(values.double().mean(1).std()):.2e}")
        print("|", " | ".join([str(n_steps), *spreads]), "|", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
