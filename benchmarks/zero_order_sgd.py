"""Fine-tunes a small network by forward passes only, and measures the memory that this takes.

``digits``: a network of 4810 weights learns the digits 0 to 4 by backpropagation, then all ten
digits by each method of ``METHODS``; real images, from scikit-learn. Accuracies are on the test
images, of splits and networks with seeds 0, 1, ...

``tune``: where the learning rates come from: the accuracy on the validation images of seed 0 at
half, once and twice the rate.

``memory``: what one step of each optimizer adds to the peak resident memory of a process that holds
a transformer of 25 million weights, in MiB; a process for each.

    python benchmarks/zero_order_sgd.py digits [n_seeds]
    python benchmarks/zero_order_sgd.py tune
    python benchmarks/zero_order_sgd.py memory
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.integrations.torch import ZeroOrderSGD

BATCH_SIZE = 256
N_LOSSES = 8_500  # the budget of each zero-order run
FZOO = {"estimator": "one_sided", "direction": "rademacher", "normalize": True}


class Digits(NamedTuple):
    """Images (n, 64) in [0, 1] and labels (n,): 1000 to train, 297 to validate, 500 to test."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Method(NamedTuple):
    """How to fine-tune: ``optimizer(parameters, lr, seed)``, the losses of a step, what moves."""

    optimizer: Callable[[Any, float, int], torch.optim.Optimizer]
    losses_per_step: int
    n_steps: int
    lr: float
    head_only: bool = False


def zero_order(lr: float, n_directions: int, head_only: bool = False, **options: Any) -> Method:
    one_sided = options.get("estimator") == "one_sided"
    losses_per_step = n_directions + 1 if one_sided else 2 * n_directions

    def optimizer(parameters: Any, lr: float, seed: int) -> ZeroOrderSGD:
        return ZeroOrderSGD(parameters, lr, n_directions=n_directions, rng=seed, **options)

    return Method(optimizer, losses_per_step, N_LOSSES // losses_per_step, lr, head_only)


def sgd(lr: float, n_steps: int) -> Method:
    return Method(lambda parameters, lr, seed: torch.optim.SGD(parameters, lr), 1, n_steps, lr)


METHODS = {
    "SGD, 500 steps": sgd(1.0, 500),
    "SGD, 60 steps": sgd(1.0, 60),
    "FZOO, q = 16": zero_order(1e-4, 16, **FZOO),
    "FZOO, q = 16, head only": zero_order(1e-4, 16, head_only=True, **FZOO),
    "MeZO, q = 16": zero_order(5e-2, 16),
    "MeZO, q = 1": zero_order(4e-3, 1),
}


def load_split(seed: int) -> Digits:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x = torch.from_numpy(images[order] / 16).float()
    y = torch.from_numpy(labels[order])
    return Digits(*((x[s], y[s]) for s in (slice(1000), slice(1000, 1297), slice(1297, None))))


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    images, labels = data
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


def pretrain(train: tuple[Tensor, Tensor], seed: int) -> nn.Sequential:
    """Returns a network that knows the digits 0 to 4, trained by backpropagation."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    images, labels = (part[train[1] < 5] for part in train)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def fine_tune(
    model: nn.Sequential,
    train: tuple[Tensor, Tensor],
    method: Method,
    seed: int,
    n_steps: int | None = None,
    lr: float | None = None,
) -> None:
    """Trains ``model`` on all ten digits; a cosine takes the learning rate to 0."""
    images, labels = train
    n_steps = method.n_steps if n_steps is None else n_steps
    moving = model[-1] if method.head_only else model
    optimizer = method.optimizer(moving.parameters(), method.lr if lr is None else lr, seed)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    rng = np.random.default_rng(seed)
    for _ in range(n_steps):
        batch = torch.from_numpy(rng.integers(len(labels), size=BATCH_SIZE))
        x, y = images[batch], labels[batch]

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            loss = F.cross_entropy(model(x), y)
            if loss.requires_grad:  # never so for ZeroOrderSGD
                optimizer.zero_grad()
                loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()


def digits(n_seeds: int) -> None:
    print(f"{'method':<26}{'losses':>8}{'test accuracy, median (min, max)':>36}{'CPU s':>8}")
    for name, method in {"before": None, **METHODS}.items():
        ends, seconds = [], []
        for seed in range(n_seeds):
            data = load_split(seed)
            model = pretrain(data.train, seed)
            start = time.process_time()
            if method is not None:
                fine_tune(model, data.train, method, seed)
            seconds.append(time.process_time() - start)
            ends.append(accuracy(model, data.test))
        n_losses = method.n_steps * method.losses_per_step if method else 0
        spread = f"{np.median(ends):.3f} ({min(ends):.3f}, {max(ends):.3f})"
        print(f"{name:<26}{n_losses:8d}{spread:>36}{np.median(seconds):8.1f}", flush=True)


def tune() -> None:
    data = load_split(0)
    for name, method in METHODS.items():
        for lr in (method.lr / 2, method.lr, 2 * method.lr):
            model = pretrain(data.train, 0)
            fine_tune(model, data.train, method, 0, lr=lr)
            print(f"{name:<26} lr {lr:8.2g}: {accuracy(model, data.validation):.3f}", flush=True)


STEPS: dict[str, Callable[[Any], torch.optim.Optimizer] | None] = {
    "one loss": None,
    "ZeroOrderSGD, q = 1": lambda parameters: ZeroOrderSGD(parameters, 1e-6, rng=0),
    "ZeroOrderSGD, q = 4": lambda parameters: ZeroOrderSGD(parameters, 1e-6, 1e-3, 4, rng=0),
    "SGD": lambda parameters: torch.optim.SGD(parameters, 1e-6),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-6),
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def one_step(name: str) -> None:
    make, generator = STEPS[name], torch.Generator().manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True) for _ in range(8)
    ]
    model = nn.Sequential(*layers)
    x = torch.randn(8, 128, 512, generator=generator)

    def closure() -> Tensor:
        loss = (model(x) ** 2).mean()
        if loss.requires_grad:
            loss.backward()
        return loss

    # A first optimizer makes torch import what all of them need, some 150 MiB of modules.
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1).step()
    optimizer = make(model.parameters()) if make else None
    before = peak_mib()
    if optimizer is None:
        with torch.no_grad():
            closure()
    else:
        optimizer.step(closure)
    print(f"{name:<26}{peak_mib() - before:8.0f}")


def memory() -> None:
    print(f"{'one step of':<26}{'MiB':>8}", flush=True)
    for name in STEPS:
        subprocess.run([sys.executable, __file__, "one_step", name], check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["digits", *n_seeds]:
            digits(int(n_seeds[0]) if n_seeds else 3)
        case ["tune"]:
            tune()
        case ["memory"]:
            memory()
        case ["one_step", name]:
            one_step(name)
        case _:
            sys.exit(__doc__)
