"""An Optuna sampler: every solver of the package proposes the parameters of a study.

All state is in the storage of the study, in system attributes of its trials, so that several
threads, processes and machines may work on one study and each may end at any time:

* A batch of the solver is a generation. The trial that opens one writes the state of the solver,
  with its batch; a generation is named by a digest of that. Two trials that open it side by side
  therefore write the same, and their rows are interchangeable.
* Every trial notes its generation and its row of the batch. When all rows are out but not all are
  back, it evaluates a spare: a random point about the iterate.
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
from zoopt_nas.bounds import Box, FittedBox
from zoopt_nas.errors import InvalidValueError, MissingDependencyError
from zoopt_nas.integrations.spares import is_overdue, spares
from zoopt_nas.solvers import Solver, SolverState, make_solver
from zoopt_nas.solvers.base import Task

try:
    from optuna._transform import _SearchSpaceTransform
    from optuna.distributions import (
        BaseDistribution,
        FloatDistribution,
        IntDistribution,
        distribution_to_json,
    )
    from optuna.samplers import BaseSampler, TPESampler
    from optuna.search_space import IntersectionSearchSpace
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise MissingDependencyError(
        "optuna is not installed; install it with: pip install 'zoopt-nas[optuna]'"
    ) from error

# The names of the system attributes. A mark is {"run", "generation", "row"}; a header is {"run",
# "generation", "step", "n_chunks"}, written after the chunks of the state that it announces.
_MARK = "zoopt:mark"
_HEADER = "zoopt:header"
_CHUNK = "zoopt:state:"
_CHUNK_LENGTH = 2000  # some relational storages hold 2048 characters, quotes and all


class ZooptSampler(BaseSampler):
    """Samples the parameters of a study by a solver of the package.

    Float and integer parameters, also on a log scale or in steps, are searched together by the
    solver. All others (categorical ones, and those that not every trial has) are sampled one by one
    by ``independent_sampler``. A failed or pruned trial is a failed evaluation for the solver.

    The solver starts from the best trial so far; and it starts anew when the parameters that all
    trials share change, or when the study gets a sampler with other options. One with the same
    options goes on, bit for bit, with what it finds in the storage.

    Args:
        method: a name from ``SOLVERS`` or a ``Solver``.
        x0: what the first trial evaluates, by the names of the parameters. Default, also for a
            name that is left out: the middle of the range.
        scale: what 1 is for the solver (``max_radius``, ``sigma``, ...), as a share of the range of
            each parameter, in (0, 1]; on a log scale, of the range of its logarithm.
        seed: None or a non-negative int. One worker repeats a study with it exactly.
        independent_sampler: see above. Default: ``TPESampler(seed=seed)``.
        **options: fields of the solver, by name.

    Raises:
        InvalidValueError: an argument breaks a rule; when sampling, also if ``x0`` is outside the
            range of a parameter.
        ValueError: when sampling, the study has several objectives.
        UnknownNameError: no such solver or field; the message suggests the nearest.
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
        # The solver's generator is in the storage: its workers must not draw from different ones.
        self._independent.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return _searchable(self._shared_space.calculate(study))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._raise_error_if_multi_objective(study)
        space = _searchable(search_space)
        params = {
            name: self._independent.sample_independent(study, trial, name, d)
            for name, d in search_space.items()
            if name not in space
        }
        if space:
            run = _Run(self._solver, space, self._scale, study, trial)
            params |= run.next_params(self._seed, self._x0)
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        self._raise_error_if_multi_objective(study)
        if trial.number == 0:
            if param_name in self._x0:
                return _checked(param_name, self._x0[param_name], param_distribution)
            if space := _searchable({param_name: param_distribution}):
                return _SearchSpaceTransform(space, transform_0_1=True).untransform(
                    np.array([0.5])
                )[param_name]
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._independent.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._independent.after_trial(study, trial, state, values)


class _Run:
    """One run of the solver in one search space, as the storage shows it to one trial.

    The solver works in the coordinates of the unit cube divided by ``scale``.
    """

    def __init__(
        self,
        solver: Solver,
        space: dict[str, BaseDistribution],
        scale: float,
        study: Study,
        trial: FrozenTrial,
    ) -> None:
        # Of a study nobody knows how many trials it will have.
        self.solver = solver.prepared(Task(dim=len(space), bounded=True))
        self.space = space
        self.scale = scale
        self.transform = _SearchSpaceTransform(space, transform_0_1=True)
        self.sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        self.storage = study._storage
        self.trial = trial
        self.trials = study.get_trials(deepcopy=False)
        self.name = _digest(
            {
                "solver": solver.name,
                "fields": dataclasses.asdict(solver),
                "scale": scale,
                "space": {name: distribution_to_json(d) for name, d in space.items()},
            }
        )
        self.box: FittedBox = Box(0.0, 1 / scale).fit(np.full(len(space), 0.5 / scale))

    def next_params(self, seed: int | None, x0: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters for the trial, and notes in the storage which row they are."""
        row: int | None
        newest = self._newest()
        if newest is None:
            state = self._start(seed, x0)
            generation, row = self._open(state), self._place_in_line()
        else:
            generation, state = newest
            row = self._free_row(generation, state)
            if row is None and (told := self._told(generation, state)) is not None:
                state = told
                generation, row = self._open(state), self._place_in_line()
        rows = self._rows(state)
        if row is not None:
            row %= len(rows)
        point = self._spare(state, seed) if row is None else rows[row]
        self._note(_MARK, {"run": self.name, "generation": generation, "row": row})
        return self.params(point)

    def _spare(self, state: SolverState, seed: int | None) -> np.ndarray:
        """Returns a spare, (dim,), with parameters that no trial has, unless there are few."""
        rng = np.random.default_rng(None if seed is None else [seed, self.trial.number])
        taken = [{name: t.params.get(name) for name in self.space} for t in self.trials]
        for drawn in spares(state, rng):
            point: np.ndarray = self.box.inside(drawn)
            if self.params(point) not in taken:
                break
        return point

    def params(self, point: np.ndarray) -> dict[str, Any]:
        """Returns the parameters at a point of the solver, (dim,)."""
        return self.transform.untransform(point * self.scale)

    def point(self, trial: FrozenTrial, default: np.ndarray) -> np.ndarray:
        """Returns the point, (dim,), that a trial has evaluated.

        That is ``default``, which it was to evaluate, with all the digits that a step of the
        parameters rounds off, unless the trial did otherwise (because of a fixed parameter).
        """
        proposed = self.params(default)
        evaluated = {name: trial.params.get(name, value) for name, value in proposed.items()}
        if evaluated != proposed:
            default = self.box.project(self.transform.transform(evaluated) / self.scale)
        return default

    def value(self, trial: FrozenTrial) -> float:
        """Returns the value of a finished trial for the solver, +inf if it failed."""
        if trial.state != TrialState.COMPLETE or trial.value is None:
            return math.inf
        return self.sign * trial.value

    def _start(self, seed: int | None, x0: Mapping[str, Any]) -> SolverState:
        """Returns the state of a new run, at the best trial if there is one, with its batch."""
        start = self.params(np.full(len(self.space), 0.5 / self.scale))
        start |= {name: _checked(name, x0[name], d) for name, d in self.space.items() if name in x0}
        first = self.box.project(self.transform.transform(start) / self.scale)
        ends = (self.box.lower, self.box.upper)
        state = self.solver.init(first, rng=seed, bounds=ends, is_scaled=True)
        return self._tell_strangers(state, self.trials)

    def _has_all(self, trial: FrozenTrial) -> bool:
        """Whether the trial has a value for each parameter, inside its range."""
        return all(
            name in trial.params and d._contains(d.to_internal_repr(trial.params[name]))
            for name, d in self.space.items()
        )

    def _rows(self, state: SolverState) -> np.ndarray:
        """Returns the points of the box, (n, dim), that the batch of ``state`` stands for."""
        rows: np.ndarray = self.box.inside(state.pending, antithetic=self.solver.antithetic)
        return rows

    def _newest(self) -> tuple[str, SolverState] | None:
        """Returns the generation that is open, and the state that it was opened with."""
        headers = [
            (header["step"], -trial.number, header, trial.system_attrs)
            for trial in self.trials
            if (header := trial.system_attrs.get(_HEADER)) and header["run"] == self.name
        ]
        if not headers:
            return None
        # Generations that were opened side by side may differ in the spares that were known. All
        # workers go on with the one of the earliest trial.
        _, _, header, attrs = max(headers, key=lambda entry: entry[:2])
        text = "".join(attrs[f"{_CHUNK}{i}"] for i in range(header["n_chunks"]))
        return header["generation"], _decode(text, self.solver)

    def _open(self, state: SolverState) -> str:
        """Writes a state with its batch into the trial, and returns the new generation."""
        text = _encode(state)
        generation = _digest(text)
        chunks = [text[i : i + _CHUNK_LENGTH] for i in range(0, len(text), _CHUNK_LENGTH)]
        for i, chunk in enumerate(chunks):
            self._note(f"{_CHUNK}{i}", chunk)
        header = {"run": self.name, "generation": generation, "step": state.n_steps}
        self._note(_HEADER, {**header, "n_chunks": len(chunks)})
        return generation

    def _note(self, name: str, value: Any) -> None:
        self.storage.set_trial_system_attr(self.trial._trial_id, name, value)

    def _members(self, generation: str) -> dict[int | None, list[FrozenTrial]]:
        """Returns the trials of a generation by their row, in order; the spares under None."""
        members: dict[int | None, list[FrozenTrial]] = {}
        for trial in self.trials:
            mark = trial.system_attrs.get(_MARK)
            if mark is not None and mark["generation"] == generation and mark["run"] == self.name:
                members.setdefault(mark["row"], []).append(trial)
        return members

    def _free_row(self, generation: str, state: SolverState) -> int | None:
        """Returns a row of the batch that nobody evaluates, or None."""
        members = self._members(generation)
        n = len(self._rows(state))
        free = [row for row in range(n) if row not in members]
        if not free:
            free = [row for row in range(n) if self._is_lost(members, row, n)]
        return free[self._place_in_line() % len(free)] if free else None

    def _is_lost(self, members: Mapping[int | None, list[FrozenTrial]], row: int, n: int) -> bool:
        """Whether a row of a batch of ``n`` is not back, and taken for lost."""
        if _first_finished(members[row]) is not None:
            return False
        last = members[row][-1].number
        n_spares = sum(t.number > last and t.state.is_finished() for t in members.get(None, []))
        n_out = sum(t.state == TrialState.RUNNING and _MARK in t.system_attrs for t in self.trials)
        return is_overdue(n_spares, n, n_out)

    def _place_in_line(self) -> int:
        """Returns how many earlier trials are about to take a row too: they take the first ones."""
        return sum(
            t.state == TrialState.RUNNING
            and t.number < self.trial.number
            and _MARK not in t.system_attrs
            for t in self.trials
        )

    def _told(self, generation: str, state: SolverState) -> SolverState | None:
        """Returns the state after a generation, with the next batch; None before all are back."""
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
        return self._tell_strangers(state, members.get(None, []))

    def _tell_strangers(self, state: SolverState, trials: Sequence[FrozenTrial]) -> SolverState:
        """Tells the solver of trials that were in no batch, and asks for the next batch."""
        known = [t for t in trials if t.state == TrialState.COMPLETE and self._has_all(t)]
        if known:
            points = np.array([self.point(t, state.x) for t in known])
            self.solver.tell(state, points, [self.value(t) for t in known])
        self.solver.ask(state)
        return state


def _searchable(space: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """Returns the parameters of a space that a solver can search: numbers that may vary."""
    kinds = FloatDistribution | IntDistribution
    return {name: d for name, d in space.items() if isinstance(d, kinds) and not d.single()}


def _first_finished(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    return next((trial for trial in trials if trial.state.is_finished()), None)


def _checked(name: str, value: Any, distribution: BaseDistribution) -> Any:
    """Returns ``value`` if it belongs to the distribution."""
    try:
        is_inside = distribution._contains(distribution.to_internal_repr(value))
    except ValueError:  # no number, or none of the choices
        is_inside = False
    if not is_inside:
        raise InvalidValueError(f"x0[{name!r}] must be in {distribution}, got {value!r}")
    return value


def _digest(value: object) -> str:
    """Returns a short text that differs for different JSON-able values."""
    # A field may have been given as a NumPy scalar; `item` makes it a Python number.
    text = json.dumps(value, sort_keys=True, default=lambda scalar: scalar.item())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encode(state: SolverState) -> str:
    """Returns a state as JSON; its arrays keep every bit."""
    data = state.to_dict()
    arrays = {
        name: [array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode()]
        for name, array in data["arrays"].items()
    }
    return json.dumps({"arrays": arrays, "meta": data["meta"]})


def _decode(text: str, solver: Solver) -> SolverState:
    """The inverse of ``_encode``."""
    data = json.loads(text)
    arrays = {
        name: np.frombuffer(base64.b64decode(text), dtype).reshape(shape)
        for name, (dtype, shape, text) in data["arrays"].items()
    }
    return SolverState.from_dict({"arrays": arrays, "meta": data["meta"]}, solver.inner_states)
