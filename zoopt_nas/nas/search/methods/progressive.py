"""P-DARTS (Chen et al., ICCV 2019): stages with deeper supernets and fewer candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.space import Kept, LogWeights, SearchSpace
from zoopt_nas.nas.search.methods.darts import FirstOrderInSpace
from zoopt_nas.nas.search.stages import SearchStage, stage_at
from zoopt_nas.nas.search.updater import EpochEnd, Verdict
from zoopt_nas.nas.settings.config import SOFTMAX, SearchConfig

# Section 4.1: of 8 candidates the stages have 8, 5 and 3, and their supernets 5, 11 and 17 cells.
CANDIDATES = (8, 5, 3)
FIRST_CELLS, MORE_CELLS = 5, 6
SKIP = "skip_connect"
MAX_SKIPS = 2  # M, skip connections of a normal cell
# Released code: exp(-0.2 e) over the 15 epochs in which alpha moves.
DROPOUT_DECAY = 3.0
# Alpha of a dropped candidate: its weight is 0 in float64, too.
DROPPED = -1000.0


def stage_cells(n_cells: int, multiple: int = 1) -> tuple[int, ...]:
    """Return the number of cells of each stage; the first has ``n_cells``.

    Each later stage has 6/5 of ``n_cells`` more, rounded up to a multiple of ``multiple``.
    """
    more = multiple * -(-MORE_CELLS * n_cells // (FIRST_CELLS * multiple))
    return tuple(n_cells + k * more for k in range(len(CANDIDATES)))


def stage_candidates(size: int) -> tuple[int, ...]:
    """Return how many of the ``size`` candidates of an edge each stage has.

    They are 8/8, 5/8 and 3/8 of all, rounded up, and at least two.
    """
    return tuple(min(size, max(2, -(-n * size // CANDIDATES[0]))) for n in CANDIDATES)


def dropout_rate(first: float, epoch: int, n_epochs: int, warmup: int) -> float:
    """Return the dropout rate of skip connections in an epoch of a stage, from 0.

    While alpha waits, it falls linearly from ``first``; then it starts again and decays.
    """
    if epoch < warmup:
        return first * (n_epochs - epoch - 1) / n_epochs
    return first * math.exp(-DROPOUT_DECAY * (epoch - warmup) / (n_epochs - warmup))


def strongest(space: SearchSpace, alpha: Tensor, kept: Kept, n_kept: Sequence[int]) -> Kept:
    """Return the ``n_kept`` candidates of each edge with the largest weights, of those in ``kept``.

    Of equal ones the earlier stays.
    """
    rows = torch.split(alpha[: sum(space.sizes)].cpu(), list(space.sizes))
    found = []
    for row, choices, n in zip(rows, kept, n_kept, strict=True):
        weights = row.tolist()
        found.append(tuple(sorted(sorted(choices, key=lambda k: -weights[k])[:n])))
    return tuple(found)


def with_few_skips(space: SearchSpace, log_weights: LogWeights, n_most: int) -> Architecture:
    """Return the architecture with at most ``n_most`` skip connections in the first kind of cell.

    As long as there are more, the weakest of them gets the weight 0, and the architecture is
    derived again. The other weights stay as they are. It has more if edges have nothing else.
    """
    kind = space.kinds[0]
    rows = [row.clone() for row in log_weights[kind]]
    while True:
        found = space.choose({**log_weights, kind: rows})
        skips = [
            space.edges.index((source, node))
            for name, source, node in found.cells[kind].edges
            if name == SKIP
        ]
        places = [(edge, space.candidates(kind)[edge].index(SKIP)) for edge in skips]
        weights = {place: float(rows[place[0]][place[1]]) for place in places}
        weak = [place for place, weight in weights.items() if weight > -math.inf]
        if len(skips) <= n_most or not weak:
            return found
        edge, choice = min(weak, key=weights.__getitem__)
        rows[edge][choice] = -math.inf


class ProgressiveStages(FirstOrderInSpace):
    """P-DARTS: darts1 in three stages, with deeper supernets and fewer candidates.

    Each stage has new weights and a new alpha. Before the second and the third one each edge drops
    the candidates with the smallest weights. Skip connections have dropout, and the normal cell of
    the result has at most two.
    """

    relaxations = (SOFTMAX,)
    has_skip_dropout = True

    def __init__(
        self, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> None:
        super().__init__(config, alpha, seed, space)
        self._config, self._seed = config, seed
        self._stages = self.stages(config, self.space)
        self.epoch = 0  # number of ended epochs
        self._keep(tuple(tuple(range(size)) for size in self.space.sizes))

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        """Refuse stages without an epoch in which alpha moves."""
        super().check(config)
        n_stages = len(CANDIDATES)
        if config.epochs < n_stages:
            raise InvalidValueError(
                f"epochs must be at least {n_stages} with {config.algo}, which has {n_stages} "
                f"stages, got {config.epochs}"
            )
        shortest = config.epochs // n_stages
        if config.warmup_epochs >= shortest:
            raise InvalidValueError(
                f"warmup_epochs must be less than the epochs of a stage ({shortest}) with "
                f"{config.algo}, got {config.warmup_epochs}"
            )

    @classmethod
    def stages(cls, config: SearchConfig, space: SearchSpace) -> tuple[SearchStage, ...]:
        """Return three stages with the same number of epochs, up to rounding."""
        n_stages = len(CANDIDATES)
        starts = [config.epochs * k // n_stages for k in range(n_stages + 1)]
        cells = stage_cells(config.n_cells, space.cell_multiple)
        n_kept = zip(*map(stage_candidates, space.sizes), strict=True)
        return tuple(
            SearchStage(start, end - start, n_cells, of_edges, rate > 0)
            for start, end, n_cells, of_edges, rate in zip(
                starts[:-1], starts[1:], cells, n_kept, config.skip_dropout, strict=True
            )
        )

    @property
    def kept(self) -> Kept:
        """The candidates of the current supernet."""
        return self._kept

    @property
    def skip_dropout(self) -> float:
        """The rate of dropout on skip connections in this epoch."""
        stage = stage_at(self._stages, self.epoch)
        return dropout_rate(
            self._config.skip_dropout[self._stages.index(stage)],
            self.epoch - stage.first_epoch,
            stage.n_epochs,
            self._config.warmup_epochs,
        )

    def begin_stage(self) -> None:
        """Drop the weakest candidates of each edge, and draw a new alpha."""
        stage = stage_at(self._stages, self.epoch)
        kept = strongest(self.space, self.alpha, self._kept, stage.n_kept)
        seed = self._seed + self._stages.index(stage)
        self.restart(self.space.init_alpha(rng=seed, device=self.alpha.device))
        self._keep(kept)

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Count the epoch."""
        self.epoch += 1
        return Verdict()

    def architecture(self, space: SearchSpace) -> Architecture:
        """Return the architecture of alpha; after the last epoch, with few skip connections."""
        if self.epoch < self._config.epochs:
            return super().architecture(space)
        return with_few_skips(space, space.log_weights(self.alpha), MAX_SKIPS)

    def _keep(self, kept: Kept) -> None:
        """Drop all other candidates."""
        self._kept = kept
        is_dropped = [choice not in kept[edge] for edge, choice in self.space.places]
        is_dropped += [False] * (self.space.dim - len(is_dropped))  # weights of edges
        self._is_dropped = torch.tensor(is_dropped, device=self.alpha.device)
        self._restore()

    def _restore(self) -> None:
        """Set alpha of dropped candidates."""
        with torch.no_grad():
            self._alpha.masked_fill_(self._is_dropped, DROPPED)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method, what is left, and the epoch."""
        return super().state_dict() | {"kept": self._kept, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self.epoch = int(state["epoch"])
        self._keep(tuple(tuple(map(int, choices)) for choices in state["kept"]))
