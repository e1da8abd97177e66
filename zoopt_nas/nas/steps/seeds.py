"""Seeds and generators, one for each use of randomness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zoopt_nas._arrays import restore_generator


def seeds_for(seed: int, uses: Sequence[str]) -> dict[str, int]:
    """Derive an independent seed for each use of randomness."""
    words = np.random.SeedSequence(seed).generate_state(len(uses), np.uint32)
    return dict(zip(uses, words.tolist(), strict=True))


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator on ``device``."""
    return torch.Generator(device).manual_seed(seed)


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Set the state of a generator, or seed it with a state of another kind of device."""
    restore_generator(generator, bytes(state.cpu().numpy()))


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Initialise the modules that are built inside from ``seed``.

    ``torch.nn`` draws initial weights from the default generator of the process. In this context
    the current thread draws the same numbers from a new generator instead.
    """
    with _DrawingFrom(generator(seed)):
        yield


# The functions of PyTorch with an optional ``generator``.
_DRAWING = (
    "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_",
    "multinomial", "normal", "normal_", "rand", "randint", "randn", "random_", "randperm",
    "uniform_",
)  # fmt: skip


class _DrawingFrom(TorchFunctionMode):
    """Pass ``generator`` to every function that draws and was given none."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        # Functions of ``torch.nn.init`` pass on a ``generator`` of None.
        if "generator" in kwargs or getattr(function, "__name__", "") in _DRAWING:
            kwargs["generator"] = kwargs.get("generator") or self._generator
        return function(*args, **kwargs)
