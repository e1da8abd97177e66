"""One call of the user's function: its arguments, its return value and its exceptions."""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from zoopt_nas._arrays import as_real, as_reals
from zoopt_nas.errors import InvalidValueError

# A function with a parameter of this name gets a seed in it.
SEED_PARAMETER = "eval_seed"


def takes_seed(fun: Callable[..., Any]) -> bool:
    """Return whether a function has a parameter ``eval_seed``."""
    try:
        return SEED_PARAMETER in inspect.signature(fun).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


class Job(NamedTuple):
    """The arguments of one call."""

    point: Any
    seed: int | None = None


class Raised(NamedTuple):
    """The result of a call that raised an exception."""

    error: Exception


@dataclass(frozen=True)
class Call:
    """A picklable wrapper that calls the user's function with a ``Job``."""

    fun: Callable[..., Any]
    catches: bool = False  # whether an exception is returned as `Raised`
    pid: int = field(default_factory=os.getpid)  # the process that receives the result

    def __call__(self, job: Job) -> Any:
        try:
            if job.seed is None:
                return self.fun(job.point)
            return self.fun(job.point, **{SEED_PARAMETER: job.seed})
        except Exception as error:
            sent = error if os.getpid() == self.pid else _portable(error)
            if self.catches:
                return Raised(sent)
            if sent is error:
                raise
        # Outside of `except`: `error` would become its context, which some packages pickle as well.
        raise sent


def _portable(error: Exception) -> Exception:
    """Return ``error``, or a ``RuntimeError`` with its text if it does not survive pickling.

    An exception that cannot be unpickled breaks a process pool and hangs ``multiprocessing.Pool``.
    """
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (pickled in this line)
    except Exception:  # noqa: BLE001 (a third-party class may raise anything)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def as_float(name: str, value: object) -> float:
    """Return one real number, in any form that ``as_real`` accepts, as a float."""
    number = as_real(value)
    if number is None:
        raise InvalidValueError(f"{name} must be a real number, got {value!r}")
    return number


def as_values(returned: object, n: int) -> np.ndarray:
    """Convert what a vectorized function returned for ``n`` points to (n,) float64."""
    values = as_reals(returned)
    if values is None:
        raise InvalidValueError(f"fun must return real numbers, got {returned!r}")
    if values.shape != (n,):
        raise InvalidValueError(
            f"fun must return shape ({n},) for a batch of {n} points, got shape {values.shape}"
        )
    return values.astype(np.float64)


def as_callback(callback: Callable[..., object]) -> Callable[[Any], object]:
    """Wrap ``callback`` as a function of an intermediate result.

    As in SciPy, it gets the point, or the result if its parameter is ``intermediate_result``.
    """
    if not callable(callback):
        raise InvalidValueError(f"callback must be callable, got {callback!r}")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some builtins have no signature
        return lambda result: callback(result.x)
    if set(signature.parameters) != {"intermediate_result"}:
        try:
            signature.bind(None)
        except TypeError:
            pass
        else:
            return lambda result: callback(result.x)
    try:
        signature.bind(intermediate_result=None)
    except TypeError as error:
        raise InvalidValueError(
            "callback must take one argument, the point or intermediate_result, "
            f"got {callback!r} with the parameters {signature}"
        ) from error
    return lambda result: callback(intermediate_result=result)
