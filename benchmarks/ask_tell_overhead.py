"""Prints what a solver itself costs, in microseconds per evaluation: `python FILE`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from zoopt_nas import SOLVERS, Solver, minimize


def best_of(n_repeats: int, task: Callable[[], int]) -> float:
    """Returns the least time per evaluation of ``task``, which returns its evaluations, in µs."""
    times = []
    for _ in range(n_repeats):
        start = time.perf_counter()
        n_evaluations = task()
        times.append((time.perf_counter() - start) / n_evaluations)
    return 1e6 * min(times)


def ask_tell(solver: Solver, dim: int) -> int:
    """Takes 300 steps on values that cost nothing; returns the number of evaluations."""
    state = solver.init(np.ones(dim), rng=0)
    n_evaluations = 0
    for _ in range(300):
        candidates = solver.ask(state)
        solver.tell(state, candidates, candidates[:, 0])
        n_evaluations += len(candidates)
    return n_evaluations


def whole_minimize(solver: Solver, dim: int, vectorized: bool) -> int:
    """Minimizes a function that costs nothing; returns the number of evaluations."""

    def fun(x: np.ndarray) -> np.ndarray:
        return x[..., 0]

    return int(minimize(fun, np.ones(dim), solver, maxfev=3000, rng=0, vectorized=vectorized).nfev)


def main() -> None:
    """Prints one row per solver and dimension."""
    # The first call imports scipy.optimize, which is no part of the overhead.
    minimize(lambda x: x[0], [1.0], maxfev=1, rng=0)
    print("microseconds per evaluation")
    print(f"{'solver':<8}{'dim':>6}{'ask+tell':>10}{'minimize':>10}{'vectorized':>12}")
    for name, kind in SOLVERS.items():
        for dim in (10, 1000):
            solver = kind()
            columns = [
                best_of(5, partial(ask_tell, solver, dim)),
                best_of(5, partial(whole_minimize, solver, dim, False)),
                best_of(5, partial(whole_minimize, solver, dim, True)),
            ]
            print(f"{name:<8}{dim:>6}{columns[0]:>10.1f}{columns[1]:>10.1f}{columns[2]:>12.1f}")


if __name__ == "__main__":
    main()
