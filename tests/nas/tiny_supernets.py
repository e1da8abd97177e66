"""Tiny float64 searches, for the tests of the bilevel objective and of the updates of alpha."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.nasbench201_modules import NasBench201Supernet
from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.steps.weight_step import weight_step

DARTS_SPACES = {name: space for name, space in SPACES.items() if isinstance(space, DartsSpace)}
"""The registered spaces with a normal and a reduction cell, by name."""

# One intermediate node: the smallest cell that has mixed edges.
TINY = DartsSpace(
    "tiny",
    normal=(("none", "skip_connect", "sep_conv_3x3"),) * 2,
    reduce=(("avg_pool_3x3", "dil_conv_3x3"), ("skip_connect", "sep_conv_3x3")),
    n_nodes=1,
)
NOISY = DartsSpace(
    "noisy",
    normal=(("noise", "sep_conv_3x3"),) * 2,
    reduce=(("noise", "sep_conv_3x3"),) * 2,
    n_nodes=1,
)


def supernet_of(
    space: SearchSpace, n_classes: int, init_channels: int, n_cells: int, **options: int
) -> Supernet:
    """The supernet of a space of any kind."""
    build = DartsSupernet if isinstance(space, DartsSpace) else NasBench201Supernet
    return build(space, n_classes, init_channels, n_cells, **options)


@dataclass
class FakeStream:
    """Random batches; counts how many were taken."""

    seed: int
    n_images: int = 6
    n_taken: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        self.n_taken += 1
        n = self.n_images
        images = torch.randn(n, 1, 6, 6, generator=self.generator, dtype=torch.float64)
        return images, torch.randint(3, (n,), generator=self.generator)


class OnAnotherDevice:
    """Stands for a tensor of a checkpoint that was loaded onto a GPU: only a copy can be read."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def cpu(self) -> Tensor:
        return self._tensor


@dataclass
class Setup:
    net: Supernet
    optimizer: torch.optim.SGD
    noise: torch.Generator

    def objective(self, *, seed: int = 0, streams: int = 0, **options) -> BilevelObjective:
        # One by one: what is tested of it is exact.
        options = {"inner_steps": 3, "candidates_per_batch": 1} | options
        return BilevelObjective(
            self.net,
            self.optimizer,
            FakeStream(streams),
            FakeStream(streams + 1),
            seed=seed,
            **options,
        )

    def alphas(self, n: int = 3, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, self.net.space.dim, generator=generator, dtype=torch.float64)

    def train(self, n_steps: int = 2) -> None:
        stream = FakeStream(77)
        for _ in range(n_steps):
            images, labels = stream.next_batch()
            loss = F.cross_entropy(self.net(images, self.alphas(1)[0]), labels)
            weight_step(loss, self.optimizer, 5.0)


def setup(
    space: SearchSpace = TINY, *, momentum: float = 0.9, trained: bool = True, **sgd
) -> Setup:
    torch.manual_seed(0)
    net = supernet_of(space, 3, 2, 3, in_channels=1).double()
    noise = torch.Generator().manual_seed(123)
    seed_noise(net, noise)
    sgd = {"lr": 0.05, "weight_decay": 1e-2} | sgd
    made = Setup(net, torch.optim.SGD(net.parameters(), momentum=momentum, **sgd), noise)
    if trained:
        made.train()
    return made


def build(
    inner: str = "second", *, space: DartsSpace = TINY, lr: float = 0.5, trained: bool = True
) -> tuple[BilevelObjective, Tensor]:
    """An objective on a tiny float64 supernet, with momentum in its optimizer, and an alpha."""
    torch.manual_seed(0)
    net = DartsSupernet(space, 3, 4, 2, in_channels=1).double()
    seed_noise(net, torch.Generator().manual_seed(5))
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(1)
    alpha = torch.randn(space.dim, generator=generator, dtype=torch.float64)
    if trained:
        images, labels = FakeStream(9, 8).next_batch()
        for _ in range(3):
            weight_step(F.cross_entropy(net(images, alpha), labels), sgd, 5.0)
    sgd.param_groups[0]["lr"] = lr
    return BilevelObjective(
        net, sgd, FakeStream(0, 8), FakeStream(1, 8), seed=0, inner=inner
    ), alpha


def fixed_draw(objective: BilevelObjective, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """The draw that every later call of ``objective.draw`` gives."""
    draw = objective.draw()
    monkeypatch.setattr(objective, "draw", lambda: draw)
    return draw


def flat_weights(net: Supernet) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def tiny(space: DartsSpace, n_cells: int = 3, stem: str = "cifar") -> DartsSupernet:
    """A supernet of a space for images of two channels and three classes."""
    torch.manual_seed(0)
    net = DartsSupernet(space, 3, 4, n_cells, in_channels=2, stem=stem).double()
    seed_noise(net, torch.Generator())
    return net


def alpha_of(space: SearchSpace, seed: int = 0) -> Tensor:
    """A random alpha."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(space.dim, generator=generator, dtype=torch.float64)


def images(size: int = 8, batch: int = 3) -> Tensor:
    """Random images of two channels."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 2, size, size, generator=generator, dtype=torch.float64)


class OneBatch:
    """A stream with one batch of six images of three channels."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
        self.batch = images, torch.tensor([0, 1, 2, 0, 1, 2])

    def next_batch(self):
        return self.batch


# Steps of 1e-5 pass kinks of rectifiers; the rounding of this one is about 1e-8.
STEP = 1e-7


def slopes_of_weights(net: Supernet, table: np.ndarray) -> np.ndarray:
    """The derivative of the loss by each architecture weight, from central differences."""
    images, labels = OneBatch().batch
    net = copy.deepcopy(net).train()
    found = np.zeros_like(table)
    with torch.no_grad():
        for place in np.ndindex(table.shape):
            sides = []
            for sign in (1, -1):
                moved = table.copy()
                moved[place] += sign * STEP
                sides.append(float(F.cross_entropy(net.mix(images, torch.tensor(moved)), labels)))
            found[place] = (sides[0] - sides[1]) / (2 * STEP)
    return found
