"""Estimates the memory of a search before it starts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.nas.networks.space import Path, SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.runs.memory import MemoryEstimate, estimate
from zoopt_nas.nas.runs.setup import Setup
from zoopt_nas.nas.search.candidates import batch_size
from zoopt_nas.nas.search.noise import MAX_VAL_BATCHES
from zoopt_nas.nas.search.updater import AlphaUpdater
from zoopt_nas.nas.settings.config import MIXED, SHARED, SearchConfig
from zoopt_nas.nas.settings.methods import GRADIENT
from zoopt_nas.nas.steps.meter import EVAL_BATCH_SIZE

N_COPIES = 2  # the supernet, and the copy on which candidates are trained


def memory_of(
    config: SearchConfig,
    setup: Setup,
    supernet: Supernet,
    updater: AlphaUpdater,
    noise: torch.Generator,
) -> MemoryEstimate:
    """Estimate the memory of a search whose parts are built; they are restored.

    On a GPU with automatic ``candidates_per_batch``, the estimate is for single candidates.
    """
    device, execution, dataset = setup.device, setup.execution, setup.dataset
    is_gradient = updater.kind == GRADIENT
    has_eigenvalue = config.track_eigenvalue or updater.wants_eigenvalue
    # Inner steps and gradients in alpha are in float32, whatever the precision of weight steps.
    has_inner_steps = config.inner != "first" and config.inner_amp == "off"
    n_candidates = updater.n_candidates
    is_float32 = is_gradient or (n_candidates > 0 and (has_inner_steps or updater.is_guided))
    widest = replace(execution, autocast=None) if is_float32 else execution
    # Gradients in alpha keep every operation's output.
    in_alpha = has_eigenvalue or is_gradient
    alpha: Tensor | Path = torch.zeros(supernet.space.dim, device=device, requires_grad=in_alpha)
    if config.paths != MIXED:
        alpha = _heaviest_path(supernet.space)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        if has_eigenvalue:  # keeps the graphs of the loss and of its gradient
            assert isinstance(alpha, Tensor)  # paths have no eigenvalue
            value = F.cross_entropy(supernet(images, alpha), labels)
            (gradient,) = torch.autograd.grad(value, alpha, create_graph=True)
            return torch.autograd.grad(gradient.sum(), alpha)[0]
        with widest.precision():
            return F.cross_entropy(supernet(images, alpha), labels)

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
    is_recorded = execution.compile and device.type == "cuda" and n_candidates > 0
    found = estimate(
        supernet,
        loss,
        lambda images: supernet(images, alpha),
        dataset,
        sizes=(batch, min(EVAL_BATCH_SIZE, n_val)),
        n_copies=N_COPIES + (n_at_once if n_at_once > 1 else 0),
        n_batches=1 + n_inner + n_val_batches,
        generators=[noise],
    )
    enable_kernels(supernet, execution.cpu_kernels)
    weights = sum(parameter.nbytes for parameter in supernet.parameters())
    n_averages = max(n_at_once, 1) if config.inner_average else 0
    n_kept = 0  # snapshots, each with weights and momentum; they are on the host
    if updater.goes_back and device.type == "cpu":
        last = config.epochs - 1
        n_kept = max(last - updater.oldest_return(last, config.weight_decay) + 1, 0)
    return replace(
        found,
        parameters=found.parameters + (2 * n_kept + n_averages) * weights,
        activations=found.activations * (max(n_at_once, 1) + is_recorded),
    )


def _heaviest_path(space: SearchSpace) -> Path:
    """Return the path of the operations with the most parameters."""
    sizes = {
        name: sum(weight.numel() for weight in OPERATIONS[name](4, 1, True).parameters())
        for kind in space.kinds
        for names in space.candidates(kind)
        for name in names
    }
    parts = {
        kind: [
            torch.tensor([float(sizes[name]) for name in names]) for names in space.candidates(kind)
        ]
        for kind in space.kinds
    }
    return space.path(space.discretize(space.flatten(parts)))
