"""What memory is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoopt_nas.nas.steps.devices import free_memory, free_on_host


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 8000 kB\n"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, 8000 * 1024),
        # Version 2: the group of the job has room, the one around it has less.
        (
            {
                "proc/self/cgroup": "0::/slurm/job\n",
                "sys/fs/cgroup/slurm/job/memory.max": "5000000\n",
                "sys/fs/cgroup/slurm/job/memory.current": "1000000\n",
                "sys/fs/cgroup/slurm/memory.max": "4000000\n",
                "sys/fs/cgroup/slurm/memory.current": "3000000\n",
                "sys/fs/cgroup/slurm/memory.stat": "anon 1000000\ninactive_file 500000\n",
            },
            4000000 - 3000000 + 500000,
        ),
        # No limit.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "3000000\n",
            },
            8000 * 1024,
        ),
        # Version 1 in a container, which sees the host's path and its own folder as the root.
        (
            {
                "proc/self/cgroup": "5:cpu:/docker/1\n4:memory:/docker/1\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000000\n",
                "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 250000\n",
            },
            3000000 - 2000000 + 250000,
        ),
        # More used than allowed, for a moment.
        (
            {
                "proc/self/cgroup": "0::/\nnonsense\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "3000\n",
            },
            0,
        ),
    ],
)
def test_free_memory_of_the_host(contents, expected, tmp_path):
    assert free_on_host(files(tmp_path, {"proc/meminfo": MEMINFO, **contents})) == expected


def test_what_nothing_tells_is_unknown(tmp_path):
    assert free_on_host(tmp_path) is None  # no Linux
    assert free_memory(torch.device("mps")) is None


def test_free_memory_of_cuda_counts_what_pytorch_holds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_memory(torch.device("cuda")) == 140
