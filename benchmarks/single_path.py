"""Time and memory of a weight step on a single path, relative to the mixed supernet.

    OMP_NUM_THREADS=1 python benchmarks/single_path.py [n_pairs] [space ...]

For each space, at the size of the papers (16 channels, 8 cells or 15 in NAS-Bench-201, batches of
64 images of 32x32), it takes steps on random paths and on the mixture in turn, and prints the
median and the range of the ratio of processor times. The memory is the estimate of a run: the
tensors that a step keeps for its backward pass, as a mean over 20 paths.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.nasbench201 import NasBench201Space
from zoopt_nas.nas.networks.nasbench201_modules import NasBench201Supernet
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.runs.memory import peak_bytes
from zoopt_nas.nas.search.paths import PathSampler

BATCH = 64


def build(name: str) -> Supernet:
    """Return the supernet of a space at the size of the papers."""
    torch.manual_seed(0)
    space = SPACES[name]
    if isinstance(space, NasBench201Space):
        return NasBench201Supernet(space, 10)
    assert isinstance(space, DartsSpace)
    return DartsSupernet(space, 10)


def seconds(step: Callable[[], Tensor]) -> float:
    """Return the processor time of forward and backward passes."""
    started = time.process_time()
    torch.autograd.backward(step())
    return time.process_time() - started


def compare(name: str, n_pairs: int) -> None:
    """Print the ratios of one space."""
    supernet = build(name)
    generator = torch.Generator().manual_seed(0)
    sampler = PathSampler(supernet.space, is_fair=False, generator=generator)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    weights = supernet.edge_weights(torch.zeros(supernet.space.dim))

    def mixed(x: Tensor = images, y: Tensor = labels) -> Tensor:
        return F.cross_entropy(supernet.mix(x, weights), y)

    def single(x: Tensor = images, y: Tensor = labels) -> Tensor:
        return F.cross_entropy(supernet.follow(x, sampler.next_paths()[0]), y)

    for step in (mixed, single):
        seconds(step)
    pairs = [(seconds(single), seconds(mixed)) for _ in range(n_pairs)]
    ratios = [one / other for one, other in pairs]
    two = images[:2], labels[:2]
    kept = [peak_bytes(lambda: single(*two), BATCH) for _ in range(20)]
    whole = peak_bytes(lambda: mixed(*two), BATCH)
    print(
        f"{name:12} time {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"of {statistics.median(pair[1] for pair in pairs):.2f} s; memory "
        f"{statistics.mean(kept) / whole:.2f} of {whole / 1e6:.0f} MB",
        flush=True,
    )


def main() -> None:
    """Compare the spaces of the command line, or all."""
    n_pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for name in sys.argv[2:] or ("nasbench201", "s2", "s3", "darts"):
        compare(name, n_pairs)


if __name__ == "__main__":
    main()
