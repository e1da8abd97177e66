"""GLD: radii, invariance, and never uphill."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas import GLD, InvalidValueError
from zoopt_nas.problems import rastrigin, sphere
from zoopt_nas.solvers.gld import DIRECTIONS, SCHEDULES

quick = settings(deadline=None, derandomize=True, max_examples=40)


def iterates(solver, fun, x0, n_steps, seed):
    state = solver.init(x0, rng=seed)
    xs = []
    for _ in range(n_steps):
        candidates = solver.ask(state)
        state = solver.tell(state, candidates, fun(candidates))
        xs.append(state.x)
    return np.array(xs)


variants = st.builds(
    GLD,
    schedule=st.sampled_from(SCHEDULES),
    direction=st.sampled_from(DIRECTIONS),
    deterministic=st.booleans(),
)


@quick
@given(solver=variants, dim=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_never_uphill_on_a_deterministic_objective(solver, dim, seed):
    fun = rastrigin(dim)
    x0 = np.random.default_rng(seed).uniform(-2, 2, dim)
    values = fun(np.concatenate([x0[None], iterates(solver, fun, x0, 15, seed)]))
    assert np.all(np.diff(values) <= 0)
    assert values[-1] < values[0]


@quick
@given(
    solver=variants,
    dim=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    transform=st.sampled_from(
        # Increasing, and exact or smooth enough to create no ties.
        [lambda v: 8 * v, lambda v: v / 4 - 3, np.sqrt, np.log, lambda v: -1 / v]
    ),
)
def test_invariant_under_increasing_transforms(solver, dim, seed, transform):
    fun = sphere(dim)
    x0 = np.random.default_rng(seed).uniform(0.5, 2, dim)
    plain = iterates(solver, fun, x0, 10, seed)
    transformed = iterates(solver, lambda x: transform(fun(x)), x0, 10, seed)
    np.testing.assert_array_equal(plain, transformed)


@pytest.mark.parametrize(
    ("max_radius", "min_radius", "n_radii"),
    [(1.0, 1.0, 1), (1.0, 0.51, 1), (1.0, 0.5, 2), (1.0, 1e-3, 10), (0.3, (0.1 + 0.2) / 2, 2)],
)
def test_search_radii(max_radius, min_radius, n_radii):
    solver = GLD(schedule="search", max_radius=max_radius, min_radius=min_radius)
    expected = [max_radius / 2**k for k in range(n_radii)]
    assert solver.radii(dim=3) == expected
    x0 = np.zeros(3)
    candidates = solver.ask(solver.init(x0, rng=0))
    np.testing.assert_array_equal(candidates[0], x0)
    np.testing.assert_allclose(np.linalg.norm(candidates[1:], axis=1), expected, rtol=1e-12)


@pytest.mark.parametrize("condition", [1.0, 2.0, 4.0, 30.0])
@pytest.mark.parametrize("dim", [1, 7])
def test_fast_radii(condition, dim):
    solver = GLD(schedule="fast", condition_number=condition, max_radius=2.0)
    K = math.ceil(math.log2(4 * math.sqrt(condition)))
    H = max(1, math.ceil(dim * condition * math.log2(condition)))
    for step, halvings in ((0, 0), (H - 1, 0), (H, 1), (3 * H, 3)):
        expected = [2.0 / 2**halvings * 2.0**-k for k in range(-K, K + 1)]
        assert solver.radii(dim, step) == expected


def test_the_least_radius_of_the_search_schedule_by_default():
    assert GLD(schedule="search").radii(3) == [2.0**-k for k in range(10)]  # down to 1e-3
    assert GLD(schedule="search", max_radius=1e-4).radii(3) == [1e-4]


@pytest.mark.parametrize(("h_scale", "n_steps"), [(1.0, 56), (0.3, 17), (0.1, 6), (1e-9, 1)])
def test_h_scale_shrinks_the_radii_sooner(h_scale, n_steps):
    solver = GLD(schedule="fast", condition_number=4.0, h_scale=h_scale)  # 7 * 4 * 2 = 56
    assert solver.radii(7, n_steps - 1)[0] == 8.0
    assert solver.radii(7, n_steps)[0] == 4.0


def test_the_fast_schedule_follows_the_steps_of_the_run():
    solver = GLD(schedule="fast", condition_number=2.0, max_radius=1.0, deterministic=True)
    state = solver.init(np.zeros(1), rng=0)  # H = 2
    largest = []
    for _ in range(5):
        candidates = solver.ask(state)
        largest.append(np.max(np.abs(candidates)))
        solver.tell(state, candidates, np.ones(len(candidates)))
    K = math.ceil(math.log2(4 * math.sqrt(2)))
    np.testing.assert_allclose(largest, 2.0**K * np.array([1, 1, 0.5, 0.5, 0.25]), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 15])
@pytest.mark.parametrize("max_radius", [1.0, 0.13, 28.0])
def test_with_n_samples_draws_n_candidates_beside_x(n, max_radius):
    solver = GLD(schedule="search", max_radius=max_radius).with_n_samples(n)
    assert len(solver.radii(4)) == n
    assert len(solver.ask(solver.init(np.zeros(4), rng=0))) == n + 1


def test_with_n_samples_refuses_what_cannot_be():
    with pytest.raises(InvalidValueError, match=r"n_samples must be a positive integer, got 0"):
        GLD().with_n_samples(0)
    with pytest.raises(InvalidValueError, match=r"n_samples must be left to condition_number"):
        GLD(schedule="fast").with_n_samples(5)


def test_directions():
    n, dim = 2000, 4
    x0 = np.zeros(dim)
    norms = {}
    for direction in DIRECTIONS:
        solver = GLD(schedule="search", min_radius=1.0, direction=direction, deterministic=True)
        state = solver.init(x0, rng=0)
        drawn = []
        for _ in range(n):
            drawn.append(np.linalg.norm(solver.ask(state)[-1]))
        norms[direction] = np.array(drawn)
    np.testing.assert_allclose(norms["sphere"], 1.0, rtol=1e-12)
    # Uniform in the ball: norm^dim is uniform in [0, 1], of standard deviation sqrt(1 / 12).
    assert norms["ball"].max() <= 1.0
    assert abs(np.mean(norms["ball"] ** dim) - 0.5) < 5 * math.sqrt(1 / 12 / n)
    # N(0, I / dim): the squared norm is chi²_dim / dim, of mean 1 and variance 2 / dim.
    assert abs(np.mean(norms["gaussian"] ** 2) - 1) < 5 * math.sqrt(2 / dim / n)
    assert norms["gaussian"].max() > 1.2


def test_deterministic_evaluates_x_once():
    x0 = np.array([0.5, -0.5])
    solver = GLD(schedule="search", deterministic=True)
    n_radii = len(solver.radii(2))
    state = solver.init(x0, rng=0)
    sizes = []
    for _ in range(3):
        candidates = solver.ask(state)
        sizes.append(len(candidates))
        solver.tell(state, candidates, sphere(2)(candidates))
        assert state.value == pytest.approx(float(sphere(2)(state.x)), rel=1e-12)
    assert sizes == [n_radii + 1, n_radii, n_radii]


def test_a_stale_value_is_not_kept():
    # x is re-evaluated: a value that was lucky once must not hold the iterate.
    solver = GLD(schedule="search", min_radius=1.0)
    state = solver.init(np.zeros(1), rng=0)
    solver.tell(state, solver.ask(state), [-100.0, 1.0])
    candidates = solver.ask(state)
    solver.tell(state, candidates, [5.0, 4.0])
    np.testing.assert_array_equal(state.x, candidates[1])


def test_ties_keep_x():
    solver = GLD(schedule="search")
    state = solver.init(np.ones(3), rng=0)
    candidates = solver.ask(state)
    np.testing.assert_array_equal(
        solver.tell(state, candidates, np.full(len(candidates), 2.0)).x, np.ones(3)
    )


@pytest.mark.parametrize("failure", [np.nan, np.inf, -np.inf])
def test_failures_never_win_but_anything_beats_a_failed_x(failure):
    solver = GLD(schedule="search", min_radius=0.25)  # rows: x and three candidates
    state = solver.init(np.ones(3), rng=0)
    candidates = solver.ask(state)
    solver.tell(state, candidates, [1.0, failure, failure, 2.0])
    np.testing.assert_array_equal(state.x, np.ones(3))
    candidates = solver.ask(state)
    solver.tell(state, candidates, [failure, failure, 1e300, failure])
    np.testing.assert_array_equal(state.x, candidates[2])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_radius", 0, "max_radius must be a positive finite number, got 0"),
        ("min_radius", 2.0, "min_radius must be at most max_radius (1.0), got 2.0"),
        ("schedule", "slow", "schedule must be one of search, fast, got 'slow'"),
        (
            "condition_number",
            0.5,
            "condition_number must be a finite number of at least 1, got 0.5",
        ),
        ("direction", "cube", "direction must be one of sphere, ball, gaussian, got 'cube'"),
        ("h_scale", 0.0, "h_scale must be a positive finite number, got 0.0"),
        ("deterministic", "yes", "deterministic must be True or False, got 'yes'"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    schedule = {"schedule": "fast"} if field in ("condition_number", "h_scale") else {}
    with pytest.raises(InvalidValueError) as caught:
        GLD(**{field: value}, **schedule)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("schedule", "field"),
    [("fast", "min_radius"), ("search", "condition_number"), ("search", "h_scale")],
)
def test_a_field_of_the_other_schedule_is_refused(schedule, field):
    with pytest.raises(InvalidValueError, match=f"^{field} must be None with schedule"):
        GLD(schedule=schedule, **{field: 0.5})
