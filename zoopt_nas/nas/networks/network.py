"""A trainable network with the architecture that a search has found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.operations import seed_noise


class Network(nn.Module, ABC):
    """A trainable network of one architecture.

    Args:
        genotype: The architecture.

    Attributes:
        drop_path_probability: Probability in [0, 1) to drop a sample on an edge in training mode.
        channels_last: Whether to compute in the channels-last memory format.
        auxiliary: A second classifier for training; None if there is none.
    """

    stem: nn.Module
    auxiliary: nn.Module | None

    def __init__(self, genotype: Architecture) -> None:
        super().__init__()
        self.genotype = genotype
        self.drop_path_probability = 0.0
        self.channels_last = True
        self._generator: torch.Generator | None = None

    def set_generator(self, generator: torch.Generator | None) -> None:
        """Set the generator of drop path and noise, on the network's device."""
        self._generator = generator
        seed_noise(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(batch, n_classes)`` of ``images`` (batch, in_channels, h, w)."""
        return self._run(images, None)[0]

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both heads, each ``(batch, n_classes)``.

        Raises:
            InvalidValueError: The network has no auxiliary head.
        """
        if self.auxiliary is None:
            raise InvalidValueError("auxiliary must be True to use the auxiliary head, got False")
        return cast(tuple[Tensor, Tensor], self._run(images, self.auxiliary))

    @abstractmethod
    def _run(self, images: Tensor, auxiliary: nn.Module | None) -> tuple[Tensor, Tensor | None]:
        """Return the logits, and those of the auxiliary head if it is given."""

    def _in_format(self, x: Tensor) -> Tensor:
        """Return ``x`` in the memory format of the network."""
        if not self.channels_last:
            return x
        return x.contiguous(memory_format=torch.channels_last)  # faster convolutions and pools
