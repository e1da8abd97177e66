"""How a run is executed: precision, compilation, memory order, threads. Not what it computes.

Runs in several threads share the process: what they change of it is changed here.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.kernels.library import KernelError, compiled
from zoopt_nas.nas.settings.config import RunConfig


@dataclass(frozen=True)
class Execution:
    """What ``amp``, ``compile``, ``channels_last`` and ``cpu_kernels`` come to on a device.

    Attributes:
        device: where the steps run.
        autocast: the type in which steps compute what bears it; None = that of the weights.
        compile: whether weight steps are recorded as a CUDA graph or, elsewhere, compiled.
        channels_last: whether activations are kept in that memory order.
        cpu_kernels: whether the CPU kernels compute what they can.
    """

    device: torch.device
    autocast: torch.dtype | None = None
    compile: bool = False
    channels_last: bool = True
    cpu_kernels: bool = False

    @classmethod
    def from_config(cls, config: RunConfig, device: torch.device) -> Execution:
        """What the settings come to on ``device``.

        Raises:
            InvalidValueError: the device cannot compute in bf16, or has no CPU kernels.
            KernelError: CPU kernels are asked for, and cannot be compiled here.
        """
        return cls(
            device,
            autocast=torch.bfloat16 if _uses_bf16("amp", config.amp, device) else None,
            compile=_is_on(config.compile, device.type == "cuda"),
            channels_last=_is_on(config.channels_last, device.type in ("cpu", "cuda")),
            cpu_kernels=_uses_cpu_kernels(config.cpu_kernels, device),
        )

    def of_inner_steps(self, inner_amp: str) -> Execution:
        """The same for steps by which candidates are compared, with a precision of their own.

        Raises:
            InvalidValueError: the device cannot compute in bf16.
        """
        uses_bf16 = _uses_bf16("inner_amp", inner_amp, self.device)
        return replace(self, autocast=torch.bfloat16 if uses_bf16 else None)

    def precision(self) -> AbstractContextManager[object]:
        """The context of a forward pass. A backward pass follows the types of its forward pass."""
        if self.autocast is None:
            return nullcontext()
        # A weight is used once in a forward pass, so that a cache of converted ones is no use.
        return torch.autocast(self.device.type, self.autocast, cache_enabled=False)


def _is_on(setting: str, automatic: bool) -> bool:
    return {"auto": automatic, "on": True, "off": False}[setting]


def _uses_bf16(name: str, setting: str, device: torch.device) -> bool:
    is_cuda = device.type == "cuda"
    if setting == "bf16" and is_cuda and not torch.cuda.is_bf16_supported():
        raise InvalidValueError(f"{name} must be off on {device}, which has no bf16, got bf16")
    if setting == "auto":  # what a device emulates is slower than float32
        return is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return setting == "bf16"


def _uses_cpu_kernels(setting: str, device: torch.device) -> bool:
    if setting == "off" or device.type == "meta":  # where a model is only measured
        return False
    if device.type != "cpu":
        if setting == "on":
            raise InvalidValueError(f"cpu_kernels must be auto or off on {device}, got on")
        return False
    try:
        compiled(torch.float32)
    except KernelError as error:
        if setting == "on":
            raise
        warnings.warn(f"{error}; PyTorch's are used, which take longer", stacklevel=4)
        return False
    return True


_SILENCING = threading.RLock()


@contextmanager
def silenced(message: str = "") -> Iterator[None]:
    """Inside, warnings are not shown whose text begins with ``message``, a regular expression.

    One thread at a time: the filters belong to the process, and threads that changed them by turns
    would leave them changed.
    """
    with _SILENCING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message)
        yield


_CHANGING_THREADS = threading.Lock()


@contextmanager
def cpu_threads(n: int | None) -> Iterator[None]:
    """Inside, torch computes with ``n`` threads what the calling thread asks for.

    Other threads of the process keep their number, and so do those that begin later. A build of
    PyTorch without OpenMP has one number for all of them: there the last call counts.

    Args:
        n: None leaves their number alone.
    """
    if n is None:
        with _CHANGING_THREADS:
            # A new thread takes its number by this, and not while another changes that number.
            torch.get_num_threads()
        yield
        return
    with _CHANGING_THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        # That is the number of this thread, and what later ones begin with. The latter is given
        # back from another thread, for which the call sets both as well.
        with ThreadPoolExecutor(1) as other:
            other.submit(torch.set_num_threads, before).result()
        if torch.get_num_threads() != n:  # one number for all
            torch.set_num_threads(n)
    try:
        yield
    finally:
        with _CHANGING_THREADS:
            torch.set_num_threads(before)
