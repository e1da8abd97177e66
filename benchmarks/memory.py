"""Time and peak memory of ask and tell at a million dimensions, with NumPy and with torch.

    python benchmarks/memory.py [SOLVER ...] [--dim 1000000] [--steps 5]

Prints, for each solver (default: rs, mgs, gld and auto, with default fields) in float64:

* the milliseconds of ask and tell for each candidate (CPU time, one thread), the median over the
  steps;
* the peak memory in vectors of dim numbers, with everything that the solver holds or allocates from
  ``init`` on, beside the candidates of a batch, which must exist in any case. Exact: NumPy reports
  each allocation to tracemalloc, and torch its own to its profiler.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports its start and end

import numpy as np
import torch

from zoopt_nas import SOLVERS, Solver

BAR_MS = 30.0
BAR_EXTRA = 3.0  # vectors beyond the candidates


def start(library: str, dim: int) -> Any:
    """The caller's x0, which is not the solver's memory."""
    return np.ones(dim) if library == "numpy" else torch.ones(dim, dtype=torch.float64)


def steps(solver: Solver, x0: Any, n_steps: int) -> tuple[int, list[float]]:
    """Takes steps on values that cost nothing; returns the largest batch, and ms per candidate."""
    rng = np.random.default_rng(0)
    state = solver.init(x0, rng=0)
    batch, times = 0, []
    for _ in range(n_steps):
        begin = time.process_time()
        candidates = solver.ask(state)
        asked = time.process_time()
        values = rng.random(len(candidates))
        told = time.process_time()
        solver.tell(state, candidates, values)
        times.append(1e3 * (time.process_time() - told + asked - begin) / len(candidates))
        batch = max(batch, len(candidates))
        del candidates  # or the old batch would live beside the next one
    return batch, times


def numpy_peak(task: Callable[[], object]) -> int:
    """Peak bytes of NumPy arrays (and Python objects) made by ``task``."""
    tracemalloc.start()
    try:
        task()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def torch_peak(task: Callable[[], object]) -> int:
    """Peak bytes of torch tensors on the CPU made by ``task``."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        task()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "solvers", nargs="*", metavar="SOLVER", default=["rs", "mgs", "gld", "auto"]
    )
    parser.add_argument("--dim", type=int, default=10**6)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"dim {args.dim}, float64, {args.steps} steps; a vector is {8 * args.dim / 1e6:g} MB")
    print(
        f"{'solver':<8}{'library':<9}{'ms/candidate':>13}{'candidates':>12}{'peak':>8}{'extra':>8}"
    )
    is_kept = True
    for name in args.solvers:
        for library, peak_of in (("numpy", numpy_peak), ("torch", torch_peak)):
            solver, x0 = SOLVERS[name](), start(library, args.dim)
            steps(solver, start(library, 10), 1)  # imports and caches, which are no overhead
            batch, times = steps(solver, x0, args.steps)
            vectors = peak_of(lambda s=solver, x=x0: steps(s, x, 3)) / (8 * args.dim)
            ms = statistics.median(times)
            is_kept &= ms <= BAR_MS and vectors <= batch + BAR_EXTRA + 0.01
            print(
                f"{name:<8}{library:<9}{ms:>13.1f}{batch:>12}{vectors:>8.2f}{vectors - batch:>8.2f}"
            )
    print(
        f"bars: at most {BAR_MS:g} ms and {BAR_EXTRA:g} vectors beside the candidates; "
        f"{'kept' if is_kept else 'broken'}"
    )


if __name__ == "__main__":
    main()
