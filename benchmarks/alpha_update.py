"""What an update of alpha costs beyond the network passes that it is made of.

An update with N candidates and M inner steps consists of N * M weight steps and N validation
passes. This prints (time of a search's whole update) / (time of as many plain weight steps and
passes of the supernet), the median over repeats, with candidates one by one. Bar: at most 1.03.
GLD evaluates N + 1 candidates and RS 2 N; MGS also differentiates L_val in alpha once, for its
guide, which is counted in its update and not in its parts.

    python benchmarks/alpha_update.py [repeats] [--size digits 32x32 paper] [--space s3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.algorithm import METHODS
from zoopt_nas.nas.search.evaluation import Draw
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps import weight_step as steps
from zoopt_nas.nas.steps.weight_step import weight_step

DARTS_SPACES = [name for name, space in SPACES.items() if isinstance(space, DartsSpace)]
N_SAMPLES = 4
N_STEPS = 10  # M
GRAD_CLIP = 5.0
BAR = 1.03
Size = tuple[tuple[int, int, int], int, int]
"""``(images (batch, channels, side), init_channels, n_cells)``."""

SIZES: dict[str, Size] = {
    "digits": ((64, 1, 8), 4, 3),
    "32x32": ((16, 3, 32), 8, 3),
    "paper": ((64, 3, 32), 16, 8),  # minutes for a repeat
}


class FixedBatches:
    """The same batch for ever: making batches is no part of this."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        batch, channels, side = shape
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, channels, side, side, generator=generator)
        self.batch = images, torch.randint(10, (batch,), generator=generator)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        return self.batch


def timed(action: Callable[[], Any]) -> float:
    """Processor seconds: with one thread that is all the work, whatever else the machine does."""
    started = time.process_time()
    action()
    return time.process_time() - started


class Bench:
    """A supernet with its optimizer at one of the sizes, and batches for it."""

    def __init__(self, space: str, size: Size) -> None:
        shape, init_channels, n_cells = size
        torch.manual_seed(0)
        self.space, self.batches = SPACES[space], FixedBatches(shape)
        self.supernet = DartsSupernet(self.space, 10, init_channels, n_cells, in_channels=shape[1])
        seed_noise(self.supernet, torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.SGD(
            self.supernet.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4
        )

    def objective(self, inner_steps: int, candidates_per_batch: int) -> BilevelObjective:
        return BilevelObjective(
            self.supernet,
            self.optimizer,
            self.batches,
            self.batches,
            seed=0,
            inner_steps=inner_steps,
            grad_clip=GRAD_CLIP,
            candidates_per_batch=candidates_per_batch,
        )

    def update(self, method: str, repeats: int) -> list[tuple[float, float]]:
        """Processor seconds of updates one by one, and of the plain parts of each.

        A plain step follows each step of the update, and a plain pass each pass: a machine whose
        speed drifts by tenths within seconds would drown the hundredths that are asked for.
        """
        objective = self.objective(N_STEPS, 1)
        alpha = self.space.init_alpha(rng=0)
        # The solver as a search has it: with these options, every update has as many candidates.
        config = SearchConfig.for_dataset(
            algo=method, solver={"n_samples": N_SAMPLES}, sigma_schedule="constant"
        )
        updater = METHODS[method].build(config, alpha, 0)
        images, labels = self.batches.next_batch()
        plain = 0.0

        def plain_step() -> None:
            loss = F.cross_entropy(self.supernet(images, alpha), labels)
            weight_step(loss, self.optimizer, GRAD_CLIP)

        def plain_pass() -> None:
            F.cross_entropy(self.supernet(images, alpha), labels)

        def step_and_plain(*args: Any, **options: Any) -> None:
            nonlocal plain
            weight_step(*args, **options)
            plain += timed(plain_step)

        def pass_and_plain(network: DartsSupernet, alpha: Tensor, draw: Draw) -> Tensor:
            nonlocal plain
            loss = BilevelObjective.val_loss(objective, network, alpha, draw)
            if not torch.is_grad_enabled():  # else it is the guide of MGS
                plain += timed(plain_pass)
            return loss

        times = []
        with (
            patch.object(steps, "weight_step", step_and_plain),
            patch.object(objective, "val_loss", pass_and_plain),
        ):
            for _ in range(repeats + 1):
                plain = 0.0
                whole = timed(lambda: updater.step(objective, 0.0))
                times.append((whole - plain, plain))
        return times[1:]  # the first one makes buffers


def show(name: str, times: list[tuple[float, float]]) -> float:
    """Prints the median of the first times and of the ratios; returns that of the ratios."""
    ratios = [first / second for first, second in times]
    median = statistics.median(ratios)
    print(
        f"{name}: {statistics.median(first for first, _ in times):.3f} s, ratio {median:.3f} "
        f"(from {min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} repeats)",
        flush=True,
    )
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repeats", type=int, nargs="?", default=7)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["digits", "32x32"])
    parser.add_argument("--space", choices=DARTS_SPACES, default="s3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    print(f"{options.space}, N={N_SAMPLES}, M={N_STEPS}")
    for size in options.size:
        for method in ("rs", "mgs", "gld"):
            times = Bench(options.space, SIZES[size]).update(method, options.repeats)
            worst = max(worst, show(f"{size} {method}, an update to its parts", times))
    print(f"bar of an update: at most {BAR}; {'kept' if worst <= BAR else 'broken'}")


if __name__ == "__main__":
    main()
