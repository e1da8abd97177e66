"""Choose a device and find how much memory it has left."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from zoopt_nas.errors import InvalidValueError


class _CgroupVersion(NamedTuple):
    """Names of the memory files in one version of Linux control groups."""

    controller: str  # marks the version's lines of /proc/self/cgroup
    mount: str
    limit: str
    usage: str  # includes the cache of files, which the kernel can reclaim
    reclaimable: str  # a key of memory.stat


_CGROUPS = (
    _CgroupVersion("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    _CgroupVersion("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes",
                   "memory.usage_in_bytes", "total_inactive_file"),
)  # fmt: skip


def free_memory(device: torch.device) -> int | None:
    """Return the bytes this process can still allocate on ``device``; None if unknown.

    On CUDA this includes the unused memory that PyTorch's allocator has reserved. On the CPU of a
    Linux machine it respects the limits of containers and job schedulers.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    return free_on_host() if device.type == "cpu" else None


def free_on_host(root: Path = Path("/")) -> int | None:
    """Return the bytes this process can still allocate on the host; None if it is not Linux.

    ``root`` is the folder that holds ``proc`` and ``sys``.
    """
    available = _lines(root / "proc/meminfo").get("MemAvailable:")
    if available is None:
        return None
    found = [available * 1024]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        for version in _CGROUPS:
            if version.controller in controllers.split(","):
                found += _headroom(root / version.mount, path, version)
    return max(min(found), 0)


def _headroom(mount: Path, path: str, version: _CgroupVersion) -> list[int]:
    """Return the bytes left in a control group and in each group that contains it."""
    folder = mount / path.lstrip("/")  # may not exist: containers can see the path on the host
    headroom = []
    for group in (folder, *folder.parents):
        limit, usage = _number(group / version.limit), _number(group / version.usage)
        if limit is not None and usage is not None:
            cache = _lines(group / "memory.stat").get(version.reclaimable, 0)
            headroom.append(limit - usage + cache)
        if group == mount:
            break
    return headroom


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # "max" is no limit


def _lines(path: Path) -> dict[str, int]:
    """Parse a file with a name and a number in each line."""
    words = [line.split() for line in _text(path).splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def pick_device(name: str) -> torch.device:
    """Return the torch device ``name``; ``auto`` is CUDA if available, else MPS, else the CPU.

    Raises:
        InvalidValueError: This machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails on "meta", whose tensors hold no data
    except (RuntimeError, AssertionError) as error:
        raise InvalidValueError(
            f"device must be auto or a device that this machine has, got {name}"
        ) from error
    return device
