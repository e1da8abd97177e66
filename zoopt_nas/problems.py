"""Test functions with a known optimum, for NumPy and torch, for one point or a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoopt_nas._arrays import Array, array_namespace, device
from zoopt_nas._checks import check_at_least, check_positive_int
from zoopt_nas.errors import InvalidValueError


@dataclass(frozen=True, eq=False)
class Function:
    """A test function; ``formula`` takes points (..., dim) and their array namespace."""

    name: str
    formula: Callable[[Array, Any], Array]
    x_opt: np.ndarray
    x0: np.ndarray
    f_opt: float = 0.0

    def __call__(self, x: Array) -> Array:
        """Return the value of a point (dim,), or (n,) values of points (n, dim)."""
        if x.shape[-1] != len(self.x0):
            raise InvalidValueError(
                f"x must have {len(self.x0)} coordinates for {self.name}, got {x.shape[-1]}"
            )
        return self.formula(x, array_namespace(x))


def sphere(dim: int) -> Function:
    """Return the function Σ x_i²."""
    check_positive_int("dim", dim)
    return Function("sphere", lambda x, xp: xp.sum(x * x, axis=-1), np.zeros(dim), np.ones(dim))


def ellipsoid(dim: int, condition: float = 100.0) -> Function:
    """Return Σ a_i x_i², with a_i spaced geometrically from 1 to ``condition``.

    Raises:
        InvalidValueError: ``condition`` is below 1.
    """
    check_positive_int("dim", dim)
    check_at_least("condition", condition, 1)
    scales = np.geomspace(1.0, condition, dim)

    def formula(x: Array, xp: Any) -> Array:
        return xp.sum(xp.asarray(scales, dtype=x.dtype, device=device(x)) * x * x, axis=-1)

    return Function("ellipsoid", formula, np.zeros(dim), np.ones(dim))


def rosenbrock(dim: int) -> Function:
    """Return Σ 100 (x_{i+1} - x_i²)² + (1 - x_i)², a curved valley (Rosenbrock 1960).

    Raises:
        InvalidValueError: ``dim`` is below 2.
    """
    if check_positive_int("dim", dim) < 2:
        raise InvalidValueError(f"dim must be at least 2 for rosenbrock, got {dim}")

    def formula(x: Array, xp: Any) -> Array:
        head, tail = x[..., :-1], x[..., 1:]
        return xp.sum(100 * (tail - head * head) ** 2 + (1 - head) ** 2, axis=-1)

    return Function("rosenbrock", formula, np.ones(dim), np.zeros(dim))


def rastrigin(dim: int) -> Function:
    """Return 10 dim + Σ x_i² - 10 cos(2π x_i), with a local minimum near every integer point."""
    check_positive_int("dim", dim)

    def formula(x: Array, xp: Any) -> Array:
        return xp.sum(x * x + 10 * (1 - xp.cos(2 * math.pi * x)), axis=-1)

    return Function("rastrigin", formula, np.zeros(dim), np.full(dim, 2.2))


# By name; each takes the dimension.
PROBLEMS: dict[str, Callable[[int], Function]] = {
    "sphere": sphere,
    "ellipsoid": ellipsoid,
    "rosenbrock": rosenbrock,
    "rastrigin": rastrigin,
}
