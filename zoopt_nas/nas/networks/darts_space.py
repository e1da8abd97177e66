"""The search spaces of DARTS: a normal and a reduction cell with two inputs each.

Sources: Liu et al. (2019); Zela et al. (2020) for S1-S4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.genotype import CELL_KINDS, EDGES_PER_NODE, N_INPUTS, Edge, Genotype
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.nas.networks.relaxation import check_relaxation
from zoopt_nas.nas.networks.space import (
    UNUSED,
    EdgeGroup,
    LogWeights,
    Path,
    SearchSpace,
    read_edges,
)

N_NODES = 4  # intermediate nodes of a cell


def cell_edges(n_nodes: int = N_NODES) -> tuple[tuple[int, int], ...]:
    """Return the ``(source, target)`` nodes of the edges of a cell, in the order of their index."""
    return tuple(
        (source, node) for node in range(N_INPUTS, N_INPUTS + n_nodes) for source in range(node)
    )


@dataclass(frozen=True)
class DartsSpace(SearchSpace):
    """A space of two cells whose nodes keep two incoming edges each.

    Attributes:
        name: Key in ``SPACES``.
        normal, reduce: Names of the candidate operations of each edge of the cell.
        n_nodes: Number of intermediate nodes of a cell.
        edge_normalization, relaxation: See ``SearchSpace``.

    Raises:
        InvalidValueError: The number of edges is wrong, or an edge has only ``none``.
        UnknownNameError: A candidate is not in ``OPERATIONS``, or there is no such relaxation.
    """

    name: str
    normal: tuple[tuple[str, ...], ...]
    reduce: tuple[tuple[str, ...], ...]
    n_nodes: int = N_NODES
    edge_normalization: bool = False
    relaxation: str = "softmax"
    kinds: ClassVar[tuple[str, ...]] = CELL_KINDS

    def __post_init__(self) -> None:
        check_relaxation(self.relaxation)
        n_edges = len(cell_edges(self.n_nodes))
        for kind in CELL_KINDS:
            candidates = self.candidates(kind)
            if len(candidates) != n_edges:
                raise InvalidValueError(
                    f"{kind} must list candidates for {n_edges} edges, got {len(candidates)}"
                )
            for edge, names in enumerate(candidates):
                if all(name == "none" for name in names):
                    raise InvalidValueError(
                        f"{kind} edge {edge} must have a candidate other than none, got {names}"
                    )
                for name in names:
                    if name not in OPERATIONS:
                        raise UnknownNameError("operation", name, OPERATIONS)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> DartsSpace:
        """Return the space of fields from JSON; see ``space_from_json``."""
        if not (
            isinstance(fields["name"], str)
            and type(fields["n_nodes"]) is int
            and isinstance(fields["edge_normalization"], bool)
            and isinstance(fields["relaxation"], str)
        ):
            raise InvalidValueError(
                "space must have a name, a whole n_nodes, a relaxation and a switch"
            )
        return cls(**{**fields, **{kind: read_edges(kind, fields[kind]) for kind in CELL_KINDS}})

    def candidates(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Return the candidate operations of each edge of the ``"normal"`` or ``"reduce"`` cell."""
        candidates: tuple[tuple[str, ...], ...] = getattr(self, kind)
        return candidates

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """See ``SearchSpace.edges``."""
        return cell_edges(self.n_nodes)

    @property
    def groups(self) -> tuple[EdgeGroup, ...]:
        """The edges into each node, of which two are kept; ``none`` is never chosen."""
        groups = []
        for k, kind in enumerate(CELL_KINDS):
            for node in range(N_INPUTS, N_INPUTS + self.n_nodes):
                incoming = [i for i, (_, target) in enumerate(self.edges) if target == node]
                choices = [
                    tuple(c for c, name in enumerate(self.candidates(kind)[i]) if name != "none")
                    for i in incoming
                ]
                indices = tuple(k * len(self.edges) + i for i in incoming)
                groups.append(EdgeGroup(indices, tuple(choices), EDGES_PER_NODE))
        return tuple(groups)

    def discretize(self, alpha: Tensor) -> Genotype:
        """Return the genotype of alpha (Liu et al., 2019, section 2.4).

        The strength of an edge is the weight of its best candidate other than ``none``. Every node
        keeps its two strongest edges, each with its best candidate. Ties go to the earlier source
        and the earlier candidate.

        Raises:
            InvalidValueError: Alpha has another shape or is not finite.
        """
        return self.choose(self.log_weights(alpha))

    def choose(self, log_weights: LogWeights) -> Genotype:
        """See ``SearchSpace.choose``."""
        cells = {kind: self._choose_cell(kind, log_weights[kind]) for kind in CELL_KINDS}
        concat = tuple(range(N_INPUTS, N_INPUTS + self.n_nodes))
        return Genotype(cells["normal"], cells["reduce"], concat, concat)

    def path(self, architecture: Genotype) -> Path:
        """See ``SearchSpace.path``."""
        if not isinstance(architecture, Genotype):
            raise InvalidValueError(f"{architecture} is not an architecture of space {self.name}")
        path = [UNUSED] * len(self.sizes)
        for k, kind in enumerate(CELL_KINDS):
            for position, (name, source) in enumerate(architecture.edges(kind)):
                edge = self.edges.index((source, N_INPUTS + position // EDGES_PER_NODE))
                place = k * len(self.edges) + edge
                if path[place] != UNUSED:
                    raise InvalidValueError(
                        f"{kind} edge {edge} must have one operation in space {self.name}, got two"
                    )
                path[place] = self._choice(kind, edge, name)
        return tuple(path)

    def _choose_cell(self, kind: str, weights: Sequence[Tensor]) -> tuple[Edge, ...]:
        incoming: dict[int, list[tuple[float, str, int]]] = {}
        for (source, node), names, edge_weights in zip(
            self.edges, self.candidates(kind), weights, strict=True
        ):
            choices = [
                (weight, name)
                for weight, name in zip(edge_weights.tolist(), names, strict=True)
                if name != "none"
            ]
            weight, name = max(choices, key=lambda choice: choice[0])  # the first of equals
            incoming.setdefault(node, []).append((weight, name, source))
        edges: list[Edge] = []
        for node in sorted(incoming):
            strongest = sorted(incoming[node], key=lambda edge: -edge[0])[:EDGES_PER_NODE]
            edges += [(name, source) for _, name, source in strongest]
        return tuple(edges)
