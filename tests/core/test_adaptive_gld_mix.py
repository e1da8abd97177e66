"""What adaptive_gld mixes into a batch: a wide radius and antithetic partners."""

import numpy as np
import pytest

from zoopt_nas import AdaptiveGLD, minimize
from zoopt_nas.problems import sphere
from zoopt_nas.solvers import adaptive_gld
from zoopt_nas.solvers.engines.comparison_metric import MAX_METRIC_DIM


def test_each_sixteenth_batch_has_a_candidate_at_the_wide_radius():
    solver = AdaptiveGLD(max_radius=0.5, restart=False, deterministic=True)
    fun, before, n_wide = sphere(2), np.ones(2), 0
    state = solver.init(before, rng=0)
    for _ in range(200):
        candidates = solver.ask(state)
        solver.tell(state, candidates, [fun(c) for c in candidates])
        lengths = np.linalg.norm(candidates - before, axis=1)
        is_wide = state.n_steps % 16 == 0
        assert len(candidates) == 3 + is_wide
        if is_wide:
            assert lengths[1] == pytest.approx(2.0)  # behind the extrapolation
            n_wide += 1
        before = state.x
    assert n_wide == 12
    assert np.delete(lengths, 1)[1:].max() < 1e-3


def test_the_wide_candidate_finds_another_valley(monkeypatch):
    # A narrow valley around 0 and, a length of 4 away, a wide and deeper one.
    def valleys(x):
        return float(min(100 * x @ x, (x - 4) @ (x - 4) - 1))

    def n_found():
        runs = [
            minimize(valleys, [0.0], AdaptiveGLD(restart=False), maxfev=400, rng=seed)
            for seed in range(10)
        ]
        return sum(run.fun < -0.9 for run in runs)

    assert n_found() == 10
    monkeypatch.setattr(adaptive_gld, "WIDE_PERIOD", 10**9)
    assert n_found() == 0


def test_above_the_metric_nothing_is_mirrored():
    solver = AdaptiveGLD(deterministic=True)
    state = solver.init(np.zeros(MAX_METRIC_DIM + 1), rng=0)
    solver.tell(state, solver.ask(state), [1.0, 2.0, 2.0])
    assert state.inner.failed is None


def test_a_batch_without_success_is_mirrored_once():
    solver = AdaptiveGLD(deterministic=True)
    state = solver.init(np.zeros(3), rng=0)
    steps = []
    for _ in range(5):
        candidates = solver.ask(state)
        steps.append(candidates[-2:])  # x stays at 0
        solver.tell(state, candidates, [1.0, 2.0, 2.0])
    np.testing.assert_array_equal(steps[1], -steps[0])
    np.testing.assert_array_equal(steps[3], -steps[2])
    assert not np.allclose(np.abs(steps[2]), np.abs(steps[1]))
    # A success: the directions that failed beside it are not tried again.
    candidates = solver.ask(state)
    solver.tell(state, candidates, [2.0, 0.5, 2.0])
    after = solver.ask(state)[-2:] - state.x
    assert not np.allclose(after, -(candidates[-2:]))
