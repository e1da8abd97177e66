"""DARTS-PT (Wang et al., ICLR 2021): the operations that a supernet cannot spare."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoopt_nas.nas.networks.space import UNUSED, EdgeGroup, SearchSpace
from zoopt_nas.nas.search.methods.decided import DecidedEdges
from zoopt_nas.nas.search.updater import EpochEnd, Verdict
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.meter import evaluate

Score = tuple[float, float]
"""Validation accuracy, and minus the loss, which breaks ties."""


def decision_epoch(k: int, n_decisions: int, n_epochs: int) -> int:
    """Return the epoch, from 0, at whose end the k-th decision is made; the last one ends it."""
    return math.ceil(n_epochs * (k + 1) / n_decisions) - 1


class PerturbationSelection(DecidedEdges):
    """DARTS-PT: the operations whose loss costs a finished supernet most.

    It continues the supernet of another search (the setting ``supernet``). One by one, in random
    order, each edge gets the operation without which the validation accuracy is lowest. Then each
    node loses the edges without which it is highest, until two are left. Between two decisions
    weights and alpha are trained as by ``darts1``.
    """

    continues = True

    def __init__(
        self, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> None:
        super().__init__(config, alpha, seed, space)
        rng = torch.Generator().manual_seed(seed)
        self._plans = [self._plan(kind, rng) for kind in range(len(self.space.kinds))]
        self._n_done = 0  # decisions in each cell

    def _plan(self, kind: int, rng: torch.Generator) -> list[int | EdgeGroup]:
        """Return the edges of a cell, then its nodes with edges too many, each in random order."""
        n_edges = len(self.space.edges)
        edges = range(kind * n_edges, (kind + 1) * n_edges)
        nodes = [
            group
            for group in self.space.groups
            if group.edges[0] in edges and len(group.edges) > group.n_kept
        ]
        shuffled = [edges[i] for i in torch.randperm(n_edges, generator=rng).tolist()]
        return [*shuffled, *(nodes[i] for i in torch.randperm(len(nodes), generator=rng).tolist())]

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Make the decisions that are due."""
        n = len(self._plans[0])
        while self._n_done < n and self.epoch >= decision_epoch(self._n_done, n, self.n_epochs):
            for plan in self._plans:
                part = plan[self._n_done]
                self.decide(
                    {part: self._best_operation(part, end)}
                    if isinstance(part, int)
                    else dict.fromkeys(self._spare_edges(part, end), UNUSED)
                )
            self._n_done += 1
        self.epoch += 1
        return Verdict()

    def _best_operation(self, edge: int, end: EpochEnd) -> int:
        """Return the operation of an edge without which the supernet is worst."""
        scores = {k: self._score(end, [(edge, k)]) for k in self.operations(edge)}
        return min(scores, key=scores.__getitem__)

    def _spare_edges(self, node: EdgeGroup, end: EpochEnd) -> list[int]:
        """Return the edges into a node without which the supernet is best, one after another."""
        spare: list[int] = []
        while len(node.edges) - len(spare) > node.n_kept:
            scores = {
                edge: self._score(end, [(e, self.choices[e]) for e in (*spare, edge)])
                for edge in node.edges
                if edge not in spare
            }
            spare.append(max(scores, key=scores.__getitem__))
        return spare

    def _score(self, end: EpochEnd, without: list[tuple[int, int]]) -> Score:
        """Evaluate the supernet without some operations; other weights stay as they are."""
        supernet = end.objective.supernet
        weights = self.weights(supernet, self.alpha).clone()
        for place in without:
            weights[place] = 0.0
        was_training = supernet.training
        model = partial(supernet.eval().mix, weights=weights)
        meter = evaluate(model, end.val_batches(), weights.device)
        supernet.train(was_training)
        return meter.accuracy, -meter.loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method and the decisions."""
        return super().state_dict() | {"n_done": self._n_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self._n_done = int(state["n_done"])
