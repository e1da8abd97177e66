"""Seeds and generators: one for each use of randomness, none of them global."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode


def seeds_for(seed: int, uses: Sequence[str]) -> dict[str, int]:
    """One independent seed for each use of randomness, so that none disturbs another."""
    words = np.random.SeedSequence(seed).generate_state(len(uses), np.uint32)
    return dict(zip(uses, words.tolist(), strict=True))


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own on ``device``."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Modules built inside get PyTorch's default initialisation from ``seed``.

    The constructors of ``torch.nn`` draw initial weights from the default generator, which all
    threads of a process share. Inside, in this thread only, a generator of its own takes its place,
    with the same numbers; the default one is neither read nor changed.
    """
    with _DrawingFrom(generator(seed)):
        yield


# The functions of PyTorch that take a ``generator``, where a caller may have left it out.
_DRAWING = (
    "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_",
    "multinomial", "normal", "normal_", "rand", "randint", "randn", "random_", "randperm",
    "uniform_",
)  # fmt: skip


class _DrawingFrom(TorchFunctionMode):
    """Inside, functions that are given no generator draw from this one."""

    def __init__(self, source: torch.Generator) -> None:
        super().__init__()
        self._source = source

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        # Those of ``torch.nn.init`` hand on a ``generator`` of None.
        if "generator" in kwargs or getattr(function, "__name__", "") in _DRAWING:
            kwargs["generator"] = kwargs.get("generator") or self._source
        return function(*args, **kwargs)
