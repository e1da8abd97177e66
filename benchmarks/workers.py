"""What workers cost for an evaluation, and how much faster they make calls of 10 ms.

For each kind of worker: the microseconds that an evaluation takes beside its call, and the ratio of
the time of one worker to the time of two for calls of 10 ms; the least times of 7 runs of 161
evaluations in batches of 16, dimension 10, seed 0.

    OMP_NUM_THREADS=1 python benchmarks/workers.py
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
from distributed import Client, LocalCluster
from joblib.externals.loky import get_reusable_executor

from zoopt_nas import AdaptiveMGS, minimize

N_EVALUATIONS, DIM, N_REPEATS = 161, 10, 7


def cheap(x: np.ndarray) -> float:
    """A function that costs nothing."""
    return float(x[0])


def slow(x: np.ndarray) -> float:
    """A function that takes 10 ms."""
    time.sleep(0.01)
    return float(x[0])


def seconds(fun: Callable[[np.ndarray], float], workers: Any) -> float:
    """Return the time of a run."""
    started = time.perf_counter()
    solver = AdaptiveMGS(n_samples=16)
    minimize(fun, np.ones(DIM), solver, maxfev=N_EVALUATIONS, rng=0, workers=workers)
    return time.perf_counter() - started


def report(label: str, workers: Any) -> None:
    """Print the row of one kind of worker."""
    seconds(cheap, workers)  # starts the processes
    runs = ((cheap, workers), (slow, 1), (slow, workers))
    cost, serial, parallel = (min(seconds(*run) for _ in range(N_REPEATS)) for run in runs)
    print(f"{label:24} {1e6 * cost / N_EVALUATIONS:6.0f} us {serial / parallel:5.2f}")


def main() -> None:
    """Print a row for each kind of worker."""
    with ThreadPoolExecutor(2) as executor:
        report("ThreadPoolExecutor(2)", executor)
    with ProcessPoolExecutor(2) as executor:
        report("ProcessPoolExecutor(2)", executor)
    with multiprocessing.Pool(2) as pool:
        report("Pool(2).map", pool.map)
    report("loky, 2 processes", get_reusable_executor(2))
    cluster = LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        report("dask, 2 processes", client.get_executor(pure=False))


if __name__ == "__main__":
    main()
