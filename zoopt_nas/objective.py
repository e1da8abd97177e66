"""The one place that calls the user's function: it counts, guards and remembers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zoopt_nas._arrays import Array, as_reals, copy, decode_array, encode_array
from zoopt_nas._calls import Call, Job, Raised, as_float, as_values, takes_seed
from zoopt_nas._checks import check_choice, check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.parallel import make_workers

ON_ERROR = ("raise", "fail")


class _Means:
    """The mean of the finite values of each of ``n`` points."""

    def __init__(self, n: int) -> None:
        self._totals = [0.0] * n
        self._counts = [0] * n

    def add(self, row: int, value: float) -> None:
        if math.isfinite(value):
            self._totals[row] += value
            self._counts[row] += 1

    def values(self) -> np.ndarray:
        """Returns (n,) float64, +inf where no value was finite."""
        means = [
            total / count if count else math.inf
            for total, count in zip(self._totals, self._counts, strict=True)
        ]
        return np.array(means, dtype=np.float64)


class Objective:
    """A function under a budget, to be minimized.

    Args:
        fun: takes a point (dim,) and returns a real number; with ``vectorized`` takes points
            (n, dim) and returns (n,) of them. It gets a copy of the points, and, if it has a
            parameter ``eval_seed``, the seed of its randomness.
        maxfev: the most evaluations ever made; None is no limit.
        target: evaluation stops once a value is this or less; None is never.
        vectorized: see ``fun``. A batch is then evaluated in full whatever the target.
        history: whether to record each value.
        workers: who makes the calls of a batch, see ``make_workers``. With more than one, a batch
            is evaluated in full whatever the target.
        timeout: the seconds after which a call has failed.
        n_reevaluations: the calls made at each point; its value is the mean of those that did not
            fail.
        on_error: what an exception does: ``"raise"``, or ``"fail"``, where it costs the candidate.
            None: it fails where workers make the calls, but if no call has ever returned, as where
            ``fun`` has a mistake, is raised at the end of the batch.
        seed: of the seeds that ``eval_seed`` gets. All points of a batch get the same.
        n_elites: how many of the best points to remember, for `measure`.

    Attributes:
        nfev: evaluations made so far.
        n_failed: those of them whose value was NaN or infinite (of either sign), or that raised.
        best_x: (dim,), the point of the least finite value so far, or None.
        best_fun: that value, or +inf.
        elites: the best points so far with their values, best first.
        history: the values in order, +inf where failed, if asked for; else None.
        last_error: the last exception that cost a candidate, or None.
        deadline: when no other call starts, on the clock of ``time.monotonic``. The first call of a
            batch always does.
        was_cut: whether the deadline came within the last batch.

    Raises:
        InvalidValueError: ``fun`` is not callable, or another argument breaks a rule.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        *,
        maxfev: int | None = None,
        target: float | None = None,
        vectorized: bool = False,
        history: bool = False,
        workers: Any = 1,
        timeout: float | None = None,
        n_reevaluations: int = 1,
        on_error: str | None = None,
        seed: int = 0,
        n_elites: int = 0,
    ) -> None:
        if not callable(fun):
            raise InvalidValueError(f"fun must be callable, got {fun!r}")
        self._workers = make_workers(workers, timeout)
        if vectorized and self._workers is not None:
            raise InvalidValueError(
                "vectorized must be False with workers or a timeout, which are for single calls, "
                f"got {vectorized!r}"
            )
        self._always_catches = on_error == "fail"
        if on_error is None:
            on_error = "raise" if self._workers is None else "fail"
        self._catches = check_choice("on_error", on_error, ON_ERROR) == "fail"
        self._has_returned = False
        self._fun = fun
        self._call = Call(fun, self._catches)
        self._vectorized = vectorized
        self._n_reevaluations = check_positive_int("n_reevaluations", n_reevaluations)
        self._seed = seed if takes_seed(fun) else None
        self._n_batches = 0
        self.maxfev = None if maxfev is None else check_positive_int("maxfev", maxfev)
        self.target = None if target is None else as_float("target", target)
        if self.target is not None and math.isnan(self.target):
            raise InvalidValueError("target must be a number, got nan")
        self.nfev = 0
        self.n_failed = 0
        self.best_x: Array | None = None
        self.best_fun = math.inf
        self._n_elites = n_elites
        self.elites: list[tuple[float, Array]] = []
        self.history: list[float] | None = [] if history else None
        self.last_error: Exception | None = None
        self.deadline = math.inf
        self.was_cut = False

    @property
    def reached_target(self) -> bool:
        """Whether a finite value at or below the target was seen."""
        is_met = self.target is not None and self.best_fun <= self.target
        return is_met and self.best_fun < math.inf

    def know(self, point: Array, value: float) -> None:
        """Takes a known value into account, at no cost."""
        if value < self.best_fun:
            self.best_fun = value
            self.best_x = copy(point)
        if self._n_elites and math.isfinite(value):
            self.elites.append((value, copy(point)))
            self.elites.sort(key=lambda elite: elite[0])
            del self.elites[self._n_elites :]

    def evaluate(self, points: Array, *, reserve: int = 0) -> np.ndarray:
        """Evaluates the first rows of ``points``, as many as the budget allows.

        Args:
            points: (n, dim).
            reserve: evaluations of the budget to leave unused.

        Returns:
            (n,) float64. +inf where the evaluation failed, or was not made because of the budget,
            the deadline, or because the target had been reached.

        Raises:
            InvalidValueError: ``fun`` returned no real number, or not one for each row.
            Exception: what ``fun`` raises, see ``on_error``.
        """
        self.was_cut = False
        is_plain = self._workers is None and not self._vectorized and not self._catches
        if is_plain and self._n_reevaluations == 1 and self._seed is None:
            return self._evaluate_plainly(points, reserve)
        means = _Means(points.shape[0])
        try:
            self._call_all(points, self._n_reevaluations, means, reserve=reserve)
        finally:  # also if a call raised: those that have returned were paid for
            values = means.values()
            for row in np.argsort(values)[: max(1, self._n_elites)].tolist():
                self.know(points[row], float(values[row]))
        return values

    def measure(self, points: Array, n_calls: int) -> np.ndarray:
        """Returns the mean of ``n_calls`` fresh values of each point, and remembers no point.

        Every point gets the same seeds. The number of calls is cut to what the budget allows.
        """
        if self.maxfev is not None:
            n_calls = min(n_calls, (self.maxfev - self.nfev) // points.shape[0])
        means = _Means(points.shape[0])
        self.was_cut = False
        self._call_all(points, max(1, n_calls), means, stops=False)
        return means.values()

    def take_back(self) -> None:
        """Gives the seeds of the last batch, which was cut, to the next one."""
        self._n_batches -= 1

    def remember(self, n_elites: int) -> None:
        """Remembers that many of the best points from now on, for `measure`."""
        self._n_elites = max(n_elites, self._n_elites)
        if self.best_x is not None and not self.elites:
            self.elites = [(self.best_fun, copy(self.best_x))]

    def close(self) -> None:
        """Ends the processes that were started for the evaluations, if any."""
        if self._workers is not None:
            self._workers.close()

    def to_dict(self) -> dict[str, Any]:
        """Returns what was counted and found: ``{"arrays": NumPy arrays, "meta": JSON-able}``."""
        meta: dict[str, Any] = {
            "nfev": self.nfev,
            "n_failed": self.n_failed,
            "n_batches": self._n_batches,
            "seed": self._seed,
            "best_fun": self.best_fun,
            "best_x": None,
            "elites": [],
        }
        arrays: dict[str, np.ndarray] = {}
        if self.best_x is not None:
            arrays["best_x"], meta["best_x"] = encode_array(self.best_x)
        for k, (value, x) in enumerate(self.elites):
            arrays[f"elite_{k}"], spec = encode_array(x)
            meta["elites"].append([value, spec])
        if self.history is not None:
            arrays["history"] = np.array(self.history, dtype=np.float64)
        return {"arrays": arrays, "meta": meta}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Goes on from where ``to_dict`` was called.

        Raises:
            KeyError: a part is missing.
        """
        arrays, meta = data["arrays"], data["meta"]
        self.nfev, self.n_failed = meta["nfev"], meta["n_failed"]
        self._n_batches, self._seed = meta["n_batches"], meta["seed"]
        self.best_fun = meta["best_fun"]
        if meta["best_x"] is not None:
            self.best_x = decode_array(arrays["best_x"], meta["best_x"])
        self.elites = [
            (value, decode_array(arrays[f"elite_{k}"], spec))
            for k, (value, spec) in enumerate(meta["elites"])
        ]
        if self.history is not None:
            self.history = arrays["history"].tolist()

    def _evaluate_plainly(self, points: Array, reserve: int) -> np.ndarray:
        """The common case, one call after the other: a few microseconds each at the most."""
        values = np.full(points.shape[0], math.inf)
        n = points.shape[0]
        if self.maxfev is not None:
            n = min(n, self.maxfev - reserve - self.nfev)
        is_numpy = isinstance(points, np.ndarray)
        threshold = -math.inf if self.target is None else self.target
        if self.reached_target:
            return values
        for row in range(n):
            if row > 0 and self._is_late():
                break
            point = points[row]
            value = as_float(
                "the value of fun", self._fun(point.copy() if is_numpy else copy(point))
            )
            self._count(value)
            if not math.isfinite(value):
                continue
            values[row] = value
            if value < self.best_fun or self._n_elites:
                self.know(point, value)
            if value <= threshold:
                break
        return values

    def _is_late(self) -> bool:
        """Whether the deadline has come, which cuts the batch."""
        if self.deadline == math.inf or time.monotonic() < self.deadline:
            return False
        self.was_cut = True
        return True

    def _count(self, value: float) -> None:
        self.nfev += 1
        if not math.isfinite(value):
            self.n_failed += 1
            value = math.inf
        if self.history is not None:
            self.history.append(value)

    def _call_all(
        self, points: Array, n_calls: int, means: _Means, *, reserve: int = 0, stops: bool = True
    ) -> None:
        """Calls the function ``n_calls`` times at each point, as far as the budget allows."""
        limit = points.shape[0] * n_calls
        if self.maxfev is not None:
            limit = min(limit, self.maxfev - reserve - self.nfev)
        if limit <= 0 or (stops and self.reached_target):
            return
        for row, value in self._returned(points, n_calls, limit, stops):
            self._count(value)
            means.add(row, value)
        if self.last_error is not None and not (self._has_returned or self._always_catches):
            raise self.last_error

    def _returned(
        self, points: Array, n_calls: int, limit: int, stops: bool
    ) -> Iterator[tuple[int, float]]:
        """Yields (row, value) of at most ``limit`` calls, NaN where a call failed."""
        seeds = self._draw_seeds(n_calls)
        if self._vectorized:
            yield from self._call_vectorized(points, seeds, limit)
            return
        rows = [row for row in range(points.shape[0]) for _ in seeds][:limit]
        jobs = [Job(copy(points[row]), seeds[k % n_calls]) for k, row in enumerate(rows)]
        if self._workers is None:
            threshold = -math.inf if self.target is None else self.target
            for k, (row, job) in enumerate(zip(rows, jobs, strict=True)):
                if k > 0 and self._is_late():
                    return
                value = self._as_value(self._call(job))
                yield row, value
                if stops and n_calls == 1 and math.isfinite(value) and value <= threshold:
                    return
            return
        returned: dict[int, Any] = {}
        interruption: BaseException | None = None
        try:
            for k, value in self._workers.map(self._call, jobs, self.deadline):
                returned[k] = value
        except BaseException as error:  # noqa: BLE001 (raised below: what returned was paid for)
            interruption = error
        # In the order of the batch, so that the record does not depend on who was faster.
        for k in sorted(returned):
            yield rows[k], self._as_value(returned[k])
        if interruption is not None:
            raise interruption
        self.was_cut = len(returned) < len(jobs)

    def _call_vectorized(
        self, points: Array, seeds: list[int | None], limit: int
    ) -> Iterator[tuple[int, float]]:
        n = points.shape[0]
        for k, seed in enumerate(seeds):
            # As where calls are single: the first points get all their calls, the last some.
            n_rows = min(n, max(0, (limit - k + len(seeds) - 1) // len(seeds)))
            if n_rows == 0:
                continue
            if k > 0 and self._is_late():
                return
            returned = self._call(Job(copy(points[:n_rows]), seed))
            yield from enumerate(self._as_values(returned, n_rows))

    def _as_values(self, returned: Any, n: int) -> list[float]:
        """Returns the values of ``n`` points that one call returned."""
        if isinstance(returned, Raised):
            return [self._as_value(returned)] * n
        if self._catches and as_reals(returned) is None:  # what is no number has failed
            rows = list(returned) if isinstance(returned, Sequence | np.ndarray) else []
            return [self._as_value(value) for value in (rows if len(rows) == n else [None] * n)]
        values: list[float] = as_values(returned, n).tolist()
        self._has_returned = True
        return values

    def _as_value(self, returned: Any) -> float:
        if isinstance(returned, Raised):
            self.last_error = returned.error
            return math.nan
        try:
            value = as_float("the value of fun", returned)
        except InvalidValueError as error:
            if not self._catches:
                raise
            self.last_error = error
            return math.nan
        self._has_returned = True
        return value

    def _draw_seeds(self, n_calls: int) -> list[int | None]:
        """Returns the seeds of the calls at each point of the next batch."""
        self._n_batches += 1
        if self._seed is None:
            return [None] * n_calls
        sequence = np.random.SeedSequence([self._seed, self._n_batches])
        return [int(seed) for seed in sequence.generate_state(n_calls)]
