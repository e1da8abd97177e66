"""Time of N candidates of an update at once over that of N one by one, by size, N and space.

Whole evaluations (M weight steps and a validation pass of each candidate) on one thread, in
processor time; the median over interleaved pairs, and the lowest and highest. A size is
BATCHxSIDExCHANNELS: images, their side, and the supernet's init_channels; it has 3 cells. The first
column is what the stem puts out for a candidate, by which a search chooses on a CPU
(``--candidates-per-batch``).

    python benchmarks/candidates.py [repeats]
    python benchmarks/candidates.py --cpu-kernels off --sizes 64x8x4 16x32x4 --n 2 4 8
"""

from __future__ import annotations

import argparse
import statistics

import torch
from alpha_update import DARTS_SPACES, Bench, Size, timed

from zoopt_nas.nas.networks.fused import enable_kernels

N_STEPS = 2  # M
N_CELLS = 3


def size_of(text: str) -> Size:
    """Of BATCHxSIDExCHANNELS; the digits' images are grey, larger ones have three channels."""
    batch, side, init_channels = map(int, text.split("x"))
    return (batch, 1 if side == 8 else 3, side), init_channels, N_CELLS


def ratios(space: str, size: Size, n: int, cpu_kernels: bool, repeats: int) -> list[float]:
    """Of n candidates at once to n one by one, for each pair."""
    bench = Bench(space, size)
    enable_kernels(bench.supernet, cpu_kernels)
    alphas = torch.stack([bench.space.init_alpha(rng=seed) for seed in range(n)])
    pair = [bench.objective(N_STEPS, at_once) for at_once in (n, 1)]
    for objective in pair:
        objective(alphas)  # makes buffers
    found = []
    for repeat in range(repeats):
        taken = [0.0, 0.0]
        # Each comes first in turn, so that a drift of the machine's speed cancels.
        for i in (1, 0) if repeat % 2 else (0, 1):
            taken[i] = timed(lambda objective=pair[i]: objective(alphas))
        found.append(taken[0] / taken[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repeats", type=int, nargs="?", default=5)
    sizes = [size_of("16x8x4"), size_of("64x8x4")]
    parser.add_argument("--sizes", nargs="+", type=size_of, default=sizes, metavar="BxSxC")
    parser.add_argument("--n", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--spaces", nargs="+", choices=DARTS_SPACES, default=["s1", "s3", "darts"])
    parser.add_argument("--cpu-kernels", choices=("on", "off"), default="on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"M={N_STEPS}, {N_CELLS} cells, {options.repeats} pairs, cpu_kernels {options.cpu_kernels}"
    )
    print("| numbers of the stem | size | N | " + " | ".join(options.spaces) + " |")
    print("|---" * (3 + len(options.spaces)) + "|")
    for size in options.sizes:
        (batch, _, side), init_channels, _ = size
        for n in options.n:
            cells = []
            for space in options.spaces:
                found = ratios(space, size, n, options.cpu_kernels == "on", options.repeats)
                median = statistics.median(found)
                cells.append(f"{median:.2f} ({min(found):.2f} to {max(found):.2f})")
            numbers = batch * side**2 * 3 * init_channels  # the stem has three times as many
            row = [f"{numbers:,}", f"{batch}x{side}x{init_channels}", str(n), *cells]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
