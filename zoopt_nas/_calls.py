"""One call of the user's function: what it is given, what it may return, what becomes of an error.

Everything here can be sent to another process.
"""

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

# The parameter by which a function says that it takes a seed.
SEED_PARAMETER = "eval_seed"


def takes_seed(fun: Callable[..., Any]) -> bool:
    """Whether a function has a parameter ``eval_seed``."""
    try:
        return SEED_PARAMETER in inspect.signature(fun).parameters
    except (TypeError, ValueError):  # a builtin that tells no signature
        return False


class Job(NamedTuple):
    """What one call is given."""

    point: Any
    seed: int | None = None


class Raised(NamedTuple):
    """What a call returned that raised an exception."""

    error: Exception


@dataclass(frozen=True)
class Call:
    """Calls a function with a job.

    Attributes:
        fun: the function.
        catches: return an exception as ``Raised`` instead of raising it.
        pid: the process that waits for the value. In another one, an exception that does not
            survive the way back is replaced by one that does.
    """

    fun: Callable[..., Any]
    catches: bool = False
    pid: int = field(default_factory=os.getpid)

    def __call__(self, job: Job) -> Any:
        try:
            if job.seed is None:
                return self.fun(job.point)
            return self.fun(job.point, **{SEED_PARAMETER: job.seed})
        except Exception as error:
            sent = error if os.getpid() == self.pid else _portable(error)
            if self.catches:  # the caller's choice
                return Raised(sent)
            if sent is error:
                raise
        # Not above: what cannot be sent would be its context, and some packages send that as well.
        raise sent


def _portable(error: Exception) -> Exception:
    """Returns ``error``, or what can be said of one that pickle cannot bring back.

    A pool of processes that meets such an exception breaks, and ``multiprocessing.Pool`` hangs.
    """
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (made in this line)
    except Exception:  # noqa: BLE001 (whatever the methods of a foreign class raise)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def as_float(name: str, value: object) -> float:
    """Returns one real number, in any of the forms of ``as_real``, as a float.

    Raises:
        InvalidValueError: it is none.
    """
    number = as_real(value)
    if number is None:
        raise InvalidValueError(f"{name} must be a real number, got {value!r}")
    return number


def as_values(returned: object, n: int) -> np.ndarray:
    """Returns what a vectorized function returned for ``n`` points as (n,) float64.

    Raises:
        InvalidValueError: it is not ``n`` real numbers.
    """
    values = as_reals(returned)
    if values is None:
        raise InvalidValueError(f"fun must return real numbers, got {returned!r}")
    if values.shape != (n,):
        raise InvalidValueError(
            f"fun must return shape ({n},) for a batch of {n} points, got shape {values.shape}"
        )
    return values.astype(np.float64)


def as_callback(callback: Callable[..., object]) -> Callable[[Any], object]:
    """Returns a function of a result so far that calls ``callback`` in the style it is written in.

    As in SciPy: one whose only parameter is ``intermediate_result`` gets the result by that name,
    any other the point.

    Raises:
        InvalidValueError: it cannot be called with one argument.
    """
    if not callable(callback):
        raise InvalidValueError(f"callback must be callable, got {callback!r}")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some callables written in C have none
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
