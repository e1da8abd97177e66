"""The weight-sharing supernet: all candidate operations of a space, weighted by alpha."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.kernels.channels_last import channels_last
from zoopt_nas.nas.networks.merged_kernels import merges
from zoopt_nas.nas.networks.operations import (
    OPERATIONS,
    OperationBuilder,
    SkipDropout,
    Stochastic,
    skip_with_dropout,
)
from zoopt_nas.nas.networks.relaxation import RELAXATIONS
from zoopt_nas.nas.networks.skeleton import drop_path
from zoopt_nas.nas.networks.space import Kept, Path, SearchSpace

Drop = Callable[[Tensor], Tensor]
"""Drop path, applied to the output of each edge."""


def check_merging(space: SearchSpace) -> None:
    """Refuse a space in which ``merge_kernels`` has no effect.

    Raises:
        InvalidValueError: No edge has two convolutions that can share a kernel.
    """
    edges = [names for kind in space.kinds for names in space.candidates(kind)]
    if not any(map(merges, edges)):
        raise InvalidValueError(
            f"merge_kernels must be false in space {space.name}, where no edge has two "
            "convolutions that can share a kernel, got true"
        )


class Supernet(Stochastic, ABC):
    """The supernet of a search space. Alpha is an argument of ``forward``, never an attribute.

    Two forms share the weights: the mixed supernet computes every candidate and weighs it by the
    relaxation of alpha (DARTS); along a path only one candidate of each edge is computed, as in the
    discrete cell of the path, in the time and memory of that cell.

    Args:
        space: The search space.
        auxiliary_skip: Whether each edge has one more skip connection, whose weight does not depend
            on alpha (DARTS-: Chu et al., 2021).
        kept: The candidates to build; None builds all. The others compute zeros, so alpha should
            give them no weight.
        drops_skips: Whether skip connections have dropout (P-DARTS), except auxiliary ones.
        merge_kernels: Whether the convolutions of an edge share a kernel; see ``merged_kernels``.

    Attributes:
        drop_path_probability: Probability in [0, 1) to drop a sample on an edge in training mode
            (Zela et al., 2020).
        auxiliary_weight: Weight () of the auxiliary skip connections; 0 at first.
        stem_channels: Output channels of the stem.
        channels_last: Whether to compute in the channels-last memory format.

    Raises:
        InvalidValueError: ``merge_kernels`` is true, and no edge has two such convolutions.
    """

    stem: nn.Module
    cells: nn.ModuleList
    head: nn.Module
    stem_channels: int

    def __init__(
        self,
        space: SearchSpace,
        auxiliary_skip: bool = False,
        kept: Kept | None = None,
        drops_skips: bool = False,
        merge_kernels: bool = False,
    ) -> None:
        super().__init__()
        if merge_kernels:
            check_merging(space)
        self.space = space
        self._kept, self._drops_skips = kept, drops_skips
        self.channels_last = True
        self.drop_path_probability = 0.0
        # Positions of alpha's entries in a table with a row per edge, padded to the longest edge.
        sizes = torch.tensor(space.sizes)
        self.table_width = max(space.sizes) + auxiliary_skip
        columns = torch.arange(self.table_width)
        self._mask: Tensor
        self._places: Tensor
        self._auxiliary: Tensor | None
        self.auxiliary_weight: Tensor
        self.register_buffer("_mask", columns < sizes[:, None], persistent=False)
        self.register_buffer("_places", torch.tensor(space.places).T, persistent=False)
        # A buffer, so that a CUDA graph follows its changes.
        self.register_buffer("auxiliary_weight", torch.zeros(()), persistent=False)
        is_auxiliary = (columns == sizes[:, None]) if auxiliary_skip else None
        self.register_buffer("_auxiliary", is_auxiliary, persistent=False)

    def forward(self, images: Tensor, alpha: Tensor | Path) -> Tensor:
        """Return the logits ``(batch, n_classes)``.

        Args:
            images: Normalised images, (batch, in_channels, h, w).
            alpha: Architecture parameters ``(dim,)``, on the device of the images, for the mixed
                supernet; or the path of a discrete cell.

        Raises:
            InvalidValueError: Alpha has another shape, or the path another length.
        """
        if isinstance(alpha, Tensor):
            return self.mix(images, self.edge_weights(alpha))
        return self.follow(images, alpha)

    @abstractmethod
    def mix(self, images: Tensor, weights: Tensor) -> Tensor:
        """Return the logits for architecture weights ``(n_edges, table_width)``.

        A row need not sum to 1. With edge normalization its sum is the edge's factor.
        """

    @abstractmethod
    def follow(self, images: Tensor, path: Path, scales: Tensor | None = None) -> Tensor:
        """Return the logits along a path, which computes one operation of each used edge.

        ``scales`` ``(n_edges,)`` multiply the outputs of the operations; None is 1.
        """

    def edge_weights(self, alpha: Tensor) -> Tensor:
        """Return the architecture weights at alpha ``(dim,)``: ``(n_edges, table_width)``.

        Edges are those of all kinds of cells. A row has the weights of the candidates, then of the
        auxiliary skip connection, if there are any, and is padded with 0.

        Raises:
            InvalidValueError: Alpha has another shape.
        """
        return self.with_edges(self.operation_weights(alpha), alpha)

    def with_edges(self, weights: Tensor, alpha: Tensor) -> Tensor:
        """Return ``edge_weights`` for other operation weights than those of alpha."""
        if self.space.edge_normalization:
            weights = weights * self.space.edge_factors(alpha)[:, None]
        if self._auxiliary is not None:
            weights = weights + self.auxiliary_weight * self._auxiliary
        return weights

    def operation_weights(self, alpha: Tensor) -> Tensor:
        """Return the weights of the candidates alone, by the space's relaxation."""
        return RELAXATIONS[self.space.relaxation].weights(self.alpha_table(alpha))

    def alpha_table(self, alpha: Tensor) -> Tensor:
        """Return alpha as a table ``(n_edges, table_width)``, -inf where there is no candidate."""
        self.space.check_shape(alpha)
        table = alpha.new_full(self._mask.shape, -torch.inf)
        # torch.vmap has no masked_scatter.
        return table.index_put(tuple(self._places), alpha[: self._places.shape[1]])

    def set_skips(self, auxiliary_weight: float, dropout: float) -> None:
        """Set the weight of auxiliary skip connections, and the dropout rate of the others."""
        self.auxiliary_weight.fill_(auxiliary_weight)
        for module in self.modules():
            if isinstance(module, SkipDropout):
                module.rate.fill_(dropout)

    def _builders(self, edge: int, names: Sequence[str]) -> list[OperationBuilder]:
        """Return the builders of the candidates of an edge, then of its auxiliary operation."""
        skip = OPERATIONS["skip_connect"]
        builders = [OPERATIONS[name] for name in names]
        if self._kept is not None:
            kept = self._kept[edge]
            builders = [b if k in kept else OPERATIONS["none"] for k, b in enumerate(builders)]
        if self._drops_skips:
            builders = [skip_with_dropout if b is skip else b for b in builders]
        return builders if self._auxiliary is None else [*builders, skip]

    def _check_path(self, path: Path) -> None:
        if len(path) != len(self.space.sizes):
            raise InvalidValueError(
                f"path must have {len(self.space.sizes)} entries in space {self.space.name}, "
                f"got {len(path)}"
            )

    def _in_format(self, x: Tensor) -> Tensor:
        """Return ``x`` in the memory format of the supernet."""
        return channels_last(x) if self.channels_last else x  # faster convolutions and pools

    def _drop(self) -> Drop | None:
        if not (self.training and self.drop_path_probability > 0):
            return None
        return partial(drop_path, probability=self.drop_path_probability, generator=self.generator)
