"""Large problems: the memory of ask and tell, and the gradient that is summed block by block."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from zoopt_nas import SOLVERS
from zoopt_nas._arrays import as_like, to_numpy
from zoopt_nas.solvers.base import SolverState
from zoopt_nas.solvers.engines import subspace

DIM = 200_000
VECTOR = 8 * DIM  # bytes
N_STEPS = 6
N_EXTRA = 3  # vectors beside the candidates
SLACK = 0.05  # vectors: numbers, Python objects, blocks of a fixed size


class NumpyMeter:
    """Bytes of the arrays and Python objects made since it was entered."""

    def __enter__(self):
        tracemalloc.start()
        return self

    def __exit__(self, *_):
        tracemalloc.stop()

    def peak_of(self, task):
        tracemalloc.reset_peak()
        task()
        return tracemalloc.get_traced_memory()[1]


class TorchMeter:
    """Bytes of the tensors on the CPU made by its tasks and not freed yet."""

    def __init__(self):
        self.held = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def peak_of(self, task):
        torch = pytest.importorskip("torch")
        cpu = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            task()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        live = self.held + np.cumsum([0, *sizes])
        self.held = int(live[-1])
        return int(live.max())


METERS = {"numpy": NumpyMeter, "torch": TorchMeter}


def ones(library, dim):
    if library == "numpy":
        return np.ones(dim)
    torch = pytest.importorskip("torch")
    return torch.ones(dim, dtype=torch.float64)


def quadratic(rng, candidates):
    return [float(row @ row) for row in candidates]


def noise(rng, candidates):
    return rng.random(len(candidates))


def plateau(rng, candidates):
    return np.zeros(len(candidates))


def failures(rng, candidates):
    return np.where(rng.random(len(candidates)) < 0.5, np.nan, quadratic(rng, candidates))


TORCH = pytest.param("torch", marks=pytest.mark.slow)


@pytest.mark.parametrize("objective", [quadratic, noise, plateau, failures])
@pytest.mark.parametrize("name", ["quasi_newton", "adaptive_mgs", "adaptive_gld", "auto"])
@pytest.mark.parametrize("library", ["numpy", TORCH])
def test_a_step_holds_the_batch_and_three_vectors(library, name, objective, monkeypatch):
    # As few directions as at 10^6 dimensions.
    monkeypatch.setattr(subspace, "MAX_BATCH_SIZE", subspace.MIN_DIRECTIONS * DIM)
    solver, rng = SOLVERS[name](), np.random.default_rng(0)
    solver.ask(solver.init(ones(library, 200), rng=0))  # imports and caches are no overhead
    x0 = ones(library, DIM)
    run = {}
    with METERS[library]() as meter:
        started = meter.peak_of(lambda: run.update(state=solver.init(x0, rng=0)))
        assert started <= (N_EXTRA + SLACK) * VECTOR

        def ask():
            run.update(batch=solver.ask(run["state"]))

        def tell():
            solver.tell(run["state"], run["batch"], run["values"])

        for _ in range(N_STEPS):
            asked = meter.peak_of(ask)
            n = len(run["batch"])
            run["values"] = objective(rng, run["batch"])
            told = meter.peak_of(tell)
            limit = (n + N_EXTRA + SLACK) * VECTOR
            assert n * VECTOR < asked <= limit
            assert n * VECTOR < told <= limit
            meter.peak_of(lambda: run.pop("batch"))  # or it would live beside the next one


def temporary(x):
    y = x + 1
    return y * 2


@pytest.mark.parametrize("library", METERS)
def test_the_meters_count_what_lives_and_what_is_gone(library):
    x, kept = ones(library, DIM), []
    with METERS[library]() as meter:
        peak = meter.peak_of(lambda: kept.append(temporary(x)))
        assert peak / VECTOR == pytest.approx(2, abs=SLACK)
        peak = meter.peak_of(lambda: kept.append(x + 1))
        assert peak / VECTOR == pytest.approx(2, abs=SLACK)  # of the first, one is left
        meter.peak_of(kept.clear)
        assert meter.peak_of(lambda: None) / VECTOR == pytest.approx(0, abs=SLACK)


@pytest.mark.parametrize("library", METERS)
@pytest.mark.parametrize("n", [3, 40])
def test_the_gradient_summed_by_blocks_is_that_of_the_rows(library, n):
    dim = 50_001  # no multiple of a block
    rng = np.random.default_rng(1)
    x = rng.standard_normal(dim)
    rows = x + 0.01 * rng.standard_normal((n, dim))
    values = rng.standard_normal(n) + 2.0
    values[1], rows[1, 7] = math.inf, math.inf  # a row that failed
    rows[2] = x  # says nothing about the gradient
    expected = np.zeros(dim)
    for row, value in zip(rows, values, strict=True):
        step = row - x
        if np.isfinite(value) and step.any():
            expected += (value - 2.0) * step / np.sum(step * step)
    like = ones(library, 1)
    point = as_like("x", x, like, (dim,))
    state = SolverState(x=point, rng=None, value=2.0)
    gradient = subspace.span_gradient(
        state, as_like("rows", rows, like, rows.shape), as_like("values", values, like, (n,))
    )
    np.testing.assert_allclose(to_numpy(gradient), expected, rtol=1e-9, atol=1e-12)
