"""The zero-order update of alpha: one ask and tell of a solver (Alg. 1)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from zoopt_nas import Solver, SolverState
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.space import Path, SearchSpace
from zoopt_nas.nas.search.cell_model import CellModel
from zoopt_nas.nas.search.evaluation import Draw
from zoopt_nas.nas.search.noise import N_PROBES, NoiseGauge
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.updater import N_FAILED, N_TRIED, AlphaUpdater, EpochEnd, Metrics, Verdict
from zoopt_nas.nas.search.vertices import N_STARTS, path_options, random_vertices, vertex, vertices
from zoopt_nas.nas.settings.config import FRESH, MIXED, SearchConfig
from zoopt_nas.nas.settings.defaults import solver_options
from zoopt_nas.nas.settings.methods import ZERO_ORDER
from zoopt_nas.nas.steps.schedules import cosine
from zoopt_nas.solvers import SOLVERS, make_solver

N_MODELLED = 10  # cells that are known before there is a model of them
MAX_ASKS = 100  # of an update in which all cells are known, or on a model of the cells


def config_solver(config: SearchConfig, space: SearchSpace | None = None) -> Solver:
    """Return the solver of a zero-order search, with its options.

    ``space`` is the space of the search, on which steps along paths depend.
    """
    steps = {} if space is None else path_options(config, space)
    return _solver(config.algo, steps | config.solver)


def _solver(name: str, given: Mapping[str, Any]) -> Solver:
    options = dict(given)
    n_samples = options.pop("n_samples", None)
    solver = make_solver(name, options)
    # Every solver defines which of its fields N sets.
    return solver if n_samples is None else solver.with_n_samples(n_samples)


def _check_drift(config: SearchConfig, solver: Solver) -> None:
    """Refuse a solver that compares values of different updates if these drift."""
    if config.weights == FRESH or not solver.compares_batches:
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
        uses_model: whether the solver runs on a ``CellModel`` of the cells that are known, and an
            update evaluates the best new cell of this run.
    """

    kind = ZERO_ORDER
    follows_paths = True

    def __init__(
        self,
        solver: Solver,
        alpha: Tensor,
        *,
        seed: int,
        schedule: str,
        gauge: NoiseGauge | None = None,
        uses_model: bool = False,
    ) -> None:
        self._solver = solver
        self._schedule = schedule
        self._gauge = gauge
        self._uses_model = uses_model
        self._starts: Tensor | None = None  # points of which the first update takes the best
        self._state = self._init(alpha, seed)

    @classmethod
    def build(
        cls, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> Self:
        """Return the updater with the solver that the config names."""
        cls.check_own_settings(config)
        solver, schedule = config_solver(config, space), config.sigma_schedule
        _check_drift(config, solver)
        gauge = NoiseGauge(config.val_batches) if config.noise_aware else None
        if config.paths == MIXED or space is None:
            return cls(solver, alpha, seed=seed, schedule=schedule, gauge=gauge)
        # Shorter steps along paths would lead to the same cell.
        at = vertex(space, alpha)
        updater = cls(
            solver, at, seed=seed, schedule="constant", gauge=gauge, uses_model=config.surrogate
        )
        if config.weights == FRESH:
            is_given = config.start is not None
            updater._starts = at[None] if is_given else random_vertices(space, N_STARTS, at, seed)
        return updater

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        """Refuse unknown options, and a solver that compares values of different updates."""
        cls.check_own_settings(config)
        _check_drift(config, config_solver(config))

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
        if self._starts is not None:
            self._begin(self._starts, objective, draw)
        n_known = len(objective.known or ())
        measured = {} if gauge is None else gauge.metrics()
        is_modelled = self._uses_model and n_known >= N_MODELLED
        if is_modelled:
            values, measured["model_error"] = self._follow_model(solver, objective, draw)
        else:
            values = self._ask_and_tell(solver, objective, draw)
        if objective.known is not None and not is_modelled:
            # Known cells cost nothing, so an update goes on until a new one is evaluated.
            for _ in range(MAX_ASKS):
                if len(objective.known) > n_known:
                    break
                values = self._ask_and_tell(solver, objective, draw)
        names = solver.annealed if gauge is None else (*solver.annealed, *solver.value_scales)
        fields = {name: getattr(solver, name) for name in names}
        # The solver adapts and reports a field that is None.
        fields = {name: value for name, value in fields.items() if value is not None}
        counts = {N_TRIED: len(values), N_FAILED: (~torch.isfinite(values)).sum()}
        return {**self._state.metrics, **fields, **measured, **counts}

    def _init(self, alpha: Tensor, rng: int | torch.Generator) -> SolverState:
        state = self._solver.init(alpha, rng=rng)
        # Looking farther away until two values differ would compare values of different updates.
        state.has_contrast = self._solver.adapts_steps
        return state

    def _ask_and_tell(self, solver: Solver, objective: BilevelObjective, draw: Draw) -> Tensor:
        candidates = solver.ask(self._state, guide=self._guide(objective, draw))
        values = objective(candidates, draw)
        if objective.single_path:
            at = vertices(objective.supernet.space, candidates)
            solver.tell(self._state, at, values, repaired=True)
        else:
            solver.tell(self._state, candidates, values)
        return values

    def _begin(self, starts: Tensor, objective: BilevelObjective, draw: Draw) -> None:
        """Begin the run of the solver at the best of some points ``(n, dim)``."""
        values = objective(starts, draw)
        best = int(torch.where(torch.isfinite(values), values, torch.inf).argmin())
        self._state = self._init(starts[best], self._state.rng)
        # Every solver takes in a point of another batch, so that it need not ask for it.
        self._solver.tell(self._state, starts[best : best + 1], values[best : best + 1])
        self._starts = None

    def _follow_model(
        self, solver: Solver, objective: BilevelObjective, draw: Draw
    ) -> tuple[Tensor, float]:
        """Run the solver on a model of the known cells; evaluate the best new cell of the run.

        Then alpha is the known cell that is best by the model, which has seen the new one. Return
        the value ``(1,)`` of the new cell, and the error of the model.
        """
        space, known = objective.supernet.space, objective.known
        assert known is not None
        model = CellModel(known)
        start = space.one_hot(model.best, self.alpha)
        self._state = self._init(start, self._state.rng)
        solver.tell(self._state, start[None], model([model.best]).to(start))
        visited: dict[Path, float] = {}
        for _ in range(MAX_ASKS):
            asked = [space.path(space.discretize(one)) for one in solver.ask(self._state).cpu()]
            paths = [space.canonical(path) for path in asked]
            means = model(paths)
            at = torch.stack([space.one_hot(path, start) for path in asked])
            solver.tell(self._state, at, means.to(start), repaired=True)
            visited |= dict(zip(paths, means.tolist(), strict=True))
        new = {path: mean for path, mean in visited.items() if path not in known}
        if new:
            chosen = space.one_hot(min(new, key=new.__getitem__), start)
        else:
            seed = int(torch.randint(2**31, (), generator=self._state.rng, device=start.device))
            chosen = random_vertices(space, 1, start, seed)[0]
        values = objective(chosen[None], draw)
        self.move_to(space.one_hot(CellModel(known).best, start))
        return values, model.error

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Let the noise be measured again in the next epoch."""
        if self._gauge is not None:
            self._gauge.is_due = True
        return super().end_epoch(end)

    def _scheduled(self, progress: float) -> Solver:
        factor = cosine(progress, 1.0, 1.0, 0.0) if self._schedule == "cosine" else 1.0
        return self._solver.scaled(factor)

    def _guide(self, objective: BilevelObjective, draw: Draw) -> Tensor | None:
        # Along a path there is no gradient in alpha, and solvers draw around alpha.
        if not self.is_guided or objective.single_path:
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
        starts = {} if self._starts is None else {"starts": self._starts}
        return {"arrays": arrays, "meta": json.dumps(state["meta"]), **noise, **starts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in state["arrays"].items()}
        data = {"arrays": arrays, "meta": json.loads(state["meta"])}
        self._state = SolverState.from_dict(
            data, self._solver.inner_states, device=self.alpha.device
        )
        if self._gauge is not None:
            self._gauge.load_state_dict(state["noise"])
        starts = state.get("starts")
        self._starts = None if starts is None else starts.to(self.alpha.device)
