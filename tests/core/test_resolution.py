"""Rounded values and coordinates, and failures: they are noticed, and the descent goes on."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas import QuasiNewton, load_state, minimize, save_state
from zoopt_nas.solvers.engines.descent_state import DescentPhase
from zoopt_nas.solvers.engines.resolution import _may_be_chance, common_divisor

EPS = float(np.finfo(float).eps)
seeds = st.integers(0, 10**6)
few = settings(deadline=None, derandomize=True, max_examples=12)


def quadratic(seed, dim, condition=100.0):
    """A random quadratic with minimum 0, its eigenvalues from 1 to ``condition``, and a start."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    weights = np.geomspace(1.0, condition, dim)
    centre = rng.uniform(-1, 1, dim)
    start = centre + rng.uniform(1, 3, dim) * rng.choice([-1, 1], dim)
    return (lambda x: float((weights * (rotation @ (x - centre)) ** 2).sum())), start


@few
@given(seed=seeds, digits=st.integers(3, 6), n=st.integers(6, 12))
def test_the_grain_of_values_with_a_number_of_digits(seed, digits, n):
    rng = np.random.default_rng(seed)
    values = [float(f"{value:.{digits - 1}e}") for value in rng.uniform(1, 9, n)]
    grain = 10.0 ** (1 - digits)
    multiple = common_divisor(values, EPS) / grain
    # A multiple of the grain, up to the errors of the values; nearly always the grain itself.
    assert round(multiple) >= 1
    assert multiple == pytest.approx(round(multiple), rel=1e-3)


@few
@given(seed=seeds)
def test_values_of_single_precision_have_a_grain_and_others_none(seed):
    values = np.random.default_rng(seed).uniform(2, 4, 12)
    assert common_divisor(values.tolist(), EPS) == 0
    found = common_divisor(values.astype(np.float32).astype(float).tolist(), EPS)
    assert found == pytest.approx(2.0**-22 * round(found * 2.0**22), rel=1e-3)
    assert found >= 2.0**-22 * 0.999


def test_the_grain_of_a_share_of_a_thousand():
    values = [0.912, 0.907, 0.921, 0.934, 0.9]
    assert common_divisor(values, EPS) == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize("values", [[1e308, -1e308, 0.0, 1.0], [5e-324, 1e-323, 2e-323, 0.0]])
def test_extreme_values_have_no_grain(values):
    assert common_divisor(values, EPS) == 0


@few
@given(seed=seeds, dim=st.integers(2, 6), digits=st.integers(5, 7))
def test_values_with_few_digits(seed, dim, digits):
    """The minimal value is 1, so the last digit is worth 10^(1 - digits) near the minimum."""
    fun, start = quadratic(seed, dim)
    result = minimize(
        lambda x: float(f"{1 + fun(x):.{digits - 1}e}"), start, maxfev=150 * (dim + 1), rng=seed
    )
    # An error ε of the values changes a slope by some sqrt(ε), in units of the model, and so the
    # value by ε for each dimension.
    assert fun(result.x) <= dim * 10.0 ** (1 - digits)


@few
@given(seed=seeds, dim=st.integers(2, 6))
def test_noise_of_a_thousandth(seed, dim):
    fun, start = quadratic(seed, dim)
    rng = np.random.default_rng(seed)
    result = minimize(
        lambda x: fun(x) + 1e-3 * rng.standard_normal(), start, maxfev=150 * (dim + 1), rng=seed
    )
    # As above; and the best of hundreds of noisy values can be lucky by three deviations.
    assert fun(result.x) <= 4 * dim * 1e-3


@few
@given(seed=seeds, dim=st.integers(2, 6), mesh=st.sampled_from([1e-2, 1e-3]))
def test_rounded_coordinates(seed, dim, mesh):
    fun, start = quadratic(seed, dim)

    def rounded(x):
        return fun(mesh * np.round(x / mesh))

    result = minimize(rounded, start, maxfev=150 * (dim + 1), rng=seed)
    # The nearest point of the mesh is within mesh / 2 in each coordinate, and curvature 100 is the
    # largest: its value is at most 100 dim mesh² / 4. Four times as much is allowed.
    assert rounded(result.x) <= 100 * dim * mesh**2


@few
@given(seed=seeds, dim=st.integers(2, 6))
def test_one_evaluation_of_ten_fails(seed, dim):
    fun, start = quadratic(seed, dim)
    rng = np.random.default_rng(seed)

    def failing(x):
        return np.nan if rng.random() < 0.1 else fun(x)

    assert minimize(failing, start, maxfev=150 * (dim + 1), target=1e-8, rng=seed).success


def phases(fun, start, n_batches, path=None):
    """Run a descent; return its phases and its state. With a path, save and load in between."""
    solver = QuasiNewton()
    state = solver.init(start, rng=0, is_scaled=True)
    seen = []
    for _ in range(n_batches):
        rows = solver.ask(state)
        seen.append((state.inner.phase, rows.copy(), state.x.copy()))
        solver.tell(state, rows, np.array([fun(row) for row in rows]))
        if path is not None:
            save_state(path, solver, state)
            solver, state = load_state(path)
    return seen, state


def valley(x):
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def test_a_smooth_objective_is_asked_once_whether_points_may_be_close():
    seen, state = phases(valley, np.full(4, -1.3), 40)
    kinds = [phase for phase, _, _ in seen]
    assert kinds.count(DescentPhase.CLOSE) == kinds.count(DescentPhase.HESSIAN) == 1
    assert kinds[kinds.index(DescentPhase.CLOSE) + 1] == DescentPhase.HESSIAN
    assert state.inner.grain == state.inner.reach == 0


def test_probes_go_farther_than_the_mesh(tmp_path):
    mesh = 1e-3
    seen, state = phases(
        lambda x: valley(mesh * np.round(x / mesh)), np.full(4, -1.3), 80, tmp_path / "s.npz"
    )
    assert mesh / 2 <= state.inner.reach <= 64 * mesh
    last = [(rows, x) for phase, rows, x in seen if phase == DescentPhase.PROBE][-1]
    assert np.linalg.norm(last[0] - last[1], axis=1).min() >= mesh / 2


def test_a_coordinate_that_does_not_matter_does_not_move_probes_away():
    _, state = phases(lambda x: valley(x[:3]), np.full(4, -1.3), 80)
    assert state.inner.reach == 0
    assert state.value < 1e-10


def peaks(seed, dim, n_peaks=21):
    """Smooth peaks of heights 1 to 9 and of one width; the minimum is about 1."""
    centres = np.random.default_rng(seed).uniform(-3, 3, (n_peaks, dim))
    heights = np.linspace(1, 9, n_peaks)
    return lambda x: float(10 - np.max(heights * np.exp(-((x - centres) ** 2).sum(1) / (2 * dim))))


def test_equal_values_near_convergence_are_not_taken_for_rounded_coordinates():
    """There, probes change the value by some hundred roundings, so many equal it by chance."""
    solver, dim, n_wrong = QuasiNewton(), 8, 0
    for seed in range(10):
        fun = peaks(seed, dim)
        state = solver.init(np.random.default_rng(seed).uniform(-3, 3, dim), rng=seed)
        n_spent = 0
        while n_spent < 300 * dim:
            rows = solver.ask(state)
            solver.tell(state, rows, np.array([fun(row) for row in rows]))
            n_spent += len(rows)
        n_wrong += state.inner.reach > 0
    # A run that takes each tie for a sign is wrong nearly always. A single one may still be chance.
    assert n_wrong <= 1


@pytest.mark.parametrize("offset", [0.0, 5e-324])
def test_ties_of_the_value_zero(offset):
    """No error of a value follows from values that are all 0 near the iterate."""
    solver = QuasiNewton()
    state = solver.init([0.2, -0.3], rng=0, is_scaled=True)
    with np.errstate(all="raise", under="ignore"):
        for _ in range(100):
            rows = solver.ask(state)
            values = np.maximum(np.abs(rows).max(axis=1) - 1, 0.0) + offset
            solver.tell(state, rows, values)
    assert state.inner.best_value == offset


def test_rounding_makes_a_descent_measure_its_best_point_once_more_and_not_again():
    mesh, dim = 1e-2, 3
    fun, start = quadratic(5, dim)
    solver = QuasiNewton()
    state = solver.init(start, rng=0, is_scaled=True)
    looks = []  # the best value at each restart from the best point
    n_restarts = 0
    for _ in range(800):
        rows = solver.ask(state)
        solver.tell(state, rows, np.array([fun(mesh * np.round(row / mesh)) for row in rows]))
        inner = state.inner
        looks_at_once = inner.n_restarts > n_restarts and inner.phase == DescentPhase.START
        if looks_at_once and np.array_equal(inner.look.origin, inner.best):
            looks.append(inner.best_value)
        n_restarts = inner.n_restarts
    assert inner.reach > 0
    assert n_restarts > 2 * len(looks)
    assert len(looks) >= 1
    assert all(later < earlier for earlier, later in pairwise(looks))


@pytest.mark.parametrize("error", [0.0, 1.0, 5e301, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_chance_of_a_tie_has_a_value_whatever_the_numbers(error, dtype):
    """A tie where the model predicts an infinite change is no chance unless errors are infinite."""
    solver = QuasiNewton()
    state = solver.init(np.zeros(3, dtype=dtype), rng=0)
    solver.ask(state)
    inner = state.inner
    is_tied = np.array([True, False, True])
    with np.errstate(over="ignore", invalid="ignore"):
        inner.slopes = np.full(3, np.finfo(dtype).max)
        inner.steps = inner.slopes.copy()
        assert _may_be_chance(inner, is_tied, error) == (error == np.inf)
        inner.slopes = np.array([np.nan, 1, np.inf], dtype=dtype)
        inner.steps = np.array([1, 1, 0], dtype=dtype)
        assert _may_be_chance(inner, is_tied, error)  # nothing is predicted
