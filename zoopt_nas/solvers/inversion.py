"""Solvers made of an algorithm that calls its function, such as those of ``scipy.optimize``.

Such an algorithm holds the control until it ends, where a solver is asked and told. So it runs in a
thread of its own, and its function hands the points over and blocks until the values come. Only one
of the two threads ever runs: nothing becomes faster, nothing needs a lock.

A thread cannot be saved. These algorithms are deterministic, though, so the values told so far are
enough to bring another thread to the same place: the memory of a run holds those.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, as_like, to_numpy
from zoopt_nas.solvers.base import Solver, SolverState

# Takes points (n, dim), float64, and returns their values (n,), +inf where failed.
Evaluate: TypeAlias = Callable[[np.ndarray], np.ndarray]
Algorithm: TypeAlias = Callable[[Evaluate], object]

# Restarts begin around the start point, at this many scales in turn: 1, 2, 4 and 8 times the
# solver's own. Doubling without end would soon leave any region of interest.
_N_SCALES = 4
_JOIN_SECONDS = 5.0


class _Stopped(BaseException):
    """Ends an algorithm from within its function; no ``except Exception`` of it is in the way."""


class SteppedCall:
    """One call of an algorithm, which stops wherever the algorithm wants values.

    Its thread is a daemon and ends when the object is closed or garbage.

    Args:
        algorithm: called once, in a thread of its own, with the function to minimize. It must hold
            no reference to this object, which then would never be garbage.

    Attributes:
        wanted: the points whose values the algorithm waits for, (n, dim), float64; None once it has
            ended, which it also does by asking for a point that is NaN.
        n_told: how many values it has been told.

    Raises:
        Exception: whatever the algorithm raises, here or in ``send``.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self._inbox: SimpleQueue[np.ndarray | None] = SimpleQueue()
        self._outbox: SimpleQueue[np.ndarray | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=_serve,
            args=(algorithm, self._inbox, self._outbox),
            name="zoopt-nas-algorithm",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, _stop, self._thread, self._inbox)
        # A blocked daemon thread does not keep the interpreter; a woken one could outlive it.
        self._finalizer.atexit = False
        self.n_told = 0
        self.wanted: np.ndarray | None = None
        with _own_warnings():
            self._thread.start()
            self._receive()

    @property
    def is_live(self) -> bool:
        """Whether ``send`` can go on: not after ``close`` or an error, nor in a forked process."""
        return self._finalizer.alive and (self.wanted is None or self._thread.is_alive())

    def send(self, values: np.ndarray) -> None:
        """Gives the algorithm the values (n,) of ``wanted`` and runs it until it wants others."""
        with _own_warnings():
            self.n_told += len(values)
            self._inbox.put(np.array(values))
            self._receive()

    def close(self) -> None:
        """Ends the thread. Closing twice is fine."""
        self._finalizer()

    def _receive(self) -> None:
        try:
            reply = self._outbox.get()
        except BaseException:  # Ctrl-C while it computes: nobody will hear its answer
            self.close()
            raise
        if isinstance(reply, BaseException):
            self.close()
            raise reply
        self.wanted = reply


def _serve(
    algorithm: Algorithm,
    inbox: SimpleQueue[np.ndarray | None],
    outbox: SimpleQueue[np.ndarray | BaseException | None],
) -> None:
    def evaluate(points: np.ndarray) -> np.ndarray:
        if np.isnan(points).any():
            raise _Stopped
        outbox.put(np.array(points, dtype=np.float64))
        values = inbox.get()
        if values is None:
            inbox.put(None)  # a `finally` of the algorithm that asks again is stopped again
            raise _Stopped
        return values

    reply: BaseException | None = None
    try:
        with np.errstate(all="ignore"):  # it does not reach here from the thread that asks
            algorithm(evaluate)
    except _Stopped:
        pass
    except BaseException as error:  # noqa: BLE001 (raised in the thread that waits for the answer)
        reply = error
    outbox.put(reply)


def _stop(thread: threading.Thread, inbox: SimpleQueue[np.ndarray | None]) -> None:
    with _own_warnings():
        inbox.put(None)  # reentrant, as garbage collection may come at any moment
        if thread is not threading.current_thread() and thread.is_alive():
            thread.join(_JOIN_SECONDS)


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Keeps the warning filters of the two threads apart; they are global to the process.

    BFGS of scipy asks for values within a ``warnings.catch_warnings`` block, and would leave its
    filters to the thread that asks, or later overwrite those that are set in the meantime.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# The calls that run, by the state that they belong to. Only a shortcut: see `_advance`.
_CALLS: weakref.WeakKeyDictionary[SolverState, SteppedCall] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class SteppedSolver(Solver):
    """A solver that runs a deterministic algorithm, and restarts it when it ends.

    The iterate is the best point told so far. A restart begins at a normal draw around the first
    start, of standard deviation ``_scale`` times 1, 2, 4, 8, 1, ...

    The algorithm runs in float64 on the CPU. It thinks in the points that it asked for, whatever
    became of them: in a box that mirrors points it sees the mirrored objective.
    """

    @property
    def evaluates_iterate(self) -> bool:
        """True: the iterate is the best point told."""
        return True

    @property
    @abstractmethod
    def _scale(self) -> float:
        """The standard deviation of the first restart around the start, in units of x."""

    @abstractmethod
    def _algorithm(self, state: SolverState) -> Algorithm:
        """Returns the algorithm from ``state.memory``: ``start`` and ``signs``, (dim,), float64.

        ``signs`` are -1 or +1, for an algorithm that has to choose sides. The algorithm depends on
        nothing else, and keeps no reference to ``state``.
        """

    def _init(self, state: SolverState) -> None:
        state.memory["value"] = np.inf

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        memory = state.memory
        if "origin" not in memory:
            # Not before: a warm start moves x between `init` and the first batch.
            memory["origin"] = _as_float64(state.x)
            memory["n_restarts"] = 0
            self._begin(state, memory["origin"])
        while (wanted := self._advance(state)) is None:
            self._restart(state)
        # The steps of the algorithm may leave the range of a shorter dtype.
        limit = float(array_namespace(state.x).finfo(state.x.dtype).max)
        return as_like("candidates", np.clip(wanted, -limit, limit), state.x, wanted.shape)

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        memory = state.memory
        host = np.asarray(to_numpy(values), dtype=np.float64)
        n = int(memory["n_told"])
        memory["told"] = _with_room(memory["told"], n, len(host))
        memory["told"][n : n + len(host)] = host
        memory["n_told"] = n + len(host)
        state.metrics["n_restarts"] = int(memory["n_restarts"])
        best = int(np.argmin(host))
        if host[best] < float(memory["value"]):
            memory["value"] = float(host[best])
            return array_namespace(candidates).asarray(candidates[best], copy=True)
        return state.x

    def _advance(self, state: SolverState) -> np.ndarray | None:
        """Returns the points that the algorithm wants after all that was told; None at its end."""
        memory = state.memory
        told = memory["told"][: int(memory["n_told"])]
        call = _CALLS.get(state)
        if call is None or not call.is_live or call.n_told > len(told):
            call = SteppedCall(self._algorithm(state))
            _CALLS[state] = call
        while call.wanted is not None and call.n_told < len(told):
            call.send(told[call.n_told : call.n_told + len(call.wanted)])
        return call.wanted

    def _restart(self, state: SolverState) -> None:
        memory = state.memory
        n_restarts = int(memory["n_restarts"])
        _CALLS.pop(state, None)
        scale = self._scale * 2.0 ** (n_restarts % _N_SCALES)
        step = _as_float64(sampling.gaussian(state.rng, 1, state.x)[0])
        memory["n_restarts"] = n_restarts + 1
        self._begin(state, np.nan_to_num(memory["origin"] + scale * step))

    def _begin(self, state: SolverState, start: np.ndarray) -> None:
        state.memory["start"] = start
        state.memory["signs"] = _as_float64(sampling.rademacher(state.rng, 1, state.x)[0])
        state.memory["told"] = np.empty(0)
        state.memory["n_told"] = 0


def _as_float64(x: Array) -> np.ndarray:
    return np.array(to_numpy(x), dtype=np.float64)


def _with_room(told: Any, n: int, n_more: int) -> np.ndarray:
    """Returns an array that begins with ``told[:n]`` and has room for ``n_more`` values behind."""
    if n + n_more <= len(told):
        return told  # type: ignore[no-any-return]
    grown = np.zeros(max(2 * len(told), n + n_more))
    grown[:n] = told[:n]
    return grown
