"""Baselines of NAS-Bench-201: random search, evolution and local search.

Sources: Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019,
Algorithm 1, with the settings of NAS-Bench-201 (Dong and Yang, ICLR 2020); White et al., "Exploring
the Loss Landscape in Neural Architecture Search", UAI 2021 (local search).

A search looks up cells until ``Queries`` raises OutOfQueries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from zoopt_nas.nas.networks.nasbench201_cell import CELL_OPERATIONS as OPERATIONS
from zoopt_nas.nas.networks.nasbench201_cell import EDGES
from zoopt_nas.nas.tabular.queries import Queries
from zoopt_nas.nas.tabular.table import N_CELLS, PLACES

Search = Callable[[Queries, np.random.Generator], None]

POPULATION = 10
SAMPLE = 3


def random_search(queries: Queries, rng: np.random.Generator) -> None:
    """Look up cells that are drawn uniformly."""
    while True:
        queries.look_up(draw_cell(rng))


def evolution(queries: Queries, rng: np.random.Generator) -> None:
    """Mutate the best of a sample; the child replaces the oldest cell of the population."""
    population: deque[tuple[float, int]] = deque(maxlen=POPULATION)
    while len(population) < POPULATION:
        number = draw_cell(rng)
        population.append((queries.look_up(number), number))
    while True:
        sample = [population[i] for i in rng.integers(POPULATION, size=SAMPLE)]
        _, parent = max(sample)
        child = int(rng.choice(neighbours(parent)))
        population.append((queries.look_up(child), child))


def local_search(queries: Queries, rng: np.random.Generator) -> None:
    """Move to the best neighbour while it is better; start anew at a local optimum."""
    while True:
        number = draw_cell(rng)
        value = queries.look_up(number)
        while True:
            around = rng.permutation(neighbours(number)).tolist()
            values = queries.look_up_all(around)
            best = int(np.argmax(values))
            if values[best] <= value:
                break
            number, value = around[best], float(values[best])


def local_search_first(queries: Queries, rng: np.random.Generator) -> None:
    """Move to the first neighbour that is better; start anew at a local optimum."""
    while True:
        number = draw_cell(rng)
        found: tuple[int, float] | None = number, queries.look_up(number)
        while found is not None:
            found = _first_better(queries, *found, rng)


def _first_better(
    queries: Queries, number: int, value: float, rng: np.random.Generator
) -> tuple[int, float] | None:
    """Return the first neighbour, in random order, with a better value, and that value."""
    for neighbour in rng.permutation(neighbours(number)).tolist():
        found = queries.look_up(neighbour)
        if found > value:
            return neighbour, found
    return None


def draw_cell(rng: np.random.Generator) -> int:
    """Draw the number of a cell uniformly."""
    return int(rng.integers(N_CELLS))


def neighbours(number: int) -> np.ndarray:
    """Return the numbers of the cells that differ in one edge, (24,), edge by edge."""
    n = len(OPERATIONS)
    operations = number // PLACES % n
    others = (operations[:, None] + np.arange(1, n)) % n  # (edges, n - 1)
    changes = (others - operations[:, None]) * PLACES[:, None]
    return (number + changes).reshape(len(EDGES) * (n - 1))


BASELINES: dict[str, Search] = {
    "random": random_search,
    "evolution": evolution,
    "local_search": local_search,
    "local_search_first": local_search_first,
}
