"""Several candidates of one update at once: the supernet with n sets of weights and n alphas.

A supernet of small cells keeps a GPU waiting for launches. ``torch.vmap`` over n sets of weights
turns a depthwise convolution into one of n times as many channels, a 1x1 convolution into one of n
groups, and BatchNorm over C channels into one over n C, which is that of each candidate by itself.
Nothing mixes candidates, so each gets the loss and the weights that it gets alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from zoopt_nas.nas.supernet import Supernet

# On a CPU joined candidates pay while all that a node holds stays in the cache, and only from so
# many candidates on (docs/performance.md). The numbers are those of the stem's output.
MAX_NUMBERS_ON_CPU = 3 * 2**14
MIN_CANDIDATES_ON_CPU = 4
# Ours: what is left is for the workspaces of the larger operators, and for fragmentation.
SHARE_OF_FREE_MEMORY = 0.8


class StackedCandidates:
    """Evaluates ``network`` at the weights of n candidates, rows of one tensor ``(n, n_weights)``.

    A row has the parameters in the order of ``network.parameters()``, each flattened.

    Args:
        network: gives the form; its own weights are not used. Its BatchNorm must track no
            statistics.
        forward_context: entered around every forward pass, for example ``torch.autocast``.
    """

    def __init__(
        self,
        network: Supernet,
        forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._network = network
        self._forward_context = forward_context
        named = dict(network.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        self._sizes = [parameter.numel() for parameter in named.values()]

    def losses(self, weights: Tensor, alphas: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy ``(n,)`` of the candidates on one batch.

        Args:
            weights: ``(n, n_weights)``.
            alphas: ``(n, dim)``.
            images, labels: shared by all.
        """
        parts = torch.split(weights, self._sizes, dim=1)  # whose gradients come back by one `cat`
        parameters = {
            name: part.view(-1, *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        # randomness: space S4 draws noise once, and all candidates see it.
        losses = torch.vmap(self._loss, (0, 0, None, None), randomness="same")
        with self._forward_context():
            values: Tensor = losses(parameters, alphas, images, labels)
        return values

    def mean_losses(
        self, weights: Tensor, alphas: Tensor, batches: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The mean ``(n,)`` of ``losses`` over batches ``(images, labels)``, without a gradient."""
        with torch.no_grad():
            return torch.stack([self.losses(weights, alphas, *batch) for batch in batches]).mean(0)

    def fit(
        self,
        start: Tensor,
        momentum: Tensor | None,
        alphas: Tensor,
        batches: Sequence[tuple[Tensor, Tensor]],
        settings: dict[str, Any],
        grad_clip: float | None,
    ) -> Tensor:
        """The weights ``(n, n_weights)`` of all candidates after one step of SGD for each batch.

        Args:
            start: the weights to start from, ``(n_weights,)``.
            momentum: momentum to start from, ``(n_weights,)``; None = the first step makes it.
            alphas: ``(n, dim)``.
            batches: ``(images, labels)`` of each step.
            settings: of ``torch.optim.SGD``.
            grad_clip: bound on the norm of each candidate's gradient.
        """
        weights = start.repeat(len(alphas), 1).requires_grad_()
        # Every rule of SGD is elementwise: on rows it is n optimizers.
        optimizer = torch.optim.SGD([weights], **settings)
        if momentum is not None:
            optimizer.state[weights]["momentum_buffer"] = momentum.repeat(len(alphas), 1)
        for images, labels in batches:
            total = self.losses(weights, alphas, images, labels).sum()
            (gradient,) = torch.autograd.grad(total, weights)
            if grad_clip is not None:  # as torch.nn.utils.clip_grad_norm_ does it
                norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
                gradient.mul_((grad_clip / (norms + 1e-6)).clamp(max=1.0))
            weights.grad = gradient
            optimizer.step()
        return weights.detach()

    def _loss(
        self, parameters: dict[str, Tensor], alpha: Tensor, images: Tensor, labels: Tensor
    ) -> Tensor:
        return F.cross_entropy(functional_call(self._network, parameters, (images, alpha)), labels)


class CandidateBatches:
    """Splits the candidates of a call into batches that the memory of the device can hold.

    Args:
        size: candidates in a batch; None = automatic: on CUDA as many as fit into the free memory,
            by what the first candidate took; on a CPU all if they are many and small, as
            ``MAX_NUMBERS_ON_CPU`` has it, else one by one; elsewhere one by one.
    """

    def __init__(self, size: int | None) -> None:
        self._given = size
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
        if self._given is not None:
            return min(self._given, self._fitting or self._given)
        if alphas.device.type == "cpu":
            pays = len(alphas) >= MIN_CANDIDATES_ON_CPU and n_numbers <= MAX_NUMBERS_ON_CPU
            return (self._fitting or len(alphas)) if pays else 1
        return self._fitting or 1


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
