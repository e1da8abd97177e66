"""A continuous relaxation of the cells, on which any solver of the package searches a table.

A point x of R^30 has five coordinates for each edge, like alpha of a supernet, and stands for the
cell whose operations have the largest ones. The objective, minus the signal, is therefore constant
on cones: a small step rarely changes it, and the length of x has no effect. Two rules give the
length of a step a meaning:

* A candidate is told at the vertex of its cell, where the coordinates of the chosen operations are
  1 and all others are 0. Every displacement that a solver sees is then a change of operations.
* A random step has the standard deviation ``SIGMA`` per coordinate, and a step along a coordinate
  axis the length ``AXIS_STEP`` > 1. Steps do not shrink where a solver has a choice, because short
  ones lead to the same cell.

The value of a known cell comes from memory. A solver that finds no better cell in ``PATIENCE``
evaluations starts again, at the best of ``N_STARTS`` cells drawn uniformly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoopt_nas.nas.networks.nasbench201_cell import CELL_OPERATIONS as OPERATIONS
from zoopt_nas.nas.networks.nasbench201_cell import EDGES
from zoopt_nas.nas.tabular.queries import Queries
from zoopt_nas.nas.tabular.searches import draw_cell
from zoopt_nas.nas.tabular.table import PLACES
from zoopt_nas.solvers import SOLVERS
from zoopt_nas.solvers.base import Solver, SolverState

DIM = len(EDGES) * len(OPERATIONS)
SIGMA = 0.4  # such a step from a vertex changes 0.7 edges on average: see `expected_changes`
AXIS_STEP = 1.5
N_STARTS = 10
PATIENCE = 150

_ONE_HOT = np.eye(len(OPERATIONS))


def step_options(name: str, dim: int, sigma: float, *, keeps_values: bool) -> dict[str, Any]:
    """Return the options of a solver that state its steps; none for a solver that is not listed.

    Args:
        name: the solver.
        dim: number of coordinates.
        sigma: standard deviation of a random step per coordinate.
        keeps_values: whether a cell keeps its value, so that it need not be evaluated again.
    """
    radius = sigma * math.sqrt(dim)  # the norm of a random step
    steady = {"max_radius": radius, "min_radius": radius, "deterministic": keeps_values}
    options: dict[str, dict[str, Any]] = {
        "rs": {"smoothing": radius, "learning_rate": 0.1},
        "mgs": {"sigma": sigma},
        "gld": {**steady, "direction": "gaussian"},
        "lizo": {"smoothing": radius},
        "zo_signsgd": {"smoothing": radius, "learning_rate": sigma},
        "zo_adamm": {"smoothing": radius, "learning_rate": sigma},
        "quasi_newton": {"smoothing": AXIS_STEP},
        "trust_region": {"radius": AXIS_STEP},
        "adaptive_gld": {**steady, "restart": False},
        "adaptive_mgs": {"sigma": sigma},
        "cma": {"sigma": sigma},
        "nelder_mead": {"step": AXIS_STEP},
    }
    return options.get(name, {})


def relaxed_solver(name: str) -> Solver:
    """Return the solver of this name with its options for the relaxation.

    Raises:
        UnknownNameError: there is no such solver.
    """
    return SOLVERS[name](**step_options(name, DIM, SIGMA, keeps_values=True))


def decode(points: np.ndarray) -> np.ndarray:
    """Return the numbers, (n,), of the cells that points (n, 30) stand for.

    The first of equal coordinates wins.
    """
    scores = points.reshape(-1, len(EDGES), len(OPERATIONS))
    numbers: np.ndarray = scores.argmax(axis=2) @ PLACES
    return numbers


def vertices(numbers: np.ndarray) -> np.ndarray:
    """Return the vertices, (n, 30), of the cells with these numbers, (n,)."""
    operations = numbers[:, None] // PLACES % len(OPERATIONS)
    return _ONE_HOT[operations].reshape(len(numbers), DIM)


def expected_changes(sigma: float) -> float:
    """Return how many edges a step N(0, sigma² I) from a vertex changes on average."""
    from scipy.special import ndtr

    # An edge keeps its operation if 1 + sigma z_0 exceeds sigma z_i for the other operations.
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    kept = ndtr(1 / sigma + nodes) ** (len(OPERATIONS) - 1) @ weights / weights.sum()
    return float(len(EDGES) * (1 - kept))


def search_with(solver: Solver, queries: Queries, rng: np.random.Generator) -> None:
    """Look up the cells that a solver asks for, until ``Queries`` raises OutOfQueries."""
    while True:
        state, best = _start(solver, queries, rng)
        n_stale = 0
        while n_stale < PATIENCE:
            numbers = decode(solver.ask(state))
            values = -queries.look_up_all(numbers.tolist())
            solver.tell(state, vertices(numbers), values, repaired=True)
            n_stale += len(numbers)
            if values.min() < best:
                best, n_stale = float(values.min()), 0


def _start(solver: Solver, queries: Queries, rng: np.random.Generator) -> tuple[SolverState, float]:
    """Return a new run of the solver, and the value of its start."""
    numbers = np.array([draw_cell(rng) for _ in range(N_STARTS)])
    values = -queries.look_up_all(numbers.tolist())
    best = int(values.argmin())
    x0 = vertices(numbers)[best]
    state = solver.init(x0, rng=rng, is_scaled=True)
    solver.tell(state, x0[None, :], values[best : best + 1])  # the solver need not ask for it
    return state, float(values[best])
