"""What an evaluation costs in `minimize` and in other packages: µs of CPU time, function included.

    python benchmarks/evaluation_time.py [METHOD ...] [--bbob-dims 10] [--dims 10 30 100 300 1000]
        [--repeats 3] [--evaluations 1000]

METHOD is a name from ``SOLVERS`` or from the ``PEERS`` of ``peers.py``; default: all solvers,
``cmaes_ipop`` and, if NLopt is installed, ``nlopt_bobyqa`` and ``nlopt_sbplx``. Two tables, each
entry the least of the repeats:

* the 24 BBOB functions, instance 1: the mean over the functions, and the largest;
* a quadratic function by dimension. A run ends after two seconds of CPU time, also if it has spent
  fewer evaluations.

All methods take turns in each repeat. Solvers have no bounds, and default fields.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence

import ioh
import numpy as np
from peers import PEERS

from zoopt_nas import SOLVERS, minimize

Fun = Callable[[np.ndarray], float]

MAX_SECONDS = 2.0


class _Spent(Exception):  # noqa: N818 - a stop, not a fault
    """End a run."""


def microseconds(method: str, fun: Fun, dim: int, n_evaluations: int) -> float:
    """CPU time of a run per evaluation."""
    nfev = 0

    def counted(x: np.ndarray) -> float:
        nonlocal nfev
        if nfev >= n_evaluations or time.process_time() - start > MAX_SECONDS:
            raise _Spent
        nfev += 1
        return fun(x)

    rng = np.random.default_rng(0)
    x0 = rng.uniform(-4, 4, dim)
    start = time.process_time()
    with contextlib.suppress(_Spent):
        if method in PEERS:
            PEERS[method](counted, x0, n_evaluations, rng)
        else:
            minimize(counted, x0, method, maxfev=n_evaluations, rng=rng)
    return 1e6 * (time.process_time() - start) / nfev


def own_time(fun: Fun, dim: int, n_calls: int) -> float:
    """CPU time of a call of the function."""
    points = np.random.default_rng(0).uniform(-4, 4, (n_calls, dim))
    start = time.process_time()
    for x in points:
        fun(x)
    return 1e6 * (time.process_time() - start) / n_calls


def quadratic(dim: int) -> Fun:
    curvatures = np.logspace(0, 2, dim)

    def fun(x: np.ndarray) -> float:
        return float(curvatures @ (x * x))

    return fun


def least_times(
    methods: Sequence[str], funs: Sequence[Fun], dim: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """The least time of each method on each function; "function" is the time of a call."""
    n = args.evaluations
    repeats = [
        {
            "function": [own_time(fun, dim, n) for fun in funs],
            **{name: [microseconds(name, fun, dim, n) for fun in funs] for name in methods},
        }
        for _ in range(args.repeats)
    ]
    return {
        name: [min(times) for times in zip(*(repeat[name] for repeat in repeats), strict=True)]
        for name in repeats[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [*SOLVERS, "cmaes_ipop"]
    if importlib.util.find_spec("nlopt"):
        default += ["nlopt_bobyqa", "nlopt_sbplx"]
    parser.add_argument("methods", nargs="*", metavar="METHOD", default=default)
    parser.add_argument("--bbob-dims", nargs="*", type=int, default=[10])
    parser.add_argument("--dims", nargs="*", type=int, default=[10, 30, 100, 300, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=1000)
    args = parser.parse_args()
    for name in args.methods:  # imports are no part of the time
        microseconds(name, quadratic(2), 2, 20)
    print(
        f"µs of CPU time per evaluation, the least of {args.repeats} repeats of "
        f"{args.evaluations} evaluations"
    )
    for dim in args.bbob_dims:
        print(f"\nBBOB, {dim} dimensions:")
        problems = [ioh.get_problem(f, 1, dim, ioh.ProblemClass.BBOB) for f in range(1, 25)]
        for name, times in least_times(args.methods, problems, dim, args).items():
            print(f"{name:<14} mean {statistics.mean(times):6.1f}  largest {max(times):6.1f}")
    rows = [least_times(args.methods, [quadratic(dim)], dim, args) for dim in args.dims]
    if rows:
        print(f"\nquadratic:\n{'dim':<14}" + "".join(f"{dim:>9}" for dim in args.dims))
        for name in rows[0]:
            print(f"{name:<14}" + "".join(f"{row[name][0]:>9.1f}" for row in rows))


if __name__ == "__main__":
    main()
