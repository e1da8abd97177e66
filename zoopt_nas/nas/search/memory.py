"""Estimates the memory of a search before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.nas.networks.space import Kept, Path, SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.runs.memory import PROCESS, MemoryEstimate, estimate
from zoopt_nas.nas.runs.setup import Setup
from zoopt_nas.nas.search.candidates import batch_size
from zoopt_nas.nas.search.noise import MAX_VAL_BATCHES
from zoopt_nas.nas.search.updater import AlphaUpdater
from zoopt_nas.nas.search.workers import n_beside
from zoopt_nas.nas.settings.config import MIXED, SHARED, SearchConfig
from zoopt_nas.nas.settings.methods import GRADIENT
from zoopt_nas.nas.steps.meter import EVAL_BATCH_SIZE

N_COPIES = 2  # the supernet, and the copy on which candidates are trained


class SearchMemory(NamedTuple):
    """The estimated memory of a search.

    Attributes:
        here: on the device of the search, with the workers that share it.
        worker: of one process that evaluates candidates.
    """

    here: MemoryEstimate
    worker: MemoryEstimate


def memory_of(
    config: SearchConfig,
    setup: Setup,
    supernet: Supernet,
    updater: AlphaUpdater,
    noise: torch.Generator,
) -> SearchMemory:
    """Estimate the memory of a search whose parts are built; they are restored.

    On a GPU with automatic ``candidates_per_batch``, the estimate is for single candidates.
    """
    device, execution, dataset = setup.device, setup.execution, setup.dataset
    n_candidates = updater.n_candidates
    loss, forward = _passes(config, setup, supernet, updater)
    n_train = int(len(dataset.train) * config.train_portion)
    n_val = len(dataset.train) - n_train
    # With fresh weights the batches are read anew in every pass.
    n_inner = config.inner_steps if config.inner == "sgd" and config.weights == SHARED else 1
    batch = min(config.batch_size, max(n_train, n_val))
    n_numbers = supernet.stem_channels * batch * dataset.image_size**2
    n_val_batches = config.val_batches
    if config.noise_aware:
        n_val_batches = max(n_val_batches, MAX_VAL_BATCHES)
    per_batch, cpu_kernels = config.candidates_per_batch, execution.cpu_kernels
    n_at_once = batch_size(per_batch, n_candidates, n_numbers, device, cpu_kernels)
    if n_at_once > 1:  # PyTorch's operators compute batched candidates, and need more memory
        enable_kernels(supernet, False)
    found = estimate(
        supernet,
        loss,
        forward,
        dataset,
        sizes=(batch, min(EVAL_BATCH_SIZE, n_val)),
        n_copies=N_COPIES,
        n_batches=1 + n_inner + n_val_batches,
        generators=[noise],
    )
    enable_kernels(supernet, execution.cpu_kernels)
    weights = sum(parameter.nbytes for parameter in supernet.parameters())
    n_kept = 0  # snapshots, each with weights and momentum; they are on the host
    if updater.goes_back and device.type == "cpu":
        last = config.epochs - 1
        n_kept = max(last - updater.oldest_return(last, config.weight_decay) + 1, 0)
    with_candidates = partial(_with_candidates, found, weights, config.inner_average > 0)
    here = with_candidates(1 if config.worker_names else n_at_once)
    here = replace(here, parameters=here.parameters + 2 * n_kept * weights)
    if not config.worker_names:
        is_recorded = execution.compile and device.type == "cuda" and n_candidates > 0
        here = replace(here, activations=here.activations + is_recorded * found.activations)
        return SearchMemory(here, here)
    # A worker evaluates in batches of training, and needs images only to read batches anew.
    images = dataset.train.nbytes if config.weights == SHARED else 0
    worker = replace(
        with_candidates(n_at_once),
        evaluation=0,
        data=found.data - images,
        libraries=found.libraries + PROCESS.get(device.type, 0),
    )
    return SearchMemory(replace(here, workers=n_beside(config, device) * worker.total), worker)


def _passes(
    config: SearchConfig, setup: Setup, supernet: Supernet, updater: AlphaUpdater
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the pass of a search that keeps most, and its evaluation."""
    execution = setup.execution
    is_gradient = updater.kind == GRADIENT
    has_eigenvalue = config.track_eigenvalue or updater.wants_eigenvalue
    # Inner steps and gradients in alpha are in float32, whatever the precision of weight steps.
    has_inner_steps = config.inner != "first" and config.inner_amp == "off"
    evaluates = updater.n_candidates > 0
    is_float32 = is_gradient or (evaluates and (has_inner_steps or updater.is_guided))
    widest = replace(execution, autocast=None) if is_float32 else execution
    # Gradients in alpha keep every operation's output.
    in_alpha = has_eigenvalue or is_gradient
    alpha: Tensor | Path = torch.zeros(
        supernet.space.dim, device=setup.device, requires_grad=in_alpha
    )
    scales: Tensor | None = None  # the factors of a path's outputs, with a gradient
    if config.paths != MIXED or (updater.trains_paths and not has_eigenvalue):
        alpha = _heaviest_path(supernet.space, on_every_edge=updater.on_every_edge)
        if is_gradient:
            scales = torch.ones(len(alpha), device=setup.device, requires_grad=True)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        if has_eigenvalue:  # keeps the graphs of the loss and of its gradient
            assert isinstance(alpha, Tensor)  # paths have no eigenvalue
            value = F.cross_entropy(supernet(images, alpha), labels)
            (gradient,) = torch.autograd.grad(value, alpha, create_graph=True)
            return torch.autograd.grad(gradient.sum(), alpha)[0]
        with widest.precision():
            if isinstance(alpha, Tensor):
                return F.cross_entropy(supernet(images, alpha), labels)
            return F.cross_entropy(supernet.follow(images, alpha, scales), labels)

    return loss, lambda images: supernet(images, alpha)


def _with_candidates(
    found: MemoryEstimate, weights: int, has_average: bool, n: int
) -> MemoryEstimate:
    """Return the estimate for ``n`` candidates at once, from the one for a weight step.

    ``weights`` are the bytes of a supernet's weights, of which a candidate may have an average.
    """
    n_copies, n = (n if n > 1 else 0), max(n, 1)
    copies = n_copies * (found.parameters // N_COPIES) + has_average * n * weights
    return replace(found, parameters=found.parameters + copies, activations=n * found.activations)


def heaviest_kept(space: SearchSpace, n_kept: Sequence[int]) -> Kept:
    """Return the candidates with the most parameters, ``n_kept`` of each edge."""
    parts = [part for kind in space.kinds for part in _candidate_sizes(space)[kind]]
    orders = [part.argsort(descending=True, stable=True).tolist() for part in parts]
    return tuple(tuple(sorted(order[:n])) for order, n in zip(orders, n_kept, strict=True))


def _heaviest_path(space: SearchSpace, *, on_every_edge: bool = False) -> Path:
    """Return the path of the operations with the most parameters, of a cell or on every edge."""
    sizes = _candidate_sizes(space)
    if on_every_edge:
        return tuple(int(part.argmax()) for kind in space.kinds for part in sizes[kind])
    alpha = space.flatten(sizes)
    return space.path(space.discretize(F.pad(alpha, (0, space.dim - len(alpha)))))  # equal edges


def _candidate_sizes(space: SearchSpace) -> dict[str, list[Tensor]]:
    """Return the number of parameters of the candidates of each edge, by kind of cell."""
    sizes = {
        name: sum(weight.numel() for weight in OPERATIONS[name](4, 1, True).parameters())
        for kind in space.kinds
        for names in space.candidates(kind)
        for name in names
    }
    return {
        kind: [
            torch.tensor([float(sizes[name]) for name in names]) for names in space.candidates(kind)
        ]
        for kind in space.kinds
    }
