"""Compile and load the C code of this folder.

Each process compiles it in a temporary folder, in about a second, without a cache that could become
stale. Without a compiler, callers use PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoopt_nas.errors import ZooptNasError

COMPILERS = ("cc", "gcc", "clang")
SOURCES = ("forward.c", "backward.c")
HEADERS = ("vectors.h", "depthwise.h", "stage.h")
FLAGS = (
    "-std=c11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared",
    "-fno-math-errno",
    "-ffp-contract=fast",  # allows fused multiply-add, which -std=c11 turns off
)  # fmt: skip
TYPES = {torch.float32: "float", torch.float64: "double"}
TIMEOUT = 120.0  # seconds


class KernelError(ZooptNasError):
    """The kernels cannot be compiled or loaded; the message says why."""


def can_run(x: Tensor) -> bool:
    """Whether the kernels can process ``x`` in the current context."""
    # Transforms of torch.func hide the numbers, and autocast requires another type.
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and library(x.dtype) is not None
    )


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the kernels for ``dtype``, or None if there are none."""
    try:
        return compiled(dtype)
    except KernelError:
        return None


def compiled(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the kernels for ``dtype``.

    Raises:
        KernelError: There are none.
    """
    found = _compiled(dtype)
    if isinstance(found, KernelError):
        raise found
    return found


@functools.cache
def _compiled(dtype: torch.dtype) -> ctypes.CDLL | KernelError:
    # Returns errors, so that failures are cached, too.
    try:
        return _compile(dtype)
    except KernelError as error:
        return error


def _compile(dtype: torch.dtype) -> ctypes.CDLL:
    if dtype not in TYPES:
        raise KernelError(f"the CPU kernels compute in float32 and float64, not {dtype}")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelError(
            f"the CPU kernels need a C compiler, found none of {', '.join(COMPILERS)}"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in SOURCES + HEADERS:
                text = (resources.files(__package__) / name).read_text(encoding="ascii")
                Path(folder, name).write_text(text, encoding="ascii")
            target = str(Path(folder, "kernels.so"))
            command = [compiler, *FLAGS, f"-DREAL={TYPES[dtype]}", *SOURCES, "-o", target, "-lm"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT)
            kernels = ctypes.CDLL(target)  # stays loaded without the file
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines() or ["no message"]
        line = next((line for line in lines if "error" in line), lines[0])
        raise KernelError(f"the CPU kernels do not compile with {compiler}: {line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"the CPU kernels cannot be compiled and loaded: {error}") from error
    return kernels


def call(function: Any, *arguments: Any) -> None:
    """Call a kernel.

    Raises:
        MemoryError: There is no memory for its buffers.
    """
    if function(*arguments):
        raise MemoryError("CPU kernel: not enough memory for its buffers")
