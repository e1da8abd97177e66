"""Optimizers of other packages, as methods of ``bbob_suite``: `bbob.py` runs them.

Each goes on for ever, and starts anew where it ends: the suite ends it when its evaluations are
spent. A new start is uniform in [-4, 4]^D, as the first one is, and moved inside the bounds.
Methods that know no bounds ignore them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

Fun = Callable[[np.ndarray], float]


Box = tuple[np.ndarray, np.ndarray] | None  # the lower and upper bounds, each (dim,)


def new_start(rng: np.random.Generator, dim: int, bounds: Box) -> np.ndarray:
    """Returns where a method begins again."""
    x0 = rng.uniform(-4, 4, dim)
    return x0 if bounds is None else np.clip(x0, *bounds)


def restarted(
    fun: Fun, x0: np.ndarray, rng: np.random.Generator, bounds: Box, method: str, **options: Any
) -> None:
    """Runs a local method of ``scipy.optimize.minimize`` again and again."""
    from scipy.optimize import Bounds, minimize

    box = None if bounds is None else Bounds(*bounds)
    while True:
        with np.errstate(all="ignore"):  # overflow of a function is the method's own affair
            minimize(fun, x0, method=method, bounds=box, options=options)
        x0 = new_start(rng, len(x0), bounds)


def scipy_nelder_mead(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """SciPy, with the parameters that adapt to the dimension (Gao and Han 2012)."""
    restarted(fun, x0, rng, bounds, "Nelder-Mead", adaptive=True, maxfev=maxfev)


def scipy_powell(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """SciPy."""
    restarted(fun, x0, rng, bounds, "Powell", maxfev=maxfev)


def scipy_bfgs(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """SciPy, with gradients by forward differences, which count as evaluations."""
    restarted(fun, x0, rng, None, "BFGS")


def scipy_slsqp(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """SciPy, with gradients by forward differences, until values no longer change."""
    restarted(fun, x0, rng, bounds, "SLSQP", ftol=1e-14, maxiter=maxfev)


def scipy_lbfgsb(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """SciPy, with gradients by forward differences, until values no longer change."""
    restarted(fun, x0, rng, bounds, "L-BFGS-B", ftol=1e-14, gtol=1e-10, maxfun=maxfev)


def scipy_cobyqa(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """SciPy's COBYQA, a trust-region method with quadratic models."""
    restarted(fun, x0, rng, bounds, "COBYQA", maxfev=maxfev, final_tr_radius=1e-10)


def nlopt_restarted(
    fun: Fun, x0: np.ndarray, rng: np.random.Generator, bounds: Box, name: str
) -> None:
    """Runs a local method of NLopt with first steps of 1 until its steps vanish, again and again.

    It gets tolerances at which it has nothing left to gain.
    """
    import nlopt

    ended: list[Exception] = []

    def value(x: np.ndarray, _: np.ndarray) -> float:
        try:
            return fun(x)
        except Exception as error:  # noqa: BLE001 - NLopt must stop first; it is raised below
            ended.append(error)
            optimizer.force_stop()
            return np.inf

    while not ended:
        optimizer = nlopt.opt(getattr(nlopt, name), len(x0))
        optimizer.set_min_objective(value)
        optimizer.set_initial_step(1.0)
        optimizer.set_xtol_abs(1e-10)
        if bounds is not None:
            optimizer.set_lower_bounds(bounds[0])
            optimizer.set_upper_bounds(bounds[1])
        # Rounding stops some methods before their tolerance.
        with contextlib.suppress(nlopt.ForcedStop, nlopt.RoundoffLimited, RuntimeError):
            try:
                optimizer.optimize(x0)
            except nlopt.invalid_argument as error:  # some methods refuse a single coordinate
                raise ValueError(f"{name} cannot run in {len(x0)} dimensions") from error
        x0 = new_start(rng, len(x0), bounds)
    raise ended[0]


class NLoptMethod:
    """A method of NLopt. Unlike a closure, it can be sent to the processes of `bbob.py`."""

    def __init__(self, name: str, constant: str, *, keeps_bounds: bool = True) -> None:
        self.__name__, self.constant, self.keeps_bounds = name, constant, keeps_bounds

    def __call__(
        self, fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
    ) -> None:
        nlopt_restarted(fun, x0, rng, bounds if self.keeps_bounds else None, self.constant)


def py_bobyqa(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """The package Py-BOBYQA, with its own restarts."""
    import pybobyqa

    gap = np.inf if bounds is None else float((bounds[1] - bounds[0]).min())
    options = {"rhobeg": min(1.0, gap / 2), "rhoend": 1e-10, "seek_global_minimum": False}
    while True:
        pybobyqa.solve(fun, x0, maxfun=maxfev, bounds=bounds, **options)
        x0 = new_start(rng, len(x0), bounds)


def pycma_bipop(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """The package cma, sigma 2, with BIPOP restarts (Hansen 2009)."""
    import cma

    seed = int(rng.integers(1, 2**31))
    options = {"verbose": -9, "seed": seed, "maxfevals": maxfev}
    if bounds is not None:
        options["bounds"] = list(bounds)

    def start() -> np.ndarray:
        return new_start(rng, len(x0), bounds)

    cma.fmin2(fun, x0, 2.0, options, restarts=100, bipop=True)
    while True:
        cma.fmin2(fun, start, 2.0, options, restarts=100, bipop=True)


def scipy_differential_evolution(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """SciPy with its defaults; it needs a box, which is [-5, 5]^D where there are no bounds."""
    from scipy.optimize import differential_evolution as minimize

    lower, upper = np.full(len(x0), -5.0), np.full(len(x0), 5.0)
    if bounds is not None:
        lower = np.where(np.isfinite(bounds[0]), bounds[0], np.minimum(x0, bounds[1]) - 5)
        upper = np.where(np.isfinite(bounds[1]), bounds[1], np.maximum(x0, bounds[0]) + 5)
    while True:
        box = list(zip(lower, upper, strict=True))
        minimize(fun, box, x0=np.clip(x0, lower, upper), rng=rng, maxiter=maxfev, polish=False)
        x0 = new_start(rng, len(x0), bounds)


def cmaes_ipop(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """The package cmaes, sigma 2; each restart doubles the population (Auger and Hansen 2005)."""
    from cmaes import CMA

    popsize = None
    while True:
        seed, box = int(rng.integers(2**31)), None if bounds is None else np.stack(bounds, axis=1)
        optimizer = CMA(x0, sigma=2.0, seed=seed, bounds=box, population_size=popsize)
        while not optimizer.should_stop():
            candidates = [optimizer.ask() for _ in range(optimizer.population_size)]
            optimizer.tell([(candidate, fun(candidate)) for candidate in candidates])
        popsize = 2 * optimizer.population_size
        x0 = new_start(rng, len(x0), bounds)


def nevergrad_one_plus_one(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """The package nevergrad, its (1+1) evolution strategy, from x0 with steps of 1 at first."""
    import nevergrad

    parameter = nevergrad.p.Array(init=x0)
    parameter.random_state = np.random.RandomState(int(rng.integers(2**31)))
    optimizer = nevergrad.optimizers.registry["OnePlusOne"](parameter, budget=maxfev)
    while True:
        candidate = optimizer.ask()
        optimizer.tell(candidate, fun(candidate.value))


def random_search(
    fun: Fun, x0: np.ndarray, maxfev: int, rng: np.random.Generator, bounds: Box = None
) -> None:
    """Points uniform in [-5, 5]^D: what any method should beat."""
    while True:
        fun(rng.uniform(-5, 5, len(x0)))


PEERS = {
    peer.__name__: peer
    for peer in (
        scipy_nelder_mead,
        scipy_powell,
        scipy_bfgs,
        scipy_slsqp,
        scipy_lbfgsb,
        scipy_cobyqa,
        NLoptMethod("nlopt_newuoa", "LN_NEWUOA", keeps_bounds=False),
        NLoptMethod("nlopt_bobyqa", "LN_BOBYQA"),
        NLoptMethod("nlopt_praxis", "LN_PRAXIS"),
        NLoptMethod("nlopt_sbplx", "LN_SBPLX"),
        NLoptMethod("nlopt_cobyla", "LN_COBYLA"),
        py_bobyqa,
        pycma_bipop,
        scipy_differential_evolution,
        cmaes_ipop,
        nevergrad_one_plus_one,
        random_search,
    )
}
