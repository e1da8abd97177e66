"""What an update of alpha costs beyond the network passes that it is made of.

An update with N candidates and M inner steps consists of N * M weight steps and N validation
passes. This prints (time of a search's whole update) / (time of as many plain weight steps and
passes of the supernet), the median over interleaved repeats. Bar: at most 1.05. GLD evaluates N + 1
candidates and RS 2 N; MGS also differentiates L_val in alpha once, for its guide, which is counted
in its update and not in its parts.

    python benchmarks/alpha_update.py [repeats]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas import SOLVERS
from zoopt_nas.nas.bilevel import BilevelObjective
from zoopt_nas.nas.spaces import SPACES
from zoopt_nas.nas.supernet import Supernet
from zoopt_nas.nas.training import weight_step
from zoopt_nas.nas.updaters import ZeroOrderUpdater

N_SAMPLES = 4
N_STEPS = 10  # M
GRAD_CLIP = 5.0
BAR = 1.05
# name: images (batch, channels, side), init_channels, n_cells
SIZES = {
    "digits": ((64, 1, 8), 4, 3),
    "32x32": ((16, 3, 32), 8, 3),
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


def timed(action: Callable[[], None]) -> float:
    """Processor seconds: with one thread that is all the work, whatever else the machine does."""
    started = time.process_time()
    action()
    return time.process_time() - started


def measure(
    method: str, shape: tuple[int, int, int], init_channels: int, n_cells: int, repeats: int
) -> tuple[float, list[float]]:
    """Processor seconds of an update (median), and the ratio in each repeat."""
    torch.manual_seed(0)
    space, batches = SPACES["s3"], FixedBatches(shape)
    supernet = Supernet(space, 10, init_channels, n_cells, in_channels=shape[1])
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    objective = BilevelObjective(
        supernet,
        optimizer,
        batches,
        batches,
        seed=0,
        inner_steps=N_STEPS,
        grad_clip=GRAD_CLIP,
    )
    solver = SOLVERS[method]().with_n_samples(N_SAMPLES)
    alpha = space.init_alpha(rng=0)
    updater = ZeroOrderUpdater(solver, alpha, seed=0, schedule="constant")
    images, labels = batches.next_batch()

    def update() -> None:
        updater.step(objective, 0.0)

    update()
    n_candidates = objective.n_evaluations

    def plain() -> None:
        for _ in range(n_candidates):
            for _ in range(N_STEPS):
                loss = F.cross_entropy(supernet(images, alpha), labels)
                weight_step(loss, supernet, optimizer, GRAD_CLIP)
            with torch.no_grad():
                F.cross_entropy(supernet(images, alpha), labels)

    plain()
    pairs = []
    for repeat in range(repeats):
        # Each comes first in turn, so that a drift of the machine's speed cancels.
        order = (plain, update) if repeat % 2 else (update, plain)
        times = {action: timed(action) for action in order}
        pairs.append((times[update], times[plain]))
    ratios = [update_time / plain_time for update_time, plain_time in pairs]
    return statistics.median(update_time for update_time, _ in pairs), ratios


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    torch.set_num_threads(1)
    worst = 0.0
    for name, size in SIZES.items():
        for method in ("rs", "mgs", "gld"):
            seconds, ratios = measure(method, *size, repeats)
            ratio = statistics.median(ratios)
            worst = max(worst, ratio)
            print(
                f"{name} {method}: N={N_SAMPLES} M={N_STEPS}: {seconds:.3f} s an update, ratio "
                f"{ratio:.3f} (from {min(ratios):.3f} to {max(ratios):.3f}, {repeats} repeats)"
            )
    print(f"bar: at most {BAR}; {'kept' if worst <= BAR else 'broken'}")


if __name__ == "__main__":
    main()
