"""The one place that calls the user's function: it counts, guards and remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoopt_nas._arrays import Array, copy, decode_array, encode_array, to_numpy
from zoopt_nas._checks import check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.parallel import Workers, make_workers


class Objective:
    """A function under a budget, to be minimized.

    Args:
        fun: takes a point (dim,) and returns a real number; with ``vectorized`` takes points
            (n, dim) and returns (n,) of them. It gets a copy of the points.
        maxfev: the most evaluations ever made; None is no limit.
        target: evaluation stops once a value is this or less; None is never.
        vectorized: see ``fun``. A batch is then evaluated in full whatever the target.
        history: whether to record each value.
        workers: who makes the calls of a batch, see ``make_workers``. With more than one, a batch
            is evaluated in full whatever the target.
        timeout: the seconds after which a call has failed.

    Attributes:
        nfev: evaluations made so far.
        n_failed: those of them whose value was NaN or infinite (of either sign).
        best_x: (dim,), the point of the least finite value so far, or None.
        best_fun: that value, or +inf.
        history: the values in order, +inf where failed, if asked for; else None.

    Raises:
        InvalidValueError: ``fun`` is not callable, ``maxfev`` no positive integer, ``target`` no
            number, or ``workers`` or ``timeout`` break a rule.
    """

    def __init__(
        self,
        fun: Callable[[Any], Any],
        *,
        maxfev: int | None = None,
        target: float | None = None,
        vectorized: bool = False,
        history: bool = False,
        workers: Any = 1,
        timeout: float | None = None,
    ) -> None:
        if not callable(fun):
            raise InvalidValueError(f"fun must be callable, got {fun!r}")
        self._fun = fun
        self._vectorized = vectorized
        self._workers = make_workers(workers, timeout)
        if vectorized and self._workers is not None:
            raise InvalidValueError(
                "vectorized must be False with workers or a timeout, which are for single calls, "
                f"got {vectorized!r}"
            )
        self.maxfev = None if maxfev is None else check_positive_int("maxfev", maxfev)
        self.target = None if target is None else _as_float("target", target)
        if self.target is not None and np.isnan(self.target):
            raise InvalidValueError("target must be a number, got nan")
        self.nfev = 0
        self.n_failed = 0
        self.best_x: Array | None = None
        self.best_fun = np.inf
        self.history: list[float] | None = [] if history else None

    @property
    def reached_target(self) -> bool:
        """Whether a value at or below the target was seen."""
        return self.target is not None and self.best_fun <= self.target

    def evaluate(self, points: Array, *, reserve: int = 0) -> np.ndarray:
        """Evaluates the first rows of ``points``, as many as the budget allows.

        Args:
            points: (n, dim).
            reserve: evaluations of the budget to leave unused.

        Returns:
            (n,) float64. +inf where the evaluation failed, or was not made because of the budget or
            because the target had been reached.

        Raises:
            InvalidValueError: ``fun`` returned no real number, or not one for each row.
            Exception: whatever ``fun`` raises.
        """
        n = points.shape[0]
        if self.maxfev is not None:
            n = max(0, min(n, self.maxfev - reserve - self.nfev))
        values = np.full(points.shape[0], np.inf)
        if self._vectorized:
            if n > 0:
                values[:n] = self._record(points[:n], self._call_batch(points[:n]))
            return values
        if self._workers is not None:
            self._evaluate_side_by_side(self._workers, points[:n], values)
            return values
        for row in range(n):
            if self.reached_target:
                break
            point = points[row : row + 1]
            values[row] = self._record(point, self._call_one(point))[0]
        return values

    def close(self) -> None:
        """Ends the processes that were started for the evaluations, if any."""
        if self._workers is not None:
            self._workers.close()

    def to_dict(self) -> dict[str, Any]:
        """Returns what was counted and found: ``{"arrays": NumPy arrays, "meta": JSON-able}``."""
        counts = {"nfev": self.nfev, "n_failed": self.n_failed, "best_fun": self.best_fun}
        meta: dict[str, Any] = {**counts, "best_x": None}
        arrays: dict[str, np.ndarray] = {}
        if self.best_x is not None:
            arrays["best_x"], meta["best_x"] = encode_array(self.best_x)
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
        self.best_fun = meta["best_fun"]
        if meta["best_x"] is not None:
            self.best_x = decode_array(arrays["best_x"], meta["best_x"])
        if self.history is not None:
            self.history = arrays["history"].tolist()

    def _evaluate_side_by_side(self, workers: Workers, points: Array, values: np.ndarray) -> None:
        """Writes the values of ``points`` into the first entries of ``values``."""
        rows = [copy(points[row]) for row in range(points.shape[0])]
        returned: dict[int, float] = {}
        try:
            for row, value in workers.map(self._fun, rows):
                returned[row] = _as_float("the value of fun", value)
        finally:
            # In the order of the batch, so that the record does not depend on who was faster; and
            # also if a call raised, since the others were paid for.
            for row in sorted(returned):
                point = points[row : row + 1]
                values[row] = self._record(point, np.array([returned[row]]))[0]

    def _call_batch(self, points: Array) -> np.ndarray:
        returned = to_numpy(self._fun(copy(points)))
        values = np.asarray(returned)
        if values.dtype.kind not in "biuf":
            raise InvalidValueError(f"fun must return real numbers, got {returned!r}")
        if values.shape != (points.shape[0],):
            raise InvalidValueError(
                f"fun must return shape ({points.shape[0]},) for a batch of {points.shape[0]} "
                f"points, got shape {values.shape}"
            )
        return values.astype(np.float64)

    def _call_one(self, point: Array) -> np.ndarray:
        return np.array([_as_float("the value of fun", self._fun(copy(point[0])))])

    def _record(self, points: Array, values: np.ndarray) -> np.ndarray:
        """Counts the evaluations and returns their values, with +inf for the failed."""
        is_finite = np.isfinite(values)
        values = np.where(is_finite, values, np.inf)
        self.nfev += len(values)
        self.n_failed += len(values) - int(np.count_nonzero(is_finite))
        best = int(np.argmin(values))
        if values[best] < self.best_fun:
            self.best_fun = float(values[best])
            self.best_x = copy(points[best])
        if self.history is not None:
            self.history.extend(values.tolist())
        return values


def _as_float(name: str, value: object) -> float:
    """Returns a number, or an array or tensor of one entry, as a float."""
    try:
        array = np.asarray(to_numpy(value))
        if array.dtype.kind in "biuf":
            return float(array.item())
    except (TypeError, ValueError):
        pass
    raise InvalidValueError(f"{name} must be a real number, got {value!r}")
