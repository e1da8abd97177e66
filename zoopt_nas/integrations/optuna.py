"""An Optuna sampler: a solver of this package proposes the parameters of a study.

The state is stored in system attributes of the trials, so that several threads, processes and
machines can work on one study, and each can stop at any time:

* A batch of the solver is a generation. The trial that opens it stores the state of the solver,
  and names the generation by a digest of the state. Trials that open it concurrently store the
  same, and their rows are interchangeable.
* Every trial stores its generation and its row of the batch. When all rows are assigned but some
  are unfinished, a trial evaluates a filler point instead.
* A trial that finds all rows finished tells the solver and opens the next generation.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoopt_nas._checks import check_positive
from zoopt_nas.bounds import Box, RunBox
from zoopt_nas.errors import InvalidValueError, MissingDependencyError
from zoopt_nas.integrations.fillers import filler_point, is_overdue
from zoopt_nas.solvers import Solver, SolverState, make_solver
from zoopt_nas.solvers.base import Task

try:
    from optuna._transform import _SearchSpaceTransform
    from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
    from optuna.samplers import BaseSampler, TPESampler
    from optuna.search_space import IntersectionSearchSpace
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise MissingDependencyError(
        "optuna is not installed; install it with: pip install 'zoopt-nas[optuna]'"
    ) from error

# Names of system attributes. A mark is {"run", "generation", "row"}. A header is {"run",
# "generation", "step", "n_chunks"}, and is written after the chunks of the state.
_MARK = "zoopt:mark"
_HEADER = "zoopt:header"
_CHUNK = "zoopt:state:"
_CHUNK_LENGTH = 2000  # some relational storages allow 2048 characters with quotes
# Attempts to draw a filler point whose parameters no trial has.
_MAX_DRAWS = 30

Params = dict[str, Any]
Space = dict[str, BaseDistribution]


class ZooptSampler(BaseSampler):
    """Sample the parameters of a study by a solver of this package.

    The solver searches float and integer parameters jointly, including log scales and steps.
    ``independent_sampler`` samples all others (categorical, or missing in some trials) one by one.
    A failed or pruned trial is a failed evaluation.

    The solver starts from the best trial so far. It restarts if the common parameters of all trials
    change, or if the sampler gets other options. A sampler with the same options continues exactly
    from the storage.

    Args:
        method: a name from ``SOLVERS`` or a ``Solver``.
        x0: the parameters of the first trial by name. Default: the middle of each range.
        scale: the unit length of the solver (``max_radius``, ``sigma``, ...) as a fraction of the
            range of each parameter, in (0, 1]; on a log scale, of the range of its logarithm.
        seed: None or a non-negative int. With one worker, it makes a study reproducible.
        independent_sampler: see above. Default: ``TPESampler(seed=seed)``.
        **options: fields of the solver by name.

    Raises:
        InvalidValueError: an argument is invalid; when sampling, also if ``x0`` is outside of the
            range of a parameter.
        ValueError: when sampling, if the study has several objectives.
        UnknownNameError: the solver or a field is unknown.
    """

    def __init__(
        self,
        method: str | Solver = "adaptive_gld",
        *,
        x0: Mapping[str, Any] | None = None,
        scale: float = 0.25,
        seed: int | None = None,
        independent_sampler: BaseSampler | None = None,
        **options: Any,
    ) -> None:
        if x0 is not None and not isinstance(x0, Mapping):
            raise InvalidValueError(f"x0 must be a mapping from names to values, got {x0!r}")
        if check_positive("scale", scale) > 1:
            raise InvalidValueError(f"scale must be in (0, 1], got {scale!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise InvalidValueError(f"seed must be None or a non-negative integer, got {seed!r}")
        self._solver = make_solver(method, options)
        self._x0 = dict(x0 or {})
        self._scale = float(scale)
        self._seed = seed
        self._independent = independent_sampler or TPESampler(seed=seed)
        self._shared_space = IntersectionSearchSpace()

    def reseed_rng(self) -> None:
        """Reseed the independent sampler: all workers share the generator of the solver."""
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """Return the parameters that the solver searches."""
        return _searchable(self._shared_space.calculate(study))

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> Params:
        """Return the parameters that the solver proposes for a trial."""
        self._raise_error_if_multi_objective(study)
        space = _searchable(search_space)
        params = {
            name: self._independent.sample_independent(study, trial, name, d)
            for name, d in search_space.items()
            if name not in space
        }
        return params | (_Run(self, space, study, trial).next_params() if space else {})

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample one parameter that the solver does not search."""
        self._raise_error_if_multi_objective(study)
        if trial.number == 0:
            if param_name in self._x0:
                return _checked(param_name, self._x0[param_name], param_distribution)
            if space := _searchable({param_name: param_distribution}):
                transform = _SearchSpaceTransform(space, transform_0_1=True)
                return transform.untransform(np.array([0.5]))[param_name]
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Notify the independent sampler."""
        self._independent.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Notify the independent sampler."""
        self._independent.after_trial(study, trial, state, values)


class _Run:
    """One run of the solver, as one trial reads it from the storage.

    The solver works in the unit cube divided by ``scale``.
    """

    def __init__(
        self, sampler: ZooptSampler, space: Space, study: Study, trial: FrozenTrial
    ) -> None:
        solver, scale = sampler._solver, sampler._scale
        # The number of trials is unknown, so that the task has no budget.
        self.solver = solver.prepared(Task(dim=len(space), bounded=True))
        self.seed = sampler._seed
        self.x0 = sampler._x0
        self.space = space
        self.scale = scale
        self.transform = _SearchSpaceTransform(space, transform_0_1=True)
        self.sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        self.storage = study._storage
        self.trial = trial
        self.trials = study.get_trials(deepcopy=False)
        running = [t for t in self.trials if t.state == TrialState.RUNNING]
        waiting = [t.number for t in running if _MARK not in t.system_attrs]
        self.n_running = len(running) - len(waiting)
        self.n_ahead = sum(number < trial.number for number in waiting)  # they take the first rows
        fields = dataclasses.asdict(solver)
        self.name = _digest([solver.name, fields, scale, repr(sorted(space.items()))])
        self.box: RunBox = Box(0.0, 1 / scale).at(np.full(len(space), 0.5 / scale))

    def next_params(self) -> Params:
        """Return the parameters for the trial, and store its generation and row."""
        row: int | None = None
        newest = self._newest()
        if newest is None:
            opened: SolverState | None = self._start()
        else:
            generation, state = newest
            row = self._free_row(generation, state)
            opened = self._told(generation, state) if row is None else None
        if opened is not None:
            state = opened
            generation, row = self._open(state), self.n_ahead
        rows = self._rows(state)
        if row is not None:
            row %= len(rows)
        point = self._filler(state) if row is None else rows[row]
        self._store(_MARK, {"run": self.name, "generation": generation, "row": row})
        return self.params(point)

    def _filler(self, state: SolverState) -> np.ndarray:
        """Return a filler point, (dim,), if possible with parameters that no trial has."""
        rng = np.random.default_rng(None if self.seed is None else [self.seed, self.trial.number])
        taken = [{name: t.params.get(name) for name in self.space} for t in self.trials]
        for k in range(_MAX_DRAWS):
            point: np.ndarray = self.box.inside(filler_point(state, rng, 1.1**k))
            if self.params(point) not in taken:
                break
        return point

    def params(self, point: np.ndarray) -> Params:
        """Return the parameters at a point of the solver, (dim,)."""
        return self.transform.untransform(point * self.scale)

    def point(self, trial: FrozenTrial, default: np.ndarray) -> np.ndarray:
        """Return the point, (dim,), that a trial evaluated.

        It is ``default``, the point before rounding to steps, unless a parameter was fixed.
        """
        proposed = self.params(default)
        evaluated = {name: trial.params.get(name, value) for name, value in proposed.items()}
        if evaluated != proposed:
            default = self.box.project(self.transform.transform(evaluated) / self.scale)
        return default

    def value(self, trial: FrozenTrial) -> float:
        """Return the value of a finished trial to minimize; +inf if the trial failed."""
        if trial.state != TrialState.COMPLETE or trial.value is None:
            return math.inf
        return self.sign * trial.value

    def _start(self) -> SolverState:
        """Return the state of a new run, at the best trial if there is one, with its batch."""
        start = self.params(np.full(len(self.space), 0.5 / self.scale))
        for name, distribution in self.space.items():
            if name in self.x0:
                start[name] = _checked(name, self.x0[name], distribution)
        first = self.box.project(self.transform.transform(start) / self.scale)
        bounds = (self.box.lower, self.box.upper)
        state = self.solver.init(first, rng=self.seed, bounds=bounds, is_scaled=True)
        return self._tell_others(state, self.trials)

    def _has_all(self, trial: FrozenTrial) -> bool:
        """Return whether the trial has a value inside the range of every parameter."""
        return all(
            name in trial.params and d._contains(d.to_internal_repr(trial.params[name]))
            for name, d in self.space.items()
        )

    def _rows(self, state: SolverState) -> np.ndarray:
        """Return the batch of ``state``, (n, dim), moved into the box."""
        return np.asarray(self.box.inside(state.pending, antithetic=self.solver.antithetic))

    def _newest(self) -> tuple[str, SolverState] | None:
        """Return the open generation and the state that was stored with it."""
        openers = [
            t for t in self.trials if t.system_attrs.get(_HEADER, {}).get("run") == self.name
        ]
        if not openers:
            return None
        # Generations opened concurrently may differ in the known filler points: the first one wins.
        opener = max(openers, key=lambda t: (t.system_attrs[_HEADER]["step"], -t.number))
        attrs, header = opener.system_attrs, opener.system_attrs[_HEADER]
        text = "".join(attrs[f"{_CHUNK}{i}"] for i in range(header["n_chunks"]))
        data = json.loads(text, object_hook=_as_array)
        return header["generation"], SolverState.from_dict(data, self.solver.inner_states)

    def _open(self, state: SolverState) -> str:
        """Store a state with its batch in the trial, and return the new generation."""
        text = json.dumps(state.to_dict(), default=_as_json)
        generation = _digest(text)
        n_chunks = math.ceil(len(text) / _CHUNK_LENGTH)
        for i in range(n_chunks):
            self._store(f"{_CHUNK}{i}", text[i * _CHUNK_LENGTH : (i + 1) * _CHUNK_LENGTH])
        header = {"run": self.name, "generation": generation, "step": state.n_steps}
        self._store(_HEADER, {**header, "n_chunks": n_chunks})
        return generation

    def _store(self, name: str, value: Any) -> None:
        self.storage.set_trial_system_attr(self.trial._trial_id, name, value)

    def _members(self, generation: str) -> dict[int | None, list[FrozenTrial]]:
        """Return the trials of a generation by row, in order; filler points are under None."""
        members: dict[int | None, list[FrozenTrial]] = {}
        for trial in self.trials:
            mark = trial.system_attrs.get(_MARK, {})
            if mark.get("generation") == generation and mark["run"] == self.name:
                members.setdefault(mark["row"], []).append(trial)
        return members

    def _free_row(self, generation: str, state: SolverState) -> int | None:
        """Return a row of the batch that is unassigned or lost, or None."""
        members = self._members(generation)
        n = len(self._rows(state))
        free = [row for row in range(n) if row not in members]
        if not free:
            free = [row for row in range(n) if self._is_lost(members, row, n)]
        return free[self.n_ahead % len(free)] if free else None

    def _is_lost(self, members: Mapping[int | None, list[FrozenTrial]], row: int, n: int) -> bool:
        """Return whether an unfinished row of a batch of ``n`` counts as lost."""
        last = members[row][-1].number
        n_fillers = sum(t.number > last and t.state.is_finished() for t in members.get(None, []))
        is_late = is_overdue(n_fillers, n, self.n_running)
        return is_late and _first_finished(members[row]) is None

    def _told(self, generation: str, state: SolverState) -> SolverState | None:
        """Return the state after a generation, with the next batch; None if it is unfinished."""
        rows = self._rows(state)
        members = self._members(generation)
        values = np.full(len(rows), np.inf)
        for row in range(len(rows)):
            trial = _first_finished(members.get(row, []))
            if trial is None:
                return None
            rows[row] = self.point(trial, rows[row])
            values[row] = self.value(trial)
        self.solver.tell(state, rows, values, repaired=True)
        state.x = self.box.project(state.x)
        return self._tell_others(state, members.get(None, []))

    def _tell_others(self, state: SolverState, trials: Sequence[FrozenTrial]) -> SolverState:
        """Tell the solver of trials outside of its batches, and ask for the next batch."""
        known = [t for t in trials if t.state == TrialState.COMPLETE and self._has_all(t)]
        if known:
            points = np.array([self.point(t, state.x) for t in known])
            self.solver.tell(state, points, [self.value(t) for t in known])
        self.solver.ask(state)
        return state


def _searchable(space: Space) -> Space:
    """Return the numeric parameters of a space with more than one possible value."""
    kinds = FloatDistribution | IntDistribution
    return {name: d for name, d in space.items() if isinstance(d, kinds) and not d.single()}


def _first_finished(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    return next((trial for trial in trials if trial.state.is_finished()), None)


def _checked(name: str, value: Any, distribution: BaseDistribution) -> Any:
    """Return ``value`` if the distribution contains it."""
    try:
        is_inside = distribution._contains(distribution.to_internal_repr(value))
    except ValueError:  # not a number, or not a choice
        is_inside = False
    if not is_inside:
        raise InvalidValueError(f"x0[{name!r}] must be in {distribution}, got {value!r}")
    return value


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_json(value: Any) -> Any:
    """Convert a NumPy array (exactly) or scalar for ``json.dumps``."""
    if not isinstance(value, np.ndarray):
        return value.item()
    data = base64.b64encode(value.tobytes()).decode()
    return {"base64": data, "dtype": value.dtype.str, "shape": value.shape}


def _as_array(node: dict[str, Any]) -> Any:
    """Undo ``_as_json`` in ``json.loads``."""
    if "base64" not in node:
        return node
    return np.frombuffer(base64.b64decode(node["base64"]), node["dtype"]).reshape(node["shape"])
