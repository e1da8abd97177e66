"""How many candidates are evaluated at once, when memory runs out, and whole searches."""

from __future__ import annotations

import pytest
import torch
from stopping import StopAt
from tiny_supernets import NOISY, FakeStream, Setup, setup
from torch import Tensor

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search import candidates as batched
from zoopt_nas.nas.search.candidates import CandidateBatches, CandidateGroup
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.search.run import resume_search, run_search


def values(made: Setup, alphas: Tensor, draw: Draw, size: int | None) -> Tensor:
    return made.objective(candidates_per_batch=size)(alphas, draw)


# --- How many at once ----------------------------------------------------------------------------


class Memory:
    """Stands for a device that runs out of memory with more than ``limit`` candidates."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.asked: list[int] = []

    def __call__(self, alphas: Tensor) -> Tensor:
        self.asked.append(len(alphas))
        if len(alphas) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return alphas[:, 0] * 2


@pytest.mark.parametrize(
    ("limit", "asked", "asked_next"),
    [
        (8, [8, 1], [8, 1]),
        (4, [8, 4, 4, 1], [4, 4, 1]),
        (2, [8, 4, 2, 2, 2, 2, 1], [2, 2, 2, 2, 1]),
        (1, [8, 4, 2, *[1] * 9], [1] * 9),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(limit: int, asked: list[int], asked_next: list[int]):
    memory, batches = Memory(limit), CandidateBatches(8)
    alphas = torch.arange(18.0).view(9, 2)
    for expected in (asked, asked_next):
        memory.asked.clear()
        assert torch.equal(batches.evaluate(memory, alphas, 0), alphas[:, 0] * 2)
        assert memory.asked == expected


def test_one_candidate_that_does_not_fit_is_an_error():
    memory = Memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        CandidateBatches(2).evaluate(memory, torch.zeros(3, 1), 0)
    assert memory.asked == [2, 1]


def test_the_objective_goes_down_to_one_by_one(monkeypatch: pytest.MonkeyPatch):
    made = setup(NOISY)
    draw, alphas = made.objective().draw(), made.alphas(4)
    serial = values(made, alphas, draw, 1)
    plain = CandidateGroup._losses
    n_calls = 0

    def full(self, *inputs):
        nonlocal n_calls
        n_calls += 1
        if n_calls in (2, 3):  # once in the middle of a fit, once at the start
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *inputs)

    monkeypatch.setattr(CandidateGroup, "_losses", full)
    objective = made.objective(candidates_per_batch=4)
    assert torch.equal(objective(alphas, draw), serial)
    assert n_calls == 3
    assert objective.n_evaluations == 4
    assert objective._training.group._steps == {}  # nothing of what did not fit stays


def test_automatic_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    memory, batches = Memory(100), CandidateBatches(None)

    def asked(n: int, n_numbers: int) -> list[int]:
        memory.asked.clear()
        batches.evaluate(memory, torch.zeros(n, 1), n_numbers)
        return list(memory.asked)

    limit = batched.MAX_NUMBERS_ON_CPU
    # The digits at their default size: 64 images of 8x8 and 3 * 4 channels.
    assert limit == 64 * 64 * 12
    assert asked(4, limit) == [4]
    assert asked(9, limit) == [9]
    assert asked(3, limit) == [1, 1, 1]
    assert asked(4, limit + 1) == [1, 1, 1, 1]
    beside = CandidateBatches(None, cpu_kernels=True)
    for n_numbers, expected in ((limit // 4, [4]), (limit // 4 + 1, [1, 1, 1, 1])):
        memory.asked.clear()
        beside.evaluate(memory, torch.zeros(4, 1), n_numbers)
        assert memory.asked == expected
    made = setup()
    draw, alphas = made.objective().draw(), made.alphas(4)
    seen = []
    plain = CandidateBatches.evaluate

    def evaluate(self, function, alphas, n_numbers):
        seen.append(n_numbers)
        return plain(self, function, alphas, n_numbers)

    monkeypatch.setattr(CandidateBatches, "evaluate", evaluate)
    assert torch.equal(values(made, alphas, draw, None), values(made, alphas, draw, 4))
    assert torch.equal(values(made, alphas[:3], draw, None), values(made, alphas[:3], draw, 1))
    assert set(seen) == {6 * 6 * 6 * 6}  # 6 images of 6x6, 3 * 2 channels


def test_automatic_on_cuda_measures_the_first_candidate(monkeypatch: pytest.MonkeyPatch):
    alphas = torch.arange(9.0).view(9, 1)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 350)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 10_000))
    first, fitting = batched._measured(Memory(1), alphas[:1])
    # 800 free, 250 in reserve, of which 0.8 may be taken; 200 for a candidate.
    assert fitting == 4
    assert torch.equal(first, alphas[0] * 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 10_000))
    assert batched._measured(Memory(1), alphas[:1])[1] == 1


@pytest.mark.parametrize("size", [0, -1])
def test_a_wrong_size_is_refused(size: int):
    message = f"candidates_per_batch must be a positive integer, got {size}"
    with pytest.raises(InvalidValueError, match=message):
        setup().objective(candidates_per_batch=size)


# --- Whole searches ------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["small_s3", "small_s4"])
def test_a_search_at_once_is_one_by_one(space: str, search_config):
    results = [
        run_search(
            search_config(
                "mgs",
                space=space,
                inner_steps=2,
                candidates_per_batch=size,
                solver={"n_samples": 4, "temperature": 1.0},
            )
        )
        for size in (1, 4)
    ]
    start = results[0].metrics[0]
    # float32: rounding of 1e-7 is amplified by BatchNorm and by the steps, and divided by the
    # temperature at each update.
    torch.testing.assert_close(results[0].alpha, results[1].alpha, rtol=0, atol=1e-3)
    one, four = (result.metrics[-1] for result in results)
    assert one["evaluations"] == four["evaluations"] > 0
    assert one["val_loss"] == pytest.approx(four["val_loss"], abs=1e-3)
    assert one["val_loss"] != start["val_loss"]


def test_a_search_at_once_goes_on_bit_for_bit(search_config, tmp_path, without_seconds):
    config = search_config("gld", space="small_s4", candidates_per_batch=4)
    whole = run_search(config)
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=StopAt(3))
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, whole.alpha)
    assert without_seconds(again.metrics) == without_seconds(whole.metrics)


# --- On a GPU ------------------------------------------------------------------------------------


def on_cuda(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].to("cuda"), batch[1].to("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("space", ["s3", "darts"])
def test_on_cuda(space: str):
    """No S4: noise of another generator is other noise. The CPU's values, however many at once."""
    made = setup(SPACES[space])
    draw, alphas = made.objective().draw(), made.alphas(7)
    expected = values(made, alphas, draw, 1)
    made.net.to("cuda")
    for state in made.optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].to("cuda")
    draw = Draw([on_cuda(b) for b in draw.train], [on_cuda(b) for b in draw.val], draw.noise_seed)
    for size in (None, 1, 3):
        objective = BilevelObjective(
            made.net,
            made.optimizer,
            FakeStream(0),
            FakeStream(1),
            seed=0,
            inner_steps=3,
            candidates_per_batch=size,
        )
        got = objective(alphas.to("cuda"), draw)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-7, atol=1e-9)
    assert objective.evaluation._batches._limit is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_automatic_on_cuda():
    asked: list[int] = []

    def function(alphas: Tensor) -> Tensor:
        asked.append(len(alphas))
        return (alphas.repeat(1, 1000) * 2).sum(1)

    alphas = torch.ones(5, 2, device="cuda")
    batches = CandidateBatches(None)
    assert torch.equal(batches.evaluate(function, alphas, 0), torch.full((5,), 4000.0).to("cuda"))
    assert asked == [1, 4]
    batches.evaluate(function, alphas, 0)
    assert asked == [1, 4, 5]
