"""Evaluates several candidates of one update at once: the supernet with n sets of weights.

A supernet with small cells is bound by kernel launches. ``torch.vmap`` over n sets of weights turns
a depthwise convolution into one with n times the channels, a 1x1 convolution into one with n
groups, and BatchNorm over C channels into one over n C channels. Nothing mixes candidates: each
gets its loss and weights as if computed alone, up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from zoopt_nas.nas.networks.operations import Stochastic
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.score import Scored
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.schedules import set_lr
from zoopt_nas.nas.steps.weight_step import Losses, WeightStep, start_momentum

# On a CPU, evaluating candidates together is faster if there are several and the output of the stem
# (in numbers, for one candidate) is small enough for the cache (docs/performance.md).
MAX_NUMBERS_ON_CPU = 3 * 2**14
MAX_NUMBERS_BESIDE_KERNELS = 3 * 2**12  # if the CPU kernels compute single candidates
MIN_CANDIDATES_ON_CPU = 4
# The rest is for the workspaces of larger operators and for fragmentation.
FREE_MEMORY_FRACTION = 0.8

Batch = tuple[Tensor, Tensor]
"""``(images, labels)``."""


class WeightAverage:
    """An exponential moving average of weights over the steps of a training.

    The average after step k, from 1, has the decay min(decay, k / (k + 9)), so that it soon leaves
    the initial weights (the rule of TensorFlow's ExponentialMovingAverage).

    Args:
        weights: The tensors that are trained, at their initial values.
        decay: Weight of the past, in [0, 1); with 0 the average is the last weights.
    """

    def __init__(self, weights: Iterable[Tensor], decay: float) -> None:
        self._weights = [tensor.detach() for tensor in weights]  # the same memory
        self._decay, self._n_steps = decay, 0
        self._average = [tensor.clone() for tensor in self._weights] if decay else []

    def update(self) -> None:
        """Take in the weights after a step."""
        self._n_steps += 1
        if self._average:
            decay = min(self._decay, self._n_steps / (self._n_steps + 9))
            torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    def swap(self) -> None:
        """Exchange the weights and their average."""
        if self._average:
            weights = [tensor.clone() for tensor in self._weights]
            torch._foreach_copy_(self._weights, self._average)
            torch._foreach_copy_(self._average, weights)


class _GroupStep(NamedTuple):
    """n sets of weights that are trained together."""

    weights: Tensor  # (n, n_weights)
    optimizer: torch.optim.SGD  # elementwise, so it acts on every row independently
    step: WeightStep


class CandidateGroup:
    """Trains and evaluates n candidates together; their weights are the rows of one tensor.

    A row holds the flattened parameters in the order of ``network.parameters()``. ``network``
    defines the computation: its weights are not used, and its BatchNorm must track no statistics.
    ``grad_clip`` bounds the gradient norm of each candidate; evaluations ignore ``execution``.
    """

    def __init__(
        self,
        network: Supernet,
        grad_clip: float | None,
        *,
        execution: Execution | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self._network, self._grad_clip = network, grad_clip
        self._execution, self._generators = execution, generators
        named = dict(network.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        self._sizes = [parameter.numel() for parameter in named.values()]
        self._steps: dict[int, _GroupStep] = {}  # a CUDA graph needs its tensors to stay alive

    def fit(
        self,
        start: Tensor,
        momentum: Tensor | None,
        alphas: Tensor,
        batches: Sequence[Batch],
        lrs: Sequence[float],
        settings: dict[str, Any],
        average: float = 0.0,
    ) -> Tensor:
        """Return the weights ``(n, n_weights)`` after one step of SGD per batch.

        All start from ``start`` and ``momentum`` ``(n_weights,)`` (None if there is none yet) and
        see the same batches, each with its learning rate; ``settings`` are the others of SGD, and
        ``average`` the decay of a ``WeightAverage``. The next call overwrites the weights.
        """
        n = len(alphas)
        if n not in self._steps:
            self._steps[n] = self._build(start, n)
        weights, optimizer, step = self._steps[n]
        with torch.no_grad():
            weights.copy_(start)
        optimizer.param_groups[0].update(settings)
        start_momentum(optimizer, [momentum])
        mean = WeightAverage([weights], average)
        for lr, (images, labels) in zip(lrs, batches, strict=True):
            set_lr(optimizer, lr)
            step(images, labels, alphas)
            mean.update()
        mean.swap()
        return weights.detach()

    def scored(self, weights: Tensor, alphas: Tensor, batches: Sequence[Batch]) -> list[Scored]:
        """Return losses and logits of the candidates on each batch."""
        with torch.no_grad():
            found = [self._losses(*batch, weights, alphas) for batch in batches]
        pairs = zip(found, batches, strict=True)
        return [Scored(one.loss, one.logits, labels) for one, (_, labels) in pairs]

    def forget(self) -> None:
        """Free what is kept for the next call."""
        self._steps.clear()

    def _build(self, start: Tensor, n: int) -> _GroupStep:
        weights = start.repeat(n, 1).requires_grad_()
        optimizer = torch.optim.SGD([weights], lr=1.0)

        def compute(images: Tensor, labels: Tensor, alphas: Tensor) -> Losses:
            return self._losses(images, labels, weights, alphas)

        step = WeightStep(
            compute,
            self._network,
            optimizer,
            self._grad_clip,
            by_row=True,
            execution=self._execution,
            generators=self._generators,
        )
        return _GroupStep(weights, optimizer, step)

    def _losses(self, images: Tensor, labels: Tensor, weights: Tensor, alphas: Tensor) -> Losses:
        """Return the sum of the losses, the loss of each candidate ``(n,)``, and the logits."""
        parts = torch.split(weights, self._sizes, dim=1)  # its backward pass is one `cat`
        parameters = {
            name: part.view(-1, *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        # Space S4 draws its noise once, for all candidates.
        one_each = torch.vmap(self._loss, (0, 0, None, None), randomness="same")
        losses, logits = one_each(parameters, alphas, images, labels)
        return Losses(losses.sum(), losses, logits)

    def _loss(
        self, parameters: dict[str, Tensor], alpha: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = functional_call(self._network, parameters, (images, alpha))
        return F.cross_entropy(logits, labels), logits


class CandidateBatches:
    """Splits candidates into batches that fit into the memory of the device.

    ``size`` is their number per batch. None chooses: on CUDA as many as the free memory allows,
    judged by the first candidate; on a CPU all, if they are many and small; else one.
    """

    def __init__(self, size: int | None, *, cpu_kernels: bool = False) -> None:
        self._given, self._cpu_kernels = size, cpu_kernels
        self._limit: int | None = None  # batch size that memory allows, once it is known

    def evaluate(
        self, function: Callable[[Tensor], Tensor], alphas: Tensor, n_numbers: int
    ) -> Tensor:
        """Return the values ``(n,)`` of ``function``, which maps some rows of ``alphas`` to theirs.

        A batch that runs out of memory is halved, and so are all later ones. ``n_numbers`` is the
        size of the stem's output for one candidate.
        """
        values: list[Tensor] = []
        n_done = 0
        if self._given is None and self._limit is None and alphas.device.type == "cuda":
            first, self._limit = _measured(function, alphas[:1])
            values, n_done = [first], 1
        size = self._size(alphas, n_numbers)
        while n_done < len(alphas):
            part = alphas[n_done : n_done + size]
            try:
                values.append(function(part))
                n_done += len(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                size = self._limit = len(part) // 2
        return torch.cat(values)

    def _size(self, alphas: Tensor, n_numbers: int) -> int:
        size = batch_size(self._given, len(alphas), n_numbers, alphas.device, self._cpu_kernels)
        if self._given is None and alphas.device.type == "cuda":
            return self._limit or 1
        return min(size, self._limit or size)


def batch_size(
    given: int | None, n: int, n_numbers: int, device: torch.device, cpu_kernels: bool
) -> int:
    """Return how many of ``n`` candidates are evaluated at once, if memory does not limit it.

    ``given`` is the setting, and ``n_numbers`` the size of the stem's output for one candidate.
    """
    if given is not None:
        return min(given, n)
    limit = MAX_NUMBERS_BESIDE_KERNELS if cpu_kernels else MAX_NUMBERS_ON_CPU
    is_faster = n >= MIN_CANDIDATES_ON_CPU and n_numbers <= limit
    return n if device.type == "cpu" and is_faster else 1


def _measured(function: Callable[[Tensor], Tensor], alphas: Tensor) -> tuple[Tensor, int]:
    """Return the values of ``function`` on CUDA, and how many such calls the free memory allows."""
    device = alphas.device
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    values = function(alphas)
    taken = max(torch.cuda.max_memory_allocated(device) - before, 1)
    # What the allocator holds in reserve is free too.
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + reserve
    return values, max(int(FREE_MEMORY_FRACTION * free / taken), 1)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return the concatenated values of all tensors."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def scratch_copy(supernet: Supernet) -> Supernet:
    """Return a copy in training mode whose BatchNorm tracks no running statistics."""
    generators = {
        id(module.generator): module.generator
        for module in supernet.modules()
        if isinstance(module, Stochastic)
    }
    # A generator cannot be copied: the memo makes deepcopy keep it.
    scratch = copy.deepcopy(supernet, dict(generators)).train()
    for module in scratch.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return scratch
