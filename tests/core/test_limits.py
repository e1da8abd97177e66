"""Warm starts, stagnation, failed evaluations, and no output of `minimize`."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zoopt_nas import GLD, MGS, RS, SOLVERS, AdaptiveGLD, InvalidValueError, Status, minimize

OWN = ["quasi_newton", "adaptive_mgs", "adaptive_gld"]


def bowl(x):
    return float(((np.asarray(x) - 3.0) ** 2).sum())


@pytest.mark.parametrize("method", OWN)
def test_a_warm_start_begins_at_the_best_known_point(method):
    points = np.array([[0.0, 0.0], [3.0, 3.1], [9.0, 9.0], [3.0, 3.0]])
    values = [bowl(x) for x in points[:3]] + [math.nan]
    result = minimize(bowl, [100.0, 100.0], method, warm_start=(points, values), maxfev=10, rng=0)
    assert result.fun <= values[1]
    assert result.nfev == 10
    assert np.abs(result.x - points[1]).max() < 2
    other = minimize(bowl, points[1], method, maxfev=10, rng=0)
    assert np.abs(result.x_iterate - other.x_iterate).max() < 2


def test_a_known_target_ends_the_run_before_it_begins():
    result = minimize(
        bowl, [0.0], AdaptiveGLD(), warm_start=([[3.0]], [0.0]), target=0.0, maxfev=10
    )
    assert (result.nfev, result.status, result.fun) == (0, Status.TARGET_REACHED, 0.0)
    np.testing.assert_array_equal(result.x, [3.0])


@pytest.mark.parametrize("method", ["reflect", "clip", "transform"])
def test_a_warm_start_within_bounds(method):
    from zoopt_nas import Box

    box = Box(0.0, 4.0, method)
    result = minimize(
        bowl,
        [1.0, 1.0],
        AdaptiveGLD(),
        bounds=box,
        warm_start=([[2.5, 2.5]], [0.5]),
        maxfev=40,
        rng=0,
    )
    assert result.fun <= 0.5
    with pytest.raises(InvalidValueError, match="x0"):
        minimize(bowl, [1.0], AdaptiveGLD(), bounds=box, warm_start=([[5.0]], [4.0]))


def test_a_warm_start_of_failures_is_none():
    plain = minimize(bowl, [1.0, 1.0], AdaptiveGLD(), maxfev=50, rng=0)
    warm = minimize(
        bowl, [1.0, 1.0], AdaptiveGLD(), maxfev=50, rng=0, warm_start=([[2.0, 2.0]], [math.inf])
    )
    np.testing.assert_array_equal(warm.x, plain.x)


def test_a_torch_warm_start():
    torch = pytest.importorskip("torch")
    result = minimize(
        lambda x: float(((x - 3) ** 2).sum()),
        torch.zeros(2),
        AdaptiveGLD(),
        warm_start=(torch.tensor([[3.0, 2.0]]), torch.tensor([1.0])),
        maxfev=30,
        rng=0,
    )
    assert result.fun <= 1.0
    assert result.x.dtype == torch.float32


@pytest.mark.parametrize(
    "bad", [3, ([[1.0]],), ([[1.0, 2.0]], [1.0]), ([[1.0]], [1.0, 2.0]), ([["a"]], [1.0])]
)
def test_a_bad_warm_start(bad):
    with pytest.raises(InvalidValueError, match="warm_start"):
        minimize(bowl, [1.0], AdaptiveGLD(), warm_start=bad)


def test_stagnation():
    values = iter([5.0] * 3 + [4.0] + [9.0] * 1000)
    solver = GLD(schedule="search", min_radius=2**-9)
    result = minimize(lambda x: next(values), [1.0], solver, maxstall=100, maxfev=1000, rng=0)
    assert result.status == Status.STAGNATION
    assert result.message.startswith("The best value has not improved")
    # It is checked between batches.
    n_batch = math.ceil(result.nfev / result.nit)
    assert 100 <= result.nfev <= 100 + 2 * n_batch
    assert result.fun == 4.0
    with pytest.raises(InvalidValueError, match="maxstall must be a positive integer, got 0"):
        minimize(bowl, [1.0], maxstall=0)


def test_stagnation_counts_across_a_checkpoint(tmp_path):
    arguments = {"checkpoint": tmp_path / "run.npz", "rng": 0, "maxstall": 200}
    solver = GLD(schedule="search", min_radius=2**-9)  # 11 evaluations a step
    whole = minimize(lambda x: 1.0, [1.0], solver, rng=0, maxstall=200)
    part = minimize(lambda x: 1.0, [1.0], solver, maxfev=99, **arguments)
    assert part.status == Status.MAXFEV
    rest = minimize(lambda x: 1.0, [1.0], solver, **arguments)
    assert (rest.status, rest.nfev) == (Status.STAGNATION, whole.nfev)


class UnluckyError(Exception):
    pass


def sometimes(x):
    if x[0] > 1.2:
        raise UnluckyError("too far")
    return float(x @ x)


def test_an_exception_ends_a_plain_run_and_costs_a_candidate_on_request():
    with pytest.raises(UnluckyError) as caught:
        minimize(sometimes, [1.0, 1.0], AdaptiveGLD(), maxfev=200, rng=0)
    assert caught.value.partial_result.nfev >= 1
    result = minimize(sometimes, [1.0, 1.0], AdaptiveGLD(), maxfev=200, rng=0, on_error="fail")
    assert result.nfev == 200
    assert result.n_failed > 0
    assert result.fun < 2.0


@pytest.mark.parametrize("method", OWN)
def test_an_exception_of_a_worker_costs_the_candidate(method):
    with ThreadPoolExecutor(2) as threads:
        result = minimize(
            sometimes, [1.1, 1.0], method, maxfev=200, rng=0, workers=threads, history=True
        )
        alone = minimize(
            sometimes, [1.1, 1.0], method, maxfev=200, rng=0, on_error="fail", history=True
        )
        assert result.nfev == 200
        np.testing.assert_array_equal(result.history, alone.history)
        with pytest.raises(UnluckyError):
            minimize(sometimes, [1.3, 1.0], method, rng=0, workers=threads, on_error="raise")


def test_a_mistake_in_the_function_is_no_bad_luck():
    with ThreadPoolExecutor(2) as threads, pytest.raises(TypeError):
        minimize(lambda: 0.0, [1.0], AdaptiveGLD(), workers=threads)
    result = minimize(lambda: 0.0, [1.0], AdaptiveGLD(), on_error="fail", maxfev=50)
    assert result.status == Status.NO_FINITE_VALUE
    assert result.n_failed == 50
    with pytest.raises(InvalidValueError, match="on_error must be one of"):
        minimize(bowl, [1.0], on_error="ignore")


@pytest.mark.parametrize("method", list(SOLVERS))
def test_silence(method, capsys):
    minimize(bowl, [1.0, 2.0], method, maxfev=100, rng=0)
    minimize(bowl, [1.0, 2.0], method, maxfev=100, rng=0, progress=True)  # stderr is not a terminal
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_minimize_leaves_the_step_of_a_solver_alone():
    """A warm start changes only the start of the paper's algorithms."""
    for solver, n_starts in (  # evaluations of x0 in addition to the batches
        (RS(learning_rate=0.02, smoothing=0.01), 1),
        (MGS(sigma=0.1, temperature=0.1), 1),
        (GLD(schedule="search", min_radius=0.1), 0),
    ):
        known = ([[1.0, 2.0]], [bowl([1.0, 2.0])])
        warm = minimize(bowl, [9.0, 9.0], solver, warm_start=known, maxfev=61, rng=0)
        cold = minimize(bowl, [1.0, 2.0], solver, maxfev=61 + n_starts, rng=0)
        np.testing.assert_array_equal(warm.x_iterate, cold.x_iterate)
