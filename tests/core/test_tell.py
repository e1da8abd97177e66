"""What `tell` takes: any rows of the batch in any order, late rows, strangers, repaired rows."""

import numpy as np
import pytest

from zoopt_nas import GLD, MGS, RS, InvalidValueError
from zoopt_nas._arrays import to_numpy

PAPER_FORMS = [
    RS(learning_rate=0.02, smoothing=0.01, n_samples=4),
    MGS(sigma=0.025, temperature=0.01, n_samples=8),
    GLD(schedule="search", min_radius=2**-7),
]


def sphere(rows):
    return (np.asarray(to_numpy(rows), dtype=np.float64) ** 2).sum(-1)


def start(namespace, values):
    if namespace == "torch":
        return pytest.importorskip("torch").tensor(
            values, dtype=pytest.importorskip("torch").float32
        )
    return np.array(values)


@pytest.fixture(params=["numpy", "torch"])
def namespace(request):
    return request.param


@pytest.fixture(params=PAPER_FORMS, ids=lambda solver: solver.name)
def solver(request):
    return request.param


def asked(solver, namespace):
    state = solver.init(start(namespace, [1.0, -2.0, 3.0]), rng=0)
    return state, solver.ask(state)


def test_the_order_of_the_rows_does_not_matter(solver, namespace):
    state, rows = asked(solver, namespace)
    solver.tell(state, rows, sphere(rows))
    other, rows = asked(solver, namespace)
    order = np.random.default_rng(1).permutation(len(rows)).tolist()
    solver.tell(other, rows[order], sphere(rows)[order])
    np.testing.assert_array_equal(to_numpy(other.x), to_numpy(state.x))
    assert other.pending is None
    assert other.n_steps == 1


def test_a_missing_row_has_failed(solver, namespace):
    state, rows = asked(solver, namespace)
    values = sphere(rows)
    values[[1, 4]] = np.inf
    solver.tell(state, rows, values)
    other, rows = asked(solver, namespace)
    kept = [k for k in range(len(rows)) if k not in (1, 4)][::-1]
    solver.tell(other, rows[kept], sphere(rows)[kept])
    np.testing.assert_array_equal(to_numpy(other.x), to_numpy(state.x))


def test_late_rows_of_a_closed_batch_change_nothing(solver, namespace):
    state, late = asked(solver, namespace)
    pending = solver.ask(state)  # replaces the first batch
    before = np.array(to_numpy(state.x))
    # A row that equals the iterate belongs to every batch of GLD: it is no late row.
    strangers = late[1:] if solver.name == "gld" else late
    solver.tell(state, strangers, np.full(len(strangers), -1e9))
    assert state.pending is pending
    assert state.n_steps == 0
    solver.tell(state, pending, sphere(pending))
    solver.tell(state, strangers, np.full(len(strangers), -1e9))  # nothing pending, run under way
    assert state.n_steps == 1
    assert not np.array_equal(to_numpy(state.x), before)
    for row in to_numpy(strangers):
        assert not np.array_equal(to_numpy(state.x), row)


def test_late_and_pending_rows_may_come_together(solver, namespace):
    state, late = asked(solver, namespace)
    pending = solver.ask(state)
    other, _ = asked(solver, namespace)
    solver.ask(other)
    solver.tell(state, pending, sphere(pending))
    rows = np.concatenate([to_numpy(late)[1:3], to_numpy(pending)])
    solver.tell(other, rows, np.concatenate([[-1e9, -1e9], sphere(pending)]))
    np.testing.assert_array_equal(to_numpy(other.x), to_numpy(state.x))


def test_points_told_before_the_first_batch_are_a_warm_start(solver, namespace):
    state = solver.init(start(namespace, [1.0, -2.0, 3.0]), rng=0)
    points = np.array([[4.0, 4.0, 4.0], [0.5, 0.25, 0.5], [9.0, 9.0, 9.0]])
    solver.tell(state, points, [5.0, 2.0, np.nan])
    np.testing.assert_array_equal(to_numpy(state.x), points[1])
    assert state.value == 2.0
    solver.tell(state, points[[0]], [3.0])  # worse than what is known
    np.testing.assert_array_equal(to_numpy(state.x), points[1])
    assert state.n_steps == 0
    rows = solver.ask(state)
    assert np.abs(to_numpy(rows) - points[1]).max() <= 1.5


def test_failed_points_are_no_warm_start(solver):
    state = solver.init([1.0, -2.0, 3.0], rng=0)
    solver.tell(state, np.zeros((2, 3)), [np.nan, np.inf])
    np.testing.assert_array_equal(state.x, [1.0, -2.0, 3.0])


def test_equal_rows_are_told_apart_by_their_order():
    solver = GLD(schedule="search", max_radius=1e-300, min_radius=1e-300)
    state = solver.init([1.0], rng=0)
    rows = solver.ask(state)
    assert rows[0] == rows[1]
    solver.tell(state, np.array(rows), [1.0, 2.0])
    assert state.value == 1.0


def test_repaired_rows_are_used_as_given():
    solver = GLD(schedule="search", min_radius=1.0)
    state = solver.init([1.0, 1.0], rng=0)
    clipped = np.clip(solver.ask(state), 0.9, 1.1)
    solver.tell(state, clipped, [1.0, 0.0], repaired=True)
    np.testing.assert_array_equal(state.x, clipped[1])
    with pytest.raises(InvalidValueError, match="repaired rows must follow ask"):
        solver.tell(state, clipped, [1.0, 0.0], repaired=True)
    solver.ask(state)
    with pytest.raises(InvalidValueError, match=r"candidates must have shape \(2, 2\), got \(1, 2"):
        solver.tell(state, clipped[:1], [1.0], repaired=True)
