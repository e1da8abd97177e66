"""The nevergrad optimizers: nevergrad's checks, and the handling of batches."""

import importlib.util
import pickle
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import nevergrad as ng
import numpy as np
import pytest
from nevergrad.common import errors as ng_errors

import zoopt_nas.integrations.nevergrad as integration
from zoopt_nas import (
    GLD,
    MGS,
    RS,
    AdaptiveGLD,
    InvalidValueError,
    MissingDependencyError,
    UnknownNameError,
)
from zoopt_nas import SOLVERS as REGISTERED
from zoopt_nas.integrations.nevergrad import ZooptOptimizer
from zoopt_nas.solvers import KINDS

OPTIMUM = np.array([0.5, -0.8])
# The paper's algorithms, with six, eight and six evaluations per batch.
SOLVERS = [
    GLD(schedule="search", min_radius=2**-4),
    RS(learning_rate=0.2, smoothing=0.05, n_samples=4),
    MGS(sigma=0.3, temperature=0.05, n_samples=6),
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


def distance(x):
    """nevergrad's test function: the squared distance from ``OPTIMUM``."""
    return float(((x - OPTIMUM) ** 2).sum())


def make(solver, parametrization=2, budget=300, num_workers=1, seed=0):
    optimizer = ZooptOptimizer(solver)(parametrization, budget, num_workers)
    optimizer.parametrization.random_state.seed(seed)  # after the optimizer was made, as users do
    return optimizer


def values_of(candidates):
    return [tuple(candidate.value) for candidate in candidates]


def drive(optimizer, n, fun=distance):
    """Asks and tells ``n`` candidates one by one, and returns them."""
    candidates = []
    for _ in range(n):
        candidates.append(optimizer.ask())
        optimizer.tell(candidates[-1], fun(candidates[-1].value))
    return candidates


def test_the_registry_has_the_solvers_also_after_the_module_was_run_again():
    spec = importlib.util.find_spec(integration.__name__)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        for kind in KINDS:
            name = f"Zoopt{kind.__name__}"
            optimizer = ng.optimizers.registry[name](parametrization=3, budget=50, num_workers=2)
            assert optimizer.name == name
            assert optimizer._solver.name == kind.name
    finally:
        integration._register()


@each_solver
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_nevergrads_own_check(solver, num_workers):
    optimizer = make(solver, num_workers=num_workers)
    first = optimizer.provide_recommendation()
    np.testing.assert_array_equal(first.value, [0.0, 0.0])
    with ThreadPoolExecutor(num_workers) as executor:
        found = optimizer.minimize(distance, executor=executor)
    np.testing.assert_array_almost_equal(found.value, OPTIMUM, decimal=1)
    best = min(value.pessimistic_confidence_bound for value in optimizer.archive.values())
    assert optimizer.current_bests["pessimistic"].pessimistic_confidence_bound == best
    assert not optimizer._asked
    stranger = optimizer.parametrization.spawn_child().set_standardized_data(np.ones(2))
    optimizer.tell(stranger, 12.0)
    assert (optimizer.num_tell, optimizer.num_tell_not_asked) == (301, 1)
    drive(optimizer, 10)


@each_solver
def test_the_candidates_are_those_of_the_solver_driven_by_hand(solver):
    optimizer = make(solver, seed=4)
    seed = int(np.random.RandomState(4).randint(2**31 - 1))
    state = solver.init(np.zeros(2), rng=seed)
    expected = []
    while len(expected) < 50:
        rows = solver.ask(state)
        expected.extend(rows)
        solver.tell(state, rows, [distance(row) for row in rows])
    np.testing.assert_array_equal(values_of(drive(optimizer, 50)), expected[:50])


def test_a_batch_may_come_back_in_any_order():
    one_by_one = make(SOLVERS[0])
    expected = values_of(drive(one_by_one, 12))
    shuffled = make(SOLVERS[0])
    found = []
    for _ in range(2):
        batch = [shuffled.ask() for _ in range(6)]
        found += values_of(batch)
        for k in (3, 0, 5, 1, 4, 2):
            shuffled.tell(batch[k], distance(batch[k].value))
    assert found == expected


def test_filler_points_are_asked_until_a_batch_is_finished():
    optimizer = make(SOLVERS[0])
    batch = [optimizer.ask() for _ in range(6)]
    fillers = [optimizer.ask() for _ in range(3)]
    asked = values_of(batch + fillers)
    assert len(set(asked)) == 9
    lengths = np.linalg.norm(values_of(fillers), axis=1)  # the iterate is still the origin
    assert lengths.min() >= 2**-4
    assert lengths.max() <= 1.0
    for candidate in (batch + fillers)[::-1]:
        optimizer.tell(candidate, distance(candidate.value))
    best = min(values_of(batch), key=lambda x: distance(np.array(x)))
    assert tuple(optimizer.ask().value) == best  # the first row of GLD is the iterate


def test_a_worker_that_died_costs_no_more_than_a_batch_of_filler_points():
    optimizer = make(SOLVERS[0])
    lost = optimizer.ask()
    others = drive(optimizer, 5 + 6)  # the other rows, then one filler point per row
    assert optimizer._state.n_steps == 0
    again = optimizer.ask()
    assert tuple(again.value) == tuple(lost.value)
    optimizer.tell(again, distance(again.value))
    optimizer.tell(lost, -1.0)  # late: a copy of the row was faster
    best = min(values_of([again, *others[:5]]), key=lambda x: distance(np.array(x)))
    assert tuple(optimizer.ask().value) == best
    assert optimizer._state.n_steps == 1


def test_points_told_before_the_first_ask_are_a_warm_start():
    optimizer = make(SOLVERS[0])
    for x in ([3.0, 3.0], [0.4, -0.7], [1.0, 1.0]):
        optimizer.tell(optimizer.parametrization.spawn_child(new_value=np.array(x)), distance(x))
    assert optimizer.num_tell_not_asked == 3
    assert tuple(optimizer.ask().value) == (0.4, -0.7)


def test_a_suggestion_is_asked_and_told_beside_the_batch():
    optimizer = make(SOLVERS[0])
    optimizer.suggest(np.array([0.5, -0.8]))
    expected = values_of(drive(make(SOLVERS[0]), 12))
    found = values_of(drive(optimizer, 13))
    assert found[0] == (0.5, -0.8)
    assert optimizer.recommend().value == pytest.approx([0.5, -0.8])
    # It was told before the first batch was asked for: a warm start.
    assert found[1] == (0.5, -0.8)
    assert found[1:] != expected


def test_a_failed_loss_is_never_followed():
    def fails_right_of_the_origin(x):
        return np.nan if x[0] > 0 else float(((x - 1) ** 2).sum())

    optimizer = make(SOLVERS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ng_errors.NevergradWarning)
        candidates = drive(optimizer, 120, fails_right_of_the_origin)
    iterates = values_of(candidates[::6])  # the first row of each batch of GLD
    assert max(x for x, _ in iterates) <= 0
    np.testing.assert_allclose(iterates[-1], [0.0, 1.0], atol=0.2)


def is_right(x):
    return bool(x[0] >= 0.7)


def test_a_cheap_constraint_may_reject_rows():
    parametrization = ng.p.Array(shape=(2,))
    parametrization.register_cheap_constraint(is_right)
    optimizer = make(SOLVERS[0], parametrization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ng_errors.NevergradWarning)
        found = optimizer.minimize(distance)
    assert found.value[0] >= 0.7
    np.testing.assert_allclose(found.value, [0.7, -0.8], atol=0.15)
    assert optimizer._state.n_steps > 20  # batches end although some rows are never told


@pytest.mark.parametrize("n_told", [0, 1, 4, 6, 9])
@each_solver
def test_a_run_can_be_saved_at_any_point(solver, n_told, tmp_path):
    optimizer = make(solver)
    drive(optimizer, n_told)
    optimizer.dump(tmp_path / "run.pkl")
    loaded = ZooptOptimizer(solver).load(tmp_path / "run.pkl")
    assert values_of(drive(loaded, 20)) == values_of(drive(optimizer, 20))


def test_a_configured_optimizer_can_be_pickled():
    configured = pickle.loads(pickle.dumps(ZooptOptimizer("adaptive_gld", max_radius=0.5)))  # noqa: S301
    assert configured == ZooptOptimizer("adaptive_gld", max_radius=0.5)
    assert configured(2, 100)._solver == AdaptiveGLD(max_radius=0.5)


def test_parameters_of_other_kinds():
    parametrization = ng.p.Instrumentation(
        rate=ng.p.Log(lower=1e-5, upper=1e-1),
        depth=ng.p.Scalar(lower=1, upper=20).set_integer_casting(),
        kind=ng.p.Choice(["a", "b"]),
    )

    def fun(rate, depth, kind):
        assert 1e-5 <= rate <= 1e-1
        assert isinstance(depth, int)
        return abs(np.log10(rate) + 2) + abs(depth - 6) / 10 + (kind == "b")

    found = make(SOLVERS[0], parametrization, budget=150).minimize(fun)
    start = fun(**make(SOLVERS[0], parametrization).recommend().kwargs)
    assert fun(**found.kwargs) < start / 3


def test_wrong_options():
    with pytest.raises(UnknownNameError, match="did you mean 'max_radius'"):
        ZooptOptimizer("adaptive_gld", max_radus=1.0)
    with pytest.raises(InvalidValueError, match="max_radius must be a positive finite number"):
        ZooptOptimizer("adaptive_gld", max_radius=-1.0)
    with pytest.raises(UnknownNameError, match="unknown solver 'glb'"):
        ZooptOptimizer("glb")


def test_without_nevergrad_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "nevergrad"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "zoopt_nas.integrations.nevergrad")
    with pytest.raises(MissingDependencyError, match=r"pip install 'zoopt-nas\[nevergrad\]'"):
        importlib.import_module("zoopt_nas.integrations.nevergrad")


@pytest.mark.parametrize("name", [name for name in REGISTERED if REGISTERED[name].adapts_steps])
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_sixteen_workers_get_sixteen_points_of_every_solver_that_adapts(name, dim):
    optimizer = make(name, parametrization=dim, budget=200, num_workers=16)
    order = np.random.default_rng(0)
    optimum = np.full(dim, 0.8)
    asked = []
    for _ in range(12):
        batch = [optimizer.ask() for _ in range(16)]
        points = values_of(batch)
        # A batch may measure the iterate twice, to see noise.
        assert len(set(points)) >= 15
        asked += points
        for k in order.permutation(16):
            optimizer.tell(batch[k], float(((batch[k].value - optimum) ** 2).sum()))
    assert len(asked) - len(set(asked)) <= 12  # at most once a batch
    assert optimizer._state.n_steps == 11  # no batch waits after all of its rows are told
    assert min(((np.array(x) - optimum) ** 2).sum() for x in asked) < 0.64 * dim / 2


@pytest.mark.parametrize("name", list(REGISTERED))
def test_many_asks_before_a_tell_give_new_points(name):
    optimizer = make(name, parametrization=3, budget=200, num_workers=100)
    candidates = [optimizer.ask() for _ in range(100)]
    assert len(set(values_of(candidates))) >= 99
    for candidate in reversed(candidates):
        optimizer.tell(candidate, distance(candidate.value[:2]))
    drive(optimizer, 30, lambda x: distance(x[:2]))
    assert optimizer._state.n_steps >= 1


def test_a_slow_worker_keeps_its_row():
    """One of 8 workers takes 3 times as long: its evaluation is not repeated."""
    optimizer = make(SOLVERS[0], num_workers=8)
    slow = optimizer.ask()
    out = [optimizer.ask() for _ in range(7)]
    asked = values_of([slow, *out])
    for _ in range(21):
        candidate = out.pop(0)
        optimizer.tell(candidate, distance(candidate.value))
        out.append(optimizer.ask())
        asked.append(tuple(out[-1].value))
    assert len(set(asked)) == len(asked)
    assert optimizer._state.n_steps == 0
    optimizer.tell(slow, distance(slow.value))
    optimizer.ask()
    assert optimizer._state.n_steps == 1


def test_gld_goes_on_from_a_spare_that_is_better():
    optimizer = make("adaptive_gld", num_workers=8)
    candidates = [optimizer.ask() for _ in range(8)]
    filler = candidates[-1]
    for candidate in candidates:
        optimizer.tell(candidate, -1.0 if candidate is filler else 1.0)
    optimizer.ask()
    np.testing.assert_array_equal(optimizer._state.x, filler.value)
    assert optimizer._state.value == -1.0
