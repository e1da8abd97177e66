"""How alpha is updated: one protocol for every method, and its zero-order implementation."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from zoopt_nas import Solver, SolverState
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.objective import Batch, BilevelObjective
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.methods import ZERO_ORDER
from zoopt_nas.nas.steps.schedules import cosine
from zoopt_nas.solvers import make_solver

Metrics = dict[str, Any]
"""What an update measured, by name: floats or 0-d tensors, which may stay on the device."""

N_TRIED, N_FAILED = "n_tried", "n_failed"
"""Metrics that are summed over an epoch: candidates or gradients, and those that are not finite."""


class EpochEnd(NamedTuple):
    """What is known when an epoch has ended.

    Attributes:
        objective: at the present weights.
        is_last: whether no epoch follows.
        weight_decay: of the weights.
        eigenvalue: the dominant one of L_val's Hessian in alpha, if it was asked for.
        val_batches: gives every image that scores alpha once, without augmentation.
    """

    objective: BilevelObjective
    is_last: bool
    weight_decay: float
    eigenvalue: float | None
    val_batches: Callable[[], Iterable[Batch]]


class Verdict(NamedTuple):
    """How a search goes on after an epoch.

    Attributes:
        stop: whether it ends here.
        go_back: to the state of so many epochs before; 0 = go on.
        weight_decay: of the weights from here on; None = as before.
        n_tried, n_failed: architectures that were compared now, and those whose loss is not finite.
    """

    stop: bool = False
    go_back: int = 0
    weight_decay: float | None = None
    n_tried: int = 0
    n_failed: int = 0


def mean_metrics(updates: Sequence[Metrics]) -> dict[str, float]:
    """The mean over updates of everything that they measured, the counts left out."""
    names = dict.fromkeys(name for update in updates for name in update)
    return {
        name: sum(float(update[name]) for update in updates if name in update)
        / sum(name in update for update in updates)
        for name in names
        if name not in (N_TRIED, N_FAILED)
    }


def count_failures(updates: Sequence[Metrics], verdict: Verdict) -> tuple[int, int]:
    """How many candidates or gradients an epoch had, and how many of them were not finite."""
    n_tried = sum(int(update.get(N_TRIED, 0)) for update in updates)
    n_failed = sum(int(update.get(N_FAILED, 0)) for update in updates)
    return n_tried + verdict.n_tried, n_failed + verdict.n_failed


class AlphaUpdater(ABC):
    """Holds alpha and moves it downhill on a bilevel objective.

    Args:
        config: of the search.
        alpha: the starting point ``(dim,)``.
        seed: of what the method draws.

    Attributes:
        kind: one of ``KINDS``; a gradient method updates alpha at every weight step unless the
            settings say otherwise.
        inner: the approximation of omega* that the method is defined with; None = the config's.
        trains: whether the supernet is trained at all.
        wants_eigenvalue: whether ``end_epoch`` is given the dominant eigenvalue.
        goes_back: whether a verdict may send the search back to an earlier epoch.
        tries: what it counts as ``N_TRIED``, for messages.
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
        """Return the updater of a search, from settings that it can use."""
        cls.check(config)
        return cls(config, alpha, seed)

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        """Refuse settings that the method cannot use: by default all options of a solver.

        Raises:
            InvalidValueError: there is one.
        """
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
        """How many candidates an update evaluates; 0 if it evaluates none."""
        return 0

    @property
    def is_guided(self) -> bool:
        """Whether candidates are drawn around the gradient of L_val (Eq. 26)."""
        return False

    @abstractmethod
    def move_to(self, alpha: Tensor) -> None:
        """Puts alpha elsewhere, ``(dim,)``, and leaves everything else as it is."""

    @abstractmethod
    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """One update of alpha.

        Args:
            objective: evaluates candidates, or is differentiated in alpha.
            progress: share of the updating epochs that has passed, in [0, 1).
        """

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        """The architecture weights of a weight step, as ``Supernet.edge_weights`` gives them.

        Args:
            supernet: comes back as it was.
            images, labels: the batch of the step.
            progress: share of all epochs that has passed, in [0, 1).
        """
        return supernet.edge_weights(self.alpha)

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Called when an epoch has ended; may change alpha."""
        return Verdict()

    def oldest_return(self, epoch: int, weight_decay: float) -> int:
        """The oldest epoch that the search may still return to, by any number of returns.

        Args:
            epoch: the one that has ended.
            weight_decay: of the weights in the epochs to come.

        Returns:
            More than ``epoch`` if the search cannot return any more.
        """
        return epoch + 1

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which ``load_state_dict`` goes on bit for bit."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""


def config_solver(config: SearchConfig) -> Solver:
    """The solver of a zero-order search, with its options."""
    options = dict(config.solver)
    n_samples = options.pop("n_samples", None)
    solver = make_solver(config.algo, options)
    # Not a field of every solver: each knows what N means to it.
    return solver if n_samples is None else solver.with_n_samples(n_samples)


class ZeroOrderUpdater(AlphaUpdater):
    """Any solver of ``zoopt_nas.SOLVERS`` on alpha: one ask, evaluate, tell an update (Alg. 1).

    Args:
        solver: the hyper-parameters.
        alpha: the starting point ``(dim,)``.
        seed: seeds the solver's draws.
        schedule: ``"cosine"`` shrinks the fields that the solver names in ``annealed`` with
            ``progress`` (released scripts: sigma of MGS); ``"constant"`` leaves them.
    """

    kind = ZERO_ORDER

    def __init__(self, solver: Solver, alpha: Tensor, *, seed: int, schedule: str) -> None:
        self._solver = solver
        self._schedule = schedule
        self._state = solver.init(alpha, rng=seed)

    @classmethod
    def build(cls, config: SearchConfig, alpha: Tensor, seed: int) -> Self:
        return cls(config_solver(config), alpha, seed=seed, schedule=config.sigma_schedule)

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        config_solver(config)

    @property
    def alpha(self) -> Tensor:
        alpha: Tensor = self._state.x
        return alpha

    @property
    def n_candidates(self) -> int:
        zeros = torch.zeros(len(self.alpha))
        state = self._solver.init(zeros, rng=0)
        return len(self._solver.ask(state, guide=zeros if self.is_guided else None))

    @property
    def is_guided(self) -> bool:
        return self._solver.uses_guide

    def move_to(self, alpha: Tensor) -> None:
        self._state.x = alpha.to(self._state.x, copy=True)

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        factor = cosine(progress, 1.0, 1.0, 0.0) if self._schedule == "cosine" else 1.0
        solver = self._solver.scaled(factor)
        draw = objective.draw()
        # Eq. 26 centres the proposal at minus the gradient, on the batch that scores candidates.
        guide = -objective.alpha_gradient(self.alpha, draw) if solver.uses_guide else None
        if guide is not None:  # one that is not finite would make every candidate fail
            guide = torch.where(torch.isfinite(guide).all(), guide, 0.0)
        candidates = solver.ask(self._state, guide=guide)
        values = objective(candidates, draw)
        solver.tell(self._state, candidates, values)
        annealed = {name: getattr(solver, name) for name in solver.annealed}
        # A field left at None is adapted by the solver, which then measures it.
        own = {name: value for name, value in annealed.items() if value is not None}
        counts = {N_TRIED: len(values), N_FAILED: (~torch.isfinite(values)).sum()}
        return {**self._state.metrics, **own, **counts}

    def state_dict(self) -> dict[str, Any]:
        state = self._state.to_dict()
        arrays = {name: torch.from_numpy(array) for name, array in state["arrays"].items()}
        return {"arrays": arrays, "meta": json.dumps(state["meta"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        arrays = {name: tensor.cpu().numpy() for name, tensor in state["arrays"].items()}
        data = {"arrays": arrays, "meta": json.loads(state["meta"])}
        self._state = SolverState.from_dict(data, self._solver.inner_states)
