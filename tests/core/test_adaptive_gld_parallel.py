"""GLD with points that were in no batch, and with batches that are asked for again."""

import numpy as np
import pytest

from zoopt_nas import AdaptiveGLD


def sphere_of(rows):
    return (rows**2).sum(1)


def test_a_better_point_that_was_in_no_batch_is_the_new_iterate():
    solver = AdaptiveGLD()
    state = solver.init(np.full(3, 2.0), rng=0)
    for _ in range(3):
        solver.tell(state, solver.ask(state), sphere_of(state.pending))
    solver.tell(state, np.array([[9.0, 9.0, 9.0], [0.5, 0.0, 0.0]]), [243.0, 0.25])
    np.testing.assert_array_equal(state.x, [0.5, 0.0, 0.0])
    assert state.value == 0.25
    assert state.n_steps == 3
    before = state.x.copy()
    solver.tell(state, np.array([[1.0, 0.0, 0.0]]), [1.0])  # worse
    solver.tell(state, np.array([[0.0, 0.0, 0.0]]), [np.nan])  # failed
    np.testing.assert_array_equal(state.x, before)
    solver.ask(state)
    solver.tell(state, np.array([[0.1, 0.0, 0.0]]), [0.01])  # while a batch is out
    np.testing.assert_array_equal(state.x, before)
    for _ in range(40):
        solver.tell(state, solver.ask(state), sphere_of(state.pending))
    assert state.value < 0.2


def test_a_point_told_before_a_restart_is_searched_around():
    solver = AdaptiveGLD(min_radius=0.5, max_radius=1.0)
    state = solver.init(np.zeros(2), rng=0)
    while not state.inner.is_restart:
        solver.tell(state, solver.ask(state), sphere_of(state.pending) + 1.0)
    solver.tell(state, np.array([[30.0, 40.0]]), [0.5])
    rows = solver.ask(state)
    assert np.linalg.norm(rows - [30.0, 40.0], axis=1).max() < 6


def test_the_iterate_is_not_moved_where_values_change():
    noise = np.random.default_rng(0)
    solver = AdaptiveGLD()
    state = solver.init(np.zeros(2), rng=0)
    while not state.inner.is_noisy:
        rows = solver.ask(state)
        solver.tell(state, rows, noise.standard_normal(len(rows)))
    before = state.x.copy()
    solver.tell(state, np.array([[1.0, 1.0]]), [-1e9])
    np.testing.assert_array_equal(state.x, before)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_two_new_directions_are_the_same_point_in_one_dimension(n):
    solver = AdaptiveGLD(n_directions=n)
    for seed in range(10):
        state = solver.init(np.zeros(1), rng=seed)
        for _ in range(30):
            rows = solver.ask(state)
            points = rows[-n:, 0].tolist()
            assert len(set(points)) == len(points)
            solver.tell(state, rows, ((rows - 0.3) ** 2).sum(1))
            if state.inner.is_restart:
                break


def test_to_ask_again_gives_other_directions_also_after_a_failure():
    solver = AdaptiveGLD()
    state = solver.init(np.zeros(4), rng=0)
    rows = solver.ask(state)
    solver.tell(state, rows, 1.0 + np.arange(len(rows)))  # nothing is better than x, row 0
    first, second, third = (solver.ask(state)[-2:].copy() for _ in range(3))
    np.testing.assert_allclose(first, -rows[-2:])  # the mirror images, once
    assert not np.isin(second, first).any()
    assert not np.isin(third, second).any()
