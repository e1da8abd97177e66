"""The machine of a run, for the record: a result is reported with the hardware that computed it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from zoopt_nas import __version__

_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the processor, its cores that this process may use, the device, and the versions."""
    is_cuda = device.type == "cuda" and torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": _usable_cores(),
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "zoopt-nas": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def machine_in_words(machine: dict[str, Any]) -> str:
    """Return the hardware in a few words, such as ``2 cores of AMD EPYC``."""
    cores = machine.get("cores")
    host = f"{cores} core{'' if cores == 1 else 's'} of {machine.get('processor')}"
    device = machine.get("device")
    return host if device in (None, "cpu") else f"{device}, {host}"


def _processor() -> str:
    """Return the name of the processor; where Linux does not tell it, the architecture."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
