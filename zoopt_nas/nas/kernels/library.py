"""Compiles the C of this folder for the machine it runs on, and loads it.

A process compiles for itself, in about a second and in a temporary folder: nothing is cached, so
nothing can be stale, shared with another user, or half written. Where there is no compiler, or what
it makes cannot be loaded, there is no library, and callers do the same with PyTorch.
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
    "-std=c11",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",  # a square root need not report that it was asked for that of a negative
    "-ffp-contract=fast",  # a product and its sum are one instruction, which -std=c11 turns off
)
TYPES = {torch.float32: "float", torch.float64: "double"}
SECONDS = 120.0  # a compiler that takes longer hangs


class KernelError(ZooptNasError):
    """The kernels cannot be compiled or loaded here; the message says why."""


def can_run(x: Tensor) -> bool:
    """Whether kernels take the numbers of ``x`` here and now."""
    # A transform of torch.func hides them, and autocast would have them be of another type.
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and library(x.dtype) is not None
    )


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for numbers of ``dtype``; None where there are none."""
    try:
        return compiled(dtype)
    except KernelError:
        return None


def compiled(dtype: torch.dtype) -> ctypes.CDLL:
    """As ``library``.

    Raises:
        KernelError: there are none.
    """
    found = _compiled(dtype)
    if isinstance(found, KernelError):
        raise found
    return found


@functools.cache
def _compiled(dtype: torch.dtype) -> ctypes.CDLL | KernelError:
    # A failure is kept too, so that a compiler is not asked twice.
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
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=SECONDS)
            kernels = ctypes.CDLL(target)  # what is loaded stays when the file goes
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines() or ["no message"]
        line = next((line for line in lines if "error" in line), lines[0])
        raise KernelError(f"the CPU kernels do not compile with {compiler}: {line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"the CPU kernels cannot be compiled and loaded: {error}") from error
    return kernels


def call(function: Any, *arguments: Any) -> None:
    """Calls a kernel.

    Raises:
        MemoryError: it got no memory for its buffers.
    """
    if function(*arguments):
        raise MemoryError("CPU kernel: not enough memory for its buffers")
