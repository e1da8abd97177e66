"""Searches on a table: the count of queries, the baselines, the relaxation, the benchmark."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from cell_tables import BEST_CELL, SIGNAL, separable_table, separable_values
from zoopt_nas import SOLVERS
from zoopt_nas.errors import DataError, InvalidValueError, UnknownNameError
from zoopt_nas.nas.tabular import relaxation
from zoopt_nas.nas.tabular.benchmark import Benchmark, MeanStd, accuracies_of, summarize
from zoopt_nas.nas.tabular.plots import draw_benchmark
from zoopt_nas.nas.tabular.queries import MAX_EVALUATIONS_PER_QUERY, OutOfQueries, Queries
from zoopt_nas.nas.tabular.searches import (
    BASELINES,
    POPULATION,
    evolution,
    local_search,
    local_search_first,
    neighbours,
    random_search,
)
from zoopt_nas.nas.tabular.table import (
    COLUMNS,
    N_CELLS,
    PLACES,
    SIGNALS,
    TESTS,
    CellTable,
    cell_of,
    number_of,
)

BEST = number_of(BEST_CELL)


class Recorder(Queries):
    """Remembers every look-up in order."""

    def __init__(self, signal, n_queries):
        super().__init__(signal, n_queries)
        self.log: list[int] = []

    def look_up(self, number):
        value = super().look_up(number)
        self.log.append(number)
        return value


def run(search, n_queries=200, seed=0, signal=SIGNAL) -> Recorder:
    queries = Recorder(signal, n_queries)
    with pytest.raises(OutOfQueries):
        search(queries, np.random.default_rng(seed))
    return queries


# The count of queries


def test_a_known_cell_costs_an_evaluation_and_no_query():
    signal = np.zeros(N_CELLS)
    signal[[3, 5, 7]] = 1.0, 3.0, 2.0
    queries = Queries(signal, 4)
    assert queries.look_up_all([3, 3, 5, 3, 7]).tolist() == [1, 1, 3, 1, 2]
    assert (queries.n_queries, queries.n_evaluations) == (3, 5)
    assert queries.look_up(9) == 0
    with pytest.raises(OutOfQueries):
        queries.look_up(10)
    assert queries.look_up(7) == 2  # known cells stay free
    trace = queries.trace()
    assert trace.by_query.tolist() == [3, 5, 5, 5]
    assert trace.by_evaluation.tolist() == [3, 3, 5, 5]
    assert (trace.n_queries, trace.n_evaluations) == (4, 7)


def test_of_equal_signals_the_first_counts_as_the_best():
    queries = Queries(np.zeros(N_CELLS), 3)
    queries.look_up_all([4, 2, 8])
    assert queries.trace().by_query.tolist() == [4, 4, 4]


def test_a_search_that_asks_for_one_cell_forever_ends():
    queries = Queries(SIGNAL, 5)
    with pytest.raises(OutOfQueries):
        queries.look_up_all(itertools.repeat(11))
    trace = queries.trace()
    assert trace.n_evaluations == 5 * MAX_EVALUATIONS_PER_QUERY
    assert trace.n_queries == 1
    assert trace.by_query.tolist() == trace.by_evaluation.tolist() == [11] * 5


@pytest.mark.parametrize("method", [*BASELINES, "gld", "cma"])
def test_every_method_has_the_same_budget(method):
    traces = Benchmark((method,), n_queries=60, n_runs=2).run(separable_table())[method]
    assert traces.n_queries.tolist() == [60, 60]
    assert (traces.n_evaluations >= 60).all()
    for best in (traces.by_query, traces.by_evaluation):
        assert best.shape == (2, 60)
        assert (np.diff(SIGNAL[best], axis=1) >= 0).all()
    # After as many evaluations, at most as many cells are known.
    assert (SIGNAL[traces.by_evaluation] <= SIGNAL[traces.by_query]).all()


# The baselines


def test_random_search_finds_the_expected_order_statistic():
    n, n_runs = 50, 400
    ranks = np.random.default_rng(1).permutation(N_CELLS).astype(float) + 1  # 1..N
    best = [ranks[run(random_search, n, [2, k], ranks).trace().by_query[-1]] for k in range(n_runs)]
    # The largest of n numbers drawn from 1..N without replacement.
    mean = n * (N_CELLS + 1) / (n + 1)
    variance = n * (N_CELLS - n) * (N_CELLS + 1) / ((n + 1) ** 2 * (n + 2))
    assert abs(np.mean(best) - mean) < 4 * math.sqrt(variance / n_runs)


def test_neighbours_differ_in_one_edge():
    for number in (0, 7342, N_CELLS - 1):
        around = neighbours(number)
        assert len(set(around.tolist())) == 24
        differences = (around[:, None] // PLACES % 5) != np.array(cell_of(number))
        assert (differences.sum(axis=1) == 1).all()
        assert differences.sum(axis=0).tolist() == [4] * 6


def test_evolution_mutates_a_cell_of_the_last_ten():
    log = run(evolution, 150).log
    for k in range(POPULATION, len(log)):
        parents = log[k - POPULATION : k]  # the oldest cell dies at each birth
        assert log[k] in {int(n) for parent in parents for n in neighbours(parent)}


def test_evolution_prefers_good_parents():
    # The expected signal of a uniform cell is 52; with a population it must climb.
    last = np.mean([SIGNAL[run(evolution, 200, k).log[-50:]].mean() for k in range(10)])
    first = np.mean([SIGNAL[run(evolution, 200, k).log[:10]].mean() for k in range(10)])
    spread = SIGNAL.std() / math.sqrt(100)  # of the second mean
    assert abs(first - SIGNAL.mean()) < 4 * spread
    assert last > SIGNAL.mean() + 8 * spread


@pytest.mark.parametrize("seed", range(5))
def test_local_search_climbs_to_the_optimum(seed):
    queries = run(local_search, 200, seed)
    # At most six moves: the first looks up 24 new neighbours, the others 20.
    assert queries.trace().by_query[1 + 24 + 5 * 20 - 1] == BEST


def test_local_search_moves_to_the_best_neighbour_and_starts_anew():
    log = run(local_search, 300, 3).log
    start, position = log[0], 1
    while start != BEST:
        around = log[position : position + 24]
        assert sorted(around) == sorted(neighbours(start).tolist())
        start, position = max(around, key=lambda n: SIGNAL[n]), position + 24
    assert sorted(log[position : position + 24]) == sorted(neighbours(BEST).tolist())
    assert log[position + 24] not in neighbours(BEST)  # a new start


def test_local_search_first_moves_at_once():
    log = run(local_search_first, 200, 0).log
    here = log[0]
    for number in log[1 : log.index(BEST)]:
        assert number in neighbours(here)
        if SIGNAL[number] > SIGNAL[here]:
            here = number


# The relaxation


def test_a_vertex_stands_for_its_cell():
    numbers = np.arange(N_CELLS)
    points = relaxation.vertices(numbers)
    assert points.shape == (N_CELLS, relaxation.DIM)
    assert set(np.unique(points)) == {0.0, 1.0}
    assert np.array_equal(relaxation.decode(points), numbers)
    assert np.array_equal(relaxation.decode(3 * points - 7), numbers)  # only order counts
    assert relaxation.decode(np.zeros((1, 30))).tolist() == [0]  # the first of equal ones


@pytest.mark.parametrize("sigma", [0.2, 0.4, 1.0])
def test_the_expected_number_of_changes(sigma):
    n = 20_000
    steps = sigma * np.random.default_rng(0).standard_normal((n, relaxation.DIM))
    start = 7342
    reached = relaxation.decode(relaxation.vertices(np.array([start])) + steps)
    changes = ((reached[:, None] // PLACES % 5) != np.array(cell_of(start))).sum(axis=1)
    error = 4 * math.sqrt(6 / 4 / n)  # the variance of each of six edges is at most 1/4
    assert abs(changes.mean() - relaxation.expected_changes(sigma)) < error


def test_the_limits_of_the_expected_number_of_changes():
    assert relaxation.expected_changes(1e-3) == pytest.approx(0, abs=1e-12)
    assert relaxation.expected_changes(1e6) == pytest.approx(6 * 4 / 5, rel=1e-4)
    assert 0.6 < relaxation.expected_changes(relaxation.SIGMA) < 0.8  # as its comment says


@pytest.mark.parametrize("name", ["gld", "mgs"])
def test_our_searches_find_the_optimum(name):
    for seed in range(3):
        search = relaxation.search_with
        queries = Queries(SIGNAL, 200)
        with pytest.raises(OutOfQueries):
            search(relaxation.relaxed_solver(name), queries, np.random.default_rng(seed))
        assert queries.trace().by_query[-1] == BEST


@pytest.mark.parametrize("name", [name for name in SOLVERS if SOLVERS.is_built_in(name)])
def test_every_solver_searches(name):
    trace = Benchmark((name,), n_queries=100, n_runs=1).run(separable_table())[name]
    assert trace.n_queries[0] >= 50
    # 50 uniform cells are all below the best tenth with probability 0.5 %.
    assert SIGNAL[trace.by_query[0, -1]] >= np.quantile(SIGNAL, 0.9)


def test_the_options_belong_to_solvers():
    assert {
        name for name in SOLVERS if relaxation.step_options(name, 30, 0.4, keeps_values=True)
    } == set(SOLVERS) - {"auto"}
    gld = relaxation.relaxed_solver("gld")
    assert gld.radii(relaxation.DIM) == [relaxation.SIGMA * math.sqrt(30)]


def test_a_stalled_solver_starts_again(monkeypatch):
    monkeypatch.setattr(relaxation, "PATIENCE", 30)
    monkeypatch.setattr(relaxation, "N_STARTS", 3)
    starts = []
    monkeypatch.setattr(relaxation, "draw_cell", lambda rng: starts.append(BEST) or BEST)
    queries = Queries(SIGNAL, 20)
    with pytest.raises(OutOfQueries):  # nothing is better than the start
        relaxation.search_with(relaxation.relaxed_solver("gld"), queries, np.random.default_rng(0))
    assert len(starts) == 3 * math.ceil(queries.n_evaluations / (3 + 30))


# The benchmark


def test_runs_depend_on_the_seed_and_not_on_workers_or_other_methods():
    table = separable_table()
    methods = ("random", "evolution", "gld")
    settings = {"n_queries": 30, "n_runs": 23, "seed": 4}
    found = Benchmark(methods, **settings).run(table)
    alone = Benchmark(("gld",), **settings).run(table, workers=2)["gld"]
    fewer = Benchmark(("gld",), **{**settings, "n_runs": 3}).run(table)["gld"]
    other = Benchmark(("gld",), **{**settings, "seed": 5}).run(table)["gld"]
    for one, two in zip(found["gld"], alone, strict=True):
        assert np.array_equal(one, two)
    assert np.array_equal(found["gld"].by_query[:3], fewer.by_query)
    assert not np.array_equal(found["gld"].by_query, other.by_query)
    assert not np.array_equal(found["gld"].by_query[0], found["gld"].by_query[1])


def test_searches_see_the_signal_only():
    values = separable_values()
    shown = COLUMNS.index(SIGNALS[1])
    hidden = np.random.default_rng(0).uniform(0, 100, values.shape)
    hidden[:, shown] = values[:, shown]
    benchmark = Benchmark(("evolution", "mgs"), n_queries=40, n_runs=3, signal=SIGNALS[1])
    one, two = benchmark.run(CellTable(values)), benchmark.run(CellTable(hidden))
    for name in one:
        assert np.array_equal(one[name].by_query, two[name].by_query)


def test_true_accuracies_of_what_was_found():
    table = separable_table()
    traces = Benchmark(("evolution",), n_queries=30, n_runs=5).run(table)["evolution"]
    for k, column in enumerate(TESTS):
        expected = SIGNAL[traces.by_query] + 10 * (k + 1)
        assert np.array_equal(accuracies_of(table, traces, column), expected)
        first, last = summarize(table, traces, column, [10, 30])
        assert first.mean == pytest.approx(expected[:, 9].mean())
        assert last.std == pytest.approx(expected[:, 29].std(ddof=1))
    strict = summarize(table, traces, TESTS[0], [30], every_evaluation=True)
    assert strict[0].mean == pytest.approx(SIGNAL[traces.by_evaluation[:, -1]].mean() + 10)
    assert MeanStd.of(np.array([3.0])) == (3.0, 0.0)


def test_progress_counts_runs():
    calls = []
    benchmark = Benchmark(("random", "local_search"), n_queries=5, n_runs=21)
    benchmark.run(separable_table(), on_progress=lambda n, of: calls.append((n, of)))
    assert calls == [(20, 42), (21, 42), (41, 42), (42, 42)]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"methods": ()}, InvalidValueError, "methods must be one or more different names"),
        ({"methods": ("gld", "gld")}, InvalidValueError, "different names"),
        ({"methods": ("evolutoin",)}, UnknownNameError, "did you mean 'evolution'"),
        ({"methods": ("adaptive-gld",)}, UnknownNameError, "did you mean 'adaptive_gld'"),
        ({"n_queries": 0}, InvalidValueError, "n_queries must be a positive integer"),
        ({"n_queries": 15_626}, InvalidValueError, "n_queries must be at most 15625"),
        ({"n_runs": 0}, InvalidValueError, "n_runs must be a positive integer"),
        ({"seed": -1}, InvalidValueError, "seed must be a non-negative integer"),
        ({"signal": TESTS[0]}, UnknownNameError, "unknown signal 'cifar10_test_200ep'"),
    ],
)
def test_what_a_benchmark_refuses(settings, error, message):
    with pytest.raises(error, match=message):
        Benchmark(**{"methods": ("gld",), **settings})


def test_a_benchmark_needs_all_cells():
    values = separable_values()
    values[7] = math.nan
    with pytest.raises(DataError, match=r"the table lacks 1 of 15625 cells, first \|none~0\|"):
        Benchmark(("random",), n_queries=5, n_runs=1).run(CellTable(values))


def test_the_figure_shows_mean_and_standard_error():
    accuracies = np.array([[50.0, 60.0, 70.0], [52.0, 66.0, 70.0]])
    figure = draw_benchmark({"CIFAR-10": {"random": accuracies, "gld": accuracies + 1}}, "queries")
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel()) == ("CIFAR-10 (%)", "queries")
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["random", "gld"]
    assert lines["random"].get_ydata().tolist() == [51, 63, 70]
    assert lines["gld"].get_xdata().tolist() == [1, 2, 3]
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx(
        (50, 70)
    )  # 51 - 1 at the left, no error at the right
