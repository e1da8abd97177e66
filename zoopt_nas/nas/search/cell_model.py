"""A Gaussian process over discrete cells, fitted to the cells that a search has measured.

The value of a cell after few steps has an error that differs from cell to cell and that no
repetition reduces. Similar cells have similar values, so that a model of all of them sees through
much of the error.

Sources: Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006, Eqs. 2.25 and 5.8;
Hutter, Hoos and Leyton-Brown, "Sequential Model-Based Optimization for General Algorithm
Configuration", LION 2011 (a kernel of the Hamming distance).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.search.evaluation import Measured

# The kernel's lengths to choose from, in mean distances of two measured cells, and the variances of
# the error, in variances of the function.
LENGTHS = (0.5, 1.0, 2.0, 4.0)
ERRORS = (0.01, 0.03, 0.1, 0.3, 1.0)


class CellModel:
    """The posterior mean of the normal score of a cell; lower is better.

    The prior covariance of two cells is ``exp(-d / length)``, where d is the number of edges on
    which they differ, and the measured scores have independent errors. Length and error have the
    greatest marginal likelihood.

    Args:
        known: What at least two cells have reached, by canonical path.

    Attributes:
        error: The variance of the error, in variances of the function.
        best: The measured cell with the least posterior mean.
    """

    def __init__(self, known: Mapping[Path, Measured]) -> None:
        ranked = sorted(known, key=lambda path: _rank(known[path]))
        self._cells = _table(ranked)
        scores = normal_scores(len(ranked))
        distances = _distances(self._cells, self._cells)
        mean_distance = float(distances.sum()) / (len(ranked) * (len(ranked) - 1))
        least = math.inf
        for length, error in product(LENGTHS, ERRORS):
            kernel = torch.exp(-distances / (length * mean_distance))
            weights, loss = _fit(kernel, error, scores)
            if loss < least:
                least, self._length, self.error = loss, length * mean_distance, error
                self._weights = weights
        self.best = ranked[int(self(ranked).argmin())]

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return the posterior mean of the score of canonical paths, ``(n,)`` in float64."""
        distances = _distances(_table(paths), self._cells)
        means: Tensor = torch.exp(-distances / self._length) @ self._weights
        return means


def normal_scores(n: int) -> Tensor:
    """Return the scores ``(n,)`` of n ranks: van der Waerden's quantiles of N(0, 1).

    They depend on the order alone, so that cells that fail or are far worse than the others do not
    dominate the fit.
    """
    quantiles = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
    scores: Tensor = torch.special.ndtri(quantiles)
    return scores


def _rank(cell: Measured) -> float:
    """Return the value that cells are sorted by; a cell that failed is worst."""
    value = float(cell.value)
    return value if math.isfinite(value) else math.inf


def _table(paths: Sequence[Path]) -> Tensor:
    return torch.tensor(paths, dtype=torch.int64)


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Return the number of edges on which paths differ, ``(n, m)``."""
    return (one[:, None, :] != other[None, :, :]).sum(-1).to(torch.float64)


def _fit(kernel: Tensor, error: float, scores: Tensor) -> tuple[Tensor, float]:
    """Return K⁻¹ y ``(n,)``, and minus the log marginal likelihood at the best scale of K."""
    n = len(scores)
    factor = torch.linalg.cholesky(kernel + error * torch.eye(n, dtype=kernel.dtype))
    weights = torch.cholesky_solve(scores[:, None], factor)[:, 0]
    loss = n / 2 * torch.log(scores @ weights) + factor.diagonal().log().sum()
    return weights, float(loss)
