"""What a solver costs, and what `minimize` adds: µs of CPU time per evaluation of a free function.

    python benchmarks/ask_tell_overhead.py [SOLVER ...] [--repeats 7]

Default: all solvers, with default fields. Columns, each the median over the repeats:

* ask+tell: a loop by hand, with the function called once for a batch;
* + minimize: what `minimize` adds to the same loop with the function called for each point;
* + vectorized: what `minimize(vectorized=True)` adds to the loop of the first column.

What is added is the median of paired differences: by hand and by `minimize` in turn, with the same
solver, seed and number of evaluations, so that a drift of the machine's speed cancels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from zoopt_nas import SOLVERS, Solver, minimize

N_EVALUATIONS = 3000
BARS = {10: 20.0, 1000: 60.0}  # ask+tell, by dimension
BAR_MINIMIZE = 5.0


def first_coordinate(x: np.ndarray) -> np.ndarray:
    """A function that costs nothing, of one point or a batch."""
    return x[..., 0]


def by_hand(solver: Solver, dim: int, vectorized: bool) -> None:
    """The loop that a user of ask and tell writes."""
    state = solver.init(np.ones(dim), rng=0)
    n_evaluations = 0
    while n_evaluations < N_EVALUATIONS:
        candidates = solver.ask(state)
        if vectorized:
            values = first_coordinate(candidates)
        else:
            values = np.array([first_coordinate(candidate) for candidate in candidates])
        solver.tell(state, candidates, values)
        n_evaluations += len(candidates)


def by_minimize(solver: Solver, dim: int, vectorized: bool) -> None:
    """The same by `minimize`."""
    x0 = np.ones(dim)
    minimize(first_coordinate, x0, solver, maxfev=N_EVALUATIONS, rng=0, vectorized=vectorized)


def microseconds(task: Callable[[], None]) -> float:
    start = time.process_time()
    task()
    return 1e6 * (time.process_time() - start) / N_EVALUATIONS


def paired(solver: Solver, dim: int, vectorized: bool, n_repeats: int) -> tuple[float, float]:
    """Medians of the time by hand, and of what `minimize` adds to it."""
    times = {by_hand: [], by_minimize: []}
    for repeat in range(n_repeats):
        # Each comes first in turn.
        for loop in (by_hand, by_minimize) if repeat % 2 else (by_minimize, by_hand):
            times[loop].append(microseconds(partial(loop, solver, dim, vectorized)))
    differences = [a - b for a, b in zip(times[by_minimize], times[by_hand], strict=True)]
    return statistics.median(times[by_hand]), statistics.median(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("solvers", nargs="*", metavar="SOLVER", default=list(SOLVERS))
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    # The first call imports scipy.optimize, which is no part of the overhead.
    minimize(lambda x: x[0], [1.0], maxfev=1, rng=0)
    print(f"µs of CPU time per evaluation; {N_EVALUATIONS} evaluations, {args.repeats} repeats")
    print(f"{'solver':<10}{'dim':>6}{'ask+tell':>10}{'+ minimize':>12}{'+ vectorized':>14}")
    broken = []
    for name in args.solvers:
        for dim, bar in BARS.items():
            solver = SOLVERS[name]()
            own, added_vectorized = paired(solver, dim, True, args.repeats)
            _, added = paired(solver, dim, False, args.repeats)
            print(f"{name:<10}{dim:>6}{own:>10.1f}{added:>12.1f}{added_vectorized:>14.1f}")
            if own > bar or added > BAR_MINIMIZE:
                broken.append(f"{name} at {dim}")
    print(
        f"bars: ask+tell at most {BARS[10]:g} at 10 dimensions and {BARS[1000]:g} at 1000, "
        f"+ minimize at most {BAR_MINIMIZE:g}: "
        + (f"broken by {', '.join(broken)}" if broken else "kept")
    )


if __name__ == "__main__":
    main()
