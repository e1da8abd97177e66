"""What it costs to send the candidates of an update to other processes, and what it saves.

For each space: the megabytes of a call, and the processor milliseconds to pack it and to take it
in. With ``--devices`` also the wall time of N candidates in these processes over that of N in turn,
the median over interleaved pairs with the lowest and highest. The images are digits, enlarged.

    python benchmarks/candidate_workers.py [repeats]
    python benchmarks/candidate_workers.py --devices cpu,cpu --n 4
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from alpha_update import DARTS_SPACES, timed
from torch import Tensor

from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search import replica
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.execution import cpu_threads


def alphas_of(space: SearchSpace, n: int, device: torch.device) -> Tensor:
    return torch.stack([space.init_alpha(rng=seed, device=device) for seed in range(n)])


def sending(search: Search, n: int, repeats: int) -> list[str]:
    """Return the size of a call, and the times to pack it and to take it in."""
    draw, alphas = search._objective.draw(), alphas_of(search.supernet.space, n, search.device)
    call = (search.supernet, search._optimizer, alphas, draw, replica.VALUES)
    packed = replica.pack(*call)
    receiver = replica.Replica(search._workers._workers[0]._plan)
    times = [
        statistics.median(timed(action) for _ in range(repeats))
        for action in (lambda: replica.pack(*call), lambda: receiver._load(packed))
    ]
    return [f"{len(packed) / 1e6:.1f}", *(f"{1e3 * seconds:.0f}" for seconds in times)]


def ratio(search: Search, n: int, repeats: int) -> str:
    """Return the time of N candidates in processes over that of N in turn."""
    objective, found = search._objective, []
    draw, alphas = objective.draw(), alphas_of(search.supernet.space, n, search.device)

    def taken(values: Callable[..., Any]) -> float:
        started = time.perf_counter()
        values(alphas, draw).tolist()  # waits for the device
        return time.perf_counter() - started

    in_turn = objective.evaluation.values
    with search.workers_started():
        taken(objective), taken(in_turn)  # make buffers
        for repeat in range(repeats):
            # Each comes first in turn, so that a drift of the machine's speed cancels.
            if repeat % 2:
                found.append(taken(objective) / taken(in_turn))
            else:
                found.append(1 / (taken(in_turn) / taken(objective)))
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repeats", type=int, nargs="?", default=5)
    parser.add_argument("--devices", help="of the processes; none: no ratio")
    parser.add_argument("--device", default="cpu", help="of the search")
    parser.add_argument("--n", type=int, default=4, help="candidates")
    parser.add_argument("--spaces", nargs="+", choices=DARTS_SPACES, default=["s3", "darts"])
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--inner-steps", type=int, default=10)
    options = parser.parse_args()
    print(f"N={options.n}, M={options.inner_steps}, {options.repeats} repeats, {options.devices}")
    columns = ["space", "MB", "ms to pack", "ms to take in", *["ratio"] * bool(options.devices)]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for space in options.spaces:
        config = SearchConfig(
            dataset="digits", algo="gld", space=space, image_size=options.side,
            init_channels=options.channels, n_cells=options.cells, inner_steps=options.inner_steps,
            batch_size=64, threads=1, device=options.device,
            candidate_devices=options.devices or options.device,
        )  # fmt: skip
        with cpu_threads(config.threads):
            search = Search(config, prepare(config))
            search.begin_epoch()
            search.train_step()  # from here on there is a momentum
            row = [space, *sending(search, options.n, options.repeats)]
            if options.devices:
                row.append(ratio(search, options.n, options.repeats))
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
