"""Several candidates of one update at once: the supernet with n sets of weights and n alphas.

A supernet of small cells keeps a GPU waiting for launches. ``torch.vmap`` over n sets of weights
turns a depthwise convolution into one of n times as many channels, a 1x1 convolution into one of n
groups, and BatchNorm over C channels into one over n C, which is that of each candidate by itself.
Nothing mixes candidates, so each gets the loss and the weights that it gets alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.weight_step import Losses, WeightStep, start_momentum

# On a CPU joined candidates pay while all that a node holds stays in the cache, and only from so
# many candidates on (docs/performance.md). The numbers are those of the stem's output.
MAX_NUMBERS_ON_CPU = 3 * 2**14
MAX_NUMBERS_BESIDE_KERNELS = 3 * 2**12  # where the CPU kernels compute those one by one
MIN_CANDIDATES_ON_CPU = 4
# Ours: what is left is for the workspaces of the larger operators, and for fragmentation.
SHARE_OF_FREE_MEMORY = 0.8

Batch = tuple[Tensor, Tensor]
"""``(images, labels)``."""


class _Stack(NamedTuple):
    """n sets of weights that are fitted together.

    Attributes:
        weights: ``(n, n_weights)``.
        optimizer: every rule of SGD is elementwise, so on rows it is n optimizers.
        step: of these weights.
    """

    weights: Tensor
    optimizer: torch.optim.SGD
    step: WeightStep


class StackedCandidates:
    """Fits and evaluates n candidates together; their weights are rows of one tensor.

    A row has the parameters in the order of ``network.parameters()``, each flattened.

    Args:
        network: gives the form; its own weights are not used. Its BatchNorm must track no
            statistics.
        grad_clip: bound on the norm of each candidate's gradient; None is no bound.
        execution: of the steps; losses that compare candidates are computed plainly.
        generators: what ``network`` draws from.
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
        self._stacks: dict[int, _Stack] = {}  # a CUDA graph of a step needs them to stay

    def fit(
        self,
        start: Tensor,
        momentum: Tensor | None,
        alphas: Tensor,
        batches: Sequence[Batch],
        settings: dict[str, Any],
    ) -> Tensor:
        """Returns the weights, ``(n, n_weights)``, after one step of SGD for each batch.

        The next call overwrites them.

        Args:
            start: the weights to start from, ``(n_weights,)``.
            momentum: momentum to start from, ``(n_weights,)``; None = the first step makes it.
            alphas: ``(n, dim)``.
            batches: one for each step, shared by all.
            settings: of ``torch.optim.SGD``.
        """
        n = len(alphas)
        if n not in self._stacks:
            self._stacks[n] = self._build(start, n)
        weights, optimizer, step = self._stacks[n]
        with torch.no_grad():
            weights.copy_(start)
        optimizer.param_groups[0].update(settings)
        start_momentum(optimizer, [momentum])
        for images, labels in batches:
            step(images, labels, alphas)
        return weights.detach()

    def mean_losses(self, weights: Tensor, alphas: Tensor, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy ``(n,)`` of the candidates over batches, without a gradient.

        Args:
            weights: ``(n, n_weights)``.
            alphas: ``(n, dim)``.
            batches: shared by all.
        """
        with torch.no_grad():
            losses = [
                self._losses(images, labels, weights, alphas).loss for images, labels in batches
            ]
            return torch.stack(losses).mean(0)

    def forget(self) -> None:
        """Frees what was kept for the next call."""
        self._stacks.clear()

    def _build(self, start: Tensor, n: int) -> _Stack:
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
        return _Stack(weights, optimizer, step)

    def _losses(self, images: Tensor, labels: Tensor, weights: Tensor, alphas: Tensor) -> Losses:
        """What is minimised (), the loss of each candidate ``(n,)``, and their logits."""
        parts = torch.split(weights, self._sizes, dim=1)  # whose gradients come back by one `cat`
        parameters = {
            name: part.view(-1, *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        # randomness: space S4 draws noise once, and all candidates see it.
        one_each = torch.vmap(self._loss, (0, 0, None, None), randomness="same")
        losses, logits = one_each(parameters, alphas, images, labels)
        return Losses(losses.sum(), losses, logits)

    def _loss(
        self, parameters: dict[str, Tensor], alpha: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = functional_call(self._network, parameters, (images, alpha))
        return F.cross_entropy(logits, labels), logits


class CandidateBatches:
    """Splits the candidates of a call into batches that the memory of the device can hold.

    Args:
        size: candidates in a batch; None = automatic: on CUDA as many as fit into the free memory,
            by what the first candidate took; on a CPU all if they are many and small, as
            ``MAX_NUMBERS_ON_CPU`` has it, else one by one; elsewhere one by one.
        cpu_kernels: whether the CPU kernels compute candidates that come one by one.
    """

    def __init__(self, size: int | None, *, cpu_kernels: bool = False) -> None:
        self._given, self._cpu_kernels = size, cpu_kernels
        self._fitting: int | None = None  # what fits into the memory, once that is known

    def evaluate(
        self, function: Callable[[Tensor], Tensor], alphas: Tensor, n_numbers: int
    ) -> Tensor:
        """The values ``(n,)`` of ``function``, which maps some rows of ``alphas`` to theirs.

        A batch that does not fit into the memory is halved, and so are all later ones.

        Args:
            function: ``(k, dim)`` to ``(k,)``.
            alphas: ``(n, dim)``.
            n_numbers: how many the stem of the supernet puts out for one candidate.
        """
        values: list[Tensor] = []
        n_done = 0
        if self._given is None and self._fitting is None and alphas.device.type == "cuda":
            first, self._fitting = _measured(function, alphas[:1])
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
                size = self._fitting = len(part) // 2
        return torch.cat(values)

    def _size(self, alphas: Tensor, n_numbers: int) -> int:
        size = batch_size(self._given, len(alphas), n_numbers, alphas.device, self._cpu_kernels)
        if self._given is None and alphas.device.type == "cuda":
            return self._fitting or 1
        return min(size, self._fitting or size)


def batch_size(
    given: int | None, n: int, n_numbers: int, device: torch.device, cpu_kernels: bool
) -> int:
    """How many candidates are evaluated at once, as far as memory does not decide it.

    Args:
        given: the setting; None = automatic, see ``CandidateBatches``.
        n: of so many candidates.
        n_numbers: how many the stem of the supernet puts out for one candidate.
        device: where.
        cpu_kernels: whether the CPU kernels compute them there, one by one.
    """
    if given is not None:
        return min(given, n)
    limit = MAX_NUMBERS_BESIDE_KERNELS if cpu_kernels else MAX_NUMBERS_ON_CPU
    pays = n >= MIN_CANDIDATES_ON_CPU and n_numbers <= limit
    return n if device.type == "cpu" and pays else 1


def _measured(function: Callable[[Tensor], Tensor], alphas: Tensor) -> tuple[Tensor, int]:
    """The values of ``function`` on CUDA, and how often what they took fits into the rest."""
    device = alphas.device
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    values = function(alphas)
    taken = max(torch.cuda.max_memory_allocated(device) - before, 1)
    # What the allocator keeps in reserve is free too.
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + reserve
    return values, max(int(SHARE_OF_FREE_MEMORY * free / taken), 1)
