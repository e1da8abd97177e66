"""What a weight step of the supernet costs beside the plain form, in time, memory and launches.

A step is zero_grad, forward, backward, clipping and SGD. The plain form (plain_supernet.py) has one
module for each candidate operation, every edge on its own and the default memory format. Time: the
median ratio over interleaved repeats. Memory: what the process grows by, at its peak, in a process
of its own for each form. Launches: operators of a step that compute something, counted by the
torch profiler. `network` is the retraining network (DARTS_V2). With --partial-channels or
--merge-kernels the plain form is compared with another supernet: with partial channel connections,
or with one kernel for the convolutions of an edge.

    python benchmarks/supernet_step.py                          # every space at the paper's size
    python benchmarks/supernet_step.py s3 --size digits
    python benchmarks/supernet_step.py network --cells 20 --channels 36 --batch 96
    python benchmarks/supernet_step.py s3 darts --partial-channels 4
    python benchmarks/supernet_step.py darts --merge-kernels
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from plain_supernet import PlainSupernet, plain_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from zoopt_nas.nas.kernels import library
from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.steps.weight_step import weight_step

# At the paper's size: (time, memory).
BARS = {"darts": (0.40, 0.60), "s3": (0.50, 0.70), "s1": (0.55, None), "s4": (0.60, None)}
SIZES = {
    # batch, image channels, side, init_channels, n_cells
    "paper": (64, 3, 32, 16, 8),
    "digits": (64, 1, 8, 4, 3),
}
# Operators that only look at memory in another way, or ask for some.
FREE = {
    "view", "reshape", "expand", "expand_as", "slice", "select", "as_strided", "permute", "t",
    "transpose", "unsqueeze", "squeeze", "alias", "detach", "empty", "empty_like", "empty_strided",
    "narrow", "chunk", "split", "split_with_sizes", "unbind", "resolve_conj", "resolve_neg",
    "lift_fresh", "new_empty", "new_empty_strided", "_unsafe_view", "result_type", "_reshape_alias",
    "set_", "resize_", "is_same_size", "unfold", "flatten", "unflatten", "as_strided_",
}  # fmt: skip
# Operators that are one launch on a GPU, whatever they consist of on a CPU. (Of the two of a
# convolution's gradients both forms have the same number.)
WHOLE = ("convolution", "batch_norm", "native_batch_norm", "max_pool2d", "avg_pool2d", "_foreach_")


@dataclass
class Step:
    """A model with its batch, and one training step of it.

    Attributes:
        alpha: architecture parameters; None = the model takes none.
        amp: the type in which autocast computes; None = off.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    alpha: Tensor | None
    amp: torch.dtype | None = None

    def __post_init__(self) -> None:
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=0.025, momentum=0.9, weight_decay=3e-4)

    def __call__(self) -> None:
        inputs = (self.images,) if self.alpha is None else (self.images, self.alpha)
        device = self.images.device.type
        with torch.autocast(device, self.amp, enabled=self.amp is not None):
            loss = F.cross_entropy(self.model(*inputs), self.labels)
        weight_step(loss, self.optimizer, 5.0)


def build(
    space: str,
    form: str,
    size: tuple[int, int, int, int, int],
    device: str = "cpu",
    **others: int,
) -> Step:
    """The ``"plain"`` or ``"ours"`` form of a supernet, or of the network.

    ``others`` are settings of another supernet, in our form only.
    """
    torch.manual_seed(0)
    batch, in_channels, side, init_channels, n_cells = size
    images = torch.randn(batch, in_channels, side, side).to(device)
    labels = torch.randint(10, (batch,)).to(device)
    if space == "network":
        network = DartsNetwork(
            GENOTYPES["DARTS_V2"], 10, init_channels, n_cells, in_channels=in_channels
        )
        network = plain_network(network) if form == "plain" else network
        return Step(network.to(device), images, labels, None)
    supernet: nn.Module = DartsSupernet(
        SPACES[space],
        10,
        init_channels,
        n_cells,
        in_channels=in_channels,
        **({} if form == "plain" else others),  # type: ignore[arg-type]
    )
    if form == "plain":
        supernet = PlainSupernet(supernet)  # type: ignore[arg-type]
    alpha = torch.as_tensor(SPACES[space].init_alpha(rng=0)).float().to(device)
    return Step(supernet.to(device), images, labels, alpha)


def ratios(plain: Step, ours: Step, repeats: int) -> tuple[float, list[float]]:
    """Seconds of a plain step (median), and the ratio of each pair of steps."""
    for step in (plain, ours):
        step()  # the first one makes buffers
    seconds, found = [], []
    for _ in range(repeats):
        times = []
        for step in (plain, ours):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        seconds.append(times[0])
        found.append(times[1] / times[0])
    return statistics.median(seconds), found


def launches(step: Step) -> int:
    """Operators of one step that compute something, as on a GPU.

    The optimizer takes its multi-tensor form, and the CPU kernels are off.
    """
    step.images, step.labels = step.images[:2], step.labels[:2]  # as many, and soon done
    step.optimizer.param_groups[0]["foreach"] = True
    clip = partial(nn.utils.clip_grad_norm_, foreach=True)
    with (
        patch.object(library, "library", lambda dtype: None),
        patch.object(nn.utils, "clip_grad_norm_", clip),
        profile(activities=[ProfilerActivity.CPU]) as profiler,
    ):
        step()
    events = profiler.events() or ()
    return sum(_launches(event) for event in events if event.cpu_parent is None)


def _launches(event: Any) -> int:
    """Launches of a profiler event, itself or what it consists of."""
    name = event.name.removeprefix("aten::")
    if name in FREE:
        return 0
    if event.name.startswith("aten::") and name.startswith(WHOLE):
        return 1
    within = sum(_launches(child) for child in event.cpu_children)
    is_one = event.name.startswith("aten::") and name != "to"  # to where it is already
    return within or int(is_one)


def peak_growth(space: str, form: str, size: tuple[int, ...], **others: int) -> float:
    """GB by which three steps make a fresh process grow, at the peak."""
    command = [sys.executable, __file__, space, "--peak-of", form]
    command += ["--numbers", *map(str, size), "--threads", str(torch.get_num_threads())]
    command += ["--partial-channels", str(others.get("partial_channels", 1))]
    command += ["--merge-kernels"] if others.get("merge_kernels") else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(space: str, form: str, size: tuple[int, int, int, int, int], **others: int) -> None:
    before = peak_kilobytes()
    step = build(space, form, size, **others)
    for _ in range(3):
        step()
    print((peak_kilobytes() - before) / 2**20)


def peak_kilobytes() -> int:
    # Of this program; getrusage has that of the process which started it, where that is larger.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def report(space: str, size: tuple[int, int, int, int, int], repeats: int, **others: int) -> None:
    plain, ours = build(space, "plain", size), build(space, "ours", size, **others)
    seconds, found = ratios(plain, ours, repeats)
    counts = launches(plain), launches(ours)
    del plain, ours
    memory = peak_growth(space, "plain", size), peak_growth(space, "ours", size, **others)
    spread = f"{min(found):.2f} to {max(found):.2f}"
    print(
        f"| {space} | {seconds:.2f} s | {statistics.median(found):.3f} ({spread}) "
        f"| {memory[0]:.2f} GB | {memory[1] / memory[0]:.2f} "
        f"| {counts[0]} | {counts[1] / counts[0]:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spaces", nargs="*", default=["darts", "s1", "s3", "s4"])
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--channels", type=int)
    parser.add_argument("--cells", type=int)
    parser.add_argument("--partial-channels", type=int, default=1, help="K, in our form only")
    parser.add_argument("--merge-kernels", action="store_true", help="in our form only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--numbers", type=int, nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", choices=["plain", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batch, in_channels, side, channels, cells = args.numbers or SIZES[args.size]
    size = (
        args.batch or batch, in_channels, side, args.channels or channels, args.cells or cells,
    )  # fmt: skip
    others = {"partial_channels": args.partial_channels, "merge_kernels": args.merge_kernels}
    if args.peak_of:
        print_peak(args.spaces[0], args.peak_of, size, **others)
        return
    print(f"batch, image channels, side, init_channels, n_cells: {size}; {args.threads} threads")
    print("| | plain step | time | plain memory | memory | plain launches | launches |")
    print("|---|---|---|---|---|---|---|")
    for space in args.spaces:
        report(space, size, args.repeats, **others)


if __name__ == "__main__":
    main()
