"""The steps of solvers over discrete cells, on the single-path supernet.

A candidate alpha is scored as its discrete cell, so the objective is constant in pieces. Two rules
give the length of a step a meaning, as on the table of NAS-Bench-201 (docs/nasbench201.md):

* A solver is told a candidate at the vertex of its cell, where alpha is 1 for the operations of the
  cell and 0 for all others. Every displacement that it sees is then a change of operations.
* A random step has a standard deviation per coordinate at which it changes between no and two
  operations, and does not shrink.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.settings.config import FRESH, MIXED, SearchConfig
from zoopt_nas.nas.tabular.relaxation import step_options

# A step from a vertex changes 0.6 operations on average in NAS-Bench-201, whose edges compete with
# none, and 0.4 to 0.7 in cells of which each node keeps two edges.
SIGMA_OF_EDGES, SIGMA_OF_NODES = 0.4, 0.25
N_STARTS = 10  # cells of which a search with fresh weights begins at the best


def path_options(config: SearchConfig, space: SearchSpace) -> dict[str, Any]:
    """Return the options of the solver that state its steps on paths; none if it has no entry."""
    if config.paths == MIXED:
        return {}
    is_single = all(len(group.edges) == 1 for group in space.groups)
    sigma = SIGMA_OF_EDGES if is_single else SIGMA_OF_NODES
    return step_options(config.algo, space.dim, sigma, keeps_values=config.weights == FRESH)


def vertex(space: SearchSpace, alpha: Tensor) -> Tensor:
    """Return the vertex ``(dim,)`` of the cell of alpha."""
    return space.one_hot(space.path(space.discretize(alpha)), alpha)


def vertices(space: SearchSpace, alphas: Tensor) -> Tensor:
    """Return the vertices ``(n, dim)`` of the cells of alphas ``(n, dim)``."""
    return torch.stack([vertex(space, alpha) for alpha in alphas.cpu()]).to(alphas)


def random_vertices(space: SearchSpace, n: int, like: Tensor, seed: int) -> Tensor:
    """Return the vertices ``(n, dim)`` of random cells, with the device and type of ``like``."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, space.dim, generator=generator, dtype=torch.float64)
    return vertices(space, drawn).to(like)
