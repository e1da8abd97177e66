"""The Optuna sampler with parallel trials: every solver, failures, any order."""

import numpy as np
import optuna
import pytest

from zoopt_nas import GLD, SOLVERS
from zoopt_nas.integrations.optuna import ZooptSampler

AT_THE_MIDDLE = 6.0  # the value of the first trial


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


def bowl(trial):
    x = trial.suggest_float("x", -5, 5)
    y = trial.suggest_float("y", 0, 10)
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    return (x - 1) ** 2 + (y - 3) ** 2 + (np.log10(rate) + 2) ** 2


def study_with(sampler, n_trials):
    study = optuna.create_study(sampler=sampler)
    study.optimize(bowl, n_trials=n_trials)
    return study


def marks(study):
    """(generation, row) of each trial that the solver has proposed."""
    found = (t.system_attrs.get("zoopt:mark") for t in study.trials)
    return [(mark["generation"], mark["row"]) for mark in found if mark]


def steps(study):
    """The steps of the solver at which generations were opened."""
    found = (t.system_attrs.get("zoopt:header") for t in study.trials)
    return [header["step"] for header in found if header]


def shaky(trial):
    """``bowl``, where one in five trials fails and one in five is pruned, by number."""
    if trial.number % 5 == 2:
        raise ArithmeticError("before anything was suggested")
    value = bowl(trial)
    if trial.number % 10 == 4:
        raise ArithmeticError("after all was suggested")
    if trial.number % 5 == 3:
        raise optuna.TrialPruned
    return value


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("objective", [bowl, shaky])
def test_several_jobs_work_with_every_solver(name, objective):
    study = optuna.create_study(sampler=ZooptSampler(name, seed=1))
    study.optimize(objective, n_trials=30, n_jobs=2, catch=ArithmeticError)
    states = [trial.state.name for trial in study.trials]
    if objective is bowl:
        assert states == ["COMPLETE"] * 30
        assert study.best_value < AT_THE_MIDDLE
    else:
        n_states = [states.count(name) for name in ("COMPLETE", "FAIL", "PRUNED")]
        assert n_states == [15, 9, 6]
    assert max(steps(study)) >= 1  # batches end although some rows fail


@pytest.mark.parametrize("name", list(SOLVERS))
def test_many_asks_before_a_tell_give_new_points(name):
    study = study_with(ZooptSampler(name, seed=0), 1)
    for _ in range(3):
        trials = [study.ask() for _ in range(16)]
        values = [bowl(trial) for trial in trials]
        points = [tuple(trial.params.values()) for trial in trials]
        assert len(set(points)) >= 15  # a batch may measure the iterate twice, to see noise
        for trial, value in zip(trials[::-1], values[::-1], strict=True):
            study.tell(trial, value)
    assert sorted(set(steps(study))) == [0, 1, 2]  # each round ends a batch
    assert study.best_value < AT_THE_MIDDLE


def test_a_slow_trial_keeps_its_row():
    study = study_with(ZooptSampler(GLD(schedule="search", min_radius=2**-4), seed=0), 1)
    slow = study.ask()
    bowl(slow)
    out = [study.ask() for _ in range(7)]
    values = [bowl(trial) for trial in out]
    for _ in range(21):
        study.tell(out.pop(0), values.pop(0))
        out.append(study.ask())
        values.append(bowl(out[-1]))
    rows = [mark for mark in marks(study) if mark[1] is not None]
    assert len(set(rows)) == len(rows) == 6
    points = [tuple(trial.params.values()) for trial in study.trials[1:]]
    assert len(set(points)) == len(points)


def test_filler_points_of_integers_are_new_parameters():
    def grid(trial):
        return (trial.suggest_int("a", 0, 9) - 4) ** 2 + (trial.suggest_int("b", 0, 9) - 6) ** 2

    study = optuna.create_study(sampler=ZooptSampler("adaptive_gld", seed=0))
    study.optimize(grid, n_trials=1)
    trials = [study.ask() for _ in range(30)]
    for trial in trials:
        grid(trial)
    points = [tuple(trial.params.values()) for trial in trials]
    rows = {point for point, mark in zip(points, marks(study), strict=True) if mark[1] is not None}
    fillers = [point for point, mark in zip(points, marks(study), strict=True) if mark[1] is None]
    assert len(fillers) >= 25
    assert len(set(fillers)) == len(fillers)
    assert not rows & set(fillers)


@pytest.mark.parametrize("name", ["auto", "quasi_newton", "lizo"])
def test_a_third_of_failures_does_not_stop_a_descent(name):
    """Of 10 runs each the worst ended at 6e-4; `gld` ends near 0.05."""
    for seed in range(3):
        rng = np.random.default_rng(seed)

        def failing(trial, rng=rng):
            value = bowl(trial)
            if rng.random() < 0.3:
                raise ArithmeticError("no luck")
            return value

        study = optuna.create_study(sampler=ZooptSampler(name, seed=seed))
        study.optimize(failing, n_trials=150, catch=(ArithmeticError,))
        assert study.best_value < 0.02
