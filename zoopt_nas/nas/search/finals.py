"""The last rounds of a search with fresh weights: successive halving of the best cells.

Few inner steps rank cells that learn fast before cells that learn much. In each round the remaining
cells are trained for three times the steps of the round before, and the best third remains
(Jamieson and Talwalkar, AISTATS 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.search.known_cells import Measured
from zoopt_nas.nas.steps.meter import Meter

FACTOR = 3  # of the steps from round to round, and of the cells that leave

Trained = Callable[[Path, int], Meter]
"""Train the cell of a path for some steps; return what it reaches on the validation images."""


def round_sizes(n_finalists: int) -> list[int]:
    """Return the number of cells in each round; no round has a single cell."""
    sizes = []
    while n_finalists > 1:
        sizes.append(n_finalists)
        n_finalists = math.ceil(n_finalists / FACTOR)
    return sizes


class Finals:
    """The state of the last rounds.

    Args:
        n_finalists: Cells in the first round.
        inner_steps: Steps of the candidates of the search.
        score: ``"loss"`` or ``"accuracy"``, the order of cells; ties go to the loss.
        trained: Trains one cell.

    Attributes:
        sizes: Number of cells in each round.
    """

    def __init__(self, n_finalists: int, inner_steps: int, score: str, trained: Trained) -> None:
        self.sizes = round_sizes(n_finalists)
        self._inner_steps, self._score, self._trained = inner_steps, score, trained
        self._paths: list[Path] = []  # of the current round
        self._results: list[tuple[float, float]] = []  # loss and accuracy of the first of them

    def begin(self, known: Mapping[Path, Measured]) -> None:
        """Take the cells of the first round: the best of the search."""
        values = {path: float(measured.value) for path, measured in known.items()}
        finite = [path for path in values if math.isfinite(values[path])]
        self._paths = sorted(finite, key=values.__getitem__)[: self.sizes[0]]
        self._results = []

    @property
    def n_paths(self) -> int:
        """Number of cells in this round."""
        return len(self._paths)

    def n_inner_steps(self, round_index: int) -> int:
        """Return the number of steps of each cell in a round, from 0."""
        return int(self._inner_steps * FACTOR ** (round_index + 1))

    def step(self, round_index: int) -> None:
        """Train the next cell of the round."""
        path = self._paths[len(self._results)]
        meter = self._trained(path, self.n_inner_steps(round_index))
        self._results.append((meter.loss, meter.accuracy))

    def end_round(self) -> tuple[Path, float, float]:
        """Keep the best third; return the best cell with its loss and accuracy."""
        by_accuracy = self._score == "accuracy"

        def rank(k: int) -> tuple[float, float]:
            loss, accuracy = self._results[k]
            loss = loss if math.isfinite(loss) else math.inf
            return (-accuracy if by_accuracy and loss < math.inf else 0.0, loss)

        order = sorted(range(len(self._results)), key=rank)
        best = order[0]
        found = (self._paths[best], *self._results[best])
        kept = math.ceil(len(order) / FACTOR)
        self._paths = [self._paths[k] for k in order[:kept]]
        self._results = []
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the cells of the round and their results."""
        paths = [list(path) for path in self._paths]
        return {"paths": paths, "results": [list(result) for result in self._results]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._paths = [tuple(path) for path in state["paths"]]
        self._results = [(float(loss), float(accuracy)) for loss, accuracy in state["results"]]
