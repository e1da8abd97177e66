"""Cells that are all trained from the same weights, on the same batches, and measured once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoopt_nas.nas.networks.space import Path, SearchSpace
from zoopt_nas.nas.search.candidates import Batch
from zoopt_nas.nas.search.inner import InnerTraining
from zoopt_nas.nas.search.score import score_batches, value_of

_SEED = 0  # of the noise operations of space S4


class Measured(NamedTuple):
    """What a cell reaches on the validation batches of a draw."""

    value: Tensor  # (), what cells are compared by
    loss: Tensor  # (), after all steps
    accuracy: Tensor  # (), after all steps


class KnownCells:
    """Measures cells on the same batches, each once. Equivalent cells are one cell.

    With ``extrapolates`` the value of a cell is the one that it would have after twice as many
    steps if it changed as much again as in the second half of its steps. Learning curves are about
    straight lines over the logarithm of the steps, and a cell that still improves may be better
    than one that has learned fast.

    Attributes:
        found: What is known, by canonical path.
    """

    def __init__(
        self,
        training: InnerTraining,
        space: SearchSpace,
        train: Sequence[Batch],
        val: Sequence[Batch],
        *,
        score: str,
        noise: torch.Generator,
        extrapolates: bool = False,
    ) -> None:
        self.found: dict[Path, Measured] = {}
        self._training, self._space = training, space
        self._train_batches, self._val_batches = train, val
        self._score, self._noise = score, noise
        n_steps = len(train)
        self._ends = (n_steps // 2, n_steps) if extrapolates else (n_steps,)

    def measure(self, path: Path) -> Measured:
        """Return what is known of a path, or train and score it."""
        path = self._space.canonical(path)
        if path not in self.found:
            self.found[path] = self._train(path)
        return self.found[path]

    def _train(self, path: Path) -> Measured:
        stages = self._training.stages(path, self._train_batches, _SEED, self._ends)
        measured = [self._scored(path, network) for network in stages]
        last = measured[-1]
        if len(measured) == 1:
            return last
        return last._replace(value=2 * last.value - measured[0].value)

    def _scored(self, path: Path, network: Any) -> Measured:
        self._noise.manual_seed(_SEED + 1)
        with torch.no_grad():
            scored = score_batches(network, path, self._val_batches)
        n_right = sum((one.logits.argmax(-1) == one.labels).sum() for one in scored)
        accuracy = torch.as_tensor(n_right) / sum(len(one.labels) for one in scored)
        return Measured(value_of(self._score, scored), value_of("loss", scored), accuracy)

    def state_dict(self) -> list[list[Any]]:
        """Return what is known."""
        return [[list(path), *(x.cpu() for x in cell)] for path, cell in self.found.items()]

    def load_state_dict(self, state: Sequence[Sequence[Any]], device: torch.device) -> None:
        """Restore what ``state_dict`` returned."""
        self.found = {tuple(path): Measured(*(x.to(device) for x in cell)) for path, *cell in state}
