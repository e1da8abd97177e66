"""The noise floor of a search, and the spread of its candidates by width (docs/noise.md).

    python benchmarks/noise_floor.py DATASET [--steps 5 240] [--algos rs mgs gld] [--seed 0]

After so many weight steps at the first alpha, candidates are evaluated at several times the widths
of the solver. The last columns are what `--noise-aware` chooses from these values.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from zoopt_nas import Solver
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.noise import N_PROBES, NoiseGauge
from zoopt_nas.nas.search.updater import config_solver
from zoopt_nas.nas.settings.config import SearchConfig

SIZE = {
    "n_train": 2000, "image_size": 16, "init_channels": 4, "n_cells": 3, "inner_steps": 10,
    "batch_size": 64,
}  # fmt: skip
FACTORS = (1.0, 4.0, 16.0)


def row_of(search: Search, solver: Solver) -> tuple[str, ...]:
    """Return floor, spreads, factor and batches of a solver, on one draw."""
    objective, alpha, gauge = search._objective, search.alpha, NoiseGauge(1)
    draw = objective.draw(gauge.n_drawn)
    guide = -objective.alpha_gradient(alpha, draw) if solver.uses_guide else None

    def candidates(factor: float) -> Tensor:
        state, wide = solver.init(alpha, rng=0), solver.stretched(factor)
        rows: Tensor = wide.ask(state, guide=guide)
        while len(rows) < N_PROBES:
            rows = torch.cat([rows, wide.ask(state, guide=guide)])
        return rows

    found: dict[bytes, Tensor] = {}

    def values(alphas: Tensor) -> Tensor:
        """Evaluate the same candidates only once."""
        key = alphas.numpy().tobytes()
        if key not in found:
            found[key] = objective.batch_values(alphas, draw)
        return found[key]

    spreads = [float(values(candidates(k)).double().mean(1).std()) for k in FACTORS]
    gauge.measure(alpha, candidates, values)
    shown = ", ".join(f"{spread:.1e}" for spread in spreads)
    return f"{gauge.floor:.1e}", shown, f"{gauge.factor:g}", str(gauge.val_batches)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 240])
    parser.add_argument("--algos", nargs="+", default=["rs", "mgs", "gld"])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    config = SearchConfig.for_dataset(asked.dataset, "rs", seed=asked.seed, device="cpu", **SIZE)
    search = Search(config, prepare(config))
    search.begin_epoch()
    print("| weight steps | solver | floor | spread at 1, 4, 16 times | factor | batches |")
    print("|---|---|---|---|---|---|")
    n_done = 0
    for n_steps in asked.steps:
        for _ in range(n_steps - n_done):
            images, labels = search._streams["train"].next_batch()
            search._step(images, labels, search.supernet.edge_weights(search.alpha))
        n_done = n_steps
        for algo in asked.algos:
            solver = config_solver(SearchConfig.for_dataset(asked.dataset, algo))
            print(
                "|",
                " | ".join([str(n_steps), f"`{algo}`", *row_of(search, solver)]),
                "|",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
