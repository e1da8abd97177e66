"""Search spaces: the candidate operations of each edge, and the meaning of alpha.

Alpha is a flat vector: one number per candidate of edge 0 of the normal cell, of edge 1, ..., then
of the reduction cell. Edges are ordered by destination node, then by source node, and may have
different candidates. With edge normalization one number per edge follows. Sources: Liu et al.
(2019); Zela et al. (2020) for S1-S4; Xu et al. (2020) for edge normalization.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.genotype import CELL_KINDS, EDGES_PER_NODE, N_INPUTS, Edge, Genotype
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.registry import Registry

N_NODES = 4  # intermediate nodes of a cell


def cell_edges(n_nodes: int = N_NODES) -> tuple[tuple[int, int], ...]:
    """Return the ``(source, destination)`` pairs of a cell, in the order of the edge index."""
    return tuple(
        (source, node) for node in range(N_INPUTS, N_INPUTS + n_nodes) for source in range(node)
    )


@dataclass(frozen=True)
class SearchSpace:
    """A cell-based search space.

    Attributes:
        name: Key in ``SPACES``.
        normal, reduce: Names of the candidate operations of each edge of the cell.
        n_nodes: Number of intermediate nodes of a cell.
        edge_normalization: Whether alpha also weighs the edges into each node, by a softmax over
            them (PC-DARTS, Eq. 3).

    Raises:
        InvalidValueError: The number of edges is wrong, or an edge has only ``none``.
        UnknownNameError: A candidate is not in ``OPERATIONS``.
    """

    name: str
    normal: tuple[tuple[str, ...], ...]
    reduce: tuple[tuple[str, ...], ...]
    n_nodes: int = N_NODES
    edge_normalization: bool = False

    def __post_init__(self) -> None:
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

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SearchSpace:
        """Read the result of ``to_json``.

        Raises:
            InvalidValueError: The text is not JSON, or not a space.
            UnknownNameError: A candidate is not in ``OPERATIONS``.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidValueError(f"space is not valid JSON: {error}") from error
        names = [spec.name for spec in fields(cls)]
        if not isinstance(found, dict) or set(found) != set(names):
            raise InvalidValueError(f"space must have the fields {', '.join(names)}")
        if not (
            isinstance(found["name"], str)
            and type(found["n_nodes"]) is int
            and isinstance(found["edge_normalization"], bool)
        ):
            raise InvalidValueError("space must have a name, a whole n_nodes and a switch")
        return cls(**{**found, **{kind: _read_edges(kind, found[kind]) for kind in CELL_KINDS}})

    def candidates(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Return the candidate operations of each edge of the ``"normal"`` or ``"reduce"`` cell."""
        candidates: tuple[tuple[str, ...], ...] = getattr(self, kind)
        return candidates

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of candidates of every edge, normal cell first."""
        return tuple(len(names) for kind in CELL_KINDS for names in self.candidates(kind))

    @property
    def dim(self) -> int:
        """The length of alpha."""
        return sum(self.sizes) + (len(self.sizes) if self.edge_normalization else 0)

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
        n_edges = len(self.normal)
        return {"normal": tuple(parts[:n_edges]), "reduce": tuple(parts[n_edges:])}

    def flatten(self, parts: dict[str, Sequence[Tensor]]) -> Tensor:
        """Invert ``unflatten``, without edge normalization."""
        return torch.cat([part for kind in CELL_KINDS for part in parts[kind]])

    def weights(self, alpha: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Return the softmax of alpha on each edge, times the edge's factor."""
        return {
            kind: tuple(part.exp() for part in parts)
            for kind, parts in self._log_weights(alpha).items()
        }

    def edge_factors(self, alpha: Tensor) -> Tensor:
        """Return the factor of each edge, ``(2 n_edges,)``; 1 without edge normalization."""
        return self._log_factors(alpha).exp()

    def _log_factors(self, alpha: Tensor) -> Tensor:
        if not self.edge_normalization:
            return alpha.new_zeros(len(self.sizes))
        # A node has an edge from each earlier node.
        n_incoming = [N_INPUTS + node for node in range(self.n_nodes)] * len(CELL_KINDS)
        parts = torch.split(alpha[sum(self.sizes) :], n_incoming)
        return torch.cat([torch.log_softmax(part, dim=0) for part in parts])

    def _log_weights(self, alpha: Tensor) -> dict[str, list[Tensor]]:
        parts = self.unflatten(alpha)
        factors = self._log_factors(alpha).chunk(len(CELL_KINDS))
        return {
            kind: [
                torch.log_softmax(part, dim=0) + factor
                for part, factor in zip(parts[kind], of_kind, strict=True)
            ]
            for kind, of_kind in zip(CELL_KINDS, factors, strict=True)
        }

    def discretize(self, alpha: Tensor) -> Genotype:
        """Return the genotype of alpha (Liu et al., 2019, section 2.4).

        The strength of an edge is the weight of its best candidate other than ``none``. Every node
        keeps its two strongest edges, each with its best candidate. Ties go to the earlier source
        and the earlier candidate.

        Raises:
            InvalidValueError: Alpha has another shape or is not finite.
        """
        alpha = alpha.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(alpha).all()):
            raise InvalidValueError("alpha must be finite to be discretized, got NaN or infinity")
        # Logarithms give the same ranking, without ties by underflow.
        weights = self._log_weights(alpha)
        cells = {kind: self._discretize_cell(kind, weights[kind]) for kind in CELL_KINDS}
        concat = tuple(range(N_INPUTS, N_INPUTS + self.n_nodes))
        return Genotype(cells["normal"], cells["reduce"], concat, concat)

    def edge_table(self, genotype: Genotype) -> Tensor:
        """Return architecture weights of 1 for the operations of a genotype and 0 for others.

        Returns:
            ``(2 n_edges, max candidates)``, normal cell first.

        Raises:
            InvalidValueError: An operation is not a candidate of its edge.
        """
        edges = cell_edges(self.n_nodes)
        table = torch.zeros(len(self.sizes), max(self.sizes))
        for k, kind in enumerate(CELL_KINDS):
            candidates = self.candidates(kind)
            for position, (name, source) in enumerate(genotype.edges(kind)):
                node = N_INPUTS + position // EDGES_PER_NODE
                edge = edges.index((source, node))
                if name not in candidates[edge]:
                    raise InvalidValueError(
                        f"{kind} edge {edge} must be one of {', '.join(candidates[edge])} in space "
                        f"{self.name}, got {name}"
                    )
                table[k * len(edges) + edge, candidates[edge].index(name)] = 1.0
        return table

    def _discretize_cell(self, kind: str, weights: Sequence[Tensor]) -> tuple[Edge, ...]:
        incoming: dict[int, list[tuple[float, str, int]]] = {}
        for (source, node), names, edge_weights in zip(
            cell_edges(self.n_nodes), self.candidates(kind), weights, strict=True
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


def _read_edges(kind: str, edges: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(edges, list) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in edges
    ):
        raise InvalidValueError(f"{kind} must list the names of the candidates of each edge")
    return tuple(map(tuple, edges))


def _uniform(name: str, *operations: str) -> SearchSpace:
    """Return a space with the same candidates on every edge of both cells."""
    cell = (operations,) * len(cell_edges())
    return SearchSpace(name, normal=cell, reduce=cell)


# The candidates of each edge of S1: two of the normal cell, two of the reduction cell.
_S1_EDGES = """
    skip_connect dil_conv_3x3  max_pool_3x3 avg_pool_3x3
    skip_connect dil_conv_5x5  max_pool_3x3 dil_conv_3x3
    skip_connect dil_conv_5x5  max_pool_3x3 avg_pool_3x3
    skip_connect sep_conv_3x3  max_pool_3x3 avg_pool_3x3
    skip_connect dil_conv_3x3  skip_connect dil_conv_5x5
    max_pool_3x3 skip_connect  max_pool_3x3 avg_pool_3x3
    skip_connect sep_conv_3x3  max_pool_3x3 sep_conv_3x3
    skip_connect sep_conv_3x3  skip_connect dil_conv_3x3
    skip_connect dil_conv_3x3  skip_connect dil_conv_5x5
    skip_connect sep_conv_3x3  max_pool_3x3 avg_pool_3x3
    max_pool_3x3 skip_connect  max_pool_3x3 avg_pool_3x3
    skip_connect dil_conv_3x3  skip_connect dil_conv_5x5
    dil_conv_3x3 dil_conv_5x5  skip_connect dil_conv_5x5
    dil_conv_3x3 dil_conv_5x5  skip_connect dil_conv_5x5
"""


def _s1() -> SearchSpace:
    rows = [line.split() for line in _S1_EDGES.strip().splitlines()]
    normal, reduce = (tuple(tuple(row[i : i + 2]) for row in rows) for i in (0, 2))
    return SearchSpace("s1", normal, reduce)


_DARTS_OPERATIONS = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip

SPACES: Registry[SearchSpace] = Registry(
    "space",
    {
        "s1": _s1(),
        "s2": _uniform("s2", "skip_connect", "sep_conv_3x3"),
        "s3": _uniform("s3", "none", "skip_connect", "sep_conv_3x3"),
        "s4": _uniform("s4", "noise", "sep_conv_3x3"),
        "darts": _uniform("darts", *_DARTS_OPERATIONS),
        "darts_none": _uniform("darts_none", "none", *_DARTS_OPERATIONS),
    },
    group="zoopt_nas.spaces",
    check=lambda entry: isinstance(entry, SearchSpace),
)
