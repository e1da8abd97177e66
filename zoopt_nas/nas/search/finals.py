"""The last rounds of a search with fresh weights: the best cells are trained again.

A search takes the best of many cells on one draw of batches, so it prefers cells that are lucky on
this draw. In the rounds the best cells are trained on other batches, and the mean decides. After
each round the best third remains, and is trained three times as often in the next one (successive
halving, Jamieson and Talwalkar, AISTATS 2016).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.search.known_cells import Measured
from zoopt_nas.nas.steps.meter import Meter

FACTOR = 3  # of the trainings from round to round, and of the cells that leave

Trained = Callable[[Path], Meter]
"""Train the cell of a path; return what it reaches on the validation images."""


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
        score: ``"loss"`` or ``"accuracy"``, the order of cells; ties go to the loss.
        trained: Trains one cell on the current batches.
        renew: Replaces the current batches by others.

    Attributes:
        sizes: Number of cells in each round.
    """

    def __init__(
        self, n_finalists: int, score: str, trained: Trained, renew: Callable[[], None]
    ) -> None:
        self.sizes = round_sizes(n_finalists)
        self._score, self._trained, self._renew = score, trained, renew
        # The cells of the round, and the losses and accuracies of each over all trainings.
        self._paths: list[Path] = []
        self._results: list[list[tuple[float, float]]] = []
        self._n_done = 0  # trainings in this round

    def begin(self, known: Mapping[Path, Measured]) -> None:
        """Take the cells of the first round, the best of the search, with their results there."""
        values = {path: float(measured.value) for path, measured in known.items()}
        finite = [path for path in values if math.isfinite(values[path])]
        self._paths = sorted(finite, key=values.__getitem__)[: self.sizes[0]]
        found = [known[path] for path in self._paths]
        self._results = [[(float(cell.loss), float(cell.accuracy))] for cell in found]
        self._n_done = 0

    @property
    def n_paths(self) -> int:
        """Number of cells in this round."""
        return len(self._paths)

    def n_trainings(self, round_index: int) -> int:
        """Return the number of trainings in a round, from 0."""
        return self.n_paths * int(FACTOR**round_index)

    def step(self) -> None:
        """Train the next cell; all cells see the same batches."""
        index = self._n_done % self.n_paths
        if index == 0:
            self._renew()
        meter = self._trained(self._paths[index])
        self._results[index].append((meter.loss, meter.accuracy))
        self._n_done += 1

    def end_round(self) -> tuple[Path, float, float]:
        """Keep the best third; return the best cell with its mean loss and accuracy."""
        means = [
            tuple(statistics.fmean(values) for values in zip(*results, strict=True))
            for results in self._results
        ]

        def rank(k: int) -> tuple[float, float]:
            loss, accuracy = means[k]
            loss = loss if math.isfinite(loss) else math.inf
            return (-accuracy if self._score == "accuracy" and loss < math.inf else 0.0, loss)

        order = sorted(range(len(means)), key=rank)
        loss, accuracy = means[order[0]]
        best = self._paths[order[0]]
        kept = order[: math.ceil(len(order) / FACTOR)]
        self._paths = [self._paths[k] for k in kept]
        self._results = [self._results[k] for k in kept]
        self._n_done = 0
        return best, loss, accuracy

    def state_dict(self) -> dict[str, Any]:
        """Return the cells of the round and their results."""
        return {
            "paths": [list(path) for path in self._paths],
            "results": [[list(result) for result in results] for results in self._results],
            "n_done": self._n_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._paths = [tuple(path) for path in state["paths"]]
        self._results = [
            [(float(loss), float(accuracy)) for loss, accuracy in results]
            for results in state["results"]
        ]
        self._n_done = int(state["n_done"])
