"""What the default makes of problems that users of other packages have reported."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas import Auto, minimize

seeds = st.integers(0, 10**6)
few = settings(deadline=None, derandomize=True, max_examples=25)

CONCENTRATIONS = np.repeat([0.02, 0.06, 0.11, 0.22, 0.56, 1.1], 2)
VELOCITIES = np.array([76, 47, 97, 107, 123, 139, 159, 152, 191, 201, 207, 200.0])


def enzyme(b):
    """The fit of v = Vm s / (K + s) to Puromycin data (Bates and Watts 1988); minimum 1195.449."""
    return float(((b[0] * CONCENTRATIONS / (b[1] + CONCENTRATIONS) - VELOCITIES) ** 2).sum())


@pytest.mark.parametrize("x0", [(200, 0.1), (100, 1), (200, 10), (1000, 1e-3), (50, 0.02)])
def test_parameters_of_unlike_size_are_fitted(x0):
    result = minimize(enzyme, x0, maxfev=500, target=1195.45, rng=0)
    assert result.success
    np.testing.assert_allclose(result.x, [212.684, 0.0641214], rtol=2e-3)


# NIST StRD, nonlinear regression: x, y, both starts, and the certified residual sum of squares.
MISRA1A = (
    [77.6, 114.9, 141.1, 190.8, 239.9, 289, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760],
    [
        10.07,
        14.73,
        17.94,
        23.93,
        29.61,
        35.18,
        40.02,
        44.82,
        50.76,
        55.05,
        61.01,
        66.4,
        75.47,
        81.78,
    ],
)
BOXBOD = ([1, 2, 3, 5, 7, 10], [109, 149, 149, 191, 213, 224])


@pytest.mark.parametrize(
    ("data", "x0", "certified"),
    [
        (MISRA1A, (500, 1e-4), 1.2455138894e-1),
        (MISRA1A, (250, 5e-4), 1.2455138894e-1),
        (BOXBOD, (1, 1), 1.1680088766e3),
        (BOXBOD, (100, 0.75), 1.1680088766e3),
    ],
)
def test_the_exponential_fits_of_nist_reach_their_certified_values(data, x0, certified):
    x, y = map(np.array, data)

    def fun(b):
        with np.errstate(over="ignore"):
            return float(((b[0] * (1 - np.exp(-b[1] * x)) - y) ** 2).sum())

    result = minimize(fun, x0, maxfev=1500, target=certified * (1 + 1e-5), rng=0)
    assert result.success, result


@few
@given(seed=seeds, is_decay=st.booleans())
def test_curves_of_any_scale_are_fitted(seed, is_decay):
    """Amplitude and rate of 10^±3 each, started within a factor of 10 of the truth."""
    rng = np.random.default_rng(seed)
    amplitude, rate = 10 ** rng.uniform(-3, 3, 2)
    t = np.linspace(0.2, 4, 12) / rate
    x0 = np.array([amplitude, rate]) * 10 ** rng.uniform(-1, 1, 2)

    def curve(b):
        with np.errstate(all="ignore"):
            return b[0] * np.exp(-b[1] * t) if is_decay else b[0] * t / (1 / b[1] + t)

    truth = curve((amplitude, rate))
    scale = float((truth**2).sum())

    def fun(b):
        with np.errstate(over="ignore"):
            return float(((curve(b) - truth) ** 2).sum())

    result = minimize(fun, x0, maxfev=2000, target=1e-6 * scale, rng=seed)
    assert result.success, (x0, result.message)


@pytest.mark.parametrize("penalty", [10.0, 100.0, 1000.0, np.nan, np.inf])
@few
@given(seed=seeds, dim=st.integers(1, 4))
def test_a_start_that_is_not_feasible_is_left(penalty, seed, dim):
    rng = np.random.default_rng(seed)
    centre, way = rng.uniform(-1, 1, dim), rng.standard_normal(dim)

    def fun(x):
        square = float(((x - centre) ** 2).sum())
        return square if square < 1 else penalty

    x0 = centre + rng.uniform(1.05, 1.6) * way / np.linalg.norm(way)
    assert minimize(fun, x0, maxfev=4000, target=1e-6, rng=seed).success


@few
@given(seed=seeds)
def test_a_likelihood_with_a_negative_deviation_at_the_start(seed):
    rng = np.random.default_rng(seed)
    data = rng.normal(rng.uniform(-5, 5), rng.uniform(0.5, 3), 30)

    def fun(b):
        if not b[1] > 0:
            return np.nan
        return float(30 * np.log(b[1]) + ((data - b[0]) ** 2).sum() / (2 * b[1] ** 2))

    best = fun((data.mean(), data.std()))
    x0 = [0.0, -(10 ** rng.uniform(-2, 1.5))]
    assert minimize(fun, x0, maxfev=2000, target=best + 1e-6, rng=seed).success


@pytest.mark.parametrize("method", ["auto", "quasi_newton"])
def test_a_plateau_is_not_asked_for_the_same_points(method):
    for fun in (
        lambda x: float(np.floor(8 * x).sum()),
        lambda x: float(x[0] > 0.9),
        lambda x: 1.0,
    ):
        seen = []

        def recorded(x, fun=fun, seen=seen):
            seen.append(float(x[0]))
            return fun(x)

        minimize(recorded, [0.5], method, bounds=[(0, 1)], maxfev=200, rng=0)
        assert len(set(seen)) > 100


HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(x):
    """Minimum -3.32237 in the unit box (Dixon and Szegö 1978)."""
    exponents = -(HARTMANN_A * (x - HARTMANN_P) ** 2).sum(1)
    return float(-(np.array([1, 1.2, 3, 3.2]) * np.exp(exponents)).sum())


@pytest.mark.parametrize("start", [0.5, 0.51, 0.3])
def test_hartmann_in_the_unit_box_takes_a_hundred_evaluations(start):
    """To the better of its two deep minima, -3.32237 and -3.20316, or into the other one."""
    results = [
        minimize(hartmann, [start] * 6, bounds=[(0, 1)] * 6, maxfev=100, rng=seed).fun
        for seed in range(5)
    ]
    assert max(results) < -3.1


def test_bounds_of_unlike_size_are_the_scale():
    widths = 10.0 ** np.linspace(-9, 6, 6)
    for share in (0.5, 0.9, 0.0, 1.0):
        result = minimize(
            lambda x: float(((x / widths - 0.3) ** 2).sum()),
            widths * share,
            bounds=[(0, width) for width in widths],
            maxfev=200,
            rng=0,
        )
        assert result.fun < 1e-20


@pytest.mark.parametrize("relative", [2e-16, 1e-14, 1e-12])
def test_rounding_is_no_noise(relative):
    rng = np.random.default_rng(0)
    weights = 10.0 ** np.linspace(0, 4, 10)

    def fun(x):
        return float((weights * x**2).sum() * (1 + relative * rng.standard_normal()))

    result = minimize(fun, np.full(10, 3.0), maxfev=1500, rng=0)
    assert "auto chose quasi_newton" in result.message
    assert "noisy" not in result.message
    assert float((weights * result.x**2).sum()) < 1e-6


def test_a_little_noise_leaves_the_descent_its_turn():
    rng = np.random.default_rng(0)
    result = minimize(
        lambda x: float((x**2).sum() + 1e-7 * rng.standard_normal()),
        np.full(5, 3.0),
        maxfev=400,
        rng=0,
    )
    assert "(5 dimensions, slightly noisy)" in result.message
    assert float((result.x**2).sum()) < 1e-5


@pytest.mark.parametrize("noise", [1e-9, 1e-4])
def test_under_noise_the_race_begins_when_the_value_stays(noise):
    """The first solver goes on while it gains more than the noise."""
    rng = np.random.default_rng(0)

    def rosenbrock(points):
        a, b = points[:, :-1], points[:, 1:]
        values = (100 * (b - a**2) ** 2 + (1 - a) ** 2).sum(axis=1)
        return values + 1e4 * noise * rng.standard_normal(len(points))

    solver = Auto()
    state = solver.init(np.full(4, -2.0), rng=0)
    mark, n, counts = np.inf, 0, []  # n: evaluations since the value fell by more than the noise
    while state.inner is None or not state.inner.is_race:
        rows = solver.ask(state)
        assert state.inner.turn == 0
        solver.tell(state, rows, rosenbrock(rows))
        if "slightly noisy" in solver.describe(state):
            n += len(rows)
            if state.value < mark - state.inner.arms[0].inner.noise:
                mark, n = float(state.value), 0
            counts.append(n)
    assert counts[-1] >= 5 * (4 + 2) > max(counts[:-1])
    assert mark < 100  # of 10 827 at the start


def test_a_long_valley_is_followed_to_its_end():
    """From (1000, 0) a descent gains little in each step for a long time."""

    def rosenbrock(x):
        return float(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)

    assert minimize(rosenbrock, [1000.0, 0.0], maxfev=12000, target=1e-6, rng=0).success


def test_a_run_that_converges_keeps_its_turn():
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    weights = 10.0 ** np.linspace(0, 6, 8)

    def fun(x):
        return float((weights * (rotation @ x) ** 2).sum())

    result = minimize(fun, np.full(8, 3.0), target=1e-10, rng=0)
    assert result.success
    assert "cma" not in result.message


@pytest.mark.parametrize("dim", [101, 150])
def test_a_small_budget_in_many_dimensions_goes_to_descent(dim):
    fun = np.linspace(1, 10, dim)
    x0 = np.full(dim, 2.0)
    results = {
        method: minimize(lambda x: float(fun @ x**2), x0, method, maxfev=3 * dim, rng=0).fun
        for method in ("auto", "adaptive_gld")
    }
    assert results["auto"] < 0.5 * results["adaptive_gld"]
