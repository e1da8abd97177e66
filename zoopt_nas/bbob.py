"""The BBOB benchmark: how many targets on 24 functions a method reaches, and how soon.

The functions come from the package ``ioh`` (the extra ``bench``). The score is the area under the
runtime ECDF: the mean over problems, targets and budgets of "was the target reached within the
budget". 1 is a method that reaches every target at once; only scores of the same `Suite` compare.

    from zoopt_nas import bbob

    result = bbob.run("adaptive_gld", bbob.Suite(dims=(2, 5)), workers=2)
    result.score, result.by_dim(), result.by_group()

Sources: Hansen, Finck, Ros, Auger, "Real-parameter black-box optimization benchmarking 2009:
noiseless functions definitions", INRIA RR-6829 (functions and groups) and "... noisy functions
definitions", RR-6869 (noise); Hansen et al., "COCO: a platform for comparing continuous optimizers
in a black-box setting", 2021, arXiv 1603.08785 (targets and ECDF); de Nobel et al.,
"IOHexperimenter", 2024, arXiv 2111.04077 (the implementation of the functions).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from zoopt_nas._checks import check_at_least, check_bool, check_choice, check_positive_int
from zoopt_nas._minimize import minimize
from zoopt_nas.checkpoint import replacing
from zoopt_nas.errors import InvalidValueError, MissingDependencyError, RunError
from zoopt_nas.parallel import make_workers
from zoopt_nas.solvers import Solver, make_solver

# Distances to the optimal value, largest first.
TARGETS = 10.0 ** np.linspace(2, -8, 51)
N_BUDGETS = 60
GROUPS = {
    "separable": range(1, 6),
    "moderate": range(6, 10),
    "ill-conditioned": range(10, 15),
    "multi-modal": range(15, 20),
    "weak structure": range(20, 25),
}
NOISE_KINDS = ("additive", "multiplicative")

# A solver, its name, or any other optimizer: it is called as ``method(fun, x0, maxfev, rng)`` with
# x0 (dim,) and a numpy.random.Generator. It may go on for ever: the evaluation after the last one
# raises an exception that ends it.
Peer: TypeAlias = Callable[
    [Callable[[np.ndarray], float], np.ndarray, int, np.random.Generator], object
]
Method: TypeAlias = str | Solver | Peer

_FORMAT = "zoopt_nas.bbob.v1"
_BOX = (-5.0, 5.0)  # where the functions are meant to be searched; every optimum is inside


class ProblemId(NamedTuple):
    """One of the problems of a suite: a BBOB function, its instance and its dimension."""

    dim: int
    function: int
    instance: int


@dataclass(frozen=True)
class Suite:
    """Which problems, with how many evaluations.

    Attributes:
        dims: each at least 2.
        instances: each at least 1; an instance is a shift and rotation of the function.
        functions: each in 1..24.
        evals_per_dim: a run on a problem of dimension D ends after ``evals_per_dim * D``.
        noise: the strength of the noise of the values that a method sees, 0 for none. Targets are
            reached by noiseless values. `minimize` is told that there is noise.
        noise_kind: ``"additive"``: N(0, noise²) is added. ``"multiplicative"``: the distance to the
            optimal value is multiplied by exp(noise N(0, 1)) (RR-6869, Gaussian noise).
        bounded: whether solvers get the bounds [-5, 5]^D. Other methods than solvers cannot.

    Raises:
        InvalidValueError: a field is out of its range, or names a problem twice.
    """

    dims: Sequence[int] = (2, 5, 10)
    instances: Sequence[int] = (1, 2, 3)
    functions: Sequence[int] = tuple(range(1, 25))
    evals_per_dim: int = 300
    noise: float = 0.0
    noise_kind: str = "additive"
    bounded: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("dims", 2, None), ("instances", 1, None), ("functions", 1, 24)):
            numbers = _distinct_ints(name, getattr(self, name), low, high)
            object.__setattr__(self, name, numbers)
        check_positive_int("evals_per_dim", self.evals_per_dim)
        check_at_least("noise", self.noise, 0)
        check_choice("noise_kind", self.noise_kind, NOISE_KINDS)
        check_bool("bounded", self.bounded)

    @property
    def problems(self) -> list[ProblemId]:
        """Every problem, in the order of the rows of a result."""
        return [
            ProblemId(dim, function, instance)
            for dim in self.dims
            for function in self.functions
            for instance in self.instances
        ]


@dataclass(frozen=True, eq=False)
class BBOBResult:
    """When a method reached which target.

    Attributes:
        method: what to call it.
        suite: the problems, in the order of the rows.
        seed: of the starts, the method and the noise.
        hit_times: (n_problems, n_targets), the evaluation, counted from 1, whose value was the
            first at or below the target of ``TARGETS``; inf where none was.
    """

    method: str
    suite: Suite
    seed: int
    hit_times: np.ndarray

    @property
    def score(self) -> float:
        """The area under the ECDF of all problems, in [0, 1]; larger is better."""
        return self._score()

    def by_dim(self) -> dict[int, float]:
        """Returns the score of each dimension alone."""
        return {dim: self._score(dims=[dim]) for dim in self.suite.dims}

    def by_function(self) -> dict[int, float]:
        """Returns the score of each function alone."""
        return {function: self._score(functions=[function]) for function in self.suite.functions}

    def by_group(self) -> dict[str, float]:
        """Returns the score of each of ``GROUPS`` that has functions in the suite."""
        return {
            name: self._score(functions=functions)
            for name, functions in GROUPS.items()
            if set(functions) & set(self.suite.functions)
        }

    def ecdf(
        self, *, dims: Iterable[int] | None = None, functions: Iterable[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the runtime ECDF, of some dimensions or functions only if they are given.

        Returns:
            ``budgets``, (N_BUDGETS,), in evaluations per dimension, from 1 to ``evals_per_dim`` in
            equal ratios; and ``fractions``, (N_BUDGETS,): of all pairs of a problem and a target,
            how many were solved within the budget (rounded to whole evaluations).

        Raises:
            InvalidValueError: the suite has no such problem.
        """
        functions = set(self.suite.functions if functions is None else functions)
        dims = set(self.suite.dims if dims is None else dims)
        curves = [
            np.mean(times <= budgets_of(dim, self.suite.evals_per_dim)[:, None], axis=1)
            for (dim, function, _), times in zip(self.suite.problems, self.hit_times, strict=True)
            if dim in dims and function in functions
        ]
        if not curves:
            raise InvalidValueError("dims and functions must leave a problem of the suite")
        return np.geomspace(1, self.suite.evals_per_dim, N_BUDGETS), np.mean(curves, axis=0)

    def _score(self, **some: Iterable[int]) -> float:
        return float(np.mean(self.ecdf(**some)[1]))


def budgets_of(dim: int, evals_per_dim: int) -> np.ndarray:
    """Returns the (N_BUDGETS,) budgets of a problem, in evaluations: from dim on, log-spaced."""
    return np.round(np.geomspace(dim, evals_per_dim * dim, N_BUDGETS)).astype(int)


def run(
    method: Method,
    suite: Suite | None = None,
    *,
    seed: int = 0,
    workers: Any = 1,
    name: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> BBOBResult:
    """Runs a method once on every problem of a suite, from a random start in [-4, 4]^D.

    The start depends on the problem and the seed, so that every method has the same ones.

    Args:
        method: a name from ``SOLVERS``, a ``Solver``, or a callable (see ``Method``).
        suite: the problems. Default: ``Suite()``.
        seed: a non-negative int.
        workers: who runs the problems side by side: a number of processes, an executor or a
            map-like callable, as in ``minimize``. The result is the same, bit for bit.
        name: what to call the method. Default: the name of the solver or of the callable.
        progress: called as ``progress(n_done, n_problems)`` after every problem.

    Raises:
        UnknownNameError: ``method`` names no solver.
        InvalidValueError: an argument breaks a rule.
        MissingDependencyError: ioh is not installed.
        RunError: a worker process died.
        Exception: what the method raises.
    """
    suite = Suite() if suite is None else suite
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidValueError(f"seed must be a non-negative integer, got {seed!r}")
    if isinstance(method, str | Solver) or not callable(method):
        label = make_solver(method).name
    elif suite.bounded:
        raise InvalidValueError("bounded must be False for a callable, which gets no bounds")
    else:
        label = getattr(method, "__name__", type(method).__name__)
    import_ioh()

    problems = suite.problems
    hit_times = np.full((len(problems), len(TARGETS)), np.inf)
    run_one = partial(_hit_times, method, suite, seed)
    pool = make_workers(workers)
    try:
        rows = pool.map(run_one, problems) if pool else enumerate(map(run_one, problems))
        for n_done, (row, times) in enumerate(rows, start=1):
            if np.ndim(times) == 0:  # what make_workers gives for a worker that died
                raise RunError(f"a worker died on {problems[row]}")
            hit_times[row] = times
            if progress is not None:
                progress(n_done, len(problems))
    finally:
        if pool is not None:
            pool.close()
    return BBOBResult(name or label, suite, seed, hit_times)


def import_ioh() -> Any:
    """Returns the module ioh.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module("ioh")
    except ImportError as error:
        raise MissingDependencyError(
            "the BBOB functions need ioh; install it with: pip install 'zoopt-nas[bench]'"
        ) from error


class _BudgetSpent(Exception):  # noqa: N818 - a stop, not a fault
    """Ends a method that asks for another evaluation."""


class _Recorder:
    """A problem as a method sees it: counts evaluations and notes when each target is reached."""

    def __init__(self, problem: ProblemId, suite: Suite, seed: int) -> None:
        ioh = import_ioh()
        self._problem = ioh.get_problem(
            problem.function, problem.instance, problem.dim, ioh.ProblemClass.BBOB
        )
        self._f_opt = self._problem.optimum.y
        self._noise = suite.noise
        self._multiplies = suite.noise_kind == "multiplicative"
        # The 1 sets this stream apart from that of the start.
        self._rng = np.random.default_rng([*_entropy(problem, seed), 1])
        self._n_hit = 0
        self._nfev = 0
        self.maxfev = suite.evals_per_dim * problem.dim
        self.hit_times = np.full(len(TARGETS), np.inf)

    def __call__(self, x: np.ndarray) -> float:
        if self._nfev >= self.maxfev:
            raise _BudgetSpent
        self._nfev += 1
        gap = self._problem(x) - self._f_opt
        while self._n_hit < len(TARGETS) and gap <= TARGETS[self._n_hit]:
            self.hit_times[self._n_hit] = self._nfev
            self._n_hit += 1
        if self._noise > 0:
            noise = self._noise * self._rng.standard_normal()
            gap = gap * np.exp(noise) if self._multiplies else gap + noise
        return float(gap + self._f_opt)


def _hit_times(method: Method, suite: Suite, seed: int, problem: ProblemId) -> np.ndarray:
    """Runs a method on a problem; returns (n_targets,), a row of ``BBOBResult.hit_times``."""
    recorder = _Recorder(problem, suite, seed)
    x0 = np.random.default_rng(_entropy(problem, seed)).uniform(-4, 4, problem.dim)
    rng = np.random.default_rng(1000 * problem.function + problem.instance + seed)
    with contextlib.suppress(_BudgetSpent):
        if isinstance(method, str | Solver):
            minimize(
                recorder,
                x0,
                method,
                bounds=[_BOX] * problem.dim if suite.bounded else None,
                maxfev=recorder.maxfev,
                rng=rng,
                noisy=suite.noise > 0,
            )
        else:
            method(recorder, x0, recorder.maxfev, rng)
    return recorder.hit_times


def _entropy(problem: ProblemId, seed: int) -> list[int]:
    return [problem.function, problem.instance, problem.dim, seed]


def save_results(path: str | os.PathLike[str], results: Sequence[BBOBResult]) -> None:
    """Writes results as JSON; the file is replaced only once the new one is complete.

    Args:
        path: its folder must exist.
        results: of one suite or several.

    Raises:
        RunError: the file cannot be written.
    """
    text = json.dumps({"format": _FORMAT, "results": [_to_dict(result) for result in results]})
    with replacing(path) as file:
        file.write(f"{text}\n".encode())


def load_results(path: str | os.PathLike[str]) -> list[BBOBResult]:
    """Reads what ``save_results`` wrote.

    Raises:
        RunError: the file is missing, truncated, or holds something else.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise RunError(f"{path} has format {data['format']!r}, expected {_FORMAT!r}")
        return [_from_dict(entry) for entry in data["results"]]
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} holds no BBOB results, or is truncated") from error


def _to_dict(result: BBOBResult) -> dict[str, Any]:
    # JSON has no infinity.
    times = [[int(t) if math.isfinite(t) else None for t in row] for row in result.hit_times]
    return {
        "method": result.method,
        "score": result.score,  # for other readers; computed anew here
        "suite": asdict(result.suite),
        "seed": result.seed,
        "hit_times": times,
    }


def _from_dict(entry: dict[str, Any]) -> BBOBResult:
    suite = Suite(**entry["suite"])
    times = [[math.inf if t is None else float(t) for t in row] for row in entry["hit_times"]]
    hit_times = np.array(times, dtype=np.float64)
    if hit_times.shape != (len(suite.problems), len(TARGETS)):
        raise ValueError(f"hit_times has shape {hit_times.shape}")
    return BBOBResult(str(entry["method"]), suite, int(entry["seed"]), hit_times)


def _distinct_ints(name: str, value: Any, low: int, high: int | None) -> tuple[int, ...]:
    rule = f"{name} must be distinct integers " + (
        f"from {low} on" if high is None else f"in {low}..{high}"
    )
    try:
        numbers = tuple(check_positive_int(name, number) for number in value)
    except (TypeError, InvalidValueError) as error:
        raise InvalidValueError(f"{rule}, got {value!r}") from error
    is_inside = all(low <= number and (high is None or number <= high) for number in numbers)
    if not numbers or not is_inside or len(set(numbers)) < len(numbers):
        raise InvalidValueError(f"{rule}, got {value!r}")
    return numbers
