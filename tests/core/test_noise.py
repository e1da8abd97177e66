"""Noisy objectives: repeated calls, common random numbers, and an unbiased recommendation."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zoopt_nas import AdaptiveGLD, InvalidValueError, QuasiNewton, minimize
from zoopt_nas._calls import takes_seed
from zoopt_nas.objective import Objective

POINTS = np.array([[3.0], [1.0], [2.0]])


def seeded(x, eval_seed):
    """A parabola with noise that depends on the seed."""
    return float((x**2).sum() + 0.3 * np.random.default_rng(eval_seed).standard_normal())


def seeded_batch(points, eval_seed):
    return (points**2).sum(1) + 0.3 * np.random.default_rng(eval_seed).standard_normal()


def test_who_takes_a_seed():
    assert takes_seed(seeded)
    assert takes_seed(lambda x, *, eval_seed=0: 0.0)
    assert not takes_seed(lambda x, **others: 0.0)
    assert not takes_seed(max)
    assert not takes_seed(math.hypot)


def test_all_points_of_a_batch_get_the_same_seeds_and_each_batch_others():
    seen = []

    def fun(x, eval_seed):
        seen.append((float(x[0]), eval_seed))
        return float(x[0])

    objective = Objective(fun, n_reevaluations=2, seed=5)
    objective.evaluate(POINTS)
    objective.evaluate(POINTS[:1])
    assert [x for x, _ in seen] == [3, 3, 1, 1, 2, 2, 3, 3]
    seeds = [seed for _, seed in seen]
    assert seeds[0:2] == seeds[2:4] == seeds[4:6]
    assert len(set(seeds)) == 4
    assert all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    again = Objective(lambda x, eval_seed: float(eval_seed), seed=5, n_reevaluations=2)
    assert again.evaluate(POINTS)[0] == np.mean(seeds[:2])
    assert Objective(lambda x, eval_seed: float(eval_seed), seed=6).evaluate(POINTS)[0] != seeds[0]


@pytest.mark.parametrize("kind", ["serial", "threads", "vectorized"])
def test_the_value_of_a_point_is_the_mean_of_its_calls(kind):
    calls = []
    answers = {3.0: [1.0, 2.0, 6.0], 1.0: [math.nan, 5.0, 7.0], 2.0: [math.nan] * 3}

    def fun(x):
        value = answers[float(x[0])][sum(1 for c in calls if c == x[0])]
        calls.append(float(x[0]))
        return value

    def batch(points):
        return np.array([fun(x) for x in points])

    with ThreadPoolExecutor(1) as threads:
        objective = Objective(
            batch if kind == "vectorized" else fun,
            vectorized=kind == "vectorized",
            workers=threads if kind == "threads" else 1,
            n_reevaluations=3,
            history=True,
        )
        np.testing.assert_array_equal(objective.evaluate(POINTS), [3.0, 6.0, np.inf])
    assert objective.nfev == len(calls) == len(objective.history) == 9
    assert objective.n_failed == 4
    assert objective.best_fun == 3.0
    np.testing.assert_array_equal(objective.best_x, [3.0])


@pytest.mark.parametrize("kind", ["serial", "threads", "vectorized"])
@pytest.mark.parametrize("maxfev", [1, 4, 5, 8])
def test_the_budget_counts_calls_and_is_exact(kind, maxfev):
    calls = []

    def fun(x):
        calls.append(float(x[0]))
        return float(x[0])

    with ThreadPoolExecutor(1) as threads:
        objective = Objective(
            (lambda points: np.array([fun(x) for x in points])) if kind == "vectorized" else fun,
            vectorized=kind == "vectorized",
            workers=threads if kind == "threads" else 1,
            n_reevaluations=3,
            maxfev=maxfev,
        )
        values = objective.evaluate(POINTS)
    assert sorted(calls) == sorted([3.0] * 3 + [1.0] * 3 + [2.0] * 3)[:0] + sorted(
        ([3.0] * 3 + [1.0] * 3 + [2.0] * 3)[:maxfev]
    )
    known = [3.0, 1.0, 2.0][: -(-maxfev // 3)]
    np.testing.assert_array_equal(values, known + [np.inf] * (3 - len(known)))


@pytest.mark.parametrize("maxfev", [30, 100, 1000])
def test_a_noisy_run_keeps_its_budget(maxfev):
    calls = []

    def fun(x):
        calls.append(x)
        return float((x**2).sum())

    result = minimize(fun, [1.0, 2.0], QuasiNewton(), noisy=True, maxfev=maxfev, rng=0)
    # The final evaluations are divided evenly among five points.
    assert maxfev - 5 < result.nfev == len(calls) <= maxfev


def test_the_recommendation_is_not_the_luckiest_point():
    """On a flat function with one good region, the lowest noisy value is far too low."""
    noise = np.random.default_rng(0)

    def fun(x):
        return float((x**2).sum() + noise.standard_normal())

    naive = minimize(fun, [3.0, 3.0], AdaptiveGLD(), maxfev=2000, rng=0)
    assert naive.fun < -2  # the minimum of 2000 noisy values
    result = minimize(fun, [3.0, 3.0], AdaptiveGLD(), maxfev=2000, rng=0, noisy=True)
    truth = float((result.x**2).sum())
    # A mean of 30 values has a standard error of 0.18; the best of 5 has a small bias.
    assert abs(result.fun - truth) < 4 * 0.18
    assert result.nfev <= 2000


def test_common_random_numbers_find_what_independent_noise_hides():
    noise = np.random.default_rng(1)

    def independent(x):
        return float((x**2).sum() + 0.3 * noise.standard_normal())

    ends = {}
    for name, fun in (("common", seeded), ("independent", independent)):
        ends[name] = [
            float(
                (
                    minimize(fun, [1.0, -1.0], AdaptiveGLD(), maxfev=600, rng=seed, noisy=True).x
                    ** 2
                ).sum()
            )
            for seed in range(5)
        ]
    assert np.median(ends["common"]) < 0.2 * np.median(ends["independent"])


def test_seeds_do_not_depend_on_the_workers():
    with ThreadPoolExecutor(3) as threads:
        side_by_side = minimize(
            seeded, [1.0, -1.0], AdaptiveGLD(), maxfev=200, rng=0, workers=threads
        )
    alone = minimize(seeded, [1.0, -1.0], AdaptiveGLD(), maxfev=200, rng=0)
    batched = minimize(seeded_batch, [1.0, -1.0], AdaptiveGLD(), maxfev=200, rng=0, vectorized=True)
    np.testing.assert_array_equal(side_by_side.x, alone.x)
    np.testing.assert_array_equal(batched.x, alone.x)
    assert side_by_side.fun == alone.fun


def test_a_killed_noisy_run_continues_bitwise(tmp_path):
    path = tmp_path / "run.npz"
    whole = minimize(seeded, [1.0, -1.0], AdaptiveGLD(), maxfev=400, rng=0, n_reevaluations=2)

    class KilledError(Exception):
        pass

    def kill(intermediate_result):
        if intermediate_result.nfev > 150:
            raise KilledError

    arguments = {"maxfev": 400, "rng": 0, "n_reevaluations": 2}
    arguments |= {"checkpoint": path, "checkpoint_every": 0}
    with pytest.raises(KilledError):
        minimize(seeded, [1.0, -1.0], AdaptiveGLD(), callback=kill, **arguments)
    resumed = minimize(seeded, [1.0, -1.0], AdaptiveGLD(), **arguments)
    np.testing.assert_array_equal(resumed.x, whole.x)
    assert (resumed.fun, resumed.nfev) == (whole.fun, whole.nfev)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_bad_n_reevaluations(bad):
    with pytest.raises(InvalidValueError, match="n_reevaluations must be a positive integer"):
        minimize(seeded, [1.0], n_reevaluations=bad)
    with pytest.raises(InvalidValueError, match="noisy must be True or False, got 1"):
        minimize(seeded, [1.0], noisy=1)


class FindsNoise(AdaptiveGLD):
    """A solver that reports noise after its second batch."""

    def _tell(self, state, candidates, values):
        if state.n_steps >= 1:
            state.metrics["is_noisy"] = True
        return super()._tell(state, candidates, values)


def test_noise_that_the_solver_finds_is_measured_anew_at_the_end(tmp_path):
    noise = np.random.default_rng(0)
    seen = []

    def fun(x):
        seen.append(float((x**2).sum() + noise.standard_normal()))
        return seen[-1]

    result = minimize(fun, [1.0, 1.0], FindsNoise(), maxfev=400, rng=0)
    assert result.nfev == len(seen) == 400
    # A tenth: eight calls at each of the iterate and the four best points.
    finals = np.array(seen[-40:]).reshape(5, 8).mean(axis=1)
    assert result.fun == pytest.approx(finals.min())
    assert result.fun_iterate == pytest.approx(finals[0])
    assert result.fun > min(seen)
    plain = minimize(fun, [1.0, 1.0], AdaptiveGLD(), maxfev=400, rng=0)
    assert plain.fun == min(seen[-400:])


def test_a_run_that_has_found_noise_is_resumed_as_noisy(tmp_path):
    def fun(x):
        return float((x**2).sum())

    run = {"x0": [1.0, 1.0], "method": FindsNoise(), "rng": 0, "history": True}
    whole = minimize(fun, **run, maxfev=200)
    minimize(fun, **run, maxiter=10, checkpoint=tmp_path / "run")
    resumed = minimize(fun, **run, maxfev=200, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(resumed.history, whole.history)
    assert resumed.fun == whole.fun
    assert len(set(whole.history[-20:])) == 4  # the iterate is one of the four best points
