"""How much memory a device has left."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from zoopt_nas.errors import InvalidValueError


class _CgroupVersion(NamedTuple):
    """Where a version of Linux control groups says what a group may use, and uses.

    Attributes:
        controller: how its lines of ``/proc/self/cgroup`` are marked.
        mount: its folder below the root.
        limit, usage: files of one number each.
        reclaimable: the line of ``memory.stat`` with what the kernel gives back when asked: usage
            counts the cache of files that were read, too.
    """

    controller: str
    mount: str
    limit: str
    usage: str
    reclaimable: str


_CGROUPS = (
    _CgroupVersion("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    _CgroupVersion(
        "memory",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def free_memory(device: torch.device) -> int | None:
    """The bytes that this process can still get on ``device``; None where nothing tells.

    CUDA: what the driver has free, and what PyTorch's allocator keeps for later. CPU, on Linux:
    what the system has available, or less where a container or a job scheduler has set a limit.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    return free_on_host() if device.type == "cpu" else None


def free_on_host(root: Path = Path("/")) -> int | None:
    """The bytes that this process can still get from the host; None if it is not Linux.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    available = _lines(root / "proc/meminfo").get("MemAvailable:")
    if available is None:
        return None
    found = [available * 1024]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        for version in _CGROUPS:
            if version.controller in controllers.split(","):
                found += _rooms(root / version.mount, path, version)
    return max(min(found), 0)


def _rooms(mount: Path, path: str, version: _CgroupVersion) -> list[int]:
    """What is left in a group and in each that holds it: all their limits count.

    In a container the path may be that of the host, which is not there; its root then is ours.
    """
    folder = mount / path.lstrip("/")
    rooms = []
    for group in (folder, *folder.parents):
        limit, usage = _number(group / version.limit), _number(group / version.usage)
        if limit is not None and usage is not None:
            cache = _lines(group / "memory.stat").get(version.reclaimable, 0)
            rooms.append(limit - usage + cache)
        if group == mount:
            break
    return rooms


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # "max" is no limit


def _lines(path: Path) -> dict[str, int]:
    """A file with a name and a number in each line."""
    words = [line.split() for line in _text(path).splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA, then MPS, then the CPU; any other name is a torch device.

    Raises:
        InvalidValueError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" makes tensors, but they hold nothing
    except (RuntimeError, AssertionError) as error:
        raise InvalidValueError(
            f"device must be auto or a device that this machine has, got {name}"
        ) from error
    return device
