"""Solvers made of an algorithm that wants values in the middle of its work: of a generator.

The generator yields points and is sent their values. It cannot be saved. It is deterministic,
though, so the values told so far are enough to bring another one to the same place: the state of a
run holds those.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from zoopt_nas._arrays import Array
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.restarting import RestartingSolver, Restarts, as_float64, as_rows

# Yields points (n, dim), float64, and is sent their values (n,), +inf where failed.
Algorithm: TypeAlias = Generator[np.ndarray, np.ndarray, None]


class SteppedCall:
    """An algorithm that stops wherever it wants values.

    Args:
        algorithm: just made.

    Attributes:
        wanted: the points whose values the algorithm waits for; None once it has ended, which it
            also does by asking for a point that is NaN.
        n_told: how many values it has been told.

    Raises:
        Exception: whatever the algorithm raises, here or in ``send``.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self.n_told = 0
        self.wanted: np.ndarray | None = None
        self._go_on(None)

    @property
    def is_live(self) -> bool:
        """Whether ``send`` can go on: not after an error or an interruption."""
        return self.wanted is None or self._algorithm.gi_frame is not None  # type: ignore[attr-defined]

    def send(self, values: np.ndarray) -> None:
        """Gives the algorithm the values (n,) of ``wanted`` and runs it until it wants others."""
        self.n_told += len(values)
        self._go_on(np.array(values))

    def _go_on(self, values: np.ndarray | None) -> None:
        try:
            with np.errstate(all="ignore"):
                wanted = self._algorithm.send(values)  # type: ignore[arg-type]
        except StopIteration:
            self.wanted = None
            return
        if np.isnan(wanted).any():
            self._algorithm.close()
            self.wanted = None
            return
        self.wanted = np.array(wanted, dtype=np.float64)


# The calls that run, by the state that they belong to. Only a shortcut: see `_advance`.
_CALLS: weakref.WeakKeyDictionary[SolverState, SteppedCall] = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class Told(Restarts):
    """What such a solver keeps.

    Attributes:
        told: the values told since the last restart, with room for more behind.
        n_told: how many they are.
    """

    told: Any = None
    n_told: int = 0


@dataclass(frozen=True)
class SteppedSolver(RestartingSolver):
    """A solver that runs a deterministic algorithm, and restarts it when it ends.

    The algorithm thinks in the points that it asked for, whatever became of them: in a box that
    mirrors points it sees the mirrored objective.
    """

    inner_states: ClassVar[tuple[type, ...]] = (Told,)

    @abstractmethod
    def _algorithm(self, state: SolverState) -> Algorithm:
        """Returns the algorithm from ``state.inner``: ``start`` and ``signs``, (dim,), float64.

        It depends on nothing else, and keeps no reference to ``state``.
        """

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        if state.inner.origin is None:
            self._begin(state)
        while (wanted := self._advance(state)) is None:
            _CALLS.pop(state, None)
            self._begin(state)
        return as_rows(wanted, state.x)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        inner: Told = state.inner
        told = as_float64(values)
        n = inner.n_told
        inner.told = _with_room(inner.told, n, len(told))
        inner.told[n : n + len(told)] = told
        inner.n_told = n + len(told)
        return self._best_told(state, candidates, told)

    def _advance(self, state: SolverState) -> np.ndarray | None:
        """Returns the points that the algorithm wants after all that was told; None at its end."""
        inner: Told = state.inner
        told = inner.told[: inner.n_told]
        call = _CALLS.get(state)
        if call is None or not call.is_live or call.n_told > len(told):
            call = SteppedCall(self._algorithm(state))
            _CALLS[state] = call
        while call.wanted is not None and call.n_told < len(told):
            call.send(told[call.n_told : call.n_told + len(call.wanted)])
        return call.wanted

    def _begin(self, state: SolverState) -> None:
        self._draw_start(state)
        state.inner.told = np.empty(0)
        state.inner.n_told = 0

    def _init(self, state: SolverState) -> None:
        super()._init(state)
        state.inner = Told()


def _with_room(told: Any, n: int, n_more: int) -> np.ndarray:
    """Returns an array that begins with ``told[:n]`` and has room for ``n_more`` values behind."""
    if n + n_more <= len(told):
        return told  # type: ignore[no-any-return]
    grown = np.zeros(max(2 * len(told), n + n_more))
    grown[:n] = told[:n]
    return grown
