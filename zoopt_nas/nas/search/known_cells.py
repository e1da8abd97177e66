"""Cells that are all trained from the same weights, on the same batches, and measured once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoopt_nas.nas.networks.space import Path, SearchSpace
from zoopt_nas.nas.search.candidates import Batch
from zoopt_nas.nas.search.inner import InnerTraining
from zoopt_nas.nas.search.score import score_batches, value_of

CHECKS = (4, 2)  # a cell may be stopped after a quarter and after half of its steps
_SEED = 0  # of the noise operations of space S4
N_BEFORE_STOPS = 5  # cells that are trained in full before one may be stopped


class Measured(NamedTuple):
    """What a cell reaches on the validation batches of a draw."""

    value: Tensor  # ()
    loss: Tensor  # ()
    accuracy: Tensor  # ()
    checks: tuple[float, ...] = ()  # its values at the checks before
    is_stopped: bool = False  # at the last of them, which gave the value


class KnownCells:
    """Measures cells on the same batches, each once. Equivalent cells are one cell.

    With ``stops_early`` a cell is stopped after a quarter or half of its steps if its value is then
    above the median of the other cells' at the same step. This is median stopping (Golovin et al.,
    KDD 2017) with values in place of running averages.

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
        stops_early: bool = False,
    ) -> None:
        self.found: dict[Path, Measured] = {}
        self._training, self._space = training, space
        self._train_batches, self._val_batches = train, val
        self._score, self._noise = score, noise
        n_steps = len(train)
        checks = {n_steps // part for part in CHECKS if stops_early} - {0}
        self._ends = (*sorted(checks), n_steps)

    def measure(self, path: Path) -> Measured:
        """Return what is known of a path, or train and score it."""
        path = self._space.canonical(path)
        if path not in self.found:
            self.found[path] = self._train(path)
        return self.found[path]

    def _train(self, path: Path) -> Measured:
        checks: list[float] = []
        for network in self._training.stages(path, self._train_batches, _SEED, self._ends):
            self._noise.manual_seed(_SEED + 1)
            with torch.no_grad():
                scored = score_batches(network, path, self._val_batches)
            n_right = sum((one.logits.argmax(-1) == one.labels).sum() for one in scored)
            accuracy = torch.as_tensor(n_right) / sum(len(one.labels) for one in scored)
            measured = Measured(
                value_of(self._score, scored), value_of("loss", scored), accuracy, tuple(checks)
            )
            if len(checks) == len(self._ends) - 1:
                break
            checks.append(float(measured.value))
            if self._is_poor(checks):
                return measured._replace(checks=tuple(checks), is_stopped=True)
        return measured

    def _is_poor(self, checks: Sequence[float]) -> bool:
        """Whether the last value of some is worse than the median of the others at that check."""
        at = len(checks) - 1
        others = [cell.checks[at] for cell in self.found.values() if len(cell.checks) > at]
        # A value that is not finite is worse than any median.
        return len(others) >= N_BEFORE_STOPS and not checks[at] <= statistics.median(others)

    def state_dict(self) -> list[list[Any]]:
        """Return what is known."""
        return [
            [list(path), *(x.cpu() for x in cell[:3]), list(cell.checks), cell.is_stopped]
            for path, cell in self.found.items()
        ]

    def load_state_dict(self, state: Sequence[Sequence[Any]], device: torch.device) -> None:
        """Restore what ``state_dict`` returned."""
        self.found = {}
        for path, value, loss, accuracy, *rest in state:
            # A checkpoint of an earlier version ends here.
            checks, is_stopped = rest or ((), False)
            self.found[tuple(path)] = Measured(
                value.to(device), loss.to(device), accuracy.to(device), tuple(checks), is_stopped
            )
