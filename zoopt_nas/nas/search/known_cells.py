"""Cells that are all trained from the same weights, on the same batches, and measured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zoopt_nas.nas.networks.space import Path, SearchSpace
from zoopt_nas.nas.search.evaluation import Measured


class KnownCells:
    """Measures each cell once. Equivalent cells are one cell.

    Args:
        space: The search space.
        measure: Trains and scores the cells of canonical paths, always in the same way.

    Attributes:
        found: What is known, by canonical path.
    """

    def __init__(
        self, space: SearchSpace, measure: Callable[[Sequence[Path]], Sequence[Measured]]
    ) -> None:
        self.found: dict[Path, Measured] = {}
        self._space, self._measure = space, measure

    def measure(self, paths: Sequence[Path]) -> list[Measured]:
        """Return what is known of paths; measure the others first."""
        paths = [self._space.canonical(path) for path in paths]
        new = [path for path in dict.fromkeys(paths) if path not in self.found]
        if new:
            self.found |= zip(new, self._measure(new), strict=True)
        return [self.found[path] for path in paths]

    def state_dict(self) -> list[list[Any]]:
        """Return what is known."""
        return [[list(path), *(x.cpu() for x in cell)] for path, cell in self.found.items()]

    def load_state_dict(self, state: Sequence[Sequence[Any]], device: torch.device) -> None:
        """Restore what ``state_dict`` returned."""
        self.found = {tuple(path): Measured(*(x.to(device) for x in cell)) for path, *cell in state}
