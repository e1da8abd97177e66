"""The contract of solvers as a test class, for NumPy and torch, in float64 and float32."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoopt_nas import SOLVERS, Box, Solver, SolverState, load_state, minimize, save_state
from zoopt_nas._arrays import import_torch, is_torch_array, to_numpy
from zoopt_nas.bounds import BOUND_METHODS

# The examples of a test may share the fixtures below, which are immutable.
conformance_settings = settings(
    deadline=None,
    derandomize=True,
    max_examples=10,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)

dims = st.integers(1, 200)
seeds = st.integers(0, 2**32 - 1)
any_value = st.one_of(
    st.floats(-1e3, 1e3),
    st.sampled_from([1e30, -1e30, 1e308, -1e308, np.nan, np.inf, -np.inf]),
)
failures = st.sampled_from([np.nan, np.inf, -np.inf])


@dataclass(frozen=True)
class Backend:
    """A namespace and a dtype."""

    namespace: str
    dtype: str

    def array(self, values: Any) -> Any:
        """Return ``values`` as an array of this backend."""
        if self.namespace == "numpy":
            return np.array(values, dtype=self.dtype)
        torch = import_torch()
        return torch.tensor(np.array(values, dtype=self.dtype))

    def start(self, dim: int, seed: int) -> Any:
        """Return a standard normal start point, (dim,)."""
        return self.array(np.random.default_rng([seed, dim]).standard_normal(dim))

    def check(self, array: Any) -> None:
        """Assert that ``array`` belongs to this backend."""
        assert is_torch_array(array) == (self.namespace == "torch")
        assert str(array.dtype).removeprefix("torch.") == self.dtype


BACKENDS = [Backend(name, dtype) for name in ("numpy", "torch") for dtype in ("float64", "float32")]


def sphere(points: Any) -> Any:
    """Return the sum of squares along the last axis."""
    with np.errstate(over="ignore"):  # a solver may diverge
        return (points * points).sum(-1)


def run_steps(solver: Solver, state: SolverState, n_steps: int) -> Any:
    """Take ``n_steps`` on the sphere function, and return the iterate as a NumPy array."""
    for _ in range(n_steps):
        candidates = solver.ask(state)
        state = solver.tell(state, candidates, sphere(candidates))
    return to_numpy(state.x)


def _draw_values(data: Any, n: int, values: Any) -> list[float]:
    drawn: list[float] = data.draw(st.lists(values, min_size=n, max_size=n), label="values")
    return drawn


class SolverConformance:
    """The rules for every `Solver`, one per test; supply the fixture ``solver``."""

    @pytest.fixture
    def solver(self) -> Solver:
        """Return the solver under test."""
        raise NotImplementedError("override the fixture `solver`")

    @pytest.fixture(params=BACKENDS, ids=lambda b: f"{b.namespace}-{b.dtype}")
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        """Return the backend under test."""
        backend: Backend = request.param
        if backend.namespace == "torch":
            pytest.importorskip("torch")
        return backend

    @conformance_settings
    @given(dim=dims, seed=seeds)
    def test_ask_gives_finite_candidates_of_the_same_kind(
        self, solver: Solver, backend: Backend, dim: int, seed: int
    ) -> None:
        """Return finite (n, dim) candidates in the namespace and dtype of x0."""
        x0 = backend.start(dim, seed)
        state = solver.init(x0, rng=seed)
        for _ in range(3):
            candidates = solver.ask(state)
            assert candidates.ndim == 2
            assert candidates.shape[0] >= 1
            assert candidates.shape[1] == dim
            backend.check(candidates)
            assert np.isfinite(to_numpy(candidates)).all()
            state = solver.tell(state, candidates, sphere(candidates))
            assert tuple(state.x.shape) == (dim,)
            backend.check(state.x)

    @conformance_settings
    @given(dim=dims, seed=seeds)
    def test_ask_moves_nothing(self, solver: Solver, backend: Backend, dim: int, seed: int) -> None:
        """Keep the iterate and the number of steps in ``ask``."""
        x0 = backend.start(dim, seed)
        before = np.array(to_numpy(x0))
        state = solver.init(x0, rng=seed)
        first = np.array(to_numpy(solver.ask(state)))
        second = to_numpy(solver.ask(state))
        np.testing.assert_array_equal(to_numpy(state.x), before)
        assert state.n_steps == 0
        assert second.shape == first.shape

    @conformance_settings
    @given(dim=dims, seed=seeds)
    def test_x0_and_the_run_share_no_memory(
        self, solver: Solver, backend: Backend, dim: int, seed: int
    ) -> None:
        """Copy x0."""
        x0 = backend.start(dim, seed)
        before = np.array(to_numpy(x0))
        state = solver.init(x0, rng=seed)
        run_steps(solver, state, 3)
        np.testing.assert_array_equal(to_numpy(x0), before)
        state = solver.init(x0, rng=seed)
        x0[:] = 7.0
        np.testing.assert_array_equal(to_numpy(state.x), before)

    @conformance_settings
    @given(dim=dims, seed=seeds)
    def test_same_seed_same_run(
        self, solver: Solver, backend: Backend, dim: int, seed: int
    ) -> None:
        """Be reproducible."""
        x0 = backend.start(dim, seed)
        runs = [run_steps(solver, solver.init(x0, rng=seed), 4) for _ in range(2)]
        np.testing.assert_array_equal(runs[0], runs[1])

    def test_seeds_0_and_1_differ(self, solver: Solver, backend: Backend) -> None:
        """Depend on the seed."""
        x0 = backend.start(20, 0)
        first, second = (to_numpy(solver.ask(solver.init(x0, rng=seed))) for seed in (0, 1))
        assert not np.array_equal(first, second)

    @conformance_settings
    @given(dim=dims, seed=seeds, data=st.data())
    def test_x_stays_finite_whatever_the_values(
        self, solver: Solver, backend: Backend, dim: int, seed: int, data: Any
    ) -> None:
        """Keep the iterate finite under huge values and failures."""
        state = solver.init(backend.start(dim, seed), rng=seed)
        for _ in range(3):
            candidates = solver.ask(state)
            values = _draw_values(data, candidates.shape[0], any_value)
            state = solver.tell(state, candidates, values)
            assert np.isfinite(to_numpy(state.x)).all()
            backend.check(state.x)

    @conformance_settings
    @given(dim=dims, seed=seeds, data=st.data())
    def test_a_batch_of_failures_leaves_x(
        self, solver: Solver, backend: Backend, dim: int, seed: int, data: Any
    ) -> None:
        """Keep the iterate if all evaluations fail."""
        state = solver.init(backend.start(dim, seed), rng=seed)
        run_steps(solver, state, 1)
        before = np.array(to_numpy(state.x))
        candidates = solver.ask(state)
        values = _draw_values(data, candidates.shape[0], failures)
        state = solver.tell(state, candidates, values)
        np.testing.assert_array_equal(to_numpy(state.x), before)

    @conformance_settings
    @given(dim=dims, seed=seeds, data=st.data())
    def test_rows_may_come_in_any_order_and_some_not_at_all(
        self, solver: Solver, backend: Backend, dim: int, seed: int, data: Any
    ) -> None:
        """Recognize rows by their coordinates, and treat missing rows as failures."""
        ends = []
        state = solver.init(backend.start(dim, seed), rng=seed)
        n = solver.ask(state).shape[0]
        told = data.draw(st.permutations(range(n)), label="told")[: data.draw(st.integers(1, n))]
        for in_order in (True, False):
            state = solver.init(backend.start(dim, seed), rng=seed)
            candidates = solver.ask(state)
            values = to_numpy(sphere(candidates)).astype(np.float64)
            if in_order:
                rows, known = np.asarray(to_numpy(candidates)), np.zeros(n, dtype=bool)
                for row in told:  # equal rows cannot be told apart: the first of them count
                    equal = (rows == rows[row]).all(axis=1)
                    known[np.flatnonzero(equal & ~known)[0]] = True
                solver.tell(state, candidates, np.where(known, values, np.inf))
            else:
                solver.tell(state, candidates[told], values[told])
            assert state.pending is None
            ends.append(np.array(to_numpy(state.x)))
            ends.append(np.array(to_numpy(solver.ask(state))))
        np.testing.assert_array_equal(ends[0], ends[2])
        np.testing.assert_array_equal(ends[1], ends[3])

    @conformance_settings
    @given(dim=dims, seed=seeds)
    def test_strangers_and_late_rows_are_no_error(
        self, solver: Solver, backend: Backend, dim: int, seed: int
    ) -> None:
        """Accept points outside of the pending batch without consuming it."""
        state = solver.init(backend.start(dim, seed), rng=seed)
        strangers = backend.array(np.random.default_rng(seed).standard_normal((3, dim)) + 50.0)
        solver.tell(state, strangers, sphere(strangers))
        assert state.n_steps == 0
        for _ in range(3):
            late = backend.array(to_numpy(solver.ask(state)) + 50.0)
            solver.tell(state, late, sphere(late))
            assert state.pending is not None
            solver.tell(state, state.pending, sphere(state.pending))
            solver.tell(state, late, sphere(late))
            assert np.isfinite(to_numpy(state.x)).all()
        assert state.n_steps == 3

    @conformance_settings
    @given(dim=dims, seed=seeds)
    def test_values_may_be_a_list_numpy_or_torch(
        self, solver: Solver, backend: Backend, dim: int, seed: int
    ) -> None:
        """Accept values as a list, NumPy array or torch tensor."""
        x0 = backend.start(dim, seed)
        ends = []
        for convert in (list, np.asarray, backend.array):
            state = solver.init(x0, rng=seed)
            candidates = solver.ask(state)
            # Integers, which every dtype represents exactly.
            values = [float(k * 7 % 5) for k in range(candidates.shape[0])]
            ends.append(to_numpy(solver.tell(state, candidates, convert(values)).x))
        np.testing.assert_array_equal(ends[0], ends[1])
        np.testing.assert_array_equal(ends[0], ends[2])

    @conformance_settings
    @given(dim=dims, seed=seeds, n_before=st.integers(0, 8), is_pending=st.booleans())
    def test_a_saved_run_continues_bitwise(
        self,
        solver: Solver,
        backend: Backend,
        tmp_path: Path,
        dim: int,
        seed: int,
        n_before: int,
        is_pending: bool,
    ) -> None:
        """Continue exactly after saving and loading, and save the same file again."""
        state = solver.init(backend.start(dim, seed), rng=seed)
        run_steps(solver, state, n_before)
        if is_pending:
            solver.ask(state)
        path, second_path = tmp_path / "state.npz", tmp_path / "second.npz"
        save_state(path, solver, state)
        loaded_solver, loaded = load_state(path, solvers={**SOLVERS, solver.name: type(solver)})
        save_state(second_path, loaded_solver, loaded)
        assert path.read_bytes() == second_path.read_bytes()
        assert loaded_solver == solver
        assert loaded.n_steps == n_before
        backend.check(loaded.x)
        for run in (state, loaded):
            if run.pending is not None:
                solver.tell(run, run.pending, sphere(run.pending))
        np.testing.assert_array_equal(run_steps(solver, state, 3), run_steps(solver, loaded, 3))
        # The generators agree, too.
        np.testing.assert_array_equal(to_numpy(solver.ask(state)), to_numpy(solver.ask(loaded)))

    def test_the_global_generators_are_untouched(self, solver: Solver, backend: Backend) -> None:
        """Draw only from the generator of the run."""

        def snapshot() -> tuple[str, str, str]:
            legacy = repr(np.random.get_state())  # noqa: NPY002 (its state is under test)
            torch_state = ""
            if backend.namespace == "torch":
                torch_state = bytes(import_torch().get_rng_state().numpy()).hex()
            return legacy, repr(random.getstate()), torch_state

        before = snapshot()
        for rng in (0, None):
            run_steps(solver, solver.init(backend.start(5, 0), rng=rng), 3)
        assert snapshot() == before

    @conformance_settings
    @given(dim=st.integers(1, 20), seed=seeds, maxfev=st.integers(1, 60))
    def test_maxfev_is_exact(
        self, solver: Solver, backend: Backend, dim: int, seed: int, maxfev: int
    ) -> None:
        """Use exactly the evaluation budget in `minimize`."""
        calls = 0

        def fun(x: Any) -> float:
            nonlocal calls
            calls += 1
            return float(sphere(x))

        result = minimize(fun, backend.start(dim, seed), solver, maxfev=maxfev, rng=seed)
        assert calls == maxfev
        assert result.nfev == maxfev

    @conformance_settings
    @given(dim=dims, seed=seeds, method=st.sampled_from(BOUND_METHODS))
    def test_bounds_hold_at_every_point(
        self, solver: Solver, backend: Backend, dim: int, seed: int, method: str
    ) -> None:
        """Evaluate only points inside of the bounds in `minimize`."""
        seen = []

        def fun(x: Any) -> float:
            seen.append(np.asarray(to_numpy(x), dtype=np.float64))
            return float(seen[-1].sum())

        box = Box(-0.1, [None, 0.1] * (dim // 2) + [0.0] * (dim % 2), method)
        x0 = backend.array(np.zeros(dim))
        result = minimize(fun, x0, solver, bounds=box, maxfev=30, rng=seed)
        seen.append(np.asarray(to_numpy(result.x_iterate), dtype=np.float64))
        assert all(np.all((box.lower <= x) & (x <= box.upper)) for x in seen)

    @conformance_settings
    @given(dim=st.integers(1, 20), seed=seeds)
    def test_a_solver_that_keeps_bounds_asks_only_inside(
        self, solver: Solver, backend: Backend, dim: int, seed: int
    ) -> None:
        """Ask only for points inside of the bounds, with ``keeps_bounds``."""
        if not solver.keeps_bounds:
            pytest.skip("the solver does not know of bounds")
        rng = np.random.default_rng(seed)
        lower, upper = backend.array(rng.uniform(-1, 0, dim)), backend.array(rng.uniform(0, 1, dim))
        x0 = backend.array(np.zeros(dim))
        state = solver.init(x0, rng=seed, bounds=(lower, upper))
        for _ in range(8):
            candidates = solver.ask(state)
            assert bool(((lower <= candidates) & (candidates <= upper)).all())
            solver.tell(state, candidates, -sphere(candidates - 0.3))

    def test_antithetic_rows_are_pairs(self, solver: Solver, backend: Backend) -> None:
        """Return pairs x + d, x - d, if ``antithetic``."""
        if not solver.antithetic:
            pytest.skip("the solver does not draw pairs")
        state = solver.init(backend.array(np.ones(3)), rng=0)
        rows = np.asarray(to_numpy(solver.ask(state)), dtype=np.float64)
        np.testing.assert_allclose((rows[::2] + rows[1::2]) / 2, 1.0, rtol=1e-6)

    def test_minimize_improves_the_sphere(self, solver: Solver, backend: Backend) -> None:
        """Improve the sphere function, and return a consistent result."""
        x0 = backend.array([1.0, -2.0])
        result = minimize(sphere, x0, solver, maxfev=2000, rng=0, vectorized=True)
        assert result.fun < 1.0
        np.testing.assert_allclose(float(sphere(result.x)), result.fun, rtol=1e-5)
        backend.check(result.x)
