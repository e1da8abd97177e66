"""The space of NAS-Bench-201: alpha over the operations of one cell; see ``nasbench201_cell``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

from torch import Tensor

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.architecture import Architecture, CellGraph, PublishedSize
from zoopt_nas.nas.networks.genotype_text import shorten
from zoopt_nas.nas.networks.nasbench201_cell import (
    CELL_OPERATIONS,
    EDGES,
    FORM,
    N_NODES,
    format_cell,
    last_cell,
)
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.nas.networks.relaxation import check_relaxation
from zoopt_nas.nas.networks.space import EdgeGroup, LogWeights, Path, SearchSpace

CELL = "cell"  # the only kind of cell
_NONE = "none"
_FIELD = "nasbench201"  # of the JSON form


@dataclass(frozen=True)
class NasBench201Genotype(Architecture):
    """The immutable architecture of a NAS-Bench-201 cell.

    Attributes:
        operations: The operation of each edge, in the order of ``EDGES``.

    Raises:
        InvalidValueError: There are not six operations.
        UnknownNameError: An operation is not in ``OPERATIONS``.
    """

    operations: tuple[str, ...]
    published_sizes: ClassVar[tuple[PublishedSize, ...]] = (
        PublishedSize("CIFAR-10", 32, 10, 16, 15, "cifar"),
        PublishedSize("ImageNet16-120", 16, 120, 16, 15, "cifar"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        if len(self.operations) != len(EDGES):
            raise InvalidValueError(
                f"operations must have {len(EDGES)} names, got {len(self.operations)}"
            )
        for name in self.operations:
            if name not in OPERATIONS:
                raise UnknownNameError("operation", str(name), OPERATIONS)

    @property
    def cells(self) -> dict[str, CellGraph]:
        """The graph of the cell."""
        edges = tuple((name, *edge) for name, edge in zip(self.operations, EDGES, strict=True))
        nodes = tuple(map(str, range(N_NODES)))
        return {CELL: CellGraph("cell", nodes, 1, edges, (N_NODES - 1,))}

    def to_dict(self) -> dict[str, Any]:
        """Return the published string under the name of the space."""
        return {_FIELD: str(self)}

    def __str__(self) -> str:
        """Return the published string ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``."""
        return format_cell(self.operations)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> NasBench201Genotype:
        """Read the result of ``to_dict``."""
        return cls.from_string(str(fields[_FIELD]))

    @classmethod
    def from_string(cls, text: str) -> NasBench201Genotype:
        """Read the last cell in a text, such as a log.

        Raises:
            InvalidValueError: The text has no cell in the published form.
            UnknownNameError: An operation is not in ``OPERATIONS``.
        """
        found = last_cell(text)
        if found is None:
            raise InvalidValueError(f"cell must read {FORM}, got {shorten(text.strip())}")
        return cls(found.groups())


def is_cell_dict(fields: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether ``NasBench201Genotype.from_dict`` accepts ``fields``."""
    return isinstance(fields, Mapping) and set(fields) == {_FIELD}


def check_cells(space: SearchSpace) -> None:
    """Refuse a space whose architectures are not in a table of NAS-Bench-201."""
    if not isinstance(space, NasBench201Space):
        raise InvalidValueError(
            f"table must be left out in space {space.name}, whose cells it does not have"
        )


@dataclass(frozen=True)
class NasBench201Space(SearchSpace):
    """The space of NAS-Bench-201: the same candidates on each edge, of which each keeps one.

    Attributes:
        name: Key in ``SPACES``.
        operations: Names of the candidate operations.
        edge_normalization, relaxation: See ``SearchSpace``; they do not change the discrete
            architecture.

    Raises:
        InvalidValueError: There are no operations.
        UnknownNameError: A candidate is not in ``OPERATIONS``, or there is no such relaxation.
    """

    name: str = "nasbench201"
    operations: tuple[str, ...] = CELL_OPERATIONS
    edge_normalization: bool = False
    relaxation: str = "softmax"
    kinds: ClassVar[tuple[str, ...]] = (CELL,)
    cell_multiple: ClassVar[int] = 3  # its networks have three stages

    def __post_init__(self) -> None:
        check_relaxation(self.relaxation)
        if not self.operations:
            raise InvalidValueError("operations must have a candidate, got none")
        for name in self.operations:
            if name not in OPERATIONS:
                raise UnknownNameError("operation", name, OPERATIONS)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> NasBench201Space:
        """Return the space of fields from JSON; see ``space_from_json``."""
        names = fields["operations"]
        if not (
            isinstance(fields["name"], str)
            and isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and isinstance(fields["edge_normalization"], bool)
            and isinstance(fields["relaxation"], str)
        ):
            raise InvalidValueError(
                "space must have a name, a list of operations, a relaxation and a switch"
            )
        return cls(**{**fields, "operations": tuple(names)})

    def candidates(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Return the candidate operations of each edge of the cell."""
        return (self.operations,) * len(EDGES)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """See ``SearchSpace.edges``."""
        return EDGES

    @property
    def groups(self) -> tuple[EdgeGroup, ...]:
        """The single edges."""
        choices = (tuple(range(len(self.operations))),)
        return tuple(EdgeGroup((edge,), choices, 1) for edge in range(len(EDGES)))

    def discretize(self, alpha: Tensor) -> NasBench201Genotype:
        """Return the best candidate of each edge; ties go to the earlier one.

        Raises:
            InvalidValueError: Alpha has another shape or is not finite.
        """
        return self.choose(self.log_weights(alpha))

    def choose(self, log_weights: LogWeights) -> NasBench201Genotype:
        """See ``SearchSpace.choose``."""
        best = [int(part.argmax()) for part in log_weights[CELL]]
        return NasBench201Genotype(tuple(self.operations[choice] for choice in best))

    def path(self, architecture: NasBench201Genotype) -> Path:
        """See ``SearchSpace.path``."""
        if not isinstance(architecture, NasBench201Genotype):
            raise InvalidValueError(f"{architecture} is not an architecture of space {self.name}")
        return tuple(
            self._choice(CELL, edge, name) for edge, name in enumerate(architecture.operations)
        )

    def canonical(self, path: Path) -> Path:
        """Return the path with ``none`` on edges that do not lead from the input to the output.

        Without affine BatchNorm the published operations map zeros to zeros, so an edge from a node
        that nothing reaches contributes nothing. Other operations, such as ``noise``, may.
        """
        if _NONE not in self.operations:
            return path
        none = self.operations.index(_NONE)
        used = [edge for edge, choice in zip(EDGES, path, strict=True) if choice != none]
        is_published = set(self.operations) <= set(CELL_OPERATIONS)
        reached = {0} if is_published else set(range(N_NODES))
        useful = {N_NODES - 1}
        for source, node in used:  # in the order of their nodes
            reached |= {node} if source in reached else set()
        for source, node in reversed(used):
            useful |= {source} if node in useful else set()
        return tuple(
            choice if source in reached and node in useful else none
            for (source, node), choice in zip(EDGES, path, strict=True)
        )
