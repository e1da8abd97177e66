"""What the base class checks for every solver, the registry, and a solver of minimal size."""

import re
import runpy
import textwrap
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from zoopt_nas import (
    GLD,
    MGS,
    RS,
    SOLVERS,
    AdaptiveGLD,
    AdaptiveMGS,
    InvalidValueError,
    QuasiNewton,
    UnknownNameError,
    minimize,
)
from zoopt_nas.registry import Registry
from zoopt_nas.solvers import base
from zoopt_nas.testing import SolverConformance


@pytest.fixture(scope="module")
def random_walk(tmp_path_factory):
    """The class at the head of the contract, run as it is written there."""
    text = re.search(r"::\n\n(.*?)\n\n(?=\S)", base.__doc__, re.DOTALL)[1]
    path = tmp_path_factory.mktemp("example") / "random_walk.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return runpy.run_path(str(path))["RandomWalk"]


class TestDocumentedSolver(SolverConformance):
    @pytest.fixture
    def solver(self, random_walk):
        return random_walk()


def test_the_documented_solver_is_a_method_of_minimize(random_walk):
    solver = random_walk(step=0.2)
    result = minimize(lambda x: float(x @ x), [1.0, 1.0], solver, maxfev=400, rng=0)
    assert result.fun < 0.01


@pytest.mark.parametrize("x0", [[1, 2], (1.0, 2.0), np.array([1, 2]), np.array([1.0, 2.0], "f4")])
def test_x0_becomes_floating(x0):
    x = QuasiNewton().init(x0).x
    expected = np.float32 if getattr(x0, "dtype", None) == np.float32 else np.float64
    assert x.dtype == expected
    np.testing.assert_array_equal(x, [1, 2])


def test_torch_x0_keeps_dtype_and_drops_the_graph():
    torch = pytest.importorskip("torch")
    x0 = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    x = QuasiNewton().init(x0).x
    assert x.dtype == torch.bfloat16
    assert not x.requires_grad
    assert QuasiNewton().init(torch.tensor([1, 2])).x.dtype == torch.float64


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        (1.0, r"x0 must be one-dimensional and not empty, got shape \(\)"),
        ([], r"x0 must be one-dimensional and not empty, got shape \(0,\)"),
        ([[1.0]], r"x0 must be one-dimensional and not empty, got shape \(1, 1\)"),
        ([1.0, np.nan], "x0 must be finite, got"),
        ([1j], "x0 must be an array of real numbers, got complex128"),
        (["a"], "x0 must be an array of real numbers, got <U1"),
        ([True], "x0 must be an array of real numbers, got bool"),
        ([None], "x0 must be an array of real numbers, got object"),
        ([[1.0], [1.0, 2.0]], "x0 must be a 1-D array of real numbers"),
    ],
)
def test_bad_x0_is_refused(x0, message):
    with pytest.raises(InvalidValueError, match=message):
        QuasiNewton().init(x0)


def test_bad_torch_x0_is_refused():
    torch = pytest.importorskip("torch")
    for x0, message in [
        (torch.ones(2, 2), r"not empty, got shape \(2, 2\)"),
        (torch.tensor([1j]), r"real numbers, got torch\.complex64"),
        (torch.tensor([torch.inf]), "x0 must be finite"),
    ]:
        with pytest.raises(InvalidValueError, match=message):
            QuasiNewton().init(x0)


@pytest.mark.parametrize("rng", [-1, 1.5, True, "0", np.random.SeedSequence(1)])
def test_bad_rng_is_refused(rng):
    with pytest.raises(InvalidValueError, match="rng must be None, a non-negative integer or a"):
        QuasiNewton().init([1.0], rng=rng)


def test_rng_forms():
    solver = RS(learning_rate=0.1)
    first = solver.ask(solver.init([1.0, 2.0], rng=7))
    np.testing.assert_array_equal(first, solver.ask(solver.init([1.0, 2.0], rng=np.int64(7))))
    generator = np.random.default_rng(7)
    state = solver.init([1.0, 2.0], rng=generator)
    assert state.rng is generator
    np.testing.assert_array_equal(first, solver.ask(state))
    # None is fresh entropy.
    assert not np.array_equal(*(solver.ask(solver.init([1.0, 2.0])) for _ in range(2)))


def test_torch_rng_forms():
    torch = pytest.importorskip("torch")
    x0 = torch.ones(3)
    own = torch.Generator().manual_seed(3)
    assert QuasiNewton().init(x0, rng=own).rng is own
    seeded = [
        QuasiNewton().ask(QuasiNewton().init(x0, rng=np.random.default_rng(5))) for _ in range(2)
    ]
    assert torch.equal(*seeded)
    with pytest.raises(InvalidValueError, match="rng must be None"):
        QuasiNewton().init([1.0], rng=own)  # a torch generator beside NumPy


@pytest.mark.parametrize(
    ("candidates", "values", "message"),
    [
        (np.zeros((8, 3)), np.zeros(8), r"candidates must have shape \(8, 2\), got \(8, 3\)"),
        (np.zeros((7, 2)), np.zeros(8), r"values must have shape \(7,\), got \(8,\)"),
        (0.0, np.zeros(8), r"candidates must have shape \(1, 2\), got \(\)"),
        (np.zeros((8, 2)), np.zeros(7), r"values must have shape \(8,\), got \(7,\)"),
        (np.zeros((8, 2)), np.zeros((8, 1)), r"values must have shape \(8,\), got \(8, 1\)"),
        (np.zeros((8, 2)), 1.0, r"values must have shape \(8,\), got \(\)"),
        (np.zeros((8, 2)), [None] * 8, "values must be an array of real numbers, got"),
        (np.zeros((8, 2)), [1j] * 8, "values must be an array of real numbers, got"),
        (np.zeros((8, 2)), ["1"] * 8, "values must be an array of real numbers, got"),
    ],
)
@pytest.mark.parametrize("namespace", ["numpy", "torch"])
def test_bad_tell_is_refused_and_changes_nothing(namespace, candidates, values, message):
    x0 = np.ones(2)
    if namespace == "torch":
        x0 = pytest.importorskip("torch").tensor(x0)
    solver = QuasiNewton(n_samples=4)
    state = solver.init(x0, rng=0)
    pending = solver.ask(state)
    with pytest.raises(InvalidValueError, match=message):
        solver.tell(state, candidates, values)
    assert state.pending is pending
    assert state.n_steps == 0


def test_ask_again_replaces_the_pending_batch():
    solver = QuasiNewton()
    state = solver.init([1.0, 2.0], rng=0)
    first, second = solver.ask(state), solver.ask(state)
    assert state.pending is second
    assert not np.array_equal(first, second)


def test_guide_is_checked():
    state = AdaptiveMGS().init([1.0, 2.0], rng=0)
    with pytest.raises(InvalidValueError, match=r"guide must have shape \(2,\), got \(3,\)"):
        AdaptiveMGS().ask(state, guide=[1.0, 2.0, 3.0])
    with pytest.raises(InvalidValueError, match="guide must be None for adaptive_gld"):
        AdaptiveGLD().ask(AdaptiveGLD().init([1.0, 2.0]), guide=[0.0, 0.0])


@pytest.mark.parametrize("name", SOLVERS)
def test_hyper_parameters_are_frozen_and_names_agree(name):
    solver = SOLVERS[name]()
    assert solver.name == name
    with pytest.raises(AttributeError):
        solver.n_samples = 3
    assert solver == SOLVERS[name]()


@pytest.mark.parametrize("kind", [RS, MGS])
def test_with_n_samples(kind):
    assert kind().with_n_samples(9) == kind(n_samples=9)
    with pytest.raises(InvalidValueError, match="n_samples must be a positive integer, got -2"):
        kind().with_n_samples(-2)


def test_with_n_samples_needs_the_field(random_walk):
    @dataclass(frozen=True)
    class Fixed(random_walk):
        n_samples: ClassVar[int] = 4

    with pytest.raises(InvalidValueError, match="random_walk has no n_samples to set to 3"):
        Fixed().with_n_samples(3)


def test_scaled_without_annealed_fields_changes_nothing():
    assert AdaptiveGLD().scaled(0.5) == AdaptiveGLD()


def test_registry_lists_its_own_first_and_suggests():
    assert list(SOLVERS)[:3] == ["rs", "mgs", "gld"]
    assert SOLVERS["gld"] is GLD
    with pytest.raises(UnknownNameError, match=r"unknown solver 'gdl'; did you mean 'gld'\?"):
        SOLVERS["gdl"]
    with pytest.raises(UnknownNameError, match=r"unknown thing 'zzz'; known: a, b"):
        Registry("thing", {"a": 1, "b": 2})["zzz"]


def test_registry_finds_entry_points(monkeypatch):
    from importlib.metadata import EntryPoint

    from zoopt_nas import registry

    points = [
        EntryPoint("walk", "zoopt_nas.solvers:RS", "zoopt_nas.solvers"),
        EntryPoint("gld", "zoopt_nas.solvers:RS", "zoopt_nas.solvers"),  # the own entry wins
        EntryPoint("broken", "no_such_module:X", "zoopt_nas.solvers"),  # listed, never imported
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert list(SOLVERS)[-2:] == ["broken", "walk"]
    assert list(SOLVERS).count("gld") == 1
    assert len(SOLVERS) == len(list(SOLVERS))
    assert SOLVERS["walk"] is RS
    assert SOLVERS["gld"] is GLD
