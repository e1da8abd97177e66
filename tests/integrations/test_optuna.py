"""The Optuna sampler: Optuna's conformance suite, and properties of a study."""

import importlib
import json
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from zoopt_nas import GLD, MGS, RS, Box, InvalidValueError, MissingDependencyError, UnknownNameError
from zoopt_nas.integrations.optuna import ZooptSampler

# The paper's algorithms, with lengths in units of a quarter of the range.
SOLVERS = [
    GLD(schedule="search", min_radius=2**-4),
    RS(learning_rate=0.05, smoothing=0.1, n_samples=2),
    MGS(sigma=0.5, temperature=0.05, n_samples=6),
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


class TestOptunasOwnSuite(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: ZooptSampler(seed=0)


def bowl(trial):
    """A quadratic in three parameters, one of them on a log scale; its minimum is 0."""
    x = trial.suggest_float("x", -5, 5)
    y = trial.suggest_float("y", 0, 10)
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    return (x - 1) ** 2 + (y - 3) ** 2 + (np.log10(rate) + 2) ** 2


AT_THE_MIDDLE = 1 + 4 + 1  # the value of the first trial


def study_with(sampler, n_trials=0, objective=bowl, n_jobs=1, **keywords):
    study = optuna.create_study(sampler=sampler, **keywords)
    if n_trials:
        study.optimize(objective, n_trials=n_trials, n_jobs=n_jobs)
    return study


def params_of(study):
    return [trial.params for trial in study.trials]


def marks(study):
    """(generation, row) of each trial that the solver has proposed."""
    found = (t.system_attrs.get("zoopt:mark") for t in study.trials)
    return [(mark["generation"], mark["row"]) for mark in found if mark]


def steps(study):
    found = (t.system_attrs.get("zoopt:header") for t in study.trials)
    return [header["step"] for header in found if header]


@each_solver
def test_the_trials_are_those_of_the_solver_driven_by_hand(solver):
    # Near two borders, so that rows leave the box.
    x0 = {"rate": 1e-3, "x": -4.9, "y": 9.9}
    study = study_with(ZooptSampler(solver, x0=x0, seed=3, scale=0.2), 40)
    low, width = np.array([-5.0, -5.0, 0.0]), np.array([4.0, 10.0, 10.0])  # rate, x, y
    box = Box(0.0, 5.0).at(np.zeros(3))
    state = solver.init([2.5, 0.05, 4.95], rng=3)
    solver.tell(state, state.x[None], [5.9**2 + 6.9**2 + 1])
    expected = []
    while len(expected) < 39:
        solver.ask(state)
        rows = box.inside(state.pending, antithetic=solver.antithetic)
        points = low + 0.2 * rows * width
        expected.extend(points)
        values = (points[:, 1] - 1) ** 2 + (points[:, 2] - 3) ** 2 + (points[:, 0] + 2) ** 2
        solver.tell(state, rows, values, repaired=True)
        state.x = box.project(state.x)
    found = [(np.log10(p["rate"]), p["x"], p["y"]) for p in params_of(study)[1:]]
    np.testing.assert_allclose(found, expected[:39], rtol=1e-9, atol=1e-9)


@each_solver
def test_every_solver_improves(solver):
    study = study_with(ZooptSampler(solver, seed=0), 120)
    assert study.trials[0].value == pytest.approx(AT_THE_MIDDLE)
    assert study.best_value < AT_THE_MIDDLE / 20


def test_the_default_finds_numbers_of_every_kind():
    def objective(trial):
        n = trial.suggest_int("n", 1, 100)
        units = trial.suggest_int("units", 16, 1024, log=True)
        dropout = trial.suggest_float("dropout", 0, 0.5, step=0.1)
        return (n - 20) ** 2 / 100 + np.log2(units / 128) ** 2 + 100 * (dropout - 0.2) ** 2

    study = study_with(ZooptSampler(seed=0), 150, objective)
    assert study.best_value < 0.1  # 33.6 at the middle
    assert abs(study.best_params["n"] - 20) <= 3
    assert study.best_params["dropout"] == pytest.approx(0.2)


def test_the_same_seed_gives_the_same_trials():
    first = params_of(study_with(ZooptSampler(seed=5), 25))
    assert params_of(study_with(ZooptSampler(seed=5), 25)) == first
    assert params_of(study_with(ZooptSampler(seed=6), 25)) != first


def test_to_maximize_is_to_minimize_the_negative():
    lowest = study_with(ZooptSampler(seed=0), 40)
    highest = study_with(ZooptSampler(seed=0), 40, lambda t: -bowl(t), direction="maximize")
    assert params_of(highest) == params_of(lowest)
    assert highest.best_value == -lowest.best_value


@each_solver
def test_a_study_goes_on_from_its_storage_bit_for_bit(solver, tmp_path):
    path = str(tmp_path / "study")
    study_with(ZooptSampler(solver, seed=1), 7, storage=storage_of("journal", path), study_name="s")
    for n_trials in (5, 9):  # as two more processes in the middle of a batch
        study = optuna.load_study(
            study_name="s",
            storage=storage_of("journal", path),
            sampler=ZooptSampler(solver, seed=1),
        )
        study.optimize(bowl, n_trials=n_trials)
    whole = study_with(ZooptSampler(solver, seed=1), 21)
    assert params_of(study) == params_of(whole)


def test_another_solver_starts_from_the_best_trial():
    study = study_with(ZooptSampler(SOLVERS[2], seed=0), 30)
    best = study.best_params
    study.sampler = ZooptSampler(SOLVERS[0], seed=1)
    study.optimize(bowl, n_trials=1)
    assert params_of(study)[-1] == pytest.approx(best)  # the first row of GLD is the iterate
    assert steps(study)[-1] == 0


def test_another_space_starts_a_new_run_from_the_best_trial():
    def with_z(trial):
        return trial.suggest_float("z", 0, 1) + bowl(trial)

    def without_y(trial):
        x = trial.suggest_float("x", -5, 5)
        return (x - 1) ** 2

    study = study_with(ZooptSampler(SOLVERS[0], seed=0), 30, with_z)
    study.optimize(without_y, n_trials=1)  # now x is the only common parameter
    best = study.best_params["x"]
    study.optimize(without_y, n_trials=40)
    assert params_of(study)[31] == {"x": pytest.approx(best)}  # the first row of GLD
    assert {len(p) for p in params_of(study)[30:]} == {1}
    assert study.best_value < 0.02  # the minimum radius of GLD is 0.16 in x


def test_failed_and_pruned_trials_are_failed_rows():
    def objective(trial):
        value = bowl(trial)
        if trial.params["x"] < 0:
            raise optuna.TrialPruned
        if trial.params["y"] > 6:
            raise ArithmeticError
        return value

    study = study_with(ZooptSampler(SOLVERS[0], seed=0))
    study.optimize(objective, n_trials=120, catch=(ArithmeticError,))
    states = [trial.state.name for trial in study.trials]
    assert {"COMPLETE", "PRUNED", "FAIL"} == set(states)
    assert study.best_value < AT_THE_MIDDLE / 20
    opened = [k for k, t in enumerate(study.trials) if "zoopt:header" in t.system_attrs]
    # The iterate of GLD, the first row of each batch, is never a failed point.
    assert {states[k] for k in opened} == {"COMPLETE"}


def test_a_parameter_that_the_user_fixed_is_told_as_it_was_evaluated():
    study = study_with(ZooptSampler(SOLVERS[0], seed=0), 1)
    free = study.sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.PartialFixedSampler({"y": 3.0}, free)
    study.optimize(bowl, n_trials=6)  # the first batch of GLD
    study.sampler = free
    study.optimize(bowl, n_trials=1)
    assert marks(study)[-1][1] == 0
    assert params_of(study)[-1] == pytest.approx(study.best_params)
    assert params_of(study)[-1]["y"] == pytest.approx(3.0)


def test_categorical_parameters_are_left_to_the_independent_sampler():
    def objective(trial):
        penalty = {"a": 2.0, "b": 0.0, "c": 5.0}[trial.suggest_categorical("kind", ["a", "b", "c"])]
        return bowl(trial) + penalty

    sampler = ZooptSampler(SOLVERS[0], seed=0)
    study = study_with(sampler, 100, objective)
    space = sampler.infer_relative_search_space(study, study.trials[-1])
    assert sorted(space) == ["rate", "x", "y"]
    assert study.best_params["kind"] == "b"
    assert study.best_value < AT_THE_MIDDLE / 10
    fixed = optuna.samplers.RandomSampler(seed=1)
    kinds = {
        t.params["kind"]
        for t in study_with(ZooptSampler(independent_sampler=fixed), 9, objective).trials
    }
    assert kinds == {"a", "b", "c"}


def test_x0_is_the_first_trial_and_scale_the_unit_of_the_solver():
    x0 = {"x": 2.0, "rate": 1e-3}
    solver = GLD(schedule="search", max_radius=1.0, min_radius=0.5)
    study = study_with(ZooptSampler(solver, x0=x0, scale=0.1, seed=0), 4)
    assert params_of(study)[0] == {"x": 2.0, "y": 5.0, "rate": 1e-3}
    start, *others = [
        np.array([(p["x"] + 5) / 10, p["y"] / 10, (np.log10(p["rate"]) + 5) / 4])
        for p in params_of(study)[1:]
    ]
    np.testing.assert_allclose(start, [0.7, 0.5, 0.5])
    distances = [np.linalg.norm(other - start) for other in others]
    np.testing.assert_allclose(distances, [0.1, 0.05])


def test_wrong_input():
    with pytest.raises(UnknownNameError, match="did you mean 'max_radius'"):
        ZooptSampler("adaptive_gld", max_radus=1)
    with pytest.raises(InvalidValueError, match=r"scale must be in \(0, 1\], got 2"):
        ZooptSampler(scale=2)
    with pytest.raises(InvalidValueError, match="seed must be None or a non-negative integer"):
        ZooptSampler(seed=-1)
    with pytest.raises(InvalidValueError, match="x0 must be a mapping"):
        ZooptSampler(x0=[1.0])
    with pytest.raises(InvalidValueError, match=r"x0\['x'\] must be in FloatDistribution.*got 9"):
        study_with(ZooptSampler(x0={"x": 9.0}), 1)


def test_the_sampler_can_be_pickled():
    sampler = pickle.loads(pickle.dumps(ZooptSampler(SOLVERS[0], seed=2, x0={"x": 1.0})))  # noqa: S301
    assert params_of(study_with(sampler, 12)) == params_of(
        study_with(ZooptSampler(SOLVERS[0], seed=2, x0={"x": 1.0}), 12)
    )


def test_the_state_fits_the_columns_of_a_relational_storage():
    def objective(trial):
        return sum(trial.suggest_float(f"x{i}", -1, 1) ** 2 for i in range(40))

    study = study_with(ZooptSampler(SOLVERS[0], seed=0), 14, objective)
    attrs = [value for t in study.trials for value in t.system_attrs.values()]
    assert max(len(json.dumps(value)) for value in attrs) <= 2048
    openers = [t for t in study.trials if "zoopt:header" in t.system_attrs]
    assert openers[0].system_attrs["zoopt:header"]["n_chunks"] > 1
    assert steps(study) == [0, 1, 2]


def test_filler_points_follow_a_batch_until_it_is_finished():
    study = study_with(ZooptSampler(SOLVERS[0], seed=0), 1)
    trials = [study.ask() for _ in range(8)]  # six rows, and two
    values = [bowl(trial) for trial in trials]
    assert [row for _, row in marks(study)] == [0, 1, 2, 3, 4, 5, None, None]
    points = [tuple(trial.params.values()) for trial in trials]
    assert len(set(points)) == len(points)
    for trial, value in zip(trials[::-1], values[::-1], strict=True):  # out of order
        study.tell(trial, value)
    study.optimize(bowl, n_trials=1)
    assert marks(study)[-1][1] == 0
    assert steps(study) == [0, 1]
    best_row = min(range(6), key=lambda row: values[row])
    assert params_of(study)[-1] == pytest.approx(trials[best_row].params)


def test_a_worker_that_died_costs_no_more_than_a_batch_of_filler_points():
    study = study_with(ZooptSampler(SOLVERS[0], seed=0), 1)
    lost = study.ask()
    bowl(lost)
    study.optimize(bowl, n_trials=5 + 6)  # the other rows, then one filler point per row
    assert marks(study)[0] == (marks(study)[-1][0], 0)
    assert [row for _, row in marks(study)].count(None) == 6
    study.optimize(bowl, n_trials=1)
    assert marks(study)[-1] == marks(study)[0]
    assert params_of(study)[-1] == lost.params
    study.optimize(bowl, n_trials=1)
    assert steps(study) == [0, 1]


def test_threads_share_a_sampler():
    def takes_a_while(trial):
        time.sleep(0.01)
        return bowl(trial)

    study = study_with(ZooptSampler(SOLVERS[0], seed=0), 120, takes_a_while, n_jobs=4)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 120
    assert study.best_value < AT_THE_MIDDLE / 2
    rows = [mark for mark in marks(study) if mark[1] is not None]
    # The number of rows, and how many of them two threads evaluate, depends on the timing.
    assert len(rows) >= 40
    assert len(set(rows)) >= 0.7 * len(rows)


WORKER = """
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from zoopt_nas.integrations.optuna import ZooptSampler

def objective(trial):
    return (trial.suggest_float("x", -5, 5) - 1) ** 2 + (trial.suggest_float("y", 0, 10) - 3) ** 2

optuna.logging.set_verbosity(optuna.logging.ERROR)
sampler = ZooptSampler("gld", schedule="search", min_radius=2**-4, seed=0)
study = optuna.load_study(study_name="s", storage={storage}, sampler=sampler)
study.optimize(objective, n_trials=50)
"""
STORAGES = {
    "journal": "JournalStorage(JournalFileBackend({path!r}))",
    "sqlite": "'sqlite:///' + {path!r}",
}


def storage_of(kind, path):
    if kind == "sqlite":
        return f"sqlite:///{path}"
    return JournalStorage(JournalFileBackend(path))


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_processes_share_a_storage(kind, tmp_path):
    path = str(tmp_path / "study")
    study = study_with(ZooptSampler(), storage=storage_of(kind, path), study_name="s")
    code = WORKER.format(storage=STORAGES[kind].format(path=path))
    workers = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 3, errors
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 150
    assert sorted(t.number for t in study.trials) == list(range(150))
    # 5 at the first trial. About a third of the trials are filler points, depending on the timing.
    # GLD misses 0.5 for 7 % of 1000 seeds after 36 evaluations, and for none after 120.
    assert study.best_value < 0.5
    assert max(steps(study)) >= 4


def test_without_optuna_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "optuna"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "zoopt_nas.integrations.optuna")
    with pytest.raises(MissingDependencyError, match=r"pip install 'zoopt-nas\[optuna\]'"):
        importlib.import_module("zoopt_nas.integrations.optuna")
