"""What all search spaces have in common: edges with candidate operations, and alpha over them.

Alpha is a flat vector: one number per candidate of edge 0 of the first kind of cell, of edge 1,
..., then of the next kind. Edges are ordered by destination node, then by source node, and may have
different candidates. With edge normalization one number per edge follows (Xu et al., 2020).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.relaxation import RELAXATIONS

Path = tuple[int, ...]
"""The chosen candidate of each edge by position, ``UNUSED`` on edges that are not in the cell."""

UNUSED = -1

Kept = tuple[tuple[int, ...], ...]
"""The candidates of each edge that a supernet has, by position, over all kinds of cells."""

LogWeights = Mapping[str, Sequence[Tensor]]
"""The logarithms of the weights of the candidates of each edge, by kind of cell."""


class EdgeGroup(NamedTuple):
    """Edges of which a discrete cell keeps some, each with one operation.

    Attributes:
        edges: Their indices, over all cells.
        choices: The candidates of each edge that a cell may have, by position.
        n_kept: How many of the edges a cell keeps.
    """

    edges: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    n_kept: int


class SearchSpace(ABC):
    """A cell-based search space.

    Attributes:
        name: Key in ``SPACES``.
        edge_normalization: Whether alpha also weighs the edges into each node, by a softmax over
            them (PC-DARTS, Eq. 3).
        relaxation: Key in ``RELAXATIONS``: how alpha weighs the candidates of an edge.
        kinds: The kinds of cells, in the order of alpha.
        cell_multiple: The number of cells of a network is a multiple of it.
    """

    name: str
    edge_normalization: bool
    relaxation: str
    kinds: ClassVar[tuple[str, ...]]
    cell_multiple: ClassVar[int] = 1

    @abstractmethod
    def candidates(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Return the names of the candidate operations of each edge of a cell."""

    @property
    @abstractmethod
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The ``(source, target)`` nodes of each edge of a cell, in the order of the edge index."""

    @property
    @abstractmethod
    def groups(self) -> tuple[EdgeGroup, ...]:
        """The choices that make a discrete architecture, normal cell first."""

    @abstractmethod
    def discretize(self, alpha: Tensor) -> Architecture:
        """Return the architecture of alpha ``(dim,)``.

        Raises:
            InvalidValueError: Alpha has another shape or is not finite.
        """

    @abstractmethod
    def choose(self, log_weights: LogWeights) -> Architecture:
        """Return the architecture of weights of the candidates, as ``log_weights`` returns them.

        A candidate of weight 0, whose logarithm is -inf, is chosen only where there is no other.
        """

    @abstractmethod
    def path(self, architecture: Any) -> Path:
        """Return the candidate of each edge that an architecture of this space uses.

        Raises:
            InvalidValueError: An operation is not a candidate of its edge.
        """

    def canonical(self, path: Path) -> Path:
        """Return the same path for all paths of which the supernet is the same function."""
        return path

    def to_json(self) -> str:
        """Return one line of JSON, for ``space_from_json``."""
        assert is_dataclass(self)
        return json.dumps({"type": type(self).__name__, **asdict(self)})

    def may_choose(self, name: str) -> bool:
        """Return whether a discrete cell may have this operation."""
        names = [edge for kind in self.kinds for edge in self.candidates(kind)]
        return any(
            names[edge][choice] == name
            for group in self.groups
            for edge, choices in zip(group.edges, group.choices, strict=True)
            for choice in choices
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of candidates of every edge of every kind of cell."""
        return tuple(len(names) for kind in self.kinds for names in self.candidates(kind))

    @property
    def dim(self) -> int:
        """The length of alpha."""
        return sum(self.sizes) + (len(self.sizes) if self.edge_normalization else 0)

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The edge and the candidate of each entry of alpha, without the weights of edges."""
        return tuple((edge, k) for edge, size in enumerate(self.sizes) for k in range(size))

    def init_alpha(
        self,
        *,
        rng: int | torch.Generator,
        scale: float = 1e-3,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw alpha ``(dim,)`` as ``scale`` times standard normal numbers (Liu et al., 2019).

        ``rng`` is a seed or a CPU generator: the numbers are the same on every ``device``.
        """
        generator = rng if isinstance(rng, torch.Generator) else torch.Generator().manual_seed(rng)
        return (scale * torch.randn(self.dim, generator=generator)).to(device)

    def check_shape(self, alpha: Tensor) -> None:
        """Raise InvalidValueError unless alpha has the shape ``(dim,)``."""
        if alpha.shape != (self.dim,):
            raise InvalidValueError(
                f"alpha must have shape ({self.dim},) in space {self.name}, "
                f"got {tuple(alpha.shape)}"
            )

    def unflatten(self, alpha: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Split alpha ``(dim,)`` into a vector for each edge, without the weights of edges.

        Raises:
            InvalidValueError: Alpha has another shape.
        """
        self.check_shape(alpha)
        parts = torch.split(alpha[: sum(self.sizes)], list(self.sizes))
        n = len(self.edges)
        return {kind: tuple(parts[k * n : (k + 1) * n]) for k, kind in enumerate(self.kinds)}

    def flatten(self, parts: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Invert ``unflatten``, without edge normalization."""
        return torch.cat([part for kind in self.kinds for part in parts[kind]])

    def weights(self, alpha: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Return the weights of the candidates of each edge, times the edge's factor."""
        return {
            kind: tuple(part.exp() for part in parts)
            for kind, parts in self._log_weights(alpha).items()
        }

    def log_weights(self, alpha: Tensor) -> dict[str, list[Tensor]]:
        """Return the logarithms of ``weights`` in float64 on the CPU.

        They rank weights without ties by underflow.

        Raises:
            InvalidValueError: Alpha has another shape or is not finite.
        """
        alpha = alpha.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(alpha).all()):
            raise InvalidValueError("alpha must be finite to be discretized, got NaN or infinity")
        return self._log_weights(alpha)

    def edge_factors(self, alpha: Tensor) -> Tensor:
        """Return the factor of each edge, ``(n_edges,)``; 1 without edge normalization."""
        return self._log_factors(alpha).exp()

    def edge_table(self, architecture: Any) -> Tensor:
        """Return architecture weights of 1 for the operations of an architecture, 0 for others.

        Returns:
            ``(n_edges, max candidates)`` over all kinds of cells.

        Raises:
            InvalidValueError: An operation is not a candidate of its edge.
        """
        table = torch.zeros(len(self.sizes), max(self.sizes))
        for edge, choice in enumerate(self.path(architecture)):
            if choice != UNUSED:
                table[edge, choice] = 1.0
        return table

    def one_hot(self, path: Path, like: Tensor) -> Tensor:
        """Return an alpha whose architecture has this path: 1 for its operations, 0 for others.

        It has the device and type of ``like``. With edge normalization all edges weigh the same.
        """
        entries = [float(path[edge] == choice) for edge, choice in self.places]
        entries += [0.0] * (self.dim - len(entries))
        return torch.tensor(entries).to(like)

    def _choice(self, kind: str, edge: int, name: str) -> int:
        """Return the position of a candidate on an edge of a cell."""
        candidates = self.candidates(kind)[edge]
        if name not in candidates:
            raise InvalidValueError(
                f"{kind} edge {edge} must be one of {', '.join(candidates)} in space "
                f"{self.name}, got {name}"
            )
        return candidates.index(name)

    def _log_factors(self, alpha: Tensor) -> Tensor:
        if not self.edge_normalization:
            return alpha.new_zeros(len(self.sizes))
        targets = [target for _, target in self.edges]
        n_incoming = [targets.count(node) for node in dict.fromkeys(targets)] * len(self.kinds)
        parts = torch.split(alpha[sum(self.sizes) :], n_incoming)
        return torch.cat([torch.log_softmax(part, dim=0) for part in parts])

    def _log_weights(self, alpha: Tensor) -> dict[str, list[Tensor]]:
        parts = self.unflatten(alpha)
        factors = self._log_factors(alpha).chunk(len(self.kinds))
        log_weights = RELAXATIONS[self.relaxation].log_weights
        return {
            kind: [
                log_weights(part) + factor
                for part, factor in zip(parts[kind], of_kind, strict=True)
            ]
            for kind, of_kind in zip(self.kinds, factors, strict=True)
        }


def read_edges(kind: str, edges: Any) -> tuple[tuple[str, ...], ...]:
    """Return the candidates of each edge from JSON.

    Raises:
        InvalidValueError: They are not lists of strings.
    """
    if not isinstance(edges, list) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in edges
    ):
        raise InvalidValueError(f"{kind} must list the names of the candidates of each edge")
    return tuple(map(tuple, edges))
