"""Estimates the memory of a run before it starts.

A step runs on two images, and the bytes of every tensor with one row per image are scaled to a full
batch. The peak is measured in the forward pass: the backward pass frees more than it allocates.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from zoopt_nas.errors import NotEnoughMemoryError, ZooptNasError
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.settings.run_config import RunConfig

TRAINING_FACTOR = 4  # weights, gradients, momentum and the temporaries of SGD
N_IMAGES = 2  # BatchNorm needs two values for each channel
# Ratio of a run's memory to the bytes of its tensors, because the allocator leaves gaps; and what
# PyTorch loads for its first step. Measured on the CPU only (docs/performance.md).
OVERHEAD = {"cpu": 1.6}
LIBRARIES = {"cpu": 190_000_000}
# What another process with PyTorch takes before its first step.
PROCESS = {"cpu": 300_000_000}
# The settings that help. The batch size comes first: an evaluation does not depend on it.
LOWER = ("batch_size", "init_channels", "n_cells", "candidates_per_batch", "image_size")
RAISE = ("partial_channels",)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated peak memory of a run on its device, in bytes.

    Attributes:
        parameters: weights, gradients and momentum of the model and of its copies.
        activations: what one weight step, or a batch of candidates, keeps for its backward pass.
            With CUDA graphs, both exist side by side.
        evaluation: the same for an evaluation batch; not at the time of a weight step.
        data: images of the data set and of the batches in use.
        libraries: what PyTorch loads for its first step.
        workers: all of this for the processes that evaluate candidates on the same device.
    """

    parameters: int
    activations: int
    evaluation: int
    data: int
    libraries: int = 0
    workers: int = 0

    @property
    def total(self) -> int:
        """The sum, with the larger of ``activations`` and ``evaluation``."""
        at_once = max(self.activations, self.evaluation)
        return self.parameters + at_once + self.data + self.libraries + self.workers


def estimate(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    forward: Callable[[Tensor], Tensor],
    dataset: Dataset,
    *,
    sizes: tuple[int, int],
    n_copies: int,
    n_batches: int,
    generators: Sequence[torch.Generator],
) -> MemoryEstimate:
    """Estimate the memory of a training step and an evaluation; the model is restored afterwards.

    ``sizes`` are the batch sizes of training and of evaluation; ``n_copies`` of the model and
    ``n_batches`` of training images exist at a time; the model draws from ``generators``.
    """
    device = next(model.parameters()).device
    image = (dataset.in_channels, dataset.image_size, dataset.image_size)
    images = torch.zeros(N_IMAGES, *image, device=device)
    labels = torch.zeros(N_IMAGES, dtype=torch.int64, device=device)
    with _restored(model, generators):
        activations = peak_bytes(lambda: loss(images, labels), sizes[0])
        model.eval()
        with torch.no_grad():
            evaluation = peak_bytes(lambda: forward(images), sizes[1])
    overhead = OVERHEAD.get(device.type, 1.0)
    sets = [dataset.train] + ([dataset.test] if dataset.test is not None else [])
    # A transform needs one more batch.
    batches = (n_batches + 1) * sizes[0] * math.prod(image) * images.element_size()
    return MemoryEstimate(
        parameters=n_copies * _parameter_bytes(model),
        activations=int(activations * overhead),
        evaluation=int(evaluation * overhead),
        data=sum(image_set.nbytes for image_set in sets) + batches,
        libraries=LIBRARIES.get(device.type, 0),
    )


def _parameter_bytes(model: nn.Module) -> int:
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return TRAINING_FACTOR * weights + sum(buffer.nbytes for buffer in model.buffers())


@contextmanager
def _restored(model: nn.Module, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Restore buffers, mode and generators on exit."""
    was_training = model.training
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        yield
    finally:
        model.train(was_training)
        for buffer, value in buffers:
            buffer.copy_(value)
        for generator, state in states:
            generator.set_state(state)


def peak_bytes(function: Callable[[], Tensor], batch_size: int) -> int:
    """Return the peak bytes of activations while ``function`` runs a model on ``N_IMAGES`` images.

    The result is scaled to ``batch_size`` images.
    """
    scale = batch_size / N_IMAGES
    with _PretendFullBatch(scale), _Tracker() as tracker:
        function()
    return int(tracker.peak * scale)


class _PretendFullBatch(TorchFunctionMode):
    """Makes ``numel()`` report a full batch, so that the model takes the path of training."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is Tensor.numel and _is_batch(args[0]):
            return int(result * self._scale)
        return result


def _is_batch(tensor: Tensor) -> bool:
    """Whether the tensor has one row per image; weights of the same shape are excluded."""
    is_image = tensor.ndim == 4 and tensor.shape[0] == N_IMAGES
    return is_image and not isinstance(tensor, nn.Parameter)


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live tensors that have one row per image."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.shape[:1] == (N_IMAGES,):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key not in self._counted:  # else a view
            self._counted.add(key)
            self._live += n_bytes
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._forget, key, n_bytes)

    def _forget(self, key: int, n_bytes: int) -> None:
        self._counted.discard(key)
        self._live -= n_bytes


class WeightLimit(TorchFunctionMode):
    """Refuses weights beyond the ``free`` bytes (None if unknown) while a model is built inside.

    Raises:
        NotEnoughMemoryError: training ``n_copies`` of the model needs more.
    """

    def __init__(
        self, free: int | None, n_copies: int, config: RunConfig, device: torch.device
    ) -> None:
        super().__init__()
        self._free, self._n_copies, self._config, self._device = free, n_copies, config, device
        self._n_bytes = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.empty:  # makes all parameters
            self._n_bytes += function(*args, **kwargs | {"device": "meta"}).nbytes
            needed = TRAINING_FACTOR * self._n_copies * self._n_bytes
            if self._free is not None and needed > self._free:
                raise NotEnoughMemoryError(
                    f"the weights need more than the {in_words(self._free)} that are free on "
                    f"{self._device}: {_advice(self._config, LOWER[1:])}"
                )
        return function(*args, **kwargs)


def check_free(
    estimate: MemoryEstimate, free: int | None, config: RunConfig, device: torch.device
) -> None:
    """Refuse a run whose estimate exceeds the free bytes; None (unknown) refuses nothing."""
    if free is not None and estimate.total > free:
        names = LOWER if estimate.activations > estimate.evaluation else LOWER[1:]
        raise NotEnoughMemoryError(
            f"a step needs about {in_words(estimate.total)}, and {in_words(free)} are free on "
            f"{device}: {_advice(config, names)}"
        )


@contextmanager
def explain_out_of_memory(
    config: RunConfig, device: torch.device, where: Callable[[], str]
) -> Iterator[None]:
    """Turn an allocation error inside into one that names the settings to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        is_memory = isinstance(error, MemoryError) or any(part in text for part in _OUT_OF_MEMORY)
        if isinstance(error, ZooptNasError) or not is_memory:
            raise
        raise NotEnoughMemoryError(
            f"out of memory {where()} on {device}: start again and "
            f"{_advice(config, LOWER)}, or resume where more memory is free"
        ) from error


def _advice(config: RunConfig, lower: tuple[str, ...]) -> str:
    """Return e.g. ``lower batch_size (64), init_channels (16) or n_cells (8)``."""
    advice = []
    for verb, names in (("lower", lower), ("raise", RAISE)):
        values = {name: getattr(config, name, None) for name in names}
        options = [
            f"{name} ({value})"
            for name, value in values.items()
            if value is not None and (value > 1 or verb == "raise")
        ]
        if options:
            advice.append(f"{verb} {_either(options)}")
    if getattr(config, "candidate_devices", None) is not None:
        advice.append("name fewer candidate_devices")
    return ", or ".join(advice) or "use a device with more"


def _either(options: list[str]) -> str:
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last


def in_words(n_bytes: int) -> str:
    """Return e.g. ``1.9 GB``, or ``12.3 MB`` below 0.1 GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
