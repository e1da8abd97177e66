"""Compiles the C of this folder for the machine it runs on, and loads it.

A process compiles for itself, in about a second and a temporary folder: nothing is cached, so
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

from zoopt_nas.errors import ZooptNasError

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
TYPES = {torch.float32: "float", torch.float64: "double"}
SECONDS = 120.0  # a compiler that takes longer hangs


class NativeError(ZooptNasError):
    """The kernels cannot be compiled or loaded here; the message says why."""


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for numbers of ``dtype``; None where there are none."""
    try:
        return compiled(dtype)
    except NativeError:
        return None


def compiled(dtype: torch.dtype) -> ctypes.CDLL:
    """As ``library``.

    Raises:
        NativeError: there are none.
    """
    found = _compiled(dtype)
    if isinstance(found, NativeError):
        raise found
    return found


@functools.cache
def _compiled(dtype: torch.dtype) -> ctypes.CDLL | NativeError:
    # A failure is kept too, so that a compiler is not asked twice.
    try:
        return _compile(dtype)
    except NativeError as error:
        return error


def _compile(dtype: torch.dtype) -> ctypes.CDLL:
    if dtype not in TYPES:
        raise NativeError(f"native kernels compute in float32 and float64, not {dtype}")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeError(f"native kernels need a C compiler, found none of {', '.join(COMPILERS)}")
    source = resources.files(__package__) / "separable.c"
    try:
        with resources.as_file(source) as path, tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "kernels.so")
            command = [compiler, *FLAGS, f"-DREAL={TYPES[dtype]}", str(path), "-o", str(target)]
            subprocess.run([*command, "-lm"], check=True, capture_output=True, timeout=SECONDS)
            return ctypes.CDLL(str(target))  # what is loaded stays when the file goes
    except subprocess.CalledProcessError as error:
        line = next(iter(error.stderr.decode(errors="replace").splitlines()), "no message")
        raise NativeError(f"native kernels do not compile with {compiler}: {line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"native kernels cannot be compiled and loaded: {error}") from error


def call(function: Any, *arguments: Any) -> None:
    """Calls a kernel.

    Raises:
        MemoryError: it got no memory for its buffers.
    """
    if function(*arguments):
        raise MemoryError("native kernel: not enough memory for its buffers")
