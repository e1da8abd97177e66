"""Weight steps, schedules and evaluation: used by the search and by the retraining alike."""

from __future__ import annotations

import math

import torch

from zoopt_nas.nas.settings.config import TrainConfig


def cosine(step: float, n_steps: float, start: float, end: float) -> float:
    """Half a cosine from ``start`` at step 0 to ``end`` at ``n_steps``; flat outside.

    A closed form, so that a schedule has no state to save.
    """
    share = min(max(step / n_steps, 0.0), 1.0)
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2.0


def scheduled_lr(config: TrainConfig, epoch: int) -> float:
    """The learning rate of an epoch of a retraining; a closed form, as ``cosine``.

    The decay takes no notice of the warm-up, which replaces its first epochs (SmoothDARTS).
    """
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1) / config.warmup_epochs
    if config.schedule == "linear":
        share = _linear_share(epoch, config.epochs)
        return config.lr_min + (config.lr - config.lr_min) * share
    return cosine(epoch, config.epochs, config.lr, config.lr_min)


def _linear_share(epoch: int, n_epochs: int) -> float:
    """What a linear decay leaves at ``epoch``: a line to the last fiftieth of the epochs.

    There it would be zero, and goes on as a flatter line to the end, from the rate before it: the
    last five epochs of 250 (SmoothDARTS). Runs below 50 epochs have the one line (ours).
    """
    n_last = min(5, n_epochs // 50)
    n_first = n_epochs - n_last
    if epoch < n_first:
        return 1 - epoch / n_first
    return (n_epochs - epoch) / (n_last * n_first)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
