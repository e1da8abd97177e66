"""Where a solver is, and how that is saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from zoopt_nas._arrays import Array, Generator, array_namespace
from zoopt_nas.solvers.encoding import decode, encode


@dataclass(eq=False)
class SolverState:
    """Where a solver is: everything that a resumed run needs beside the hyper-parameters.

    Attributes:
        x: the iterate, (dim,).
        rng: the generator of every draw; a ``torch.Generator`` if ``x`` is a torch tensor.
        n_steps: how many batches have been told.
        pending: the batch that was asked and not told yet, (n, dim), or None.
        value: the value of ``x`` as it was measured last; NaN where it is not known, +inf where it
            has not been measured or that failed. It may be a 0-d array on the device of ``x``, so
            that a step never waits for the device.
        inner: what the solver itself keeps between steps: one of its ``inner_states``, or None.
        metrics: what the last ``tell`` measured, by name. An entry may be a 0-d array on the device
            of ``x`` too; ``float()`` reads it.
        lower: the bounds of x, (dim,), for a solver with ``keeps_bounds``; None without bounds.
        upper: the same.
        is_scaled: whether a step of 1 is sensible along each coordinate, as `minimize` sees to for
            a solver with ``adapts_steps``.
        has_contrast: whether two of the told values were finite and not the same.
        first_value: the first finite value told, until then; NaN if there was none.
        n_equal: how many values were the same as that.
        n_widenings: how many batches of ``widening.widened`` were told.
    """

    x: Array
    rng: Generator
    n_steps: int = 0
    pending: Array | None = None
    value: Any = math.nan
    inner: Any = None
    metrics: dict[str, Any] = field(default_factory=dict)
    lower: Array | None = None
    upper: Array | None = None
    is_scaled: bool = False
    has_contrast: bool = False
    first_value: float = math.nan
    n_equal: int = 0
    n_widenings: int = 0

    @property
    def has_value(self) -> bool:
        """Whether there is a ``value``; no wait for a device."""
        return not (isinstance(self.value, float) and math.isnan(self.value))

    def to_dict(self) -> dict[str, Any]:
        """Returns a complete copy: ``{"arrays": {name: NumPy array}, "meta": JSON-able dict}``.

        Raises:
            InvalidValueError: the solver keeps something in ``inner`` that cannot be saved.
        """
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], inner_states: Iterable[type] = ()) -> Self:
        """The inverse of ``to_dict``: the state continues bitwise as the saved one would.

        Args:
            data: what ``to_dict`` returned.
            inner_states: those of the solver.

        Raises:
            RunError: the generator is of a kind that NumPy does not bring.
            KeyError: a part is missing, or of another class.
            TypeError: it is no state, or a class has other fields.
        """
        state = decode(data, (cls, *inner_states))
        if not isinstance(state, cls):
            raise TypeError(f"expected a {cls.__name__}, got {type(state).__name__}")
        return state


def within_bounds(state: SolverState, points: Array) -> Array:
    """Returns the nearest points, (..., dim), within the bounds of a run; themselves without."""
    if state.lower is None or state.upper is None:
        return points
    xp = array_namespace(points)
    return xp.minimum(xp.maximum(points, state.lower), state.upper)
