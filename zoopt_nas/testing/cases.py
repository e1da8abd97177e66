"""Small problems of the kinds that users bring, drawn from a seed; each has a value to reach.

All are functions with one local minimum, or with flat or forbidden parts around one, so that what
they ask for is not luck: scales, boxes, penalties, failures, steps and rotations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """A problem, and when it counts as solved.

    Attributes:
        fun: takes (dim,), returns a number.
        x0: (dim,), the start.
        target: the value to reach.
        maxfev: within so many evaluations.
        bounds: pairs, or None.
    """

    fun: Callable[[np.ndarray], float]
    x0: np.ndarray
    target: float
    maxfev: int
    bounds: list[tuple[float, float]] | None = None


def _bowl(
    rng: np.random.Generator, dim: int, log_condition: float
) -> tuple[Callable[[np.ndarray], float], np.ndarray]:
    """Returns a rotated convex quadratic of curvatures 1 to 10^log_condition, and its minimum."""
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    weights = 10 ** np.linspace(0, log_condition, dim)
    centre = rng.uniform(-1, 1, dim)
    return lambda z: float((weights * (rotation @ (z - centre)) ** 2).sum()), centre


def scales_of_start(seed: int) -> Case:
    """Parameters of sizes 1e-8 to 1e8, started within a factor of 2 of their size."""
    rng = np.random.default_rng([1, seed])
    dim = int(rng.integers(2, 5))
    scales = 10 ** rng.uniform(-8, 8, dim)
    bowl, _ = _bowl(rng, dim, 2)
    x0 = scales * rng.uniform(0.5, 2, dim) * rng.choice([-1, 1], dim)
    return Case(lambda x: bowl(x / scales), x0, 1e-6, 1500 * dim)


def scales_unknown(seed: int) -> Case:
    """Parameters of sizes 1e-3 to 1e3, started at 0 or 1, which says nothing of their size."""
    rng = np.random.default_rng([2, seed])
    dim = int(rng.integers(2, 5))
    scales = 10 ** rng.uniform(-3, 3, dim)
    bowl, _ = _bowl(rng, dim, 1)
    x0 = np.full(dim, float(rng.integers(2)))
    return Case(lambda x: bowl(x / scales), x0, 1e-4, 3000 * dim)


def boxes(seed: int) -> Case:
    """Boxes of widths 1e-6 to 1e6; the start and the optimum inside, on an edge, in a corner."""
    rng = np.random.default_rng([3, seed])
    dim = int(rng.integers(2, 5))
    widths = 10 ** (rng.uniform(-6, 6, dim) if rng.random() < 0.5 else rng.uniform(-6, 6))
    widths = widths * np.ones(dim)
    lower = widths * rng.uniform(-2, 1, dim)
    weights = 10 ** rng.uniform(0, 1, dim)
    optimum = rng.choice([-0.4, 0.3, 0.6, 1.4], dim)  # outside: the bound is the best there is
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
    """One value, NaN or infinity outside of a ball, and the start outside of it."""
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
    """No value outside of a ball around 0 that is up to 5 radii away."""
    rng = np.random.default_rng([5, seed])
    dim = int(rng.integers(1, 4))
    way = rng.standard_normal(dim)
    x0 = rng.uniform(1.5, 5 if dim < 3 else 3) * way / np.linalg.norm(way)
    centre = rng.uniform(-0.4, 0.4, dim)

    def fun(x: np.ndarray) -> float:
        return float(((x - centre) ** 2).sum()) if np.linalg.norm(x) < 1 else np.nan

    return Case(fun, x0, 1e-3, 4000)


def steps(seed: int) -> Case:
    """A staircase in [0, 1]^dim, started in the middle of a stair."""
    rng = np.random.default_rng([6, seed])
    dim = int(rng.integers(1, 3))
    n_stairs = int(rng.integers(4, 9))
    centre = rng.uniform(0.05, 0.95, dim)
    bounds = [(0.0, 1.0)] * dim
    return Case(
        lambda x: float(np.floor(n_stairs * np.abs(x - centre)).sum()),
        np.full(dim, 0.5),
        0.0,
        2000,
        bounds,
    )


def rotations(seed: int) -> Case:
    """A rotated valley whose curvatures differ by a factor of 10^4."""
    rng = np.random.default_rng([7, seed])
    dim = int(rng.integers(2, 6))
    bowl, _ = _bowl(rng, dim, 4)
    return Case(bowl, rng.uniform(-3, 3, dim), 1e-6, 2000 * dim)


FAMILIES: dict[str, Callable[[int], Case]] = {
    family.__name__: family
    for family in (
        scales_of_start,
        scales_unknown,
        boxes,
        penalties,
        holes,
        steps,
        rotations,
    )
}
