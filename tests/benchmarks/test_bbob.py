"""BBOB: the score and the ECDF by hand, what a method is given, determinism, noise, files."""

import itertools
import json
import math
import os

import bbob_suite
import ioh
import numpy as np
import pytest
from bbob_plot import draw_ecdf
from bbob_suite import (
    GROUPS,
    N_BUDGETS,
    TARGETS,
    BBOBResult,
    Suite,
    budgets_of,
    load_results,
    run,
    save_results,
)

from zoopt_nas import AdaptiveGLD, InvalidValueError, RunError, UnknownNameError

SMALL = Suite(dims=(2, 3), functions=(1, 8), instances=(1, 2), evals_per_dim=20)
N_TARGETS = 51


def result_of(suite, hit_times):
    return BBOBResult("fake", suite, 0, np.asarray(hit_times, dtype=float))


# --- methods ---


def stay(fun, x0, maxfev, rng):
    """Evaluates x0 for ever."""
    while True:
        fun(x0)


def walk(fun, x0, maxfev, rng):
    """Draws points around x0, and ends by itself before the budget does."""
    for _ in range(maxfev - 1):
        fun(x0 + rng.standard_normal(len(x0)))


def die(fun, x0, maxfev, rng):
    os._exit(3)


def fail(fun, x0, maxfev, rng):
    raise ZeroDivisionError("by the method")


# --- the score ---


def test_targets_and_budgets():
    assert TARGETS.shape == (N_TARGETS,)
    np.testing.assert_allclose(TARGETS[[0, 5, 10, 50]], [100.0, 10.0, 1.0, 1e-8], rtol=1e-12)
    budgets = budgets_of(5, 300)
    assert budgets.shape == (N_BUDGETS,)
    assert (budgets[0], budgets[-1]) == (5, 1500)
    assert budgets[30] == round(5 * 300 ** (30 / 59))
    assert np.all(np.diff(budgets) >= 0)


@pytest.mark.parametrize(("time", "score"), [(1, 1.0), (2, 1.0), (20, 1 / 60), (np.inf, 0.0)])
def test_score_if_all_targets_are_reached_at_once(time, score):
    suite = Suite(dims=[2], functions=[1], instances=[1], evals_per_dim=10)  # 2..20 evaluations
    assert result_of(suite, [[time] * N_TARGETS]).score == pytest.approx(score, abs=1e-15)


def test_score_by_hand():
    suite = Suite(dims=[2], functions=[1, 6], instances=[1], evals_per_dim=10)
    # Function 1: one target at once, one at evaluation 7, the others never. Function 6: none.
    times = np.full((2, N_TARGETS), np.inf)
    times[0, :2] = [1, 7]
    late_enough = sum(round(2 * 10 ** (j / 59)) >= 7 for j in range(60))
    assert late_enough == 29  # 2 * 10^(j / 59) > 6.5 from j = 31 on
    expected = (1 + late_enough / 60) / 51
    result = result_of(suite, times)
    assert result.score == pytest.approx(expected / 2, rel=1e-12)
    assert result.by_function() == {1: pytest.approx(expected), 6: 0.0}
    assert result.by_group() == {"separable": pytest.approx(expected), "moderate": 0.0}
    assert result.by_dim() == {2: result.score}


def test_ecdf_by_hand():
    suite = Suite(dims=[2, 4], functions=[1], instances=[1], evals_per_dim=100)
    times = np.full((2, N_TARGETS), np.inf)
    times[0] = 20  # 10 per dimension
    times[1, :17] = 200  # 50 per dimension, a third of the targets
    result = result_of(suite, times)
    budgets, fractions = result.ecdf()
    np.testing.assert_allclose(budgets, 100 ** (np.arange(60) / 59), rtol=1e-12)
    expected = np.where(np.round(2 * budgets) >= 20, 0.5, 0.0)
    expected += np.where(np.round(4 * budgets) >= 200, 1 / 6, 0.0)
    np.testing.assert_allclose(fractions, expected, rtol=1e-12)
    assert fractions[0] == 0
    assert fractions[-1] == pytest.approx(2 / 3)
    np.testing.assert_allclose(result.ecdf(dims=[4])[1].max(), 1 / 3)
    assert result.score == pytest.approx(fractions.mean())
    with pytest.raises(InvalidValueError, match="must leave a problem"):
        result.ecdf(dims=[3])


def test_parts_make_the_whole():
    suite = Suite(dims=(2, 5), instances=(1, 7))
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(1, 2000, (len(suite.problems), N_TARGETS)), axis=1)
    result = result_of(suite, times)
    sizes = {name: len(functions) for name, functions in GROUPS.items()}
    assert sum(sizes.values()) == 24
    assert sorted(f for functions in GROUPS.values() for f in functions) == list(range(1, 25))
    by_group = sum(size * result.by_group()[name] for name, size in sizes.items()) / 24
    assert by_group == pytest.approx(result.score, rel=1e-12)
    assert np.mean(list(result.by_dim().values())) == pytest.approx(result.score, rel=1e-12)
    assert np.mean(list(result.by_function().values())) == pytest.approx(result.score, rel=1e-12)


# --- what a run does ---


def test_hit_times_of_known_values():
    suite = Suite(dims=[2], functions=[1], instances=[3], evals_per_dim=5)
    x_opt = np.array(ioh.get_problem(1, 3, 2, ioh.ProblemClass.BBOB).optimum.x)

    def method(fun, x0, maxfev, rng):
        # Function 1 is the squared distance. The targets are 100, 10^1.8, ..., 0.1, ...
        for gap in (400, 0.099, 50, np.nan, 0):
            fun(x_opt + np.array([math.sqrt(gap), 0]))

    expected = [2] * 16 + [5] * 35
    np.testing.assert_array_equal(run(method, suite).hit_times, [expected])


@pytest.mark.parametrize("function", [1, 15, 24])
def test_score_against_best_so_far_curves(function):
    suite = Suite(dims=[3], functions=[function], instances=[2], evals_per_dim=30)
    f_opt = ioh.get_problem(function, 2, 3, ioh.ProblemClass.BBOB).optimum.y
    gaps = []

    def method(fun, x0, maxfev, rng):
        for i in itertools.count():
            gaps.append(fun(x0 + 0.9**i * rng.standard_normal(3)) - f_opt)

    score = run(method, suite).score
    best = np.minimum.accumulate(gaps)
    assert len(best) == 90
    budgets = np.round(np.geomspace(3, 90, 60)).astype(int)
    assert 0 < score < 0.5
    assert score == pytest.approx(
        np.mean([[best[b - 1] <= target for target in TARGETS] for b in budgets]), rel=1e-12
    )


def test_what_a_method_is_given():
    calls = []

    def method(fun, x0, maxfev, rng):
        calls.append((x0, maxfev, 0))
        for n in itertools.count(1):
            fun(x0)
            calls[-1] = (x0, maxfev, n)

    run(method, SMALL)
    assert [len(x0) for x0, _, _ in calls] == [dim for dim, _, _ in SMALL.problems]
    assert [n for _, _, n in calls] == [maxfev for _, maxfev, _ in calls] == [40] * 4 + [60] * 4
    starts = [x0 for x0, _, _ in calls]
    assert all(np.all(np.abs(x0) <= 4) for x0 in starts)
    assert len({x0.tobytes() for x0 in starts}) == len(starts)
    x0 = np.random.default_rng([8, 2, 3, 0]).uniform(-4, 4, 3)  # function, instance, dim, seed
    np.testing.assert_array_equal(starts[SMALL.problems.index((3, 8, 2))], x0)


def test_a_solver_or_its_name():
    by_name = run("adaptive_gld", SMALL)
    np.testing.assert_array_equal(run(AdaptiveGLD(), SMALL).hit_times, by_name.hit_times)
    other = run(AdaptiveGLD(max_radius=3.0), SMALL, name="wide")
    assert (by_name.method, other.method) == ("adaptive_gld", "wide")
    assert not np.array_equal(other.hit_times, by_name.hit_times)
    assert np.all(by_name.hit_times[np.isfinite(by_name.hit_times)] <= 60)
    assert run(walk, SMALL).method == "walk"


def test_the_seed_decides_and_workers_do_not():
    suite = Suite(dims=[2], functions=[1, 15], instances=[1, 2], evals_per_dim=20, noise=0.1)
    seen = []
    alone = run(walk, suite, seed=3, progress=lambda n, of: seen.append((n, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    side_by_side = run(walk, suite, seed=3, workers=2)
    np.testing.assert_array_equal(alone.hit_times, side_by_side.hit_times)
    assert not np.array_equal(alone.hit_times, run(walk, suite, seed=4).hit_times)


def test_what_minimize_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(bbob_suite, "minimize", lambda fun, x0, method, **kw: told.append(kw))
    for bounded, noise in ((False, 0.0), (True, 0.0), (False, 0.1)):
        run(
            "quasi_newton",
            Suite(dims=[3], functions=[1], instances=[1], bounded=bounded, noise=noise),
        )
    assert [kw["bounds"] for kw in told] == [None, [(-5.0, 5.0)] * 3, None]
    assert [kw["noisy"] for kw in told] == [False, False, True]
    assert {kw["maxfev"] for kw in told} == {900}
    with pytest.raises(InvalidValueError, match="bounded must be False for a callable"):
        run(walk, Suite(bounded=True))


def test_a_method_that_raises_and_one_that_dies():
    suite = Suite(dims=[2], functions=[4], instances=[1])
    with pytest.raises(ZeroDivisionError, match="by the method"):
        run(fail, suite)
    with pytest.raises(RunError, match=r"a worker died on .*dim=2, function=4, instance=1"):
        run(die, suite, workers=2)


# --- noise ---


def noisy_gaps(kind, noise, seed=0, n=2000):
    """The gap at x0 without noise, and (n,) gaps with noise."""
    suite = Suite([2], [1], [1], evals_per_dim=n // 2, noise=noise, noise_kind=kind)
    problem = ioh.get_problem(1, 1, 2, ioh.ProblemClass.BBOB)
    values, truth = [], []

    def method(fun, x0, maxfev, rng):
        truth.append(problem(x0) - problem.optimum.y)
        while True:
            values.append(fun(x0) - problem.optimum.y)

    result = run(method, suite, seed=seed)
    np.testing.assert_array_equal(result.hit_times == 1, [truth[0] <= TARGETS])
    assert np.isinf(result.hit_times[result.hit_times != 1]).all()
    return truth[0], np.array(values)


def test_additive_noise():
    truth, values = noisy_gaps("additive", 3.0)
    noise = values - truth
    assert abs(noise.mean()) < 5 * 3.0 / math.sqrt(2000)
    assert abs(noise.std() - 3.0) < 5 * 3.0 / math.sqrt(2 * 2000)  # sd of a standard deviation
    np.testing.assert_array_equal(noisy_gaps("additive", 3.0)[1], values)
    assert not np.allclose(noisy_gaps("additive", 3.0, seed=1)[1][:5] - values[:5], 0)


def test_multiplicative_noise():
    truth, values = noisy_gaps("multiplicative", 0.5)
    log_ratio = np.log(values / truth)
    assert abs(log_ratio.mean()) < 5 * 0.5 / math.sqrt(2000)
    assert abs(log_ratio.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * 2000)


# --- mistakes ---


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dims", [1], "dims must be distinct integers from 2 on, got [1]"),
        ("dims", [], "dims must be distinct integers from 2 on, got []"),
        ("dims", 2, "dims must be distinct integers from 2 on, got 2"),
        ("instances", [2, 2], "instances must be distinct integers from 1 on, got [2, 2]"),
        ("functions", [25], "functions must be distinct integers in 1..24, got [25]"),
        ("functions", [1.5], "functions must be distinct integers in 1..24, got [1.5]"),
        ("evals_per_dim", 0, "evals_per_dim must be a positive integer, got 0"),
        ("noise", -1, "noise must be a finite number of at least 0, got -1"),
        ("noise_kind", "pink", "noise_kind must be one of additive, multiplicative, got 'pink'"),
        ("bounded", 1, "bounded must be True or False, got 1"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(InvalidValueError) as caught:
        Suite(**{field: value})
    assert str(caught.value) == message


def test_bad_arguments_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'gld'"):
        run("gdl")
    with pytest.raises(InvalidValueError, match="seed must be a non-negative integer, got -1"):
        run("adaptive_gld", seed=-1)
    with pytest.raises(InvalidValueError, match="method must be the name of a solver"):
        run(3)


# --- files ---


def test_results_survive_a_file(tmp_path):
    rng = np.random.default_rng(0)
    results = []
    for suite in (SMALL, Suite([4], [2], [3], noise=0.1, noise_kind="multiplicative")):
        times = rng.integers(1, 90, (len(suite.problems), N_TARGETS)).astype(float)
        times[rng.random(times.shape) < 0.5] = np.inf
        results.append(BBOBResult("adaptive_gld", suite, 7, times))
    path = tmp_path / "results.json"
    save_results(path, results)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    loaded = load_results(path)
    assert len(loaded) == 2
    for result, again in zip(results, loaded, strict=True):
        assert (again.method, again.suite, again.seed) == ("adaptive_gld", result.suite, 7)
        np.testing.assert_array_equal(again.hit_times, result.hit_times)
        assert again.score == result.score
    entries = json.loads(path.read_text(), parse_constant=pytest.fail)["results"]
    assert [entry["score"] for entry in entries] == [result.score for result in results]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "zoopt_nas.bbob.v1"}',
        '{"format": "zoopt_nas.bbob.v1", "results": [{"method": "a", "seed": 0, "suite": {}, '
        '"hit_times": [[1]]}]}',
    ],
)
def test_another_file_is_refused(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(RunError, match="holds no BBOB results, or is truncated"):
        load_results(path)


def test_files_that_cannot_be(tmp_path):
    (tmp_path / "other.json").write_text('{"format": "zoopt_nas.bbob.v9"}')
    with pytest.raises(RunError, match="has format 'zoopt_nas"):
        load_results(tmp_path / "other.json")
    with pytest.raises(RunError, match="cannot read"):
        load_results(tmp_path / "none.json")
    with pytest.raises(RunError, match="cannot write"):
        save_results(tmp_path / "none" / "results.json", [])


# --- the picture ---


def test_the_picture_shows_the_ecdfs():
    rng = np.random.default_rng(0)
    results = [
        BBOBResult(name, SMALL, 0, rng.integers(1, last, (8, N_TARGETS)).astype(float))
        for name, last in (("slow", 90), ("fast", 20))
    ]
    figure = draw_ecdf(results)
    assert [axes.get_title() for axes in figure.axes] == ["2-D", "3-D", "all"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [f"fast ({results[1].score:.3f})", f"slow ({results[0].score:.3f})"]
    for axes, dims in zip(figure.axes, ([2], [3], [2, 3]), strict=True):
        for line, result in zip(axes.lines, results[::-1], strict=True):
            np.testing.assert_array_equal(line.get_xydata().T, result.ecdf(dims=dims))
    with pytest.raises(InvalidValueError, match="all of the same suite"):
        draw_ecdf([results[0], result_of(Suite([2], [1], [1]), [[1] * N_TARGETS])])
