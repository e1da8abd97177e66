"""The ways to update alpha: solvers, gradient baselines, random baselines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from torch import Tensor

from zoopt_nas.nas.search.methods.darts import GradientUpdater
from zoopt_nas.nas.search.methods.random_search import RandomArchitecture, WeightSharingSearch
from zoopt_nas.nas.search.methods.robust import AdaptiveRegularization, EarlyStopping
from zoopt_nas.nas.search.methods.smooth import AdversarialSmoothing, RandomSmoothing
from zoopt_nas.nas.search.updater import AlphaUpdater, ZeroOrderUpdater, config_solver
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.registry import Registry
from zoopt_nas.solvers import SOLVERS

Build = Callable[[SearchConfig, Tensor, int], AlphaUpdater]
"""``(config, initial alpha, seed)`` to the updater."""


@dataclass(frozen=True)
class Method:
    """A way to update alpha. What it changes in the settings is in ``config``.

    Attributes:
        description: one line, for lists.
        build: its updater.
        inner: the approximation of omega* that it is defined with; None = the config's.
        every_step: whether it updates at every weight step, or every ``inner_steps``; see
            ``update_period``.
        trains: whether the supernet is trained at all.
    """

    description: str
    build: Build
    inner: str | None = None
    every_step: bool = False
    trains: bool = True


def _zero_order(name: str) -> Method:
    def build(config: SearchConfig, alpha: Tensor, seed: int) -> AlphaUpdater:
        solver = config_solver(config)
        return ZeroOrderUpdater(solver, alpha, seed=seed, schedule=config.sigma_schedule)

    return Method(f"zero-order: the solver {name} on alpha (paper, Alg. 1)", build)


def _gradient(description: str, build: Build, inner: str) -> Method:
    return Method(description, build, inner, every_step=True)


def _first(config: SearchConfig, alpha: Tensor, seed: int) -> AlphaUpdater:
    return GradientUpdater(config, alpha, second_order=False)


def _second(config: SearchConfig, alpha: Tensor, seed: int) -> AlphaUpdater:
    return GradientUpdater(config, alpha, second_order=True)


_BASELINES: dict[str, Method] = {
    "darts1": _gradient("gradient: DARTS of first order (Eq. 3)", _first, "first"),
    "darts2": _gradient("gradient: DARTS of second order (Eq. 2)", _second, "second"),
    "dp": _gradient("R-DARTS: darts2 with drop path and cutout in search", _second, "second"),
    "l2": _gradient("R-DARTS: darts2 with more weight decay", _second, "second"),
    "es": _gradient(
        "R-DARTS: darts2, stopped where the Hessian's eigenvalue grows",
        lambda config, alpha, seed: EarlyStopping(config, alpha),
        "second",
    ),
    "ada": _gradient(
        "R-DARTS: darts2, sent back with more weight decay where it grows",
        lambda config, alpha, seed: AdaptiveRegularization(config, alpha),
        "second",
    ),
    "pc": _gradient("PC-DARTS: darts1 on partial channels, edges normalized", _first, "first"),
    "sdarts_rs": _gradient(
        "SmoothDARTS: darts1, weights trained at a random perturbation",
        RandomSmoothing,
        "first",
    ),
    "sdarts_adv": _gradient(
        "SmoothDARTS: darts1, weights trained at the worst perturbations",
        AdversarialSmoothing,
        "first",
    ),
    "random": Method(
        "baseline: a random architecture, nothing is trained",
        (RandomArchitecture),
        trains=False,
    ),
    "random_ws": Method("baseline: random search with weight sharing", (WeightSharingSearch)),
}


def _in_place_of_a_solver(name: str, method: Method) -> Method:
    """A baseline that says so where it hides a solver of another package."""

    def build(config: SearchConfig, alpha: Tensor, seed: int) -> AlphaUpdater:
        warnings.warn(
            f"{name} is the baseline of that name, not the solver {name} of another package, which "
            "has to be registered under another name for a search",
            stacklevel=2,
        )
        return method.build(config, alpha, seed)

    return replace(method, build=build)


def _table(solvers: Collection[str]) -> dict[str, Method]:
    methods = {name: _zero_order(name) for name in solvers}
    for name, method in _BASELINES.items():
        methods[name] = _in_place_of_a_solver(name, method) if name in solvers else method
    return methods


METHODS: Registry[Method] = Registry("method", _table(list(SOLVERS)))
