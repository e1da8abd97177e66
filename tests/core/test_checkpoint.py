"""Save and resume bitwise and atomically; reject other files with a one-line error."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import zoopt_nas
from zoopt_nas import (
    GLD,
    MGS,
    RS,
    AdaptiveGLD,
    InvalidValueError,
    QuasiNewton,
    RunError,
    SolverState,
    load_state,
    save_state,
)
from zoopt_nas._arrays import encode_generator
from zoopt_nas.testing import run_steps


@pytest.fixture
def saved(tmp_path):
    solver = RS(learning_rate=0.05)
    state = solver.init([1.0, -1.0], rng=0)
    run_steps(solver, state, 2)
    path = tmp_path / "state.npz"
    save_state(path, solver, state)
    return path


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_every_numpy_bit_generator_resumes(tmp_path, kind):
    solver = AdaptiveGLD()
    state = solver.init(np.ones(3), rng=np.random.Generator(getattr(np.random, kind)(5)))
    run_steps(solver, state, 2)
    save_state(tmp_path / "s.npz", solver, state)
    _, loaded = load_state(tmp_path / "s.npz")
    assert type(loaded.rng.bit_generator).__name__ == kind
    np.testing.assert_array_equal(run_steps(solver, state, 3), run_steps(solver, loaded, 3))
    assert encode_generator(state.rng) == encode_generator(loaded.rng)


def test_inner_metrics_and_pending_come_back():
    solver = MGS(temperature=0.01, weighting="exact", mixing=0.2)
    state = solver.init(np.ones(3, dtype=np.float32), rng=0)
    candidates = solver.ask(state, guide=[0.1, 0.2, 0.3])
    solver.tell(state, candidates, [1, 2, 3, 4])
    solver.ask(state, guide=[0.3, 0.2, 0.1])
    data = state.to_dict()
    json.dumps(data["meta"])  # JSON-able
    assert all(isinstance(array, np.ndarray) for array in data["arrays"].values())
    loaded = SolverState.from_dict(data, solver.inner_states)
    assert loaded.x.dtype == np.float32
    np.testing.assert_array_equal(loaded.pending, state.pending)
    np.testing.assert_array_equal(loaded.inner.guide, state.inner.guide)
    assert loaded.metrics == state.metrics
    assert [type(v) for v in loaded.metrics.values()] == [type(v) for v in state.metrics.values()]


def test_the_dict_is_a_copy():
    solver = QuasiNewton()
    state = solver.init([1.0, -1.0], rng=0)
    data = state.to_dict()
    first = run_steps(solver, SolverState.from_dict(data, solver.inner_states), 3)
    run_steps(solver, state, 3)
    np.testing.assert_array_equal(
        run_steps(solver, SolverState.from_dict(data, solver.inner_states), 3), first
    )


def test_torch_dtype_and_device_come_back(tmp_path):
    torch = pytest.importorskip("torch")
    solver = GLD(schedule="search", deterministic=True)
    state = solver.init(torch.ones(3, dtype=torch.bfloat16), rng=0)
    run_steps(solver, state, 2)
    save_state(tmp_path / "s.npz", solver, state)
    _, loaded = load_state(tmp_path / "s.npz")
    assert loaded.x.dtype == torch.bfloat16
    assert loaded.x.device == state.x.device
    assert torch.equal(loaded.x, state.x)
    assert loaded.value.dtype == torch.float64
    np.testing.assert_array_equal(
        run_steps(solver, state, 3).astype(float), run_steps(solver, loaded, 3).astype(float)
    )


def test_numpy_scalars_as_fields_are_saved(tmp_path):
    solver = RS(learning_rate=np.float32(0.5), n_samples=np.int64(3))
    save_state(tmp_path / "s.npz", solver, solver.init([1.0]))
    assert load_state(tmp_path / "s.npz")[0] == solver


def test_no_suffix_is_added_and_nothing_else_is_left(saved):
    path = saved.with_name("plain")
    solver, state = load_state(saved)
    save_state(path, solver, state)
    save_state(path, solver, state)  # replaces
    assert sorted(p.name for p in saved.parent.iterdir()) == ["plain", "state.npz"]


def test_a_failed_write_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    solver, state = load_state(saved)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(RunError, match=r"cannot write .*state.npz: No space left on device"):
        save_state(saved, solver, state)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_one_line(saved, fraction):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(RunError) as caught:
        load_state(saved)
    assert str(caught.value) == f"{saved} is not a saved solver state, or is truncated"


def test_flipped_bytes_are_noticed(saved):
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 0xFF
    saved.write_bytes(bytes(data))
    with pytest.raises(RunError):
        load_state(saved)


def write_text(path):
    path.write_text("hello")


def write_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def write_foreign_npz(path):
    with path.open("wb") as file:
        np.savez(file, weights=np.ones(3))


def write_pickle(path):
    with path.open("wb") as file:
        np.savez(file, meta=np.array([{"a": 1}], dtype=object))


def write_json_list(path):
    with path.open("wb") as file:
        np.savez(file, meta=np.array("[1, 2]"))


@pytest.mark.parametrize(
    "write", [write_text, write_array, write_foreign_npz, write_pickle, write_json_list]
)
def test_a_foreign_file_is_one_line(tmp_path, write):
    path = tmp_path / "foreign.npz"
    write(path)
    with pytest.raises(RunError, match="is not a saved solver state, or is truncated"):
        load_state(path)


@dataclass
class Count:
    """The inner state of `Counting`."""

    n: int


@dataclass(frozen=True)
class Counting(RS):
    """A solver whose state has another name than in the file."""

    inner_states: ClassVar[tuple[type, ...]] = (Count,)

    def _init(self, state):
        state.inner = Count(1)


@dataclass
class Other:
    """A class that no solver declares."""

    n: int


@dataclass
class Longer:
    """A class with other fields than in the file."""

    n: int
    m: int


Longer.__name__ = "Count"


@pytest.mark.parametrize("known", [(), (Other,), (Longer,)])
def test_an_unknown_class_or_field_is_one_line(tmp_path, monkeypatch, known):
    path = tmp_path / "s.npz"
    save_state(path, Counting(), Counting().init([1.0]))
    assert load_state(path, solvers={"rs": Counting})[1].inner == Count(1)
    monkeypatch.setattr(Counting, "inner_states", known)
    with pytest.raises(RunError) as caught:
        load_state(path, solvers={"rs": Counting})
    assert str(caught.value) == f"{path} is not a saved solver state, or is truncated"


def test_two_classes_of_one_name_are_refused_before_they_are_saved():
    with pytest.raises(InvalidValueError) as caught:
        type("Mixed", (Counting,), {"inner_states": (Count, Longer)})
    expected = "Mixed.inner_states holds two classes called 'Count'; rename one"
    assert str(caught.value) == expected


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*none.npz: No such file or directory"):
        load_state(tmp_path / "none.npz")
    solver = QuasiNewton()
    with pytest.raises(RunError, match=r"cannot write .*: No such file or directory"):
        save_state(tmp_path / "no" / "folder.npz", solver, solver.init([1.0]))


def test_another_format_and_an_unknown_solver(saved, monkeypatch):
    with pytest.raises(RunError, match="was saved by an unknown solver, 'rs'"):
        load_state(saved, solvers={"gld": GLD})
    monkeypatch.setattr(zoopt_nas.checkpoint, "_FORMAT", "zoopt_nas.state.v2")
    with pytest.raises(RunError, match=r"has format 'zoopt_nas\.state\.v1', expected"):
        load_state(saved)


def test_a_state_of_a_gpu_goes_on_on_the_cpu(tmp_path):
    """The numbers are kept, and the generator, which has another kind of state, is seeded."""
    torch = pytest.importorskip("torch")
    solver = GLD(schedule="search")
    data = solver.init(torch.tensor([1.5, -2.0]), rng=0).to_dict()
    text = json.dumps(data["meta"]).replace('"device": "cpu"', '"device": "cuda:0"')
    meta = json.loads(text)
    points = []
    for last in "001":
        meta["generators"][0]["state"] = "17" * 15 + "0" + last  # 16 bytes, as on a GPU
        saved = {"arrays": data["arrays"], "meta": meta}
        state = SolverState.from_dict(saved, solver.inner_states, device="cpu")
        assert state.x.tolist() == [1.5, -2.0]
        assert state.rng.device.type == "cpu"
        points.append(run_steps(solver, state, 3).tolist())
    assert points[0] == points[1] != points[2]
