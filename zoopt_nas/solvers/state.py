"""Where a solver is, and how that is saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoopt_nas._arrays import (
    Array,
    Generator,
    array_namespace,
    decode_array,
    decode_generator,
    encode_array,
    encode_generator,
)


@dataclass(eq=False)
class SolverState:
    """Where a solver is: everything that a resumed run needs beside the hyper-parameters.

    Attributes:
        x: the iterate, (dim,).
        rng: the generator of every draw; a ``torch.Generator`` if ``x`` is a torch tensor.
        n_steps: how many batches have been told.
        pending: the batch that was asked and not told yet, (n, dim), or None.
        memory: what the solver keeps between steps: arrays and numbers, by name.
        metrics: what the last ``tell`` measured, by name. An entry may be a 0-d array on the device
            of ``x``, so that a step never waits for the device; ``float()`` reads it.
        weights: how much of each row of the last batch is in ``x``, (n,): w of
            x = Σ w_i row_i + (1 - Σ w_i) (x before), with w_i >= 0 and Σ w_i <= 1, up to rounding.
            None if the step was another one; see ``weighs_candidates``.
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
    memory: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    weights: Array | None = None
    lower: Array | None = None
    upper: Array | None = None
    is_scaled: bool = False
    has_contrast: bool = False
    first_value: float = math.nan
    n_equal: int = 0
    n_widenings: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns a complete copy: ``{"arrays": {name: numpy array}, "meta": JSON-able dict}``."""
        parts: dict[str, Any] = {"x": self.x}
        for name in ("pending", "weights", "lower", "upper"):
            if getattr(self, name) is not None:
                parts[name] = getattr(self, name)
        parts |= {f"memory.{key}": value for key, value in self.memory.items()}
        parts |= {f"metrics.{key}": value for key, value in self.metrics.items()}
        encoded = {name: encode_array(value) for name, value in parts.items()}
        return {
            "arrays": {name: array for name, (array, _) in encoded.items()},
            "meta": {
                "n_steps": self.n_steps,
                "is_scaled": self.is_scaled,
                "has_contrast": self.has_contrast,
                "first_value": None if math.isnan(self.first_value) else self.first_value,
                "n_equal": self.n_equal,
                "n_widenings": self.n_widenings,
                "rng": encode_generator(self.rng),
                "arrays": {name: spec for name, (_, spec) in encoded.items()},
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SolverState:
        """The inverse of ``to_dict``: the state continues bitwise as the saved one would.

        Numbers in ``memory`` and ``metrics`` come back as 0-d arrays of the same value.

        Raises:
            RunError: the generator is of a kind that NumPy does not bring.
            KeyError: a part is missing.
        """
        meta = data["meta"]
        decoded = {
            name: decode_array(data["arrays"][name], spec) for name, spec in meta["arrays"].items()
        }
        return cls(
            x=decoded["x"],
            rng=decode_generator(meta["rng"]),
            n_steps=meta["n_steps"],
            pending=decoded.get("pending"),
            memory=_section("memory.", decoded),
            metrics=_section("metrics.", decoded),
            weights=decoded.get("weights"),
            lower=decoded.get("lower"),
            upper=decoded.get("upper"),
            is_scaled=meta["is_scaled"],
            has_contrast=meta["has_contrast"],
            first_value=math.nan if meta["first_value"] is None else meta["first_value"],
            n_equal=meta["n_equal"],
            n_widenings=meta["n_widenings"],
        )


def within_bounds(state: SolverState, points: Array) -> Array:
    """Returns the nearest points, (..., dim), within the bounds of a run; themselves without."""
    if state.lower is None or state.upper is None:
        return points
    xp = array_namespace(points)
    return xp.minimum(xp.maximum(points, state.lower), state.upper)


def _section(prefix: str, decoded: Mapping[str, Array]) -> dict[str, Any]:
    return {key.removeprefix(prefix): v for key, v in decoded.items() if key.startswith(prefix)}
