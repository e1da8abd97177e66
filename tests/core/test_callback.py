"""When the callback is called, with what, and in which of SciPy's two styles."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.optimize

from zoopt_nas import MGS, SOLVERS, InvalidValueError, Status, minimize, scipy_method

torch = pytest.importorskip("torch")


def bowl(x):
    return float((x**2).sum())


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("target", [4.0, 1e-2, 100.0])
def test_the_callback_sees_the_batch_that_reaches_the_target(name, target):
    seen = []
    result = minimize(
        bowl, [1.0, -2.0], name, maxfev=3000, target=target, rng=0,
        callback=lambda intermediate_result: seen.append(intermediate_result),
    )  # fmt: skip
    assert result.status == Status.TARGET_REACHED
    assert seen[-1].fun == result.fun <= target
    np.testing.assert_array_equal(seen[-1].x, result.x)
    assert seen[-1].nfev == result.nfev
    assert all(r.fun > target for r in seen[:-1])


@pytest.mark.parametrize("how", ["vectorized", "threads"])
def test_a_target_reached_by_a_whole_batch(how):
    seen = []

    def callback(xk):
        seen.append(xk)

    run = {
        "x0": [1.0, -2.0],
        "method": "adaptive_gld",
        "target": 0.5,
        "rng": 0,
        "callback": callback,
    }
    if how == "vectorized":
        result = minimize(lambda rows: (rows**2).sum(1), **run, vectorized=True)
    else:
        with ThreadPoolExecutor(2) as executor:
            result = minimize(bowl, **run, workers=executor)
    assert bowl(seen[-1]) == result.fun <= 0.5


def test_a_target_reached_by_the_last_evaluation_of_the_iterate():
    """MGS never evaluates its iterate but for the end, where it may be the best point of all."""
    values = []
    solver = MGS(sigma=1.0, temperature=0.3, n_samples=8)
    first = minimize(bowl, [1.0, -2.0], solver, maxfev=25, rng=3)
    assert first.fun_iterate == first.fun  # so it is here
    target = first.fun + 1e-12
    result = minimize(
        bowl, [1.0, -2.0], solver, maxfev=25, rng=3, target=target,
        callback=lambda xk: values.append(bowl(xk)),
    )  # fmt: skip
    assert result.status == Status.TARGET_REACHED
    assert values[-1] == result.fun
    assert len(values) == 4


def test_to_stop_where_the_target_is_reached_is_to_reach_it():
    def stop(xk):
        raise StopIteration

    reached = minimize(bowl, [1.0, -2.0], "adaptive_gld", target=100.0, callback=stop)
    assert (reached.status, reached.success) == (Status.TARGET_REACHED, True)
    stopped = minimize(bowl, [1.0, -2.0], "adaptive_gld", target=0.0, callback=stop)
    assert (stopped.status, stopped.nit) == (Status.CALLBACK, 1)


class Recorder:
    def __init__(self):
        self.got = []

    def __call__(self, xk):
        self.got.append(xk)

    def method(self, intermediate_result):
        self.got.append(intermediate_result)


def by_name(got):
    return {
        "function": lambda intermediate_result: got.append(intermediate_result),
        "keyword only": lambda *, intermediate_result: got.append(intermediate_result),
        "keywords": lambda **keywords: got.append(keywords["intermediate_result"]),
        "partial": functools.partial(lambda a, intermediate_result: got.append(
            intermediate_result), 1),
    }  # fmt: skip


def by_position(got):
    return {
        "xk": lambda xk: got.append(xk),
        "any name": lambda result: got.append(result),
        "default": lambda x, state=None: got.append(x),
        "two, one of that name": lambda intermediate_result, y=0: got.append(intermediate_result),
        "any number": lambda *points: got.append(points[0]),
        "builtin": got.append,
        "partial": functools.partial(lambda a, x: got.append(x), 1),
    }


@pytest.mark.parametrize(
    ("style", "case"),
    [*(("name", case) for case in by_name([])), *(("position", case) for case in by_position([]))],
)
@pytest.mark.parametrize("through", ["minimize", "scipy_method"])
def test_the_style_is_told_by_the_name_of_the_only_parameter(style, case, through):
    got = []
    callbacks = (by_name if style == "name" else by_position)(got)
    if through == "minimize":
        result = minimize(
            bowl, [1.0, -2.0], "adaptive_gld", maxiter=4, rng=0, callback=callbacks[case]
        )
    else:
        result = scipy.optimize.minimize(
            bowl, [1.0, -2.0], method=scipy_method("adaptive_gld"), callback=callbacks[case],
            options={"maxiter": 4, "rng": 0},
        )  # fmt: skip
    assert len(got) == 4
    points = [g.x for g in got] if style == "name" else got
    assert all(isinstance(x, np.ndarray) and x.shape == (2,) for x in points)
    np.testing.assert_array_equal(points[-1], result.x)
    assert bowl(points[0]) >= bowl(points[-1])
    points[-1][:] = 7.0  # a copy
    assert result.x[0] != 7.0


def test_objects_and_methods():
    recorder = Recorder()
    minimize(bowl, [1.0, -2.0], "adaptive_gld", maxiter=2, rng=0, callback=recorder)
    minimize(bowl, [1.0, -2.0], "adaptive_gld", maxiter=1, rng=0, callback=recorder.method)
    assert recorder.got[0].shape == recorder.got[1].shape == (2,)
    assert recorder.got[2].nit == 1


def test_a_torch_run_gives_tensors():
    got = []
    x0 = torch.tensor([1.0, -2.0])
    minimize(bowl, x0, "adaptive_gld", maxiter=2, rng=0, callback=lambda xk: got.append(xk))
    assert all(isinstance(x, torch.Tensor) and x.dtype == torch.float32 for x in got)


@pytest.mark.parametrize("callback", [lambda: None, lambda a, b: None, lambda *, x: None])
def test_a_callback_that_cannot_be_called_is_refused_before_the_run(callback):
    calls = []
    with pytest.raises(InvalidValueError, match="callback must take one argument, the point or"):
        minimize(lambda x: calls.append(x) or 0.0, [1.0], maxfev=5, callback=callback)
    assert calls == []
    with pytest.raises(InvalidValueError, match="callback must be callable, got 3"):
        minimize(bowl, [1.0], maxfev=5, callback=3)
