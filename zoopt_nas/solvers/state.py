"""The state of a solver, and how it is saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from zoopt_nas._arrays import Array, Generator, array_namespace
from zoopt_nas.solvers.encoding import decode, encode


@dataclass(eq=False)
class SolverState:
    """The state of a run: with the hyper-parameters, everything that resuming it needs.

    Attributes:
        x: the iterate, (dim,).
        rng: the source of all randomness; a ``torch.Generator`` if ``x`` is a torch tensor.
        n_steps: the number of batches told.
        pending: the batch asked and not yet told, (n, dim), or None.
        value: the last measured value of ``x``: NaN if unknown, +inf if not measured yet or failed.
            It may be a 0-d array on the device of ``x``, so that no step waits for the device.
        inner: what the solver keeps between steps: one of its ``inner_states``, or None.
        metrics: measurements of the last ``tell``, by name: floats or, as above, 0-d arrays.
        lower: the lower bounds of x, (dim,), for a solver with ``keeps_bounds``; None without.
        upper: the upper bounds, likewise.
        is_scaled: whether a first step of 1 is sensible along each coordinate.
        has_contrast: whether two different finite values have been told.
        first_value: the first finite value told before then; NaN if none.
        n_equal: the number of values equal to ``first_value``.
        n_widenings: the number of batches of ``widening.widened`` told.
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
        """Whether ``value`` is known; does not wait for a device."""
        return not (isinstance(self.value, float) and math.isnan(self.value))

    def to_dict(self) -> dict[str, Any]:
        """Return a complete copy: ``{"arrays": {name: NumPy array}, "meta": JSON-able dict}``.

        Raises:
            InvalidValueError: ``inner`` contains something that cannot be saved.
        """
        return encode(self)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], inner_states: Iterable[type] = (), *, device: Any = None
    ) -> Self:
        """Restore a state from ``to_dict``; it continues bit for bit as the saved one.

        Args:
            data: the result of ``to_dict``.
            inner_states: the ``inner_states`` of the solver.
            device: the device of torch tensors; None is the one that they were on. On another kind
                of device the run continues with other random numbers.

        Raises:
            RunError: the generator is of a kind that NumPy does not provide.
            KeyError: a part is missing, or of a class not listed.
            TypeError: the data is not a state, or the fields of a class differ.
        """
        state = decode(data, (cls, *inner_states), device)
        if not isinstance(state, cls):
            raise TypeError(f"expected a {cls.__name__}, got {type(state).__name__}")
        return state


def within_bounds(state: SolverState, points: Array) -> Array:
    """Return the nearest points, (..., dim), within the bounds of the run, if it has bounds."""
    if state.lower is None or state.upper is None:
        return points
    xp = array_namespace(points)
    return xp.minimum(xp.maximum(points, state.lower), state.upper)
