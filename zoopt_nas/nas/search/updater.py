"""The updates of alpha: one protocol for every method, and its zero-order implementation."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from zoopt_nas import Solver, SolverState
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.candidates import Batch
from zoopt_nas.nas.search.noise import N_PROBES, NoiseGauge
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.defaults import solver_options
from zoopt_nas.nas.settings.methods import ZERO_ORDER
from zoopt_nas.nas.steps.schedules import cosine
from zoopt_nas.solvers import SOLVERS, make_solver

Metrics = dict[str, Any]
"""Measurements of an update by name: floats or 0-d tensors on any device."""

N_TRIED, N_FAILED = "n_tried", "n_failed"
"""Metrics that are summed over an epoch: candidates or gradients, and the non-finite ones."""


class EpochEnd(NamedTuple):
    """What is known at the end of an epoch."""

    objective: BilevelObjective  # at the current weights
    is_last: bool
    weight_decay: float
    eigenvalue: float | None  # the dominant one of L_val's Hessian in alpha, if it was measured
    val_batches: Callable[[], Iterable[Batch]]  # all images that score alpha, not augmented


class Verdict(NamedTuple):
    """How a search continues after an epoch."""

    stop: bool = False
    go_back: int = 0  # number of epochs; 0 continues
    weight_decay: float | None = None  # of the weights from here on; None keeps it
    n_tried: int = 0  # architectures that ``end_epoch`` compared
    n_failed: int = 0  # architectures with a non-finite loss


def mean_metrics(updates: Sequence[Metrics]) -> dict[str, float]:
    """Return the mean of every metric over the updates, without the counts."""
    names = dict.fromkeys(name for update in updates for name in update)
    return {
        name: sum(float(update[name]) for update in updates if name in update)
        / sum(name in update for update in updates)
        for name in names
        if name not in (N_TRIED, N_FAILED)
    }


def count_failures(updates: Sequence[Metrics], verdict: Verdict) -> tuple[int, int]:
    """Return the numbers of candidates or gradients of an epoch: all, and non-finite."""
    n_tried = sum(int(update.get(N_TRIED, 0)) for update in updates)
    n_failed = sum(int(update.get(N_FAILED, 0)) for update in updates)
    return n_tried + verdict.n_tried, n_failed + verdict.n_failed


class AlphaUpdater(ABC):
    """Holds alpha and moves it to lower a bilevel objective.

    Args:
        config: the settings.
        alpha: the starting point ``(dim,)``.
        seed: seeds the random numbers of the method.

    Attributes:
        kind: one of ``KINDS``; gradient methods update alpha at every weight step by default.
        inner: the approximation of omega* that defines the method; None is the config's.
        trains: whether the supernet is trained.
        wants_eigenvalue: whether ``end_epoch`` needs the dominant eigenvalue.
        goes_back: whether a verdict may send the search back to an earlier epoch.
        tries: what ``N_TRIED`` counts, for messages.
    """

    kind: ClassVar[str]
    inner: ClassVar[str | None] = None
    trains: ClassVar[bool] = True
    wants_eigenvalue: ClassVar[bool] = False
    goes_back: ClassVar[bool] = False
    tries: ClassVar[str] = "candidates"

    @abstractmethod
    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None: ...

    @classmethod
    def build(cls, config: SearchConfig, alpha: Tensor, seed: int) -> Self:
        """Check the settings, and return the updater of a search."""
        cls.check(config)
        return cls(config, alpha, seed)

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        """Refuse settings that the method cannot use.

        By default these are solver options, ``noise_aware``, and, unless the method is zero-order,
        another ``score`` than the loss.

        Raises:
            InvalidValueError: there is one.
        """
        if config.score != "loss" and cls.kind != ZERO_ORDER:
            raise InvalidValueError(
                f"score must be loss with {config.algo}, a {cls.kind} method, got {config.score}"
            )
        if config.noise_aware:
            raise InvalidValueError(
                f"noise_aware must be false with {config.algo}, which does not measure noise, "
                "got true"
            )
        if config.solver:
            raise InvalidValueError(
                f"solver must have no options with {config.algo}, which uses none of them, "
                f"got {', '.join(config.solver)}"
            )

    @property
    @abstractmethod
    def alpha(self) -> Tensor:
        """The current architecture parameters ``(dim,)``, without a gradient."""

    @property
    def n_candidates(self) -> int:
        """Number of candidates that an update evaluates."""
        return 0

    @property
    def is_guided(self) -> bool:
        """Whether candidates are drawn around the gradient of L_val (Eq. 26)."""
        return False

    @abstractmethod
    def move_to(self, alpha: Tensor) -> None:
        """Set alpha ``(dim,)`` and keep the rest of the state."""

    @abstractmethod
    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Update alpha once; return metrics.

        ``progress`` is the elapsed fraction of the epochs with updates, in [0, 1).
        """

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        """Return the architecture weights of a weight step, as ``Supernet.edge_weights`` does.

        ``supernet`` is unchanged on return; ``progress`` is the elapsed fraction of all epochs.
        """
        return supernet.edge_weights(self.alpha)

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Judge an epoch that has ended; may change alpha."""
        return Verdict()

    def oldest_return(self, epoch: int, weight_decay: float) -> int:
        """Return the oldest epoch that the search may still return to, in one or several steps.

        ``epoch`` has just ended; ``weight_decay`` holds from now on. A number above ``epoch`` means
        that the search cannot return any more.
        """
        return epoch + 1

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return tensors and Python values that restore the method bit for bit."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""


def config_solver(config: SearchConfig) -> Solver:
    """Return the solver of a zero-order search, with its options."""
    return _solver(config.algo, config.solver)


def _solver(name: str, given: Mapping[str, Any]) -> Solver:
    options = dict(given)
    n_samples = options.pop("n_samples", None)
    solver = make_solver(name, options)
    # Every solver defines which of its fields N sets.
    return solver if n_samples is None else solver.with_n_samples(n_samples)


def _check_drift(config: SearchConfig) -> None:
    """Refuse a solver that compares values of different updates."""
    if not config_solver(config).compares_batches:
        return
    usual = {
        name: solver_options(name, config.space) for name in filter(SOLVERS.is_built_in, SOLVERS)
    }
    usable = [
        name for name, options in usual.items() if not _solver(name, options).compares_batches
    ]
    found = config.algo
    if found in usable:  # its options are the reason
        changed = {k: v for k, v in config.solver.items() if usual[found].get(k) != v}
        found += " with " + ", ".join(f"{k}={v}" for k, v in changed.items())
    raise InvalidValueError(
        "algo must not compare values of different updates, between which the weights change "
        f"(use {', '.join(usable)} or auto), got {found}"
    )


class ZeroOrderUpdater(AlphaUpdater):
    """Runs a solver of ``zoopt_nas.SOLVERS`` on alpha: one ask and tell per update (Alg. 1).

    Args:
        solver: the solver.
        alpha: the starting point ``(dim,)``.
        seed: seeds the draws of the solver.
        schedule: ``"cosine"`` scales the solver's ``annealed`` fields down with ``progress`` (the
            released scripts: sigma of MGS); ``"constant"`` keeps them.
        gauge: measures the noise before the first update of each epoch, and fits the solver; None
            leaves the solver as it is.
    """

    kind = ZERO_ORDER

    def __init__(
        self,
        solver: Solver,
        alpha: Tensor,
        *,
        seed: int,
        schedule: str,
        gauge: NoiseGauge | None = None,
    ) -> None:
        self._solver = solver
        self._schedule = schedule
        self._gauge = gauge
        self._state = solver.init(alpha, rng=seed)
        # Looking farther away until two values differ would compare values of different updates.
        self._state.has_contrast = solver.adapts_steps

    @classmethod
    def build(cls, config: SearchConfig, alpha: Tensor, seed: int) -> Self:
        """Return the updater with the solver that the config names."""
        cls.check(config)
        gauge = NoiseGauge(config.val_batches) if config.noise_aware else None
        solver, schedule = config_solver(config), config.sigma_schedule
        return cls(solver, alpha, seed=seed, schedule=schedule, gauge=gauge)

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        """Refuse solver options that the solver does not have, and a solver that needs no drift."""
        _check_drift(config)

    @property
    def alpha(self) -> Tensor:
        """The iterate of the solver."""
        alpha: Tensor = self._state.x
        return alpha

    @property
    def n_candidates(self) -> int:
        """Number of candidates of the first ask, or of a measurement of noise if that has more."""
        zeros = torch.zeros(len(self.alpha))
        state = self._solver.init(zeros, rng=0)
        n = len(self._solver.ask(state, guide=zeros if self.is_guided else None))
        return n if self._gauge is None else n * math.ceil(N_PROBES / n)

    @property
    def is_guided(self) -> bool:
        """Whether the solver takes a guide."""
        return self._solver.uses_guide

    def move_to(self, alpha: Tensor) -> None:
        """Set the iterate of the solver."""
        self._state.x = alpha.to(self._state.x, copy=True)

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Ask for candidates, evaluate them, tell their values."""
        return self.update(objective, self.draw(objective, progress), progress)

    def draw(self, objective: BilevelObjective, progress: float) -> Draw:
        """Draw the batches of the next update, after measuring the noise if that is due."""
        gauge = self._gauge
        if gauge is None:
            return objective.draw()
        if gauge.is_due:
            self._measure(gauge, objective, self._scheduled(progress))
        return objective.draw(gauge.val_batches)

    def update(self, objective: BilevelObjective, draw: Draw, progress: float) -> Metrics:
        """Update alpha on given batches; return metrics."""
        solver, gauge = self._scheduled(progress), self._gauge
        if gauge is not None:
            solver = gauge.fitted(solver)
        candidates = solver.ask(self._state, guide=self._guide(objective, draw))
        values = objective(candidates, draw)
        solver.tell(self._state, candidates, values)
        names = solver.annealed if gauge is None else (*solver.annealed, *solver.value_scales)
        fields = {name: getattr(solver, name) for name in names}
        # The solver adapts and reports a field that is None.
        fields = {name: value for name, value in fields.items() if value is not None}
        counts = {N_TRIED: len(values), N_FAILED: (~torch.isfinite(values)).sum()}
        measured = {} if gauge is None else gauge.metrics()
        return {**self._state.metrics, **fields, **measured, **counts}

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Let the noise be measured again in the next epoch."""
        if self._gauge is not None:
            self._gauge.is_due = True
        return super().end_epoch(end)

    def _scheduled(self, progress: float) -> Solver:
        factor = cosine(progress, 1.0, 1.0, 0.0) if self._schedule == "cosine" else 1.0
        return self._solver.scaled(factor)

    def _guide(self, objective: BilevelObjective, draw: Draw) -> Tensor | None:
        if not self.is_guided:
            return None
        # Eq. 26 centres the proposal at minus the gradient, on the batch that scores candidates.
        guide = -objective.alpha_gradient(self.alpha, draw)
        # A non-finite guide would make every candidate fail.
        return torch.where(torch.isfinite(guide).all(), guide, 0.0)

    def _measure(self, gauge: NoiseGauge, objective: BilevelObjective, solver: Solver) -> None:
        """Measure the noise on one draw, with the candidates that the next update would have."""
        draw = objective.draw(gauge.n_drawn)
        guide = self._guide(objective, draw)
        saved = self._state.to_dict()

        def candidates(factor: float) -> Tensor:
            state = SolverState.from_dict(saved, solver.inner_states)  # draws the same each time
            wide = solver.stretched(factor)
            rows: Tensor = wide.ask(state, guide=guide)
            while len(rows) < N_PROBES:
                rows = torch.cat([rows, wide.ask(state, guide=guide)])
            return rows

        gauge.measure(
            self.alpha,
            candidates,
            lambda alphas: objective.batch_values(alphas, draw),
            # The lengths of a solver that adapts its steps are the first ones.
            can_widen=bool(solver.lengths) and not (solver.adapts_steps and self._state.n_steps),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the solver, and the noise if it is measured."""
        state = self._state.to_dict()
        arrays = {name: torch.from_numpy(array) for name, array in state["arrays"].items()}
        noise = {} if self._gauge is None else {"noise": self._gauge.state_dict()}
        return {"arrays": arrays, "meta": json.dumps(state["meta"]), **noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in state["arrays"].items()}
        data = {"arrays": arrays, "meta": json.loads(state["meta"])}
        self._state = SolverState.from_dict(data, self._solver.inner_states)
        if self._gauge is not None:
            self._gauge.load_state_dict(state["noise"])
