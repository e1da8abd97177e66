"""Small test problems, each generated from a seed, with a target value.

They vary scales, boxes, penalties, failures, steps and rotations. Each has one local minimum, so
that a solver does not need luck; some have flat or failing regions around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Function = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Case:
    """A problem that is solved if ``target`` is reached within ``maxfev`` evaluations.

    The fields are arguments of `minimize`.
    """

    fun: Function
    x0: np.ndarray
    target: float
    maxfev: int
    bounds: list[tuple[float, float]] | None = None


def _quadratic(rng: np.random.Generator, dim: int, log_condition: float) -> Function:
    """Return a rotated convex quadratic function with the condition 10^log_condition."""
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    weights = 10 ** np.linspace(0, log_condition, dim)
    centre = rng.uniform(-1, 1, dim)
    return lambda z: float((weights * (rotation @ (z - centre)) ** 2).sum())


def scales_of_start(seed: int) -> Case:
    """Return a problem with scales from 1e-8 to 1e8, which x0 has within a factor of 2."""
    rng = np.random.default_rng([1, seed])
    dim = int(rng.integers(2, 5))
    scales = 10 ** rng.uniform(-8, 8, dim)
    quadratic = _quadratic(rng, dim, 2)
    x0 = scales * rng.uniform(0.5, 2, dim) * rng.choice([-1, 1], dim)
    return Case(lambda x: quadratic(x / scales), x0, 1e-6, 1500 * dim)


def scales_unknown(seed: int) -> Case:
    """Return a problem with scales from 1e-3 to 1e3, which x0 does not tell: it is 0 or 1."""
    rng = np.random.default_rng([2, seed])
    dim = int(rng.integers(2, 5))
    scales = 10 ** rng.uniform(-3, 3, dim)
    quadratic = _quadratic(rng, dim, 1)
    x0 = np.full(dim, float(rng.integers(2)))
    return Case(lambda x: quadratic(x / scales), x0, 1e-4, 3000 * dim)


def boxes(seed: int) -> Case:
    """Return a problem in a box of widths 1e-6 to 1e6; x0 and the optimum may be on bounds."""
    rng = np.random.default_rng([3, seed])
    dim = int(rng.integers(2, 5))
    widths = 10 ** (rng.uniform(-6, 6, dim) if rng.random() < 0.5 else rng.uniform(-6, 6))
    widths = widths * np.ones(dim)
    lower = widths * rng.uniform(-2, 1, dim)
    weights = 10 ** rng.uniform(0, 1, dim)
    optimum = rng.choice([-0.4, 0.3, 0.6, 1.4], dim)  # outside: the best point is on the bound
    starts = [np.full(dim, 0.5), rng.uniform(0, 1, dim), rng.choice([0.0, 1.0], dim)]
    start = starts[rng.integers(3)].copy()
    if rng.random() < 0.3:
        start[rng.integers(dim)] = rng.choice([0.0, 1.0])

    def fun(x: np.ndarray) -> float:
        return float((weights * ((x - lower) / widths - optimum) ** 2).sum())

    best = fun(lower + widths * np.clip(optimum, 0, 1))
    bounds = list(zip(lower.tolist(), (lower + widths).tolist(), strict=True))
    x0 = np.clip(lower + widths * start, lower, lower + widths)
    return Case(fun, x0, best + 1e-3, 1500 * dim, bounds)


def penalties(seed: int) -> Case:
    """Return a problem with a constant, NaN or infinity outside of a ball; x0 is outside."""
    rng = np.random.default_rng([4, seed])
    dim = int(rng.integers(1, 4))
    penalty = float(rng.choice([10, 100, 1000, np.nan, np.inf]))
    centre, radius = rng.uniform(-1, 1, dim), rng.uniform(0.7, 1.5)
    way = rng.standard_normal(dim)
    x0 = centre + radius * rng.uniform(1.05, 1.7) * way / np.linalg.norm(way)

    def fun(x: np.ndarray) -> float:
        distance = float(np.linalg.norm(x - centre))
        return distance**2 if distance < radius else penalty

    return Case(fun, x0, 1e-3, 3000)


def holes(seed: int) -> Case:
    """Return a problem that fails outside of a ball; x0 is up to 5 radii away from its centre."""
    rng = np.random.default_rng([5, seed])
    dim = int(rng.integers(1, 4))
    way = rng.standard_normal(dim)
    x0 = rng.uniform(1.5, 5 if dim < 3 else 3) * way / np.linalg.norm(way)
    centre = rng.uniform(-0.4, 0.4, dim)

    def fun(x: np.ndarray) -> float:
        return float(((x - centre) ** 2).sum()) if np.linalg.norm(x) < 1 else np.nan

    return Case(fun, x0, 1e-3, 4000)


def steps(seed: int) -> Case:
    """Return a piecewise constant problem in [0, 1]^dim."""
    rng = np.random.default_rng([6, seed])
    dim = int(rng.integers(1, 3))
    n_stairs = int(rng.integers(4, 9))
    centre = rng.uniform(0.05, 0.95, dim)
    bounds = [(0.0, 1.0)] * dim

    def fun(x: np.ndarray) -> float:
        return float(np.floor(n_stairs * np.abs(x - centre)).sum())

    return Case(fun, np.full(dim, 0.5), 0.0, 2000, bounds)


def rotations(seed: int) -> Case:
    """Return a rotated quadratic problem with the condition 1e4."""
    rng = np.random.default_rng([7, seed])
    dim = int(rng.integers(2, 6))
    quadratic = _quadratic(rng, dim, 4)
    return Case(quadratic, rng.uniform(-3, 3, dim), 1e-6, 2000 * dim)


FAMILIES: dict[str, Callable[[int], Case]] = {
    family.__name__: family
    for family in (scales_of_start, scales_unknown, boxes, penalties, holes, steps, rotations)
}
