"""The search objective, L(alpha) = L_val(omega*(alpha), alpha) (paper, Eq. 1), as a function.

For each candidate alpha the weights omega*(alpha) are approximated from the supernet's current
weights, and the loss is measured on images that the weights are not fitted on:

- ``inner="sgd"``: M steps of SGD on L_train with alpha fixed (paper, section 4).
- ``inner="second"``: the one unrolled step of Eq. 2, not clipped.
- ``inner="first"``: no step, omega* = omega (Eq. 3).

All of it happens on one scratch copy of the supernet that is made once and refilled for every
candidate, or with the weights of several candidates stacked (``search/candidates.py``). The
supernet itself, its optimizer and its BatchNorm buffers are only read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.fused import kernels_enabled
from zoopt_nas.nas.networks.operations import Stochastic, seed_noise
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.candidates import CandidateBatches, StackedCandidates
from zoopt_nas.nas.settings.config import INNER_MODES, SearchConfig
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.weight_step import WeightStep, cross_entropy_of, start_momentum

Batch = tuple[Tensor, Tensor]
"""``(images, labels)``."""


class Stream(Protocol):
    """An endless source of batches, as ``data.BatchStream`` is one."""

    def next_batch(self) -> Batch: ...


class Draw(NamedTuple):
    """What every candidate of one call sees: common random numbers make losses comparable.

    Attributes:
        train: the batches of the inner steps, one for each step.
        val: the batches whose mean loss is L_val.
        noise_seed: seeds the noise operations of space S4.
    """

    train: list[Batch]
    val: list[Batch]
    noise_seed: int


class BilevelObjective:
    """``objective(alphas)``: ``(n, dim)`` to ``(n,)``.

    Args:
        supernet: holds the current weights omega.
        optimizer: the SGD that trains them; inner steps take its learning rate, weight decay and
            momentum as they are at the time of the call.
        train_stream: batches of the images that fit weights.
        val_stream: batches of the images that score alpha.
        seed: seeds the noise operations of the candidates.
        inner: ``"sgd"``, ``"second"`` or ``"first"``; see the module.
        inner_steps: M, with ``inner="sgd"``.
        inner_lr: learning rate of the inner steps; None = the optimizer's current one.
        inner_momentum: whether the inner steps start from the optimizer's momentum, or from none.
        grad_clip: bound on the gradient's norm in the M steps.
        val_batches: how many batches make up L_val.
        execution: of the inner steps. Losses and gradients in alpha are computed plainly: what
            tells candidates apart is smaller than the rounding of bf16. So are inner steps, unless
            this says otherwise.
        candidates_per_batch: how many candidates to evaluate at once; None = automatic, see
            ``CandidateBatches``. A loss depends on it only by rounding.
        fixed: batches that every call sees, in place of fresh ones of the streams. It has at least
            as many training batches as there are inner steps; the first are used.

    Attributes:
        inner: as given.
        n_evaluations: candidates evaluated so far.

    Raises:
        InvalidValueError: ``inner`` or a count is out of range.
    """

    def __init__(
        self,
        supernet: Supernet,
        optimizer: torch.optim.SGD,
        train_stream: Stream,
        val_stream: Stream,
        *,
        seed: int,
        inner: str = "sgd",
        inner_steps: int = 10,
        inner_lr: float | None = None,
        inner_momentum: bool = True,
        grad_clip: float | None = 5.0,
        val_batches: int = 1,
        execution: Execution | None = None,
        candidates_per_batch: int | None = None,
        fixed: Draw | None = None,
    ) -> None:
        if inner not in INNER_MODES:
            raise InvalidValueError(f"inner must be one of {', '.join(INNER_MODES)}, got {inner}")
        if inner_steps < 0 or val_batches < 1:
            raise InvalidValueError(
                "inner_steps must be at least 0 and val_batches at least 1, "
                f"got {inner_steps} and {val_batches}"
            )
        if candidates_per_batch is not None and candidates_per_batch < 1:
            raise InvalidValueError(
                f"candidates_per_batch must be a positive integer, got {candidates_per_batch}"
            )
        self.supernet = supernet
        self.inner = inner
        self.n_evaluations = 0
        self._optimizer = optimizer
        self._train_stream = train_stream
        self._val_stream = val_stream
        self._n_train = {"sgd": inner_steps, "second": 1, "first": 0}[inner]
        self._n_val = val_batches
        self._fixed = fixed
        self._inner_lr = inner_lr
        self._inner_momentum = inner_momentum
        self._grad_clip = grad_clip if inner == "sgd" else None
        self._seeds = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(next(supernet.parameters()).device)
        self._scratch = _scratch_copy(supernet)
        seed_noise(self._scratch, self._noise)
        # Built from the very parameters it trains; the released code steps other ones (B1).
        self._inner_optimizer = torch.optim.SGD(self._scratch.parameters(), lr=1.0)
        self._step = WeightStep(
            cross_entropy_of(self._scratch),
            self._scratch,
            self._inner_optimizer,
            self._grad_clip,
            execution=execution,
            generators=(self._noise,),
        )
        self._stacked = StackedCandidates(
            self._scratch, self._grad_clip, execution=execution, generators=(self._noise,)
        )
        self._batches = CandidateBatches(
            candidates_per_batch, cpu_kernels=kernels_enabled(supernet)
        )

    @classmethod
    def from_config(
        cls,
        supernet: Supernet,
        optimizer: torch.optim.SGD,
        train_stream: Stream,
        val_stream: Stream,
        config: SearchConfig,
        *,
        seed: int,
        inner: str | None = None,
        execution: Execution | None = None,
        fixed: Draw | None = None,
    ) -> Self:
        """The objective that a search config describes.

        Args:
            supernet, optimizer, train_stream, val_stream, seed: as for the class.
            config: of the search.
            inner: in place of the config's.
            execution: of the weights' own steps. The inner ones have the config's ``inner_amp``.
            fixed: as for the class.
        """
        if execution is not None:
            execution = execution.of_inner_steps(config.inner_amp)
        return cls(
            supernet,
            optimizer,
            train_stream,
            val_stream,
            seed=seed,
            inner=inner or config.inner,
            inner_steps=config.inner_steps,
            inner_lr=config.inner_lr,
            inner_momentum=config.inner_momentum,
            grad_clip=config.grad_clip,
            val_batches=config.val_batches,
            execution=execution,
            candidates_per_batch=config.candidates_per_batch,
            fixed=fixed,
        )

    def __call__(self, alphas: Tensor, draw: Draw | None = None) -> Tensor:
        """The losses ``(n,)`` of candidates ``(n, dim)``, on the supernet's device.

        Args:
            alphas: the candidates. A value depends on which others there are only by the rounding
                of candidates evaluated at once, and not at all one by one.
            draw: the batches to use; by default fresh ones. A loss may come out non-finite.

        Raises:
            InvalidValueError: alphas has another shape.
        """
        if alphas.ndim != 2 or alphas.shape[0] < 1 or alphas.shape[1] != self.supernet.space.dim:
            raise InvalidValueError(
                f"alphas must have shape (n, {self.supernet.space.dim}) with n of at least 1, "
                f"got {tuple(alphas.shape)}"
            )
        draw = draw or self.draw()
        images = draw.val[0][0]
        n_numbers = self.supernet.stem_channels * images.shape[0] * images[0, 0].numel()
        values = self._batches.evaluate(
            lambda part: self._values(part, draw), alphas.detach(), n_numbers
        )
        self.n_evaluations += len(values)
        return values

    def draw(self) -> Draw:
        """Returns the next batches of both streams, or the fixed ones."""
        if self._fixed is not None:
            return self._fixed._replace(train=self._fixed.train[: self._n_train])
        return Draw(
            train=[self._train_stream.next_batch() for _ in range(self._n_train)],
            val=[self._val_stream.next_batch() for _ in range(self._n_val)],
            noise_seed=int(torch.randint(2**62, (), generator=self._seeds)),
        )

    def start(self) -> Supernet:
        """The scratch network with the supernet's current weights. The next call reuses it."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._scratch.parameters()), list(self.supernet.parameters()))
        return self._scratch

    def fit(self, alpha: Tensor, draw: Draw) -> Supernet:
        """The scratch network with omega*(alpha), fitted on the batches of ``draw``."""
        network = self.start()
        self._inner_optimizer.param_groups[0].update(self._settings())
        start_momentum(self._inner_optimizer, self._momenta())
        self._noise.manual_seed(draw.noise_seed)
        for images, labels in draw.train:
            self._step(images, labels, alpha)
        return network

    def fit_together(self, alphas: Tensor, draw: Draw) -> Tensor:
        """As ``fit``, for alphas ``(n, dim)`` at once; returns their weights ``(n, n_weights)``.

        The next call overwrites them.
        """
        with torch.no_grad():
            start = flat(self.supernet.parameters())
        self._noise.manual_seed(draw.noise_seed)
        return self._stacked.fit(start, self._flat_momentum(), alphas, draw.train, self._settings())

    def val_loss(self, network: Supernet, alpha: Tensor, draw: Draw) -> Tensor:
        """Mean cross-entropy () of ``network`` at ``alpha`` over the draw's validation batches."""
        self._noise.manual_seed(draw.noise_seed + 1)
        return self._mean_loss(network, alpha, draw.val)

    def train_loss(self, network: Supernet, alpha: Tensor, draw: Draw) -> Tensor:
        """Mean cross-entropy () of ``network`` at ``alpha`` over the draw's training batches."""
        self._noise.manual_seed(draw.noise_seed)
        return self._mean_loss(network, alpha, draw.train)

    def mixture_loss(self, weights: Tensor, draw: Draw) -> Tensor:
        """Mean cross-entropy () of the supernet's present weights over the validation batches.

        Args:
            weights: architecture weights, as ``Supernet.mix`` takes them.
            draw: the batches.
        """
        network = self.start()
        self._noise.manual_seed(draw.noise_seed + 1)
        with torch.no_grad():
            losses = [F.cross_entropy(network.mix(x, weights), y) for x, y in draw.val]
            return torch.stack(losses).mean()

    def set_drop_path(self, probability: float) -> None:
        """Drops paths of the candidates, too, as those of the supernet are dropped."""
        if probability != self._scratch.drop_path_probability:
            self._scratch.drop_path_probability = probability
            self._step.reset()
            self._stacked.forget()

    def alpha_gradient(self, alpha: Tensor, draw: Draw) -> Tensor:
        """The gradient ``(dim,)`` of L_val(omega, alpha) in alpha alone (Eq. 3)."""
        alpha = alpha.detach().requires_grad_()
        loss = self.val_loss(self.start(), alpha, draw)
        return torch.autograd.grad(loss, alpha)[0]

    @property
    def lr(self) -> float:
        """The learning rate of the inner steps: xi of Eq. 2."""
        current: float = self._optimizer.param_groups[0]["lr"]
        return current if self._inner_lr is None else self._inner_lr

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on bit for bit, beside the streams and the supernet."""
        return {"n_evaluations": self.n_evaluations, "seeds": self._seeds.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_evaluations = int(state["n_evaluations"])
        self._seeds.set_state(state["seeds"].cpu())  # a checkpoint may be loaded onto a GPU

    def _values(self, alphas: Tensor, draw: Draw) -> Tensor:
        """The losses ``(n,)`` of candidates that are evaluated at once."""
        if len(alphas) == 1 or not self._can_stack():
            return torch.stack([self._value(alpha, draw) for alpha in alphas])
        try:
            weights = self.fit_together(alphas, draw)
            self._noise.manual_seed(draw.noise_seed + 1)
            return self._stacked.mean_losses(weights, alphas, draw.val)
        except torch.OutOfMemoryError:
            self._stacked.forget()
            raise

    def _value(self, alpha: Tensor, draw: Draw) -> Tensor:
        network = self.fit(alpha, draw)
        with torch.no_grad():
            return self.val_loss(network, alpha, draw)

    def _mean_loss(self, network: Supernet, alpha: Tensor, batches: Sequence[Batch]) -> Tensor:
        losses = [F.cross_entropy(network(images, alpha), labels) for images, labels in batches]
        return torch.stack(losses).mean()

    def _settings(self) -> dict[str, Any]:
        """The settings of the inner SGD: those of the supernet's, and its own learning rate."""
        settings = self._optimizer.param_groups[0]
        names = ("momentum", "weight_decay", "dampening", "nesterov")
        return {"lr": self.lr, **{name: settings[name] for name in names}}

    def _momenta(self) -> list[Tensor | None]:
        """The momentum that each parameter starts with, those of the supernet itself."""
        if not self._inner_momentum:
            return [None for _ in self.supernet.parameters()]
        state = self._optimizer.state
        return [
            state[parameter].get("momentum_buffer") if parameter in state else None
            for parameter in self.supernet.parameters()
        ]

    def _can_stack(self) -> bool:
        """Whether stacked candidates start with the right momentum.

        A parameter without momentum takes its first gradient undampened; there is no such choice
        within one tensor. Without dampening, momentum of zero is the same as none.
        """
        missing = [momentum is None for momentum in self._momenta()]
        return all(missing) or not any(missing) or not self._settings()["dampening"]

    def _flat_momentum(self) -> Tensor | None:
        momenta = self._momenta()
        if all(momentum is None for momentum in momenta):
            return None
        return flat(
            torch.zeros_like(parameter) if momentum is None else momentum
            for momentum, parameter in zip(momenta, self.supernet.parameters(), strict=True)
        )


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Returns the numbers of all tensors, one after the other."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _scratch_copy(supernet: Supernet) -> Supernet:
    """A copy in training mode whose BatchNorm uses batch statistics and tracks none."""
    generators = {
        id(module.generator): module.generator
        for module in supernet.modules()
        if isinstance(module, Stochastic)
    }
    # A generator cannot be copied; telling deepcopy that it is its own copy passes it through.
    scratch = copy.deepcopy(supernet, dict(generators)).train()
    for module in scratch.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return scratch
