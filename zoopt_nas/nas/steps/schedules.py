"""Learning-rate schedules in closed form, without a state to save."""

from __future__ import annotations

import math

import torch

from zoopt_nas.nas.settings.config import TrainConfig


def cosine(step: float, n_steps: float, start: float, end: float) -> float:
    """Return half a cosine from ``start`` at step 0 to ``end`` at ``n_steps``; flat outside."""
    progress = min(max(step / n_steps, 0.0), 1.0)
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0


def scheduled_lr(config: TrainConfig, epoch: int) -> float:
    """Return the learning rate of a retraining epoch.

    The warm-up replaces the first epochs of the decay and does not shift it (SmoothDARTS).
    """
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1) / config.warmup_epochs
    if config.schedule == "linear":
        return config.lr_min + (config.lr - config.lr_min) * _linear_decay(epoch, config.epochs)
    return cosine(epoch, config.epochs, config.lr, config.lr_min)


def _linear_decay(epoch: int, n_epochs: int) -> float:
    """Return the factor of a linear decay, which is flatter in the last epochs.

    The last 5 of 250 epochs follow the flatter line (SmoothDARTS). Shorter runs have one such epoch
    per 50 epochs; this is this package's choice.
    """
    n_last = min(5, n_epochs // 50)
    n_first = n_epochs - n_last
    if epoch < n_first:
        return 1 - epoch / n_first
    return (n_epochs - epoch) / (n_last * n_first)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
