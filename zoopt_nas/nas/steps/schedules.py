"""Weight steps, schedules and evaluation: used by the search and by the retraining alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.settings.config import RunConfig, TrainConfig

EVAL_BATCH_SIZE = 256  # forward only: the result does not depend on it
IMAGENET_STEM_SIZE = 128  # images at least this large get the ImageNet stem


def stem_for(image_size: int) -> str:
    """The stem for images of a side of ``image_size`` pixels."""
    return "imagenet" if image_size >= IMAGENET_STEM_SIZE else "cifar"


def seeds_for(seed: int, uses: Sequence[str]) -> dict[str, int]:
    """One independent seed for each use of randomness, so that none disturbs another."""
    words = np.random.SeedSequence(seed).generate_state(len(uses), np.uint32)
    return dict(zip(uses, words.tolist(), strict=True))


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own on ``device``."""
    return torch.Generator(device).manual_seed(seed)


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA, then MPS, then the CPU; any other name is a torch device.

    Raises:
        InvalidValueError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" makes tensors, but they hold nothing
    except (RuntimeError, AssertionError) as error:
        raise InvalidValueError(
            f"device must be auto or a device that this machine has, got {name}"
        ) from error
    return device


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
    *("bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_"),
    *("multinomial", "normal", "normal_", "rand", "randint", "randn", "random_", "randperm"),
    "uniform_",
)


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


def make_sgd(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """SGD with momentum and weight decay over the weights of ``model``."""
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


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


def start_momentum(optimizer: torch.optim.SGD, momenta: Sequence[Tensor | None]) -> None:
    """Gives each of the optimizer's parameters, as a copy, the momentum that it starts with.

    Args:
        optimizer: its buffers stay where they are, as a CUDA graph needs it.
        momenta: one for each parameter, of a shape that expands to its; None is no momentum.
    """
    group = optimizer.param_groups[0]
    parameters = group["params"]
    pairs = [
        (parameter, momentum)
        for parameter, momentum in zip(parameters, momenta, strict=True)
        if momentum is not None
    ]
    if len(pairs) < len(parameters):
        if group["dampening"]:  # SGD makes a missing buffer from its first gradient
            optimizer.state.clear()
        # As does a buffer of zeros without dampening.
        for state in optimizer.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].zero_()
    for parameter, _ in pairs:
        if optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
    if pairs:
        buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter, _ in pairs]
        torch._foreach_copy_(buffers, [momentum for _, momentum in pairs])


def weight_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    grad_clip: float | None,
    *,
    by_row: bool = False,
) -> None:
    """One step down the gradient of ``loss``.

    Args:
        loss: ``()``.
        optimizer: steps its parameters.
        grad_clip: bound on the gradient's norm; None is no bound.
        by_row: the bound holds for each row of the one parameter, not for all of it.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if grad_clip is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if by_row:
            (rows,) = parameters
            norms = torch.linalg.vector_norm(rows.grad, dim=1, keepdim=True)
            # The same formula as that of clip_grad_norm_.
            rows.grad.mul_((grad_clip / (norms + 1e-6)).clamp(max=1.0))
        else:
            nn.utils.clip_grad_norm_(parameters, grad_clip)
    optimizer.step()


class Meter:
    """Mean loss and accuracy over images. It sums on the device and syncs only when read.

    Args:
        device: where the sums are.
        n_models: measures so many models on the same images, each by itself; None is one.

    Attributes:
        sums: ``(3,)``: of the losses, of the right answers, and the number of images; of several
            models ``(n_models, 3)``.
    """

    def __init__(self, device: torch.device, n_models: int | None = None) -> None:
        # float64 counts exactly and does not drift.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        shape = (3,) if n_models is None else (n_models, 3)
        self.sums = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            loss: its mean ``()``; of several models ``(n_models,)``.
            logits: ``(batch, classes)``; of several models ``(n_models, batch, classes)``.
            labels: ``(batch,)``.
        """
        n_images = labels.shape[0]
        with torch.no_grad():
            self.sums[..., 0] += loss.detach() * n_images
            self.sums[..., 1] += (logits.argmax(dim=-1) == labels).sum(dim=-1)
            self.sums[..., 2] += n_images

    @property
    def loss(self) -> float:
        """Mean loss of an image; NaN if none was seen."""
        return float(self.sums[0] / self.sums[2])

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]; NaN if no image was seen."""
        return float(self.sums[1] / self.sums[2])

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums.copy_(state["sums"])


def evaluate(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> Meter:
    """Cross-entropy and accuracy of ``forward`` (images to logits) over ``batches``.

    The caller puts the model into evaluation mode.
    """
    meter = Meter(device)
    with torch.no_grad():
        for images, labels in batches:
            logits = forward(images)
            meter.update(F.cross_entropy(logits, labels), logits, labels)
    return meter
