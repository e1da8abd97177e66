"""Weight steps of the supernets on a GPU: time, launches, memory and how busy the GPU is.

One command prints the whole table, for the spaces at the paper's size, in the plain form
(plain_supernet.py) and in the package's, without and with autocast to bfloat16. Ratios are to the
plain form with the same autocast. The columns:

- `step`: median milliseconds of zero_grad, forward, backward, clipping and SGD over interleaved
  repeats, the GPU waited for before and after each.
- `launches`: kernels of a step, counted by the torch profiler.
- `memory`: the allocator's peak in a step, model and momentum included.
- `busy`: milliseconds of all kernels of a step, added up, over `step`.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --spaces s3 --amp off --repeats 50
    python benchmarks/gpu.py --device cpu         # the same code at a tiny size; no memory, no busy
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports its start and end

import torch
from supernet_step import SIZES, Step, build, launches
from torch.profiler import ProfilerActivity, profile

SPACES = ("darts", "s1", "s3", "s4")
AMP = {"off": None, "bf16": torch.bfloat16}
TINY = (4, 3, 8, 8, 3)  # as in SIZES
WARMUP = 3  # the first steps make buffers, and choose and load kernels

Size = tuple[int, int, int, int, int]

# What is compared; the first is what ratios are to. A compiled or captured step, or one of several
# candidates at once, is one more line here: `(space, size, device) -> Step`.
FORMS: dict[str, Callable[[str, Size, str], Step]] = {
    "plain": lambda space, size, device: build(space, "plain", size, device=device),
    "ours": lambda space, size, device: build(space, "ours", size, device=device),
}


@dataclass(frozen=True)
class Row:
    """What was measured of a form; None = not here, or the GPU's memory was too small.

    Attributes:
        milliseconds: median of a step.
        launches: kernels of a step.
        gigabytes: peak of the allocator in a step.
        kernel_milliseconds: all kernels of a step.
    """

    space: str
    amp: str
    form: str
    milliseconds: float | None = None
    launches: int | None = None
    gigabytes: float | None = None
    kernel_milliseconds: float | None = None


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def _quotient(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else value / of


# A column: its name, and its cell from a row and the plain row beside it.
COLUMNS: dict[str, Callable[[Row, Row], str]] = {
    "space": lambda row, plain: row.space,
    "amp": lambda row, plain: row.amp,
    "form": lambda row, plain: row.form,
    "step (ms)": lambda row, plain: _number(row.milliseconds, "{:.2f}"),
    "ratio of steps": lambda row, plain: _number(
        _quotient(row.milliseconds, plain.milliseconds), "{:.3f}"
    ),
    "launches": lambda row, plain: _number(row.launches, "{}"),
    "ratio of launches": lambda row, plain: _number(
        _quotient(row.launches, plain.launches), "{:.3f}"
    ),
    "memory (GB)": lambda row, plain: _number(row.gigabytes, "{:.2f}"),
    "ratio of memory": lambda row, plain: _number(
        _quotient(row.gigabytes, plain.gigabytes), "{:.3f}"
    ),
    "busy": lambda row, plain: _number(
        _quotient(row.kernel_milliseconds, row.milliseconds), "{:.2f}"
    ),
}


def measure(space: str, amp: str, size: Size, device: str, repeats: int) -> list[Row]:
    """A row for each form."""

    def make(form: str) -> Step:
        step = FORMS[form](space, size, device)
        step.amp = AMP[amp]
        return step

    # Each form by itself, so that none counts the memory of another.
    rows = {form: _alone(partial(make, form), Row(space, amp, form), device) for form in FORMS}
    fitting = {form: make(form) for form, row in rows.items() if row.launches is not None}
    for form, times in _times(fitting, device, repeats).items():
        rows[form] = replace(rows[form], milliseconds=statistics.median(times))
    return list(rows.values())


def _alone(make: Callable[[], Step], row: Row, device: str) -> Row:
    if torch.device(device).type != "cuda":
        return replace(row, launches=launches(make()))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    try:
        step = make()
        for _ in range(WARMUP):
            step()
        torch.cuda.reset_peak_memory_stats(device)
        step()
        peak = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.synchronize(device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        return row
    times = kernel_times(profiler.events() or ())
    return replace(
        row, launches=len(times), gigabytes=peak / 1e9, kernel_milliseconds=sum(times) / 1e3
    )


def kernel_times(events: Iterable[Any]) -> list[float]:
    """Microseconds of each kernel among a profiler's events; copies and fills are none."""
    return [
        event.time_range.elapsed_us()
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("Memcpy", "Memset"))
        and not getattr(event, "is_user_annotation", False)
    ]


def _times(steps: dict[str, Step], device: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of the steps, which take turns."""
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    times: dict[str, list[float]] = {form: [] for form in steps}
    for _ in range(repeats):
        for form, step in steps.items():
            _wait(device)
            started = time.perf_counter()
            step()
            _wait(device)
            times[form].append(1e3 * (time.perf_counter() - started))
    return times


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spaces", nargs="+", default=SPACES)
    parser.add_argument("--amp", nargs="+", choices=AMP, default=list(AMP))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(arguments)
    on_gpu = torch.device(args.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu runs the same code at a tiny size")
    size = SIZES["paper"] if on_gpu else TINY
    name = torch.cuda.get_device_name(args.device) if on_gpu else "CPU"
    print(f"{name}, PyTorch {torch.__version__}, {args.repeats} repeats, seed 0")
    print(f"batch, image channels, side, init_channels, n_cells: {size}")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + "---|" * len(COLUMNS))
    for space in args.spaces:
        for amp in args.amp:
            rows = measure(space, amp, size, args.device, args.repeats)
            for row in rows:
                cells = [cell(row, rows[0]) for cell in COLUMNS.values()]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
