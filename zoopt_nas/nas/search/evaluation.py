"""What candidates reach from the current weights of a supernet: their values, and measured cells.

Values are what a zero-order method compares. A cell is measured along its path, with its loss and
accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.candidates import Batch, CandidateBatches
from zoopt_nas.nas.search.inner import InnerTraining
from zoopt_nas.nas.search.score import Scored, score_batches, value_of

Points = Tensor | Sequence[Path]
"""Candidates: alphas ``(n, dim)``, or the paths of discrete cells."""


class Draw(NamedTuple):
    """What every candidate of one call sees: common random numbers make losses comparable."""

    train: Sequence[Batch]  # the batches of the inner steps, one per step
    val: Sequence[Batch]  # the batches whose mean loss is L_val
    noise_seed: int  # seeds the noise operations of space S4; the next one seeds the score


class Measured(NamedTuple):
    """What a cell reaches on the validation batches of a draw."""

    value: Tensor  # (), what cells are compared by
    loss: Tensor  # (), after all steps
    accuracy: Tensor  # (), after all steps


class Evaluator(Protocol):
    """Evaluates candidates from the current weights of a supernet, which is only read."""

    def values(self, points: Points, draw: Draw, *, by_batch: bool = False) -> Tensor:
        """Return the values ``(n,)`` of candidates, on the supernet's device.

        With ``by_batch`` they are ``(n, n_batches)``, on each validation batch alone. A value may
        be non-finite. It depends on the other candidates only by the rounding of candidates
        evaluated at once.
        """

    def measure(self, paths: Sequence[Path], draw: Draw) -> list[Measured]:
        """Return what each cell reaches, on the supernet's device."""


class Evaluation:
    """Evaluates candidates in this process; see ``Evaluator``.

    With ``extrapolates`` the value of a measured cell is the one that it would have after twice as
    many steps if it changed as much again as in the second half of its steps. Learning curves are
    about straight lines over the logarithm of the steps, and a cell that still improves may be
    better than one that has learned fast.

    Args:
        training: Trains the candidates.
        batches: Splits alphas into groups that are evaluated at once.
        noise: The generator of the candidates' noise, on the supernet's device.
        score: What a value is; see ``score.value_of``.
        extrapolates: Whether the values of measured cells are extrapolated.
    """

    def __init__(
        self,
        training: InnerTraining,
        batches: CandidateBatches,
        noise: torch.Generator,
        *,
        score: str,
        extrapolates: bool = False,
    ) -> None:
        self._training, self._batches, self._noise = training, batches, noise
        self._score, self._extrapolates = score, extrapolates

    def values(self, points: Points, draw: Draw, *, by_batch: bool = False) -> Tensor:
        """Return the values of candidates; see ``Evaluator``."""
        if not isinstance(points, Tensor):
            return torch.stack([self._value(path, draw, by_batch) for path in points])
        return self._batches.evaluate(
            lambda part: self._values(part, draw, by_batch),
            points,
            stem_numbers(self._training.scratch, draw),
        )

    def measure(self, paths: Sequence[Path], draw: Draw) -> list[Measured]:
        """Return what each cell reaches; see ``Evaluator``."""
        return [self._measured(path, draw) for path in paths]

    def _values(self, alphas: Tensor, draw: Draw, by_batch: bool) -> Tensor:
        """Return the values of candidates that are evaluated at once."""
        if len(alphas) == 1 or not self._training.can_fit_together():
            return torch.stack([self._value(alpha, draw, by_batch) for alpha in alphas])
        try:
            weights = self._training.fit_together(alphas, draw.train, draw.noise_seed)
            self._noise.manual_seed(draw.noise_seed + 1)
            return self._over_batches(
                self._training.group.scored(weights, alphas, draw.val), by_batch
            )
        except torch.OutOfMemoryError:
            self._training.group.forget()
            raise

    def _value(self, alpha: Tensor | Path, draw: Draw, by_batch: bool) -> Tensor:
        network = self._training.fit(alpha, draw.train, draw.noise_seed)
        return self._over_batches(self._scored(network, alpha, draw), by_batch)

    def _over_batches(self, scored: Sequence[Scored], by_batch: bool) -> Tensor:
        if by_batch:
            return torch.stack([value_of(self._score, [one]) for one in scored], -1)
        return value_of(self._score, scored)

    def _measured(self, path: Path, draw: Draw) -> Measured:
        n_steps = len(draw.train)
        ends = (n_steps // 2, n_steps) if self._extrapolates else (n_steps,)
        stages = self._training.stages(path, draw.train, draw.noise_seed, ends)
        found = [self._reached(self._scored(network, path, draw)) for network in stages]
        last = found[-1]
        if len(found) == 1:
            return last
        return last._replace(value=2 * last.value - found[0].value)

    def _reached(self, scored: Sequence[Scored]) -> Measured:
        n_right = sum((one.logits.argmax(-1) == one.labels).sum() for one in scored)
        accuracy = torch.as_tensor(n_right) / sum(len(one.labels) for one in scored)
        return Measured(value_of(self._score, scored), value_of("loss", scored), accuracy)

    def _scored(self, network: Any, alpha: Tensor | Path, draw: Draw) -> list[Scored]:
        self._noise.manual_seed(draw.noise_seed + 1)
        with torch.no_grad():
            return score_batches(network, alpha, draw.val)


def stem_numbers(supernet: Supernet, draw: Draw) -> int:
    """Return the size of the stem's output for one candidate and a validation batch, in numbers."""
    images = draw.val[0][0]
    return supernet.stem_channels * images.shape[0] * images[0, 0].numel()
