"""Many runs of each method on a table, and the true accuracies of the cells that they find."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.tabular.queries import OutOfQueries, Queries, Trace
from zoopt_nas.nas.tabular.relaxation import relaxed_solver, search_with
from zoopt_nas.nas.tabular.searches import BASELINES, Search
from zoopt_nas.nas.tabular.table import N_CELLS, SIGNALS, CellTable
from zoopt_nas.parallel import make_workers
from zoopt_nas.solvers import SOLVERS

_RUNS_PER_CALL = 20

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Benchmark:
    """A protocol: which methods run how often, and what they see.

    Attributes:
        methods: names of baselines (``searches.BASELINES``) and of solvers.
        n_queries: the budget of a run.
        n_runs: runs of each method.
        seed: run k of every method draws from ``numpy.random.default_rng([seed, k])``.
        signal: the column that the searches maximize.

    Raises:
        InvalidValueError: a field is out of its range.
        UnknownNameError: there is no such method or signal.
    """

    methods: tuple[str, ...]
    n_queries: int = 200
    n_runs: int = 500
    seed: int = 0
    signal: str = SIGNALS[0]

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InvalidValueError(
                f"methods must be one or more different names, got {list(self.methods)}"
            )
        for name in self.methods:
            search_of(name)
        if check_positive_int("n_queries", self.n_queries) > N_CELLS:
            raise InvalidValueError(
                f"n_queries must be at most {N_CELLS}, the number of cells, got {self.n_queries}"
            )
        check_positive_int("n_runs", self.n_runs)
        if self.seed < 0:
            raise InvalidValueError(f"seed must be a non-negative integer, got {self.seed}")
        if self.signal not in SIGNALS:
            raise UnknownNameError("signal", self.signal, SIGNALS)

    def run(
        self, table: CellTable, *, workers: int = 1, on_progress: OnProgress = lambda n, of: None
    ) -> dict[str, Traces]:
        """Run every method; the result does not depend on ``workers``.

        Args:
            table: a table of all cells.
            workers: processes; -1 for one on each core.
            on_progress: is called with the number of finished runs and of all runs.

        Raises:
            DataError: the table lacks a cell.
        """
        jobs = [
            _Job(name, first, min(first + _RUNS_PER_CALL, self.n_runs))
            for name in self.methods
            for first in range(0, self.n_runs, _RUNS_PER_CALL)
        ]
        run = functools.partial(_run_job, table.column(self.signal), self.n_queries, self.seed)
        pool = make_workers(workers)
        found: list[list[Trace]] = [[] for _ in jobs]
        n_done = 0
        with contextlib.closing(pool) if pool else contextlib.nullcontext():
            results = pool.map(run, jobs) if pool else enumerate(map(run, jobs))
            for row, traces in results:
                if not isinstance(traces, list):  # its process has died twice
                    raise ChildProcessError(f"a process died in {jobs[row].method}")
                found[row] = traces
                n_done += len(traces)
                on_progress(n_done, len(self.methods) * self.n_runs)
        runs: dict[str, list[Trace]] = {name: [] for name in self.methods}
        for job, part in zip(jobs, found, strict=True):
            runs[job.method] += part
        return {name: Traces.join(traces) for name, traces in runs.items()}


class Traces(NamedTuple):
    """The fields of `Trace` for all runs of a method, (n_runs, n) and (n_runs,)."""

    by_query: np.ndarray
    by_evaluation: np.ndarray
    n_queries: np.ndarray
    n_evaluations: np.ndarray

    @classmethod
    def join(cls, traces: Sequence[Trace]) -> Traces:
        """Return the traces of runs, one row for each."""
        return cls(*(np.array(column) for column in zip(*traces, strict=True)))


class MeanStd(NamedTuple):
    """Mean and standard deviation over runs, with n - 1; the latter is 0 for one run."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: np.ndarray) -> MeanStd:
        """Return the statistics of (n_runs,) values."""
        std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return cls(float(values.mean()), std)


def accuracies_of(
    table: CellTable, traces: Traces, column: str, *, every_evaluation: bool = False
) -> np.ndarray:
    """Return the accuracy, (n_runs, n), of the cell with the best signal after 1..n queries.

    With ``every_evaluation``, look-ups of known cells count as well.
    """
    best = traces.by_evaluation if every_evaluation else traces.by_query
    accuracies: np.ndarray = table.column(column)[best]
    return accuracies


def summarize(
    table: CellTable,
    traces: Traces,
    column: str,
    budgets: Sequence[int],
    *,
    every_evaluation: bool = False,
) -> list[MeanStd]:
    """Return the statistics of ``accuracies_of`` over runs after each budget of queries."""
    accuracies = accuracies_of(table, traces, column, every_evaluation=every_evaluation)
    return [MeanStd.of(accuracies[:, n - 1]) for n in budgets]


class _Job(NamedTuple):
    """Runs ``first`` to ``end - 1`` of a method."""

    method: str
    first: int
    end: int


def search_of(method: str) -> Search:
    """Return the search of a method.

    Raises:
        UnknownNameError: there is no such method.
    """
    if method in BASELINES:
        return BASELINES[method]
    if method not in SOLVERS:
        raise UnknownNameError("method", method, [*BASELINES, *SOLVERS])
    return functools.partial(search_with, relaxed_solver(method))


def _run_job(signal: np.ndarray, n_queries: int, seed: int, job: _Job) -> list[Trace]:
    search, traces = search_of(job.method), []
    for k in range(job.first, job.end):
        queries = Queries(signal, n_queries)
        with contextlib.suppress(OutOfQueries):
            search(queries, np.random.default_rng([seed, k]))
        traces.append(queries.trace())
    return traces
