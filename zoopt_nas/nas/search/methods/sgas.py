"""SGAS (Li et al., CVPR 2020): edges are decided one by one during the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.space import UNUSED, SearchSpace
from zoopt_nas.nas.search.methods.decided import DecidedEdges
from zoopt_nas.nas.search.updater import EpochEnd, Verdict
from zoopt_nas.nas.settings.config import SOFTMAX, SearchConfig

# Released code: of 50 epochs, the first decision after 9 more than the first, the last 5 before the
# end; the criterion 2 looks at 4 earlier epochs.
FIRST_DECISION, ALL_DECISIONS = 9 / 50, 40 / 50
WINDOW = 4


def decision_epoch(k: int, n_decisions: int, n_epochs: int) -> int:
    """Return the epoch, from 0, at whose end the k-th edge of a cell is decided."""
    return int(n_epochs * (FIRST_DECISION + ALL_DECISIONS * k / n_decisions) + 1e-9)


def scaled(values: Sequence[float]) -> list[float]:
    """Return values scaled to [0, 1]; 1 if all are equal."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]


def certainty(shares: Sequence[float]) -> float:
    """Return 1 minus the entropy of shares with sum 1, relative to the largest entropy."""
    if len(shares) == 1:
        return 1.0
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    return 1.0 - entropy / math.log(len(shares))


def stability(history: Sequence[Sequence[float]], shares: Sequence[float]) -> float:
    """Return the mean intersection of shares with those of earlier epochs; 0 without any."""
    overlaps = [sum(map(min, shares, earlier)) for earlier in history]
    return sum(overlaps) / len(overlaps) if overlaps else 0.0


class GreedyEdges(DecidedEdges):
    """SGAS: darts1 that decides the best edge at a time (criterion 1).

    The score of an edge is the weight of its operations other than ``none`` times the certainty of
    the choice among them, both scaled over the cell. The best edge gets its best operation for
    good. When a node has its edges, the others into it are removed.
    """

    relaxations = (SOFTMAX,)
    looks_back = False

    def __init__(
        self, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> None:
        super().__init__(config, alpha, seed, space)
        self._rows: dict[int, list[float]] = {}  # the last weights of decided edges
        self._history: list[list[list[float]]] = []  # shares of all edges after the last epochs

    @classmethod
    def check_space(cls, config: SearchConfig, space: SearchSpace) -> None:
        """Refuse a space whose cells keep all edges."""
        super().check_space(config, space)
        if all(len(group.edges) == group.n_kept for group in space.groups):
            raise InvalidValueError(
                f"space must have cells that keep some of their edges with {config.algo}, "
                f"got {space.name}"
            )

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Decide edges if it is time; after the last epoch all are decided."""
        rows = self._current_rows()
        shares = [self._shares(edge, row) for edge, row in enumerate(rows)]
        n_edges = len(self.space.edges)
        for kind in range(len(self.space.kinds)):
            edges = range(kind * n_edges, (kind + 1) * n_edges)
            scores = dict(zip(edges, self._scores(edges, rows, shares), strict=True))
            n_decisions = sum(g.n_kept for g in self.space.groups if g.edges[0] in edges)
            while self._is_due(edges, n_decisions, end.is_last):
                open_edges = [edge for edge in edges if edge not in self.choices]
                self._decide(max(open_edges, key=scores.__getitem__), rows)
        self._history = [*self._history, shares][-WINDOW:]
        self.epoch += 1
        return Verdict()

    def _is_due(self, edges: range, n_decisions: int, is_last: bool) -> bool:
        n_decided = sum(self.choices.get(edge, UNUSED) != UNUSED for edge in edges)
        if n_decided == n_decisions:
            return False
        return is_last or self.epoch >= decision_epoch(n_decided, n_decisions, self.n_epochs)

    def _decide(self, edge: int, rows: Sequence[list[float]]) -> None:
        """Choose the operation of an edge, and remove edges that its node does not need."""
        (group,) = (group for group in self.space.groups if edge in group.edges)
        self.decide({edge: max(self.operations(edge), key=rows[edge].__getitem__)})
        chosen = [e for e in group.edges if self.choices.get(e, UNUSED) != UNUSED]
        if len(chosen) == group.n_kept:
            self.decide({e: UNUSED for e in group.edges if e not in self.choices})
        self._rows |= {e: rows[e] for e in group.edges if e in self.choices}

    def _scores(
        self, edges: range, rows: Sequence[list[float]], shares: Sequence[list[float]]
    ) -> list[float]:
        """Return the score of each edge of a cell."""
        importance = scaled([self._importance(edge, rows[edge]) for edge in edges])
        certainties = scaled([certainty(shares[edge]) for edge in edges])
        scores = [a * b for a, b in zip(importance, certainties, strict=True)]
        if self.looks_back:
            past = [
                stability([epoch[edge] for epoch in self._history], shares[edge]) for edge in edges
            ]
            scores = [score * part for score, part in zip(scores, scaled(past), strict=True)]
        return scores

    def _current_rows(self) -> list[list[float]]:
        """Return the softmax of alpha on each edge, of decided edges as it was then."""
        parts = torch.split(self.alpha.double().cpu(), list(self.space.sizes))
        rows = [torch.softmax(part, dim=0).tolist() for part in parts]
        return [self._rows.get(edge, row) for edge, row in enumerate(rows)]

    def _importance(self, edge: int, row: Sequence[float]) -> float:
        choices = self.operations(edge)
        if len(choices) == len(row):  # no rounding, which ``scaled`` would magnify
            return 1.0
        return sum(row[choice] for choice in choices)

    def _shares(self, edge: int, row: Sequence[float]) -> list[float]:
        """Return the weights of the operations that a cell may have, with sum 1."""
        total = self._importance(edge, row)
        return [row[choice] / total for choice in self.operations(edge)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method, the decisions and what they depend on."""
        more = {"rows": dict(self._rows), "history": list(self._history)}
        return super().state_dict() | more

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self._rows = {int(edge): list(row) for edge, row in state["rows"].items()}
        self._history = list(state["history"])


class StableGreedyEdges(GreedyEdges):
    """SGAS: darts1 that decides the best stable edge at a time (criterion 2).

    The score has a third factor: how much the shares of the operations overlap with those after
    the last four epochs.
    """

    looks_back = True
