"""How a run executes: precision, compilation, memory format and threads."""

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
from zoopt_nas.nas.settings.run_config import RunConfig


@dataclass(frozen=True)
class Execution:
    """The settings of execution, resolved for a device.

    Attributes:
        device: Device of the weight steps.
        autocast: Type of autocast; None computes in the type of the weights.
        compile: Whether to record weight steps as a CUDA graph or, on other devices, compile them.
        channels_last: Whether to keep activations in the channels-last memory format.
        cpu_kernels: Whether to use the compiled CPU kernels where they apply.
    """

    device: torch.device
    autocast: torch.dtype | None = None
    compile: bool = False
    channels_last: bool = True
    cpu_kernels: bool = False

    @classmethod
    def from_config(cls, config: RunConfig, device: torch.device) -> Execution:
        """Resolve the settings of ``config`` for ``device``.

        Raises:
            InvalidValueError: The device has no bf16 or no CPU kernels.
            KernelError: ``cpu_kernels`` is on, but the kernels cannot be compiled.
        """
        return cls(
            device,
            autocast=torch.bfloat16 if _uses_bf16("amp", config.amp, device) else None,
            compile=_is_on(config.compile, device.type == "cuda"),
            channels_last=_is_on(config.channels_last, device.type in ("cpu", "cuda")),
            cpu_kernels=_uses_cpu_kernels(config.cpu_kernels, device),
        )

    def of_inner_steps(self, inner_amp: str) -> Execution:
        """Return a copy with the precision ``inner_amp``, for the inner steps of candidates.

        Raises:
            InvalidValueError: The device has no bf16.
        """
        uses_bf16 = _uses_bf16("inner_amp", inner_amp, self.device)
        return replace(self, autocast=torch.bfloat16 if uses_bf16 else None)

    def precision(self) -> AbstractContextManager[object]:
        """Return the autocast context of a forward pass; the backward pass needs none."""
        if self.autocast is None:
            return nullcontext()
        # A forward pass uses each weight once, so a cache of converted weights is useless.
        return torch.autocast(self.device.type, self.autocast, cache_enabled=False)


def _is_on(setting: str, automatic: bool) -> bool:
    return {"auto": automatic, "on": True, "off": False}[setting]


def _uses_bf16(name: str, setting: str, device: torch.device) -> bool:
    is_cuda = device.type == "cuda"
    if setting == "bf16" and is_cuda and not torch.cuda.is_bf16_supported():
        raise InvalidValueError(f"{name} must be off on {device}, which has no bf16, got bf16")
    if setting == "auto":  # emulated bf16 is slower than float32
        return is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return setting == "bf16"


def _uses_cpu_kernels(setting: str, device: torch.device) -> bool:
    if setting == "off" or device.type == "meta":  # meta models are only measured
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
        warnings.warn(f"{error}; using PyTorch's slower operators", stacklevel=4)
        return False
    return True


_SILENCING = threading.RLock()


@contextmanager
def silenced(message: str = "") -> Iterator[None]:
    """Suppress warnings whose text starts with the regular expression ``message``.

    Only one thread at a time enters the context, because the whole process shares its filters.
    """
    with _SILENCING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message)
        yield


_CHANGING_THREADS = threading.Lock()


@contextmanager
def cpu_threads(n: int | None) -> Iterator[None]:
    """Let torch use ``n`` threads for the work of the calling thread; None changes nothing.

    Other threads, including those started later, keep their number. PyTorch without OpenMP has one
    number for the whole process: there the last call counts.
    """
    if n is None:
        with _CHANGING_THREADS:
            # This call gives a new thread its number; no other thread may change it meanwhile.
            torch.get_num_threads()
        yield
        return
    with _CHANGING_THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        # The call sets the number of this thread and the default of later ones. Another thread
        # restores the default.
        with ThreadPoolExecutor(1) as other:
            other.submit(torch.set_num_threads, before).result()
        if torch.get_num_threads() != n:  # without OpenMP
            torch.set_num_threads(n)
    try:
        yield
    finally:
        with _CHANGING_THREADS:
            torch.set_num_threads(before)
