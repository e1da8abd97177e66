"""The search objective, L(alpha) = L_val(omega*(alpha), alpha) (paper, Eq. 1), as a function.

For each candidate alpha the weights omega*(alpha) are approximated from the supernet's current
weights, and the loss is measured on images that do not train the weights:

- ``inner="sgd"``: M steps of SGD on L_train with alpha fixed (paper, section 4).
- ``inner="second"``: the one unrolled step of Eq. 2, not clipped.
- ``inner="first"``: no step, omega* = omega (Eq. 3).

The supernet, its optimizer and its BatchNorm buffers are only read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.fused import kernels_enabled
from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.candidates import Batch, CandidateBatches
from zoopt_nas.nas.search.evaluation import Draw, Evaluation, Evaluator, Measured
from zoopt_nas.nas.search.inner import InnerTraining
from zoopt_nas.nas.search.known_cells import KnownCells
from zoopt_nas.nas.search.score import score_batches, value_of
from zoopt_nas.nas.settings.config import FRESH, INNER_MODES, MIXED, SCORES, SearchConfig
from zoopt_nas.nas.steps.execution import Execution

Weigh = Callable[[Supernet, Tensor], Tensor]
"""Maps alpha ``(dim,)`` to architecture weights, as ``Supernet.edge_weights`` does."""


class Stream(Protocol):
    """An endless source of batches, such as ``data.BatchStream``."""

    def next_batch(self) -> Batch:
        """Return the next batch."""


class BilevelObjective:
    """``objective(alphas)`` maps ``(n, dim)`` to values ``(n,)``: losses, by default.

    Args:
        supernet: holds the current weights omega.
        optimizer: the SGD that trains them; inner steps take its learning rate, weight decay and
            momentum at the time of the call.
        train_stream: batches of the images that train weights.
        val_stream: batches of the images that score alpha.
        seed: seeds the noise operations of the candidates.
        inner: ``"sgd"``, ``"second"`` or ``"first"``; see the module.
        inner_steps: M, with ``inner="sgd"``.
        inner_lr: learning rate of the inner steps; None is the current one of ``optimizer``.
        inner_lr_end: learning rate after the inner steps, reached by a cosine; None: constant.
        inner_momentum: whether the inner steps start from the momentum of ``optimizer``.
        inner_average: decay of the average over the M steps that is scored; 0: the last weights.
        grad_clip: bound on the gradient's norm in the M steps.
        val_batches: number of batches of L_val.
        score: the value of a candidate: ``"loss"``, or ``"accuracy"``, see ``score.value_of``.
        execution: of the inner steps; None is float32. Losses and gradients in alpha are always
            in float32, since the rounding of bfloat16 exceeds the differences of candidates.
        candidates_per_batch: candidates evaluated at once; None chooses, see
            ``CandidateBatches``. It changes losses only by rounding.
        single_path: whether a candidate is scored as its discrete cell, along that cell's path.
        extrapolates: whether, after ``hold_still``, values are extrapolated; see ``Evaluation``.
        fixed: draws that calls see in turn in place of the streams', each with at least as many
            training batches as inner steps.
        evaluator: evaluates the candidates of calls; None evaluates them in this process.

    Attributes:
        inner: as given.
        single_path: as given.
        evaluation: evaluates candidates in this process.
        n_evaluations: number of candidates evaluated so far.

    Raises:
        InvalidValueError: ``inner``, ``score`` or a count is out of range.
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
        inner_lr_end: float | None = None,
        inner_momentum: bool = True,
        inner_average: float = 0.0,
        grad_clip: float | None = 5.0,
        val_batches: int = 1,
        score: str = "loss",
        execution: Execution | None = None,
        candidates_per_batch: int | None = None,
        extrapolates: bool = False,
        fixed: Sequence[Draw] = (),
        single_path: bool = False,
        evaluator: Evaluator | None = None,
    ) -> None:
        if inner not in INNER_MODES:
            raise InvalidValueError(f"inner must be one of {', '.join(INNER_MODES)}, got {inner}")
        if score not in SCORES:
            raise InvalidValueError(f"score must be one of {', '.join(SCORES)}, got {score}")
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
        self._cells: KnownCells | None = None
        self._train_stream = train_stream
        self._val_stream = val_stream
        self._n_train = {"sgd": inner_steps, "second": 1, "first": 0}[inner]
        self._n_val = val_batches
        self.single_path = single_path
        self._fixed, self._turn = fixed, 0
        self._seeds = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(next(supernet.parameters()).device)
        self._training = InnerTraining(
            supernet,
            optimizer,
            self._noise,
            lr=inner_lr,
            lr_end=inner_lr_end,
            uses_momentum=inner_momentum,
            average=inner_average if inner == "sgd" else 0.0,
            grad_clip=grad_clip if inner == "sgd" else None,
            execution=execution,
            single_path=single_path,
        )
        batches = CandidateBatches(candidates_per_batch, cpu_kernels=kernels_enabled(supernet))
        self.evaluation = Evaluation(
            self._training, batches, self._noise, score=score, extrapolates=extrapolates
        )
        self._evaluator: Evaluator = evaluator or self.evaluation

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
        fixed: Sequence[Draw] = (),
        evaluator: Evaluator | None = None,
    ) -> Self:
        """Return the objective that a search config describes.

        The parameters are as for the class, except that ``inner`` replaces the config's value, and
        ``execution`` belongs to weight steps: inner steps have the config's ``inner_amp``.
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
            inner_lr=config.inner_lr or (config.lr if config.weights == FRESH else None),
            inner_lr_end=config.lr_min if config.weights == FRESH else None,
            inner_momentum=config.inner_momentum,
            inner_average=config.inner_average,
            grad_clip=config.grad_clip,
            val_batches=config.val_batches,
            score=config.score,
            execution=execution,
            candidates_per_batch=config.candidates_per_batch,
            extrapolates=config.extrapolate,
            fixed=fixed,
            single_path=config.paths != MIXED,
            evaluator=evaluator,
        )

    def __call__(self, alphas: Tensor, draw: Draw | None = None) -> Tensor:
        """Return the values ``(n,)`` of candidates ``(n, dim)``, on the supernet's device.

        A value may be non-finite. It depends on the other candidates only by the rounding of
        candidates evaluated at once. ``draw`` None draws fresh batches.

        Raises:
            InvalidValueError: alphas has another shape.
        """
        return self._evaluate(alphas, draw)

    def batch_values(self, alphas: Tensor, draw: Draw) -> Tensor:
        """Return the values ``(n, n_batches)`` on each validation batch of ``draw`` alone."""
        return self._evaluate(alphas, draw, by_batch=True)

    def _evaluate(self, alphas: Tensor, draw: Draw | None, *, by_batch: bool = False) -> Tensor:
        if alphas.ndim != 2 or alphas.shape[0] < 1 or alphas.shape[1] != self.supernet.space.dim:
            raise InvalidValueError(
                f"alphas must have shape (n, {self.supernet.space.dim}) with n of at least 1, "
                f"got {tuple(alphas.shape)}"
            )
        draw = draw or self.draw()
        if self.single_path:
            return self._path_values(alphas, draw, by_batch)
        values = self._evaluator.values(alphas.detach(), draw, by_batch=by_batch)
        self.n_evaluations += len(values)
        return values

    def _path_values(self, alphas: Tensor, draw: Draw, by_batch: bool) -> Tensor:
        """Return the values of the discrete cells of candidates, each computed once."""
        space = self.supernet.space
        paths = [space.path(space.discretize(alpha)) for alpha in alphas.detach().cpu()]
        if self._cells is not None and not by_batch:
            return torch.stack([cell.value for cell in self._measure(self._cells, paths)])
        distinct = list(dict.fromkeys(paths))
        values = self._evaluator.values(distinct, draw, by_batch=by_batch)
        self.n_evaluations += len(distinct)
        return torch.stack([values[distinct.index(path)] for path in paths])

    def draw(self, n_val: int | None = None) -> Draw:
        """Return the next batches of both streams, or the next fixed ones, in turn.

        ``n_val`` is the number of validation batches; None is ``val_batches``.
        """
        if self._fixed:
            draw = self._fixed[self._turn % len(self._fixed)]
            self._turn += 1
            if len(draw.train) > self._n_train:
                draw = draw._replace(train=draw.train[: self._n_train])
            return draw
        return Draw(
            train=[self._train_stream.next_batch() for _ in range(self._n_train)],
            val=[self._val_stream.next_batch() for _ in range(n_val or self._n_val)],
            noise_seed=int(torch.randint(2**62, (), generator=self._seeds)),
        )

    def hold_still(self, train: Sequence[Batch], val: Sequence[Batch]) -> None:
        """Give every later call these batches, and evaluate each path only once.

        The values of all calls are comparable as long as the supernet's weights do not change.
        Values that were known before are forgotten.
        """
        draw = Draw(train, val, noise_seed=0)
        self._n_train, self._fixed = len(train), (draw,)
        if self.single_path:
            measure = partial(self._evaluator.measure, draw=draw)
            self._cells = KnownCells(self.supernet.space, measure)

    @property
    def known(self) -> dict[Path, Measured] | None:
        """What all cells have reached since ``hold_still``; None without it, and for mixtures."""
        return None if self._cells is None else self._cells.found

    def measure(self, path: Path) -> Measured:
        """Return what is known of a path after ``hold_still``, or evaluate it."""
        assert self._cells is not None
        return self._measure(self._cells, [path])[0]

    def _measure(self, cells: KnownCells, paths: Sequence[Path]) -> list[Measured]:
        n_known = len(cells.found)
        measured = cells.measure(paths)
        self.n_evaluations += len(cells.found) - n_known
        return measured

    def start(self, noise_seed: int = 0) -> Supernet:
        """Return the scratch network with the supernet's weights; the next call reuses it.

        ``noise_seed`` seeds its noise and its drop path.
        """
        self._noise.manual_seed(noise_seed)
        return self._training.start()

    def fit(self, alpha: Tensor | Path, draw: Draw) -> Supernet:
        """Return the scratch network with omega*(alpha), trained on the batches of ``draw``."""
        return self._training.fit(alpha, draw.train, draw.noise_seed)

    def fit_together(self, alphas: Tensor, draw: Draw) -> Tensor:
        """Return the weights omega*(alpha) ``(n, n_weights)`` for alphas ``(n, dim)``.

        The next call overwrites them.
        """
        return self._training.fit_together(alphas, draw.train, draw.noise_seed)

    def val_loss(
        self,
        network: Supernet,
        alpha: Tensor | Path,
        draw: Draw,
        weigh: Weigh = Supernet.edge_weights,
        scales: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy () of ``network`` over the validation batches.

        ``weigh`` gives the architecture weights at alpha; ``scales`` are those along a path.
        """
        self._noise.manual_seed(draw.noise_seed + 1)
        if isinstance(alpha, Tensor):
            weights = weigh(network, alpha)
            return value_of("loss", score_batches(network.mix, weights, draw.val))
        follow = partial(network.follow, scales=scales)
        return value_of("loss", score_batches(follow, alpha, draw.val))

    def train_loss(self, network: Supernet, alpha: Tensor, draw: Draw) -> Tensor:
        """Return the mean cross-entropy () of ``network`` over the training batches."""
        self._noise.manual_seed(draw.noise_seed)
        return value_of("loss", score_batches(network, alpha, draw.train))

    def path_loss(self, path: Path, draw: Draw) -> Tensor:
        """Return the mean cross-entropy () along a path with the supernet's weights."""
        with torch.no_grad():
            return self.val_loss(self.start(), path, draw)

    def set_schedules(self, drop_path: float, auxiliary_weight: float, skip_dropout: float) -> None:
        """Set the probability to drop paths in inner steps, and ``Supernet.set_skips``."""
        self._training.set_drop_path(drop_path)
        for network in (self.supernet, self._training.scratch):
            network.set_skips(auxiliary_weight, skip_dropout)

    def alpha_gradient(
        self, alpha: Tensor, draw: Draw, weigh: Weigh = Supernet.edge_weights
    ) -> Tensor:
        """Return the gradient ``(dim,)`` of L_val(omega, alpha) in alpha alone (Eq. 3)."""
        alpha = alpha.detach().requires_grad_()
        loss = self.val_loss(self.start(), alpha, draw, weigh)
        return torch.autograd.grad(loss, alpha)[0]

    @property
    def lr(self) -> float:
        """The learning rate of the inner steps: xi of Eq. 2."""
        return self._training.lr

    def state_dict(self) -> dict[str, Any]:
        """Return counter, generator and known values; streams and supernet save theirs."""
        return {
            "n_evaluations": self.n_evaluations,
            "seeds": self._seeds.get_state(),
            "known": [] if self._cells is None else self._cells.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.n_evaluations = int(state["n_evaluations"])
        self._seeds.set_state(state["seeds"].cpu())  # a checkpoint may be loaded onto a GPU
        if self._cells is not None:
            device = next(self.supernet.parameters()).device
            self._cells.load_state_dict(state["known"], device)
