"""The race of zero-order solvers: ``auto`` in a search (paper, section 6 i)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.search.evaluation import Draw
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.updater import N_TRIED, AlphaUpdater, EpochEnd, Metrics, Verdict
from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater
from zoopt_nas.nas.settings.config import FRESH, MIXED, SearchConfig
from zoopt_nas.nas.settings.defaults import solver_options
from zoopt_nas.nas.settings.methods import ZERO_ORDER
from zoopt_nas.nas.steps.seeds import seeds_for

# The solvers of the paper. They keep nothing between updates, so each can go on from another's
# alpha. The distribution of cma and the queries that lizo keeps would stay behind.
RACED = ("rs", "mgs", "gld")
MIN_ROUNDS = 3  # the rounds to see before a solver is dropped


class Move(NamedTuple):
    """The last update, whose gain is measured on the batches of the next one."""

    name: str  # the solver
    before: Tensor  # alpha before the update, (dim,)
    n_evaluations: int  # of the update


class Race(AlphaUpdater):
    """Solvers rs, mgs and gld take turns on alpha, and the worse ones drop out.

    In a round, each solver that is left updates alpha once. The gain of an update is how much lower
    the new alpha's value is than the old one's, on the batches of the next update, for each of the
    update's evaluations. In each third of the updates one solver fewer is left: the one with the
    worst mean rank by gain within a round drops out. Ranks count the rounds alike although gains
    shrink.
    """

    kind = ZERO_ORDER
    follows_paths = True

    def __init__(
        self, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> None:
        seeds = seeds_for(seed, RACED)
        self._arms = {
            name: ZeroOrderUpdater.build(_config_of(name, config), alpha, seeds[name], space)
            for name in RACED
        }
        self._alpha = alpha.detach().clone()
        self._left = list(RACED)
        self._n_rounds = self._n_taken = 0  # complete rounds, and updates of this round
        self._gains: dict[str, list[Any]] = {name: [] for name in RACED}  # one for each round
        self._move: Move | None = None

    @classmethod
    def build(
        cls, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> Self:
        """Check the settings, and return the race of a search in ``space``."""
        cls.check(config)
        return cls(config, alpha, seed, space)

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        """Refuse solver options other than N, which all solvers share."""
        for option in config.solver:
            if option != "n_samples":
                raise UnknownNameError("option of auto in a search", option, ["n_samples"])
        if config.weights == FRESH:
            raise InvalidValueError(
                "weights must be shared with auto, whose solvers compare values of one update, "
                f"got {config.weights}"
            )
        for name in RACED:
            ZeroOrderUpdater.check(_config_of(name, config))

    @property
    def alpha(self) -> Tensor:
        """The current architecture parameters ``(dim,)``."""
        return self._alpha

    @property
    def n_candidates(self) -> int:
        """Number of candidates for which the objective keeps weights."""
        return 2 + sum(arm.n_candidates for arm in self._arms.values())

    @property
    def is_guided(self) -> bool:
        """Whether a solver takes a guide."""
        return any(arm.is_guided for arm in self._arms.values())

    def move_to(self, alpha: Tensor) -> None:
        """Set alpha; the last update then has no gain."""
        self._alpha = alpha.to(self._alpha, copy=True)
        self._move = None

    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Let the next solver update alpha."""
        if self._n_taken == 0:
            self._drop(progress)
        # The first place rotates, so that no solver always follows the same one.
        name = self._left[(self._n_rounds + self._n_taken) % len(self._left)]
        arm = self._arms[name]
        arm.move_to(self._alpha)
        draw = arm.draw(objective, progress)
        self._measure_gain(objective, draw)
        before = self._alpha
        metrics = arm.update(objective, draw, progress)
        self._alpha = arm.alpha
        if len(self._left) > 1:
            self._move = Move(name, before, int(metrics[N_TRIED]))
        self._n_taken += 1
        if self._n_taken == len(self._left):
            self._n_rounds, self._n_taken = self._n_rounds + 1, 0
        shares = {f"share_{other}": float(other == name) for other in RACED}
        return {**metrics, **shares}

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Let every solver know."""
        for arm in self._arms.values():
            arm.end_epoch(end)
        return super().end_epoch(end)

    def state_dict(self) -> dict[str, Any]:
        """Return alpha, the state of every solver, and the race."""
        return {
            "alpha": self._alpha,
            "arms": {name: arm.state_dict() for name, arm in self._arms.items()},
            "left": list(self._left),
            "n_rounds": self._n_rounds,
            "n_taken": self._n_taken,
            "gains": {name: [float(g) for g in gains] for name, gains in self._gains.items()},
            "move": None if self._move is None else tuple(self._move),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._alpha = state["alpha"].to(self._alpha, copy=True)
        for name, arm in self._arms.items():
            arm.load_state_dict(state["arms"][name])
        self._left = list(state["left"])
        self._n_rounds, self._n_taken = state["n_rounds"], state["n_taken"]
        self._gains = {name: list(gains) for name, gains in state["gains"].items()}
        self._move = None
        if state["move"] is not None:
            name, before, n_evaluations = state["move"]
            self._move = Move(name, before.to(self._alpha, copy=True), n_evaluations)

    def _measure_gain(self, objective: BilevelObjective, draw: Draw) -> None:
        """Compare alpha before and after the last update, on new batches."""
        if self._move is None:
            return
        name, before, n_evaluations = self._move
        values = objective(torch.stack([before, self._alpha]), draw)
        # It stays on the device until the ranks are needed.
        self._gains[name].append((values[0] - values[1]) / n_evaluations)
        self._move = None

    def _drop(self, progress: float) -> None:
        """Drop the worst solver if fewer should be left."""
        n_left = len(RACED) - math.floor(len(RACED) * progress)
        n_rounds = min(len(self._gains[name]) for name in self._left)
        if len(self._left) <= n_left or n_rounds < MIN_ROUNDS:
            return
        gains = {name: list(map(float, self._gains[name][:n_rounds])) for name in self._left}
        ranks = mean_ranks(gains)
        self._left.remove(max(self._left, key=ranks.__getitem__))


def mean_ranks(gains: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the mean rank of each name over the rounds: 0 has the largest gain; ties share.

    A gain that is NaN ranks last.
    """
    clean = {name: [-math.inf if g != g else g for g in found] for name, found in gains.items()}
    ranks = {}
    for name, own in clean.items():
        others = [found for other, found in clean.items() if other != name]
        above = [
            (theirs > mine) + (theirs == mine) / 2
            for found in others
            for theirs, mine in zip(found, own, strict=True)
        ]
        ranks[name] = sum(above) / len(own)
    return ranks


def _config_of(name: str, config: SearchConfig) -> SearchConfig:
    """Return the config of one of the solvers, with its usual options."""
    on_paths = config.paths != MIXED
    options = solver_options(name, config.space, given=config.solver, on_paths=on_paths)
    return config.replace(algo=name, solver=options)
