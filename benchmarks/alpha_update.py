"""What an update of alpha costs beyond the network passes that it is made of.

An update with N candidates and M inner steps consists of N * M weight steps and N validation
passes. This prints (time of ask, evaluate, tell) / (time of as many plain weight steps and passes
of the supernet), the median over interleaved repeats. Bar: at most 1.05.

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

N_CANDIDATES = 4
GRAD_CLIP = 5.0
BAR = 1.05
# name: images (batch, channels, side), init_channels, n_cells, M
SIZES = {
    "digits": ((64, 1, 8), 4, 3, 4),
    "32x32": ((16, 3, 32), 8, 3, 3),
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
    shape: tuple[int, int, int], init_channels: int, n_cells: int, n_steps: int, repeats: int
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
        inner_steps=n_steps,
        grad_clip=GRAD_CLIP,
    )
    solver = SOLVERS["mgs"]().with_n_samples(N_CANDIDATES)
    alpha = space.init_alpha(rng=0)
    state = solver.init(alpha, rng=0)
    images, labels = batches.next_batch()

    def plain() -> None:
        for _ in range(N_CANDIDATES):
            for _ in range(n_steps):
                loss = F.cross_entropy(supernet(images, alpha), labels)
                weight_step(loss, supernet, optimizer, GRAD_CLIP)
            with torch.no_grad():
                F.cross_entropy(supernet(images, alpha), labels)

    def update() -> None:
        candidates = solver.ask(state)
        solver.tell(state, candidates, objective(candidates))

    plain()
    update()
    pairs = []
    for repeat in range(repeats):
        # Each comes first in turn, so that a drift of the machine's speed cancels.
        order = (plain, update) if repeat % 2 else (update, plain)
        times = {action: timed(action) for action in order}
        pairs.append((times[update], times[plain]))
    ratios = [update_time / plain_time for update_time, plain_time in pairs]
    return statistics.median(update_time for update_time, _ in pairs), ratios


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    torch.set_num_threads(1)
    worst = 0.0
    for name, (shape, init_channels, n_cells, n_steps) in SIZES.items():
        seconds, ratios = measure(shape, init_channels, n_cells, n_steps, repeats)
        ratio = statistics.median(ratios)
        worst = max(worst, ratio)
        print(
            f"{name}: N={N_CANDIDATES} M={n_steps}: {seconds:.3f} s an update, ratio "
            f"{ratio:.3f} (from {min(ratios):.3f} to {max(ratios):.3f}, {repeats} repeats)"
        )
    print(f"bar: at most {BAR}; {'kept' if worst <= BAR else 'broken'}")


if __name__ == "__main__":
    main()
