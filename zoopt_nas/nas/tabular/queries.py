"""The budget of a search on a table: which look-ups count, and the best cell after each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# A search that asks for known cells only would never end.
MAX_EVALUATIONS_PER_QUERY = 10


class OutOfQueries(Exception):  # noqa: N818 - the normal end of a search
    """The budget of the search is spent."""


class Trace(NamedTuple):
    """What a search found; ``n`` is its budget.

    Attributes:
        by_query: the number of the cell with the best signal after 1..n queries, (n,).
        by_evaluation: the same after 1..n evaluations, repeated cells included, (n,).
        n_queries: how many queries the search made, at most n.
        n_evaluations: how many evaluations it made.
    """

    by_query: np.ndarray
    by_evaluation: np.ndarray
    n_queries: int
    n_evaluations: int


class Queries:
    """Answers a search, which sees the signal and nothing else.

    A query is the first look-up of a cell. The signal of a known cell is answered from memory and
    costs no query; every look-up counts as an evaluation.

    Args:
        signal: by the number of the cell, (15625,); larger is better.
        n_queries: the budget.
    """

    def __init__(self, signal: np.ndarray, n_queries: int) -> None:
        self._signal: list[float] = signal.tolist()
        self._n = n_queries
        self._known: set[int] = set()
        self._best = -1
        self._by_query: list[int] = []
        self._by_evaluation: list[int] = []
        self.n_evaluations = 0

    @property
    def n_queries(self) -> int:
        """The number of different cells looked up."""
        return len(self._known)

    def look_up(self, number: int) -> float:
        """Return the signal of a cell.

        Raises:
            OutOfQueries: the budget, or ten evaluations for each query of it, is spent.
        """
        is_new = number not in self._known
        if is_new and len(self._known) == self._n:
            raise OutOfQueries
        if self.n_evaluations == MAX_EVALUATIONS_PER_QUERY * self._n:
            raise OutOfQueries
        self.n_evaluations += 1
        value = self._signal[number]
        if is_new:
            self._known.add(number)
            if self._best < 0 or value > self._signal[self._best]:
                self._best = number
            self._by_query.append(self._best)
        if self.n_evaluations <= self._n:
            self._by_evaluation.append(self._best)
        return value

    def look_up_all(self, numbers: Iterable[int]) -> np.ndarray:
        """Return the signals of cells, (n,), looked up one after the other."""
        return np.array([self.look_up(number) for number in numbers])

    def trace(self) -> Trace:
        """Return what the search has found; a search that ended early keeps its best cell."""
        return Trace(
            self._filled(self._by_query),
            self._filled(self._by_evaluation),
            self.n_queries,
            self.n_evaluations,
        )

    def _filled(self, best: list[int]) -> np.ndarray:
        return np.array(best + [self._best] * (self._n - len(best)), dtype=np.int16)
