"""An allocation that fails in a run is one line, and the run can go on."""

from __future__ import annotations

import pytest
import torch

from zoopt_nas.errors import NotEnoughMemoryError
from zoopt_nas.nas.retraining import retrain, training
from zoopt_nas.nas.retraining.retrain import run_training
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.run import resume_search, run_search

REFUSED = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"
)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(REFUSED),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
        MemoryError(),
    ],
)
def test_a_failed_allocation_is_one_line_and_the_run_can_go_on(
    error, search_config, tmp_path, monkeypatch
):
    whole = run_search(search_config())
    step, calls = Search.train_step, []

    def failing(self):
        calls.append(self.epoch)
        if len(calls) == 4:
            raise error
        return step(self)

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Search, "train_step", failing)
        with pytest.raises(NotEnoughMemoryError) as caught:
            run_search(search_config(), run_dir=path)
    assert str(caught.value) == (
        "out of memory in epoch 2 on cpu: start again and lower batch_size (16) or "
        "init_channels (2), or raise partial_channels (1), or resume where more memory is free"
    )
    assert caught.value.__cause__ is error
    assert RunFolder(path).load_checkpoint(torch.device("cpu"))["epoch"] == 1
    assert torch.equal(resume_search(path).alpha, whole.alpha)


def test_a_failed_allocation_of_the_test_is_one_line(train_config, tmp_path, monkeypatch):
    def failing(*args):
        raise RuntimeError(REFUSED)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", failing)
        with pytest.raises(NotEnoughMemoryError, match=r"^out of memory in the test on cpu: "):
            run_training(train_config(epochs=1), run_dir=tmp_path / "run")
    assert retrain.resume_training(tmp_path / "run").test_loss > 0


def test_other_errors_stay_what_they_are(search_config, monkeypatch):
    def failing(self):
        raise RuntimeError("the size of tensor a must match")

    monkeypatch.setattr(Search, "train_step", failing)
    with pytest.raises(RuntimeError, match="the size of tensor a") as caught:
        run_search(search_config())
    assert not isinstance(caught.value, NotEnoughMemoryError)
