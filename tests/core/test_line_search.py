"""The line search of BFGS: it ends at a step that the Wolfe conditions allow, or fails."""

import math

import pytest

from zoopt_nas.solvers.line_search import LineSearch

LINES = {
    "parabola": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "far": (lambda t: (t - 1e4) ** 2, lambda t: 2 * (t - 1e4)),
    "near": (lambda t: (t - 1e-6) ** 2, lambda t: 2 * (t - 1e-6)),
    "quartic": (lambda t: (t - 2) ** 4, lambda t: 4 * (t - 2) ** 3),
    "waves": (lambda t: math.sin(t) * 3 - t, lambda t: math.cos(t) * 3 - 1),
    # More and Thuente, Eq. 5.1 with b = 2.
    "more_thuente": (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
    "barrier": (
        lambda t: -math.log(2 - t) - 9 * t if t < 2 else math.inf,
        lambda t: 1 / (2 - t) - 9,
    ),
}


@pytest.mark.parametrize("first", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("name", LINES)
def test_a_line_search_ends_where_the_wolfe_conditions_hold(name, first):
    value, slope = LINES[name]
    start = (value(0.0), slope(0.0))
    if start[1] > 0:
        turned = slope
        value, slope = (lambda t: LINES[name][0](-t)), (lambda t: -turned(-t))
        start = (value(0.0), slope(0.0))
    search = LineSearch(*start, first)
    n_trials = 0
    while not (search.is_done or search.has_failed):
        n_trials += 1
        t = search.step
        search.tell(value(t), slope(t) if math.isfinite(value(t)) else math.nan)
    assert search.is_done
    assert n_trials <= 20
    assert value(search.step) <= start[0] + 1e-4 * search.step * start[1]
    assert abs(slope(search.step)) <= 0.9 * abs(start[1])


@pytest.mark.parametrize("slope", [0.0, 1.0, math.nan])
def test_no_line_search_along_a_rise(slope):
    assert LineSearch(1.0, slope, 1.0).has_failed


def test_a_line_search_along_a_fall_without_end_fails():
    search = LineSearch(0.0, -1.0, 1.0)
    while not (search.is_done or search.has_failed):
        search.tell(-search.step, -1.0)
    assert search.has_failed
    assert search.best.value < -1e6
