"""What an update of alpha costs beyond the network passes that it is made of.

An update with N candidates and M inner steps consists of N * M weight steps and N validation
passes. This prints (time of a search's whole update) / (time of as many plain weight steps and
passes of the supernet), the median over interleaved repeats, with candidates one by one. Bar: at
most 1.03. GLD evaluates N + 1 candidates and RS 2 N; MGS also differentiates L_val in alpha once,
for its guide, which is counted in its update and not in its parts.

A last line for each size has (time of N candidates at once) / (time of N one by one).

    python benchmarks/alpha_update.py [repeats] [--size digits 32x32 paper] [--space s3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas import SOLVERS
from zoopt_nas.nas.bilevel import BilevelObjective
from zoopt_nas.nas.operations import seed_noise
from zoopt_nas.nas.spaces import SPACES
from zoopt_nas.nas.supernet import Supernet
from zoopt_nas.nas.training import weight_step
from zoopt_nas.nas.updaters import ZeroOrderUpdater

N_SAMPLES = 4
N_STEPS = 10  # M
GRAD_CLIP = 5.0
BAR = 1.03
# name: images (batch, channels, side), init_channels, n_cells
SIZES = {
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


def timed(action: Callable[[], None]) -> float:
    """Processor seconds: with one thread that is all the work, whatever else the machine does."""
    started = time.process_time()
    action()
    return time.process_time() - started


class Bench:
    """A supernet with its optimizer at one of the sizes, and batches for it."""

    def __init__(self, space: str, size: str) -> None:
        shape, init_channels, n_cells = SIZES[size]
        torch.manual_seed(0)
        self.space, self.batches = SPACES[space], FixedBatches(shape)
        self.supernet = Supernet(self.space, 10, init_channels, n_cells, in_channels=shape[1])
        seed_noise(self.supernet, torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.SGD(
            self.supernet.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4
        )

    def objective(self, candidates_per_batch: int) -> BilevelObjective:
        return BilevelObjective(
            self.supernet,
            self.optimizer,
            self.batches,
            self.batches,
            seed=0,
            inner_steps=N_STEPS,
            grad_clip=GRAD_CLIP,
            candidates_per_batch=candidates_per_batch,
        )

    def update(self, method: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """An update of alpha one by one, and the plain steps and passes that it consists of."""
        objective = self.objective(1)
        solver = SOLVERS[method]().with_n_samples(N_SAMPLES)
        alpha = self.space.init_alpha(rng=0)
        updater = ZeroOrderUpdater(solver, alpha, seed=0, schedule="constant")
        images, labels = self.batches.next_batch()

        def update() -> None:
            updater.step(objective, 0.0)

        update()
        n_candidates = objective.n_evaluations

        def plain() -> None:
            for _ in range(n_candidates):
                for _ in range(N_STEPS):
                    loss = F.cross_entropy(self.supernet(images, alpha), labels)
                    weight_step(loss, self.supernet, self.optimizer, GRAD_CLIP)
                with torch.no_grad():
                    F.cross_entropy(self.supernet(images, alpha), labels)

        return update, plain

    def stacked(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """N candidates at once, and one by one."""
        one_by_one, at_once = self.objective(1), self.objective(N_SAMPLES)
        alphas = torch.stack([self.space.init_alpha(rng=seed) for seed in range(N_SAMPLES)])

        def stacked() -> None:
            at_once(alphas)

        def serial() -> None:
            one_by_one(alphas)

        return stacked, serial


def compare(
    pair: tuple[Callable[[], None], Callable[[], None]], repeats: int
) -> tuple[float, list[float]]:
    """Processor seconds of the first (median), and its ratio to the second in each repeat."""
    for action in pair:
        action()
    first, second = pair
    times = []
    for repeat in range(repeats):
        # Each comes first in turn, so that a drift of the machine's speed cancels.
        order = pair[::-1] if repeat % 2 else pair
        taken = {action: timed(action) for action in order}
        times.append((taken[first], taken[second]))
    return statistics.median(one for one, _ in times), [one / two for one, two in times]


def show(name: str, seconds: float, ratios: list[float]) -> None:
    print(
        f"{name}: {seconds:.3f} s, ratio {statistics.median(ratios):.3f} "
        f"(from {min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} repeats)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repeats", type=int, nargs="?", default=7)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["digits", "32x32"])
    parser.add_argument("--space", choices=list(SPACES), default="s3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    print(f"{options.space}, N={N_SAMPLES}, M={N_STEPS}")
    for size in options.size:
        for method in ("rs", "mgs", "gld"):
            seconds, ratios = compare(Bench(options.space, size).update(method), options.repeats)
            worst = max(worst, statistics.median(ratios))
            show(f"{size} {method}, an update to its parts", seconds, ratios)
        seconds, ratios = compare(Bench(options.space, size).stacked(), options.repeats)
        show(f"{size}, candidates at once to one by one", seconds, ratios)
    print(f"bar of an update: at most {BAR}; {'kept' if worst <= BAR else 'broken'}")


if __name__ == "__main__":
    main()
