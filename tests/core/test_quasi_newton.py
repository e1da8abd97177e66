"""quasi_newton: it converges, starts anew, and stands noise, failures and bounds."""

import numpy as np
import pytest

from zoopt_nas import QuasiNewton, minimize
from zoopt_nas.solvers.engines.descent import DescentPhase


def ellipsoid(points, condition=1e6):
    weights = np.geomspace(1.0, condition, points.shape[-1])
    return (weights * points**2).sum(-1)


def rosenbrock(points):
    a, b = points[..., :-1], points[..., 1:]
    return (100 * (b - a**2) ** 2 + (1 - a) ** 2).sum(-1)


@pytest.mark.parametrize(("dim", "maxfev"), [(2, 120), (10, 300), (40, 1200)])
def test_an_ellipsoid_of_condition_1e6_takes_a_few_gradients(dim, maxfev):
    result = minimize(
        ellipsoid,
        np.full(dim, 2.0),
        "quasi_newton",
        maxfev=maxfev,
        target=1e-8,
        rng=0,
        vectorized=True,
    )
    assert result.success


def test_rosenbrock():
    result = minimize(
        rosenbrock,
        np.full(5, -1.0),
        "quasi_newton",
        maxfev=1500,
        target=1e-8,
        rng=0,
        vectorized=True,
    )
    assert result.success


def test_subspaces_converge():
    def sphere(points):
        return (points**2).sum(-1)

    result = minimize(
        sphere,
        np.full(8, 2.0),
        "quasi_newton",
        maxfev=2000,
        target=1e-8,
        rng=0,
        vectorized=True,
        options={"n_samples": 3},
    )
    assert result.success


def test_the_start_probes_pairs_and_then_one_point_a_direction():
    state = QuasiNewton().init(np.full(4, 3.0), rng=0)
    rows = QuasiNewton().ask(state)
    assert rows.shape == (10, 4)  # x, four pairs, x again
    np.testing.assert_array_equal(rows[0], rows[-1])
    QuasiNewton().tell(state, rows, ellipsoid(rows))
    assert state.inner.phase == DescentPhase.SEARCH
    rows = QuasiNewton().ask(state)
    assert rows.shape == (1, 4)
    np.testing.assert_allclose(rows, 0, atol=1e-7)  # a separable parabola: Newton's step
    QuasiNewton().tell(state, rows, ellipsoid(rows))
    assert QuasiNewton().ask(state).shape == (4, 4)


def test_the_value_on_record_is_that_of_the_iterate():
    solver = QuasiNewton()
    state = solver.init(np.full(3, -1.0), rng=1)
    for _ in range(60):
        candidates = solver.ask(state)
        solver.tell(state, candidates, rosenbrock(candidates))
        assert state.value == pytest.approx(rosenbrock(state.x), rel=1e-12)


def test_it_starts_anew_where_it_has_converged():
    def two_wells(x):  # the lower one at +4
        return float(min((x + 1) @ (x + 1), 0.5 * (x - 4) @ (x - 4) - 1))

    result = minimize(
        two_wells, np.full(2, -1.5), "quasi_newton", maxfev=4000, target=-0.999, rng=0
    )
    assert result.success


def test_noise_is_found_and_kept_out_of_the_differences():
    noise = np.random.default_rng(0)
    solver = QuasiNewton()
    state = solver.init(np.full(5, 3.0), rng=0)

    def noisy(points):
        return (points**2).sum(-1) + 0.1 * noise.standard_normal(len(points))

    for _ in range(8):
        candidates = solver.ask(state)
        solver.tell(state, candidates, noisy(candidates))
    assert 0.02 < state.inner.noise < 0.5
    assert state.inner.smoothing >= 2 * np.sqrt(0.02)
    assert (state.x**2).sum() < 1.0  # from 45


def test_a_fixed_smoothing_is_the_distance_of_the_probes():
    solver = QuasiNewton(smoothing=0.125)
    state = solver.init(np.full(3, -1.0), rng=1)
    n_probes = 0
    for _ in range(12):
        phase = state.inner.phase
        candidates = solver.ask(state)
        if phase == DescentPhase.PROBE:
            n_probes += 1
            distances = np.linalg.norm(candidates - state.x, axis=1)
            np.testing.assert_allclose(distances, 0.125, rtol=1e-9)
        solver.tell(state, candidates, rosenbrock(candidates))
    assert n_probes > 2


@pytest.mark.parametrize("options", [{}, {"n_samples": 2}])
def test_the_optimum_inside_a_box_is_found(options):
    def shifted(x):
        return float((x - 0.4) @ (x - 0.4))

    result = minimize(
        shifted,
        np.full(4, 0.9),
        "quasi_newton",
        bounds=[(-1, 1)] * 4,
        maxfev=1000,
        rng=0,
        options=options,
    )
    assert result.fun < 1e-6


def test_a_failed_start_moves_to_a_point_that_does_not_fail():
    def half(points):
        values = (points**2).sum(-1)
        return np.where((points >= 1.0).any(-1), np.nan, values)

    result = minimize(
        half, np.array([1.2, 0.0]), "quasi_newton", maxfev=400, rng=0, vectorized=True
    )
    assert result.fun < 1e-8


def test_with_n_samples_sets_the_batch():
    solver = QuasiNewton().with_n_samples(3)
    state = solver.init(np.zeros(6), rng=0)
    assert solver.ask(state).shape == (5, 6)  # x, three directions, x again
