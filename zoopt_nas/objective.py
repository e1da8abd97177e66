"""Evaluation of the user's function: the budget, failures, workers and the best points."""

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
    """Mean of the finite values of each of ``n`` points."""

    def __init__(self, n: int) -> None:
        self._totals = [0.0] * n
        self._counts = [0] * n

    def add(self, row: int, value: float) -> None:
        """Add a value of a point, unless it is not finite."""
        if math.isfinite(value):
            self._totals[row] += value
            self._counts[row] += 1

    def values(self) -> np.ndarray:
        """Return the means, (n,) float64; +inf without a finite value."""
        means = [
            total / count if count else math.inf
            for total, count in zip(self._totals, self._counts, strict=True)
        ]
        return np.array(means, dtype=np.float64)


class Objective:
    """A function with an evaluation budget.

    Most arguments are those of `minimize`. ``seed`` generates the values of ``eval_seed``, and
    ``n_elites`` is the number of best points to keep. With ``vectorized`` or workers, a batch is
    completed even if it reaches the target.

    Attributes:
        nfev: number of evaluations.
        n_failed: number of evaluations that raised or had a non-finite value.
        best_x: the point of the lowest finite value, (dim,), or None.
        best_fun: that value, or +inf.
        elites: the best points with their values, best first.
        history: the values in order, +inf for failures; None if not recorded.
        last_error: the last exception of a failed evaluation, or None.
        deadline: time on ``time.monotonic`` after which only the first call of a batch starts.
        was_cut: whether the deadline cut the last batch short.
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
        """Whether a finite value of at most the target was seen."""
        is_met = self.target is not None and self.best_fun <= self.target
        return is_met and self.best_fun < math.inf

    def add_known(self, point: Array, value: float) -> None:
        """Update the best points by a value that is already known."""
        if value < self.best_fun:
            self.best_fun = value
            self.best_x = copy(point)
        if self._n_elites and math.isfinite(value):
            self.elites.append((value, copy(point)))
            self.elites.sort(key=lambda elite: elite[0])
            del self.elites[self._n_elites :]

    def evaluate(self, points: Array, *, reserve: int = 0) -> np.ndarray:
        """Return the values of points (n, dim) as (n,) float64, leaving ``reserve`` evaluations.

        A value is +inf if the evaluation failed, or if the budget, the deadline or the target ended
        the batch before it.
        """
        self.was_cut = False
        is_simple = self._workers is None and not self._vectorized and not self._catches
        if is_simple and self._n_reevaluations == 1 and self._seed is None:
            return self._evaluate_simply(points, reserve)
        means = _Means(points.shape[0])
        try:
            self._call_all(points, self._n_reevaluations, means, reserve=reserve)
        finally:  # an exception must not lose the values before it
            values = means.values()
            for row in np.argsort(values)[: max(1, self._n_elites)].tolist():
                self.add_known(points[row], float(values[row]))
        return values

    def measure(self, points: Array, n_calls: int) -> np.ndarray:
        """Return the mean of ``n_calls`` new values of each point, (n,), with the same seeds.

        The number of calls is reduced to the budget. The best points are not updated.
        """
        if self.maxfev is not None:
            n_calls = min(n_calls, (self.maxfev - self.nfev) // points.shape[0])
        means = _Means(points.shape[0])
        self.was_cut = False
        self._call_all(points, max(1, n_calls), means, stops=False)
        return means.values()

    def reuse_seeds(self) -> None:
        """Reuse the seeds of the last batch, which was cut, for the next one."""
        self._n_batches -= 1

    def keep_elites(self, n_elites: int) -> None:
        """Keep at least so many of the best points from now on."""
        self._n_elites = max(n_elites, self._n_elites)
        if self.best_x is not None and not self.elites:
            self.elites = [(self.best_fun, copy(self.best_x))]

    def close(self) -> None:
        """Stop the worker processes of this objective, if any."""
        if self._workers is not None:
            self._workers.close()

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the run: ``{"arrays": NumPy arrays, "meta": JSON values}``."""
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
        """Restore the record that ``to_dict`` returned."""
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

    def _evaluate_simply(self, points: Array, reserve: int) -> np.ndarray:
        """Evaluate as `evaluate` does, with less overhead, in the common case."""
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
                self.add_known(point, value)
            if value <= threshold:
                break
        return values

    def _is_late(self) -> bool:
        """Return whether the deadline has passed, and record that it cut the batch."""
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
        """Call the function ``n_calls`` times at each point, as far as the budget allows."""
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
        """Yield (row, value) of at most ``limit`` calls; NaN for a failed call."""
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
        except BaseException as error:  # noqa: BLE001 (raised below)
            interruption = error
        # In the order of the batch, so that the record does not depend on the speed of workers.
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
            # As with single calls, the first points get all their calls.
            n_rows = min(n, max(0, (limit - k + len(seeds) - 1) // len(seeds)))
            if n_rows == 0:
                continue
            if k > 0 and self._is_late():
                return
            returned = self._call(Job(copy(points[:n_rows]), seed))
            yield from enumerate(self._as_values(returned, n_rows))

    def _as_values(self, returned: Any, n: int) -> list[float]:
        """Convert what one vectorized call returned for ``n`` points."""
        if isinstance(returned, Raised):
            return [self._as_value(returned)] * n
        if self._catches and as_reals(returned) is None:
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
        """Return the seeds of the ``n_calls`` calls at each point of the next batch."""
        self._n_batches += 1
        if self._seed is None:
            return [None] * n_calls
        sequence = np.random.SeedSequence([self._seed, self._n_batches])
        return [int(seed) for seed in sequence.generate_state(n_calls)]
