"""How much memory a search needs, known before it starts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.runs.memory import MemoryEstimate, estimate
from zoopt_nas.nas.runs.setup import Setup
from zoopt_nas.nas.search.candidates import batch_size
from zoopt_nas.nas.search.updater import AlphaUpdater
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.methods import GRADIENT
from zoopt_nas.nas.steps.meter import EVAL_BATCH_SIZE

N_COPIES = 2  # the supernet, and the copy on which candidates are fitted


def memory_of(
    config: SearchConfig,
    setup: Setup,
    supernet: Supernet,
    updater: AlphaUpdater,
    noise: torch.Generator,
) -> MemoryEstimate:
    """Estimates the memory of a search whose parts are built; they stay as they are.

    Where ``candidates_per_batch`` is automatic on a GPU, its batches fit themselves to what is
    free, and the estimate is that of candidates one by one.

    Args:
        config: the settings.
        setup: device, execution and images.
        supernet: the model.
        updater: moves alpha.
        noise: what the supernet draws from.
    """
    device, execution, dataset = setup.device, setup.execution, setup.dataset
    is_gradient = updater.kind == GRADIENT
    has_eigenvalue = config.track_eigenvalue or updater.wants_eigenvalue
    # A backward pass in float32, whatever the weights' own steps are in.
    has_inner_steps = config.inner != "first" and config.inner_amp == "off"
    n_candidates = updater.n_candidates
    is_plain = is_gradient or (n_candidates > 0 and (has_inner_steps or updater.is_guided))
    widest = replace(execution, autocast=None) if is_plain else execution
    # Gradients in alpha need every operation's output.
    in_alpha = has_eigenvalue or is_gradient
    alpha = torch.zeros(supernet.space.dim, device=device, requires_grad=in_alpha)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        if has_eigenvalue:  # the graph of the gradient stays beside that of the loss
            value = F.cross_entropy(supernet(images, alpha), labels)
            (gradient,) = torch.autograd.grad(value, alpha, create_graph=True)
            return torch.autograd.grad(gradient.sum(), alpha)[0]
        with widest.precision():
            return F.cross_entropy(supernet(images, alpha), labels)

    n_fit = int(len(dataset.train) * config.train_portion)
    n_score = len(dataset.train) - n_fit
    n_inner = config.inner_steps if config.inner == "sgd" else 1
    batch = min(config.batch_size, max(n_fit, n_score))
    n_numbers = supernet.stem_channels * batch * dataset.image_size**2
    per_batch, cpu_kernels = config.candidates_per_batch, execution.cpu_kernels
    n_at_once = batch_size(per_batch, n_candidates, n_numbers, device, cpu_kernels)
    if n_at_once > 1:  # which kernels of our own do not take; PyTorch's operators keep more
        enable_kernels(supernet, False)
    is_recorded = execution.compile and device.type == "cuda" and n_candidates > 0
    found = estimate(
        supernet,
        loss,
        lambda images: supernet(images, alpha),
        dataset,
        sizes=(batch, min(EVAL_BATCH_SIZE, n_score)),
        n_copies=N_COPIES + (n_at_once if n_at_once > 1 else 0),
        n_batches=1 + n_inner + config.val_batches,
        generators=[noise],
    )
    enable_kernels(supernet, execution.cpu_kernels)
    weights = sum(parameter.nbytes for parameter in supernet.parameters())
    n_kept = 0  # epochs to go back to, each with its momentum
    if updater.goes_back and device.type == "cpu":  # they are on the host
        last = config.epochs - 1
        n_kept = max(last - updater.oldest_return(last, config.weight_decay) + 1, 0)
    return replace(
        found,
        parameters=found.parameters + 2 * n_kept * weights,
        activations=found.activations * (max(n_at_once, 1) + is_recorded),
    )
