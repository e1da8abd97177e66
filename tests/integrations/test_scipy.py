"""Custom methods of SciPy, through its ``minimize``, ``basinhopping`` and ``shgo``."""

import pickle

import numpy as np
import pytest
from scipy.optimize import (
    Bounds,
    LinearConstraint,
    OptimizeResult,
    OptimizeWarning,
    basinhopping,
    dual_annealing,
    minimize,
    shgo,
)

import zoopt_nas
from zoopt_nas import GLD, InvalidValueError, UnknownNameError
from zoopt_nas.integrations.scipy import scipy_method

GLD_SEARCH = GLD(schedule="search")


def sphere(x):
    return float((x**2).sum())


def scaled_sphere(x, scale, shift):
    return scale * sphere(x - shift)


def run(fun=sphere, x0=(1.0, -2.0), method=GLD_SEARCH, maxfev=300, rng=0, options=None, **keywords):
    options = {"maxfev": maxfev, "rng": rng, **(options or {})}
    return minimize(fun, x0, method=scipy_method(method), options=options, **keywords)


def test_the_run_is_that_of_the_package():
    ours = zoopt_nas.minimize(sphere, [1.0, -2.0], method=GLD_SEARCH, maxfev=300, rng=0)
    scipys = run()
    np.testing.assert_array_equal(scipys.x, ours.x)
    assert (scipys.fun, scipys.nfev, scipys.nit) == (ours.fun, 300, ours.nit)
    assert isinstance(scipys, OptimizeResult)
    assert scipys.fun == sphere(scipys.x) < 1e-3


@pytest.mark.parametrize("method", ["quasi_newton", "adaptive_mgs", "adaptive_gld"])
def test_every_solver_improves_by_name(method):
    result = run(method=method, x0=np.full(3, 2.0), maxfev=600)
    assert result.fun < sphere(np.full(3, 2.0))
    assert result.nfev == 600
    assert result.x.shape == (3,)


def test_a_used_up_budget_is_a_success_with_status_0():
    result = run()
    assert result.success is True
    assert type(result.status) is int
    assert result.status == 0
    assert "function evaluations" in result.message


def test_a_missed_target_is_no_success():
    result = run(options={"target": -1.0})
    assert result.success is False
    assert result.status == zoopt_nas.Status.MAXFEV
    reached = run(options={"target": 0.1})
    assert (reached.success, reached.status) == (True, 0)
    assert reached.nfev < 300


def test_no_finite_value_is_no_success():
    result = run(fun=lambda x: np.nan, maxfev=20)
    assert (result.success, result.status) == (False, zoopt_nas.Status.NO_FINITE_VALUE)


def test_args_are_passed_behind_the_point():
    shift = np.array([0.5, -0.5])
    result = run(scaled_sphere, args=(3.0, shift))
    assert result.fun == scaled_sphere(result.x, 3.0, shift) < 1e-3
    assert run(lambda x, a: a * sphere(x), args=2.0).fun < 1e-3  # SciPy: one argument, no tuple
    batches = []

    def fun_of_many(points, scale):
        batches.append(points.shape)
        return scale * (points**2).sum(axis=1)

    options = {"vectorized": True}
    np.testing.assert_array_equal(run(fun_of_many, args=(2.0,), options=options).x, run().x)
    assert all(dim == 2 for _, dim in batches)


def test_a_gradient_that_comes_with_the_value_is_dropped():
    result = run(lambda x: (sphere(x), 2 * x), jac=True)
    np.testing.assert_array_equal(result.x, run().x)


def test_a_gradient_beside_the_function_gets_scipys_warning():
    with pytest.warns(RuntimeWarning, match="does not use jac"):
        run(jac=lambda x: 2 * x)


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds([0.5, -np.inf], [3.0, -1.0]),
        [(0.5, 3.0), (None, -1.0)],
        np.array([[0.5, 3.0], [-np.inf, -1.0]]),
        zoopt_nas.Box([0.5, None], [3.0, -1.0], "clip"),
    ],
    ids=["Bounds", "pairs", "array", "Box"],
)
def test_all_forms_of_bounds_hold(bounds):
    seen = []
    result = run(lambda x: seen.append(x) or sphere(x), bounds=bounds)
    seen = np.array(seen)
    assert seen[:, 0].min() >= 0.5
    assert seen[:, 0].max() <= 3.0
    assert seen[:, 1].max() <= -1.0
    np.testing.assert_allclose(result.x, [0.5, -1.0], atol=0.02)


def test_bounds_of_one_number_are_for_all():
    result = run(bounds=Bounds(-3.0, -1.0), x0=[-2.0, -2.0])
    np.testing.assert_allclose(result.x, [-1.0, -1.0], atol=0.02)


def test_a_start_outside_is_moved_to_the_nearest_point_inside():
    seen = []
    result = run(
        lambda x: seen.append(x) or sphere(x), x0=[9, -9], bounds=[(1, 2), (-4, 4)], maxfev=50
    )
    np.testing.assert_array_equal(seen[0], [2.0, -4.0])
    assert result.x.dtype == np.float64


def test_float32_stays_float32():
    result = run(x0=np.array([5.0, 5.0], np.float32), bounds=[(0.1, 0.7), (0.1, 0.7)])
    assert result.x.dtype == np.float32
    assert np.all(result.x >= 0.1)


def test_a_wrong_number_of_bounds_is_named():
    with pytest.raises(InvalidValueError, match="one pair for each of the 2 coordinates"):
        run(bounds=[(0, 1)] * 3)


def test_constraints_are_refused():
    for constraints in (
        LinearConstraint([[1.0, 1.0]], 0.0, 1.0),
        [{"type": "eq", "fun": sphere}],
    ):
        with pytest.raises(InvalidValueError, match="constraints must be empty"):
            run(constraints=constraints)
    assert run(constraints=[]).success
    assert run(constraints=None).success


def test_a_callback_by_name_gets_the_result_so_far():
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)

    result = run(callback=callback)
    assert len(seen) == result.nit
    assert all(isinstance(r, OptimizeResult) and r.fun == sphere(r.x) for r in seen)
    assert seen[-1].nfev <= result.nfev


@pytest.mark.parametrize("as_list_append", [False, True])
def test_another_callback_gets_a_point_of_its_own(as_list_append):
    seen = []
    result = run(callback=seen.append if as_list_append else lambda xk: seen.append(xk))
    assert len(seen) == result.nit
    assert all(type(x) is np.ndarray and x.shape == (2,) for x in seen)
    assert sphere(seen[-1]) <= sphere(seen[0])
    assert len({id(x) for x in seen}) == len(seen)


def test_stop_iteration_ends_the_run_with_scipys_status():
    def callback(xk):
        raise StopIteration

    result = run(callback=callback)
    assert (result.success, result.status, result.nit) == (False, 99, 1)
    assert result.message == "`callback` raised `StopIteration`."
    assert result.fun == sphere(result.x)


def test_fields_of_the_solver_are_options_too():
    direct = zoopt_nas.minimize(
        sphere, [1.0, -2.0], GLD(schedule="search", max_radius=0.1), maxfev=100, rng=0
    )
    in_scipys = run(maxfev=100, options={"max_radius": 0.1})
    in_ours = minimize(
        sphere,
        [1.0, -2.0],
        method=scipy_method("gld", schedule="search", max_radius=0.1),
        options={"maxfev": 100, "rng": 0},
    )
    np.testing.assert_array_equal(in_scipys.x, direct.x)
    np.testing.assert_array_equal(in_ours.x, direct.x)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="did you mean 'max_radius'"):
        scipy_method("adaptive_gld", max_radus=1.0)
    with pytest.raises(UnknownNameError, match="unknown solver 'glb'"):
        scipy_method("glb")
    with pytest.warns(OptimizeWarning, match="option of gld: maxfevs; did you mean 'maxfev'"):
        result = run(options={"maxfevs": 7})
    assert result.nfev == 300
    with pytest.warns(OptimizeWarning, match="option of gld: tol"):
        run(tol=1e-3)


def test_what_scipy_itself_may_pass_is_accepted_silently():
    method = scipy_method(GLD_SEARCH)
    result = method(sphere, np.ones(2), (), disp=True, hess=None, hessp=None, maxfev=30)
    assert result.nfev == 30


@pytest.mark.parametrize("bounds", [None, [(-4.0, 4.0)] * 2])
def test_basinhopping_escapes_a_local_minimum(bounds):
    def two_wells(x):  # minima near (-1, 0), value about 0.3, and (1, 0), about -0.3
        return (x[0] ** 2 - 1) ** 2 + 0.3 * -x[0] + x[1] ** 2

    rng = np.random.default_rng(0)
    minimizer = {
        "method": scipy_method(GLD_SEARCH),
        "bounds": bounds,
        "options": {"maxfev": 150, "rng": rng},
    }
    local = minimize(two_wells, [-1.0, 0.0], **minimizer)
    found = basinhopping(
        two_wells, [-1.0, 0.0], niter=15, stepsize=2.0, minimizer_kwargs=minimizer, rng=1
    )
    assert local.fun > 0.2
    assert found.fun < -0.29
    assert found.minimization_failures == 0
    assert found.success


def test_it_can_be_pickled_and_run_by_worker_processes():
    method = pickle.loads(pickle.dumps(scipy_method("gld", schedule="search")))  # noqa: S301
    alone = run(scaled_sphere, args=(2.0, 1.0), maxfev=60)
    options = {"maxfev": 60, "rng": 0, "workers": 2}
    together = minimize(scaled_sphere, [1.0, -2.0], (2.0, 1.0), method=method, options=options)
    np.testing.assert_array_equal(together.x, alone.x)


def waves(x):
    return float(((x - 0.3) ** 2).sum() + 0.1 * np.sin(5 * x).sum())


BOX = [(-1.0, 1.0), (-1.0, 2.0)]
LEAST = 0.17430  # by scipy's shgo


@pytest.mark.parametrize("name", list(zoopt_nas.SOLVERS))
@pytest.mark.parametrize("tool", ["shgo", "sobol", "dual_annealing", "basinhopping"])
def test_the_global_optimizers_of_scipy_take_every_solver(name, tool):
    seen = []
    method = scipy_method(name, maxfev=80, rng=np.random.default_rng(0))
    local = {"method": method}

    def fun(x):
        seen.append(np.array(x))
        return waves(x)

    if tool == "shgo":
        result = shgo(fun, BOX, n=10, minimizer_kwargs=local)
    elif tool == "sobol":
        box = Bounds([-1.0, -1.0], [1.0, 2.0])
        result = shgo(fun, box, n=8, sampling_method="sobol", minimizer_kwargs=local,
                      callback=lambda xk: None)  # fmt: skip
    elif tool == "dual_annealing":
        result = dual_annealing(
            fun, BOX, maxiter=20, minimizer_kwargs={**local, "bounds": BOX}, rng=0
        )
    else:
        result = basinhopping(
            fun, [0.0, 0.0], niter=3, minimizer_kwargs={**local, "bounds": BOX}, rng=0
        )
    assert result.success
    assert result.fun == pytest.approx(LEAST, abs=0.02)
    assert result.fun == waves(result.x)
    low, high = np.array(BOX).T
    assert all(np.all((low <= x) & (x <= high)) for x in seen)


def test_arguments_may_be_given_with_the_method():
    method = scipy_method("adaptive_gld", maxfev=70, rng=3, max_radius=0.5)
    expected = zoopt_nas.minimize(
        sphere, [1.0, -2.0], "adaptive_gld", maxfev=70, rng=3, options={"max_radius": 0.5}
    )
    result = minimize(sphere, [1.0, -2.0], method=method)
    assert (result.nfev, result.fun) == (70, expected.fun)
    assert minimize(sphere, [1.0, -2.0], method=method, options={"maxfev": 30}).nfev == 30
    again = pickle.loads(pickle.dumps(method))  # noqa: S301
    assert minimize(sphere, [1.0, -2.0], method=again).fun == expected.fun
    with pytest.raises(UnknownNameError, match="did you mean 'maxfev'"):
        scipy_method("adaptive_gld", maxfv=3)
    with pytest.raises(UnknownNameError, match="unknown option of adaptive_gld 'callback'"):
        scipy_method("adaptive_gld", callback=print)
