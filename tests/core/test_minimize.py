"""minimize: budget, target, callback, failures, errors, and the result."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import OptimizeResult

import zoopt_nas
from zoopt_nas import (
    GLD,
    RS,
    SOLVERS,
    AdaptiveGLD,
    AdaptiveMGS,
    InvalidValueError,
    QuasiNewton,
    Status,
    UnknownNameError,
    minimize,
)
from zoopt_nas.problems import PROBLEMS, sphere

BOWL = sphere(2)
METHODS = list(SOLVERS)
SEARCH = GLD(schedule="search", min_radius=1e-3)  # 11 evaluations a step
ADAPTIVE = ["quasi_newton", "adaptive_mgs", "adaptive_gld", "auto"]


@pytest.mark.parametrize(
    ("method", "bound"), [("adaptive_gld", 1e-2), ("quasi_newton", 0.5), ("adaptive_mgs", 0.5)]
)
def test_the_first_example_works_with_every_default(method, bound):
    result = minimize(lambda x: float((x**2).sum()), [1.0, -2.0], method, maxfev=500, rng=0)
    assert result.fun < bound
    assert result.fun == float((result.x**2).sum())
    assert result.success


@pytest.mark.parametrize("method", METHODS)
def test_the_result_has_every_field(method):
    result = minimize(BOWL, [1.0, -2.0], method, maxfev=100, rng=0)
    assert isinstance(result, OptimizeResult)
    assert set(result) == {
        *("x", "fun", "nfev", "nit", "success", "status", "message"),
        *("x_iterate", "fun_iterate", "n_failed"),
    }
    assert (result.nfev, result.n_failed) == (100, 0)
    assert result.status == Status.MAXFEV
    choice = "auto chose trust_region (2 dimensions): 99 evaluations."
    told = choice if method == "auto" else ""
    sentence = "The maximum number of function evaluations was used."
    assert result.message == f"{sentence} {told}".strip()
    assert result.fun_iterate == pytest.approx(float(BOWL(result.x_iterate)), rel=1e-12)
    assert result.fun <= result.fun_iterate
    assert result.nit > 0


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    method=st.sampled_from(
        [QuasiNewton(), RS(estimator="one_point"), AdaptiveMGS(), AdaptiveGLD(), SEARCH]
    ),
    maxfev=st.integers(1, 100),
    vectorized=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_maxfev_is_exact_and_the_best_is_the_best(method, maxfev, vectorized, seed):
    seen = []

    def fun(x):
        values = np.sin(3 * x).sum(-1) + 0.1 * BOWL(x)
        seen.extend(np.atleast_1d(values).tolist())
        return values

    result = minimize(
        fun, [1.0, -2.0], method, maxfev=maxfev, rng=seed, vectorized=vectorized, history=True
    )
    assert len(seen) == result.nfev == maxfev
    assert result.fun == min(seen)
    assert result.history.tolist() == seen
    assert math.isfinite(result.fun_iterate)


@pytest.mark.parametrize("method", METHODS)
def test_single_calls_and_batches_are_one_run(method):
    runs = [
        minimize(BOWL, [1.0, -2.0], method, maxfev=200, rng=3, vectorized=vectorized)
        for vectorized in (False, True)
    ]
    np.testing.assert_allclose(runs[0].x_iterate, runs[1].x_iterate, rtol=1e-9)


def test_the_default_budget_is_1000_per_dimension():
    assert minimize(BOWL, [1.0, -2.0], rng=0).nfev == 2000


@pytest.mark.parametrize("method", METHODS)
def test_maxiter_alone_limits_the_iterations(method):
    result = minimize(BOWL, [1.0, -2.0], method, maxiter=7, rng=0)
    assert result.nit == 7
    assert result.status == Status.MAXITER
    both = minimize(BOWL, [1.0, -2.0], method, maxiter=7, maxfev=result.nfev, rng=0)
    assert (both.nit, both.nfev, both.fun) == (7, result.nfev, result.fun)
    first = minimize(BOWL, [1.0, -2.0], method, maxiter=7, maxfev=3, rng=0)
    assert (first.nfev, first.status) == (3, Status.MAXFEV)


@pytest.mark.parametrize("method", METHODS)
def test_target_stops_at_once(method):
    calls = []

    def fun(x):
        calls.append(float(BOWL(x)))
        return calls[-1]

    result = minimize(fun, [1.0, -2.0], method, maxfev=2000, target=1.0, rng=0)
    assert result.success
    assert result.status == Status.TARGET_REACHED
    assert calls[-1] == result.fun <= 1.0
    assert min(calls[:-1]) > 1.0
    assert len(calls) == result.nfev
    # A solver that never evaluates its iterate would need one more evaluation.
    assert math.isnan(result.fun_iterate) == (not SOLVERS[method]().evaluates_iterate)


@pytest.mark.parametrize("method", METHODS)
def test_a_missed_target_is_no_success(method):
    result = minimize(BOWL, [1.0, -2.0], method, maxfev=50, target=-1.0, rng=0)
    assert not result.success
    assert result.status == Status.MAXFEV


def test_the_final_iterate_may_reach_the_target():
    # The first batch is at distance 1 from x0, and the step ends at the optimum.
    solver = RS(learning_rate=0.5, smoothing=1.0, orthogonal=True, n_samples=2)
    result = minimize(BOWL, [3.0, -4.0], solver, maxfev=6, target=1e-12, rng=0)
    assert (result.status, result.success, result.nfev) == (Status.TARGET_REACHED, True, 6)
    assert result.fun == result.fun_iterate


@pytest.mark.parametrize("method", METHODS)
def test_callback_sees_every_iteration_and_may_stop(method):
    seen = []

    def callback(intermediate_result):
        seen.append(dict(intermediate_result))
        intermediate_result.x[:] = 1e9  # a copy, without effect on the run
        intermediate_result.x_iterate[:] = 1e9
        if len(seen) == 3:
            raise StopIteration

    result = minimize(BOWL, [1.0, -2.0], method, maxfev=500, rng=0, callback=callback)
    assert [r["nit"] for r in seen] == [1, 2, 3]
    assert set(seen[0]) == {"x", "fun", "nfev", "nit", "x_iterate"}
    assert result.nit == 3
    assert result.status == Status.CALLBACK
    assert result.success
    assert result.fun_iterate == pytest.approx(float(BOWL(result.x_iterate)), rel=1e-12)
    assert np.all(np.abs(result.x) < 10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("failure", [math.nan, math.inf, -math.inf])
def test_nothing_finite(method, failure):
    result = minimize(lambda x: failure, [1.0, -2.0], method, maxfev=30, rng=0)
    assert not result.success
    assert result.status == Status.NO_FINITE_VALUE
    assert result.fun == math.inf
    np.testing.assert_array_equal(result.x, [1.0, -2.0])
    assert (result.nfev, result.n_failed) == (30, 30)


@pytest.mark.parametrize("method", METHODS)
def test_failures_on_half_of_the_space_are_survived(method):
    def fun(x):
        return float(BOWL(x)) if x[0] > 0 else math.nan

    result = minimize(fun, [1.0, -2.0], method, maxfev=1500, rng=0)
    assert result.fun < 0.5
    assert result.x[0] > 0
    assert result.n_failed > 0


class FunError(Exception):
    pass


@pytest.mark.parametrize("kind", [FunError, KeyboardInterrupt, StopIteration])
def test_an_exception_propagates_with_the_result_so_far(kind):
    calls = 0

    def fun(x):
        nonlocal calls
        calls += 1
        if calls == 25:
            raise kind("out of memory")
        return float(BOWL(x))

    with pytest.raises(kind, match="out of memory") as caught:
        minimize(fun, [1.0, -2.0], SEARCH, maxfev=100, rng=0)
    partial = caught.value.partial_result
    assert partial.nfev == 24
    assert partial.fun == float(BOWL(partial.x)) < 5.0
    assert partial.nit == 2
    assert "raised after 24 evaluations" in caught.value.__notes__[0]


def test_an_exception_of_the_callback_propagates_too():
    def callback(intermediate_result):
        raise FunError

    with pytest.raises(FunError) as caught:
        minimize(BOWL, [1.0, -2.0], maxfev=100, callback=callback)
    assert caught.value.partial_result.nit == 1


def test_options_are_fields_of_the_solver():
    by_name = minimize(
        BOWL, [1.0, -2.0], "adaptive_gld", maxfev=90, rng=0, options={"max_radius": 0.2}
    )
    by_hand = minimize(BOWL, [1.0, -2.0], AdaptiveGLD(max_radius=0.2), maxfev=90, rng=0)
    changed = minimize(
        BOWL, [1.0, -2.0], AdaptiveGLD(), maxfev=90, rng=0, options={"max_radius": 0.2}
    )
    default = minimize(BOWL, [1.0, -2.0], "adaptive_gld", maxfev=90, rng=0)
    assert by_name.fun == by_hand.fun == changed.fun != default.fun


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "gdl"}, UnknownNameError, "unknown solver 'gdl'; did you mean 'gld'?"),
        (
            {"method": "adaptive_gld", "options": {"max_radus": 1.0}},
            UnknownNameError,
            "unknown option of adaptive_gld 'max_radus'; did you mean 'max_radius'?",
        ),
        (
            {"method": AdaptiveMGS(), "options": {"sigm": 1.0}},
            UnknownNameError,
            "unknown option of adaptive_mgs 'sigm'; did you mean 'sigma'?",
        ),
        (
            {"method": "adaptive_gld", "options": {"max_radius": -1.0}},
            InvalidValueError,
            "max_radius must be a positive finite number, got -1.0",
        ),
        (
            {"method": 3},
            InvalidValueError,
            "method must be the name of a solver or a Solver, got 3",
        ),
        ({"maxfev": 0}, InvalidValueError, "maxfev must be a positive integer, got 0"),
        ({"maxiter": 0}, InvalidValueError, "maxiter must be a positive integer, got 0"),
        ({"maxtime": 0}, InvalidValueError, "maxtime must be a positive finite number, got 0"),
        ({"callback": 3}, InvalidValueError, "callback must be callable, got 3"),
        ({"fun": None}, InvalidValueError, "fun must be callable, got None"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error) as caught:
        minimize(**{"fun": BOWL, "x0": [1.0, -2.0], **arguments})
    assert str(caught.value) == message


@pytest.mark.parametrize("method", METHODS)
def test_torch_in_torch_out(method):
    torch = pytest.importorskip("torch")
    x0 = torch.tensor([1.0, -2.0], dtype=torch.float32)
    result = minimize(lambda x: (x * x).sum(), x0, method, maxfev=300, rng=0)
    for x in (result.x, result.x_iterate):
        assert isinstance(x, torch.Tensor)
        assert x.dtype == torch.float32
    assert isinstance(result.fun, float)
    assert result.fun < 0.9


def test_a_status_has_a_message_each():
    assert len({status.message for status in Status}) == len(Status) == 7


# Enough for each solver to show that it works, with a learning rate that suits the curvature.
CONVERGENCE = [
    ("rs", "sphere", {"learning_rate": 0.02}, 1e-6),
    ("rs", "ellipsoid", {"learning_rate": 1e-3, "n_samples": 10, "orthogonal": True}, 1.0),
    ("rs", "rosenbrock", {"learning_rate": 2e-3, "n_samples": 10, "orthogonal": True}, 3.5),
    ("zo_signsgd", "sphere", {}, 0.01),
    ("zo_signsgd", "ellipsoid", {}, 0.1),
    ("zo_signsgd", "rosenbrock", {}, 3.0),
    ("zo_adamm", "sphere", {}, 1e-6),
    ("zo_adamm", "ellipsoid", {}, 1.0),
    ("zo_adamm", "rosenbrock", {}, 1.0),
    ("mgs", "sphere", {"temperature": 0.01, "weighting": "density_free"}, 0.02),
    ("mgs", "sphere", {"temperature": 0.01, "weighting": "fixed_norm"}, 0.02),
    ("mgs", "sphere", {"temperature": 0.01, "weighting": "exact"}, 0.1),
    ("mgs", "ellipsoid", {"temperature": 0.1}, 1.0),
    ("mgs", "rosenbrock", {"temperature": 0.01}, 3.5),
    ("gld", "sphere", {"schedule": "search"}, 1e-4),
    ("gld", "sphere", {"schedule": "fast", "condition_number": 2.0}, 1e-4),
    ("gld", "ellipsoid", {"schedule": "search"}, 1.0),
    ("gld", "rosenbrock", {"schedule": "search"}, 3.5),
    ("gld", "rastrigin", {"schedule": "search", "max_radius": 4.0}, 20.0),
    # The defaults need no setting.
    *((name, "sphere", {}, 1e-10) for name in ADAPTIVE),
    *((name, "ellipsoid", {}, 1e-8) for name in ADAPTIVE),
    *((name, "rosenbrock", {}, 1e-6) for name in ADAPTIVE),
    *((name, "rastrigin", {}, 20.0) for name in ADAPTIVE),
]


@pytest.mark.parametrize(("method", "problem", "options", "bound"), CONVERGENCE)
def test_convergence(method, problem, options, bound):
    function = PROBLEMS[problem](5)
    result = minimize(
        function, function.x0, method, maxfev=5000, rng=0, vectorized=True, options=options
    )
    assert result.fun - function.f_opt < bound < float(function(function.x0))


def options_under_noise(method):
    # Over its default distance of 0.01, lizo would take the noise for slopes of 5.
    return {"smoothing": 0.1} if method == "lizo" else {}


# nelder_mead requires an exact function, as its page says.
@pytest.mark.parametrize("method", [name for name in METHODS if name != "nelder_mead"])
def test_noise_is_survived(method):
    rng = np.random.default_rng(0)

    def noisy(x):
        return sphere(5)(x) + 0.05 * rng.standard_normal(len(x))

    limits = {"maxfev": 4000, "rng": 0, "vectorized": True, "options": options_under_noise(method)}
    result = minimize(noisy, np.ones(5), method, **limits)
    assert float(sphere(5)(result.x_iterate)) < 1.0


# nelder_mead and trust_region require a fixed function, as their pages say.
@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("nelder_mead", "trust_region")]
)
def test_drift_is_survived(method):
    velocity = np.full(5, -1e-3)  # away from the start
    optimum = np.zeros(5)

    def drifting(x):
        values = sphere(5)(x - optimum)
        optimum[:] += velocity
        return values

    limits = {"maxfev": 4000, "rng": 0, "vectorized": True, "options": options_under_noise(method)}
    result = minimize(drifting, np.ones(5), method, **limits)
    distance = np.linalg.norm(result.x_iterate - optimum)
    assert distance < 0.5 * np.linalg.norm(np.ones(5))  # the distance at the start


def test_version_is_a_literal():
    assert zoopt_nas.__version__ == "0.1.0"
