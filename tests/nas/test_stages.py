"""A search in stages: what begins anew with each, what goes on, and what a checkpoint keeps."""

from __future__ import annotations

import math

import pytest
import torch
from stopping import StopAt

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas.analyses.snapshot import Snapshot
from zoopt_nas.nas.networks.counting import count_parameters
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.memory import heaviest_kept
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.methods.darts import FirstOrder
from zoopt_nas.nas.search.run import estimate_search, resume_search, run_search
from zoopt_nas.nas.search.stages import SearchStage, stage_at

KEPT = ((1, 2), (0, 2), (1, 2), (0, 1), (1,)) * 2  # of small_s3, which has five edges in each cell
N_KEPT = tuple(map(len, KEPT))


@pytest.fixture
def two_stages(monkeypatch):
    """darts1 in two stages: of two epochs with one cell, then of three with three cells."""

    def stages(cls, config, space):
        return (
            SearchStage(0, 2, 1, space.sizes),
            SearchStage(2, 3, 3, N_KEPT, drops_skips=True),
        )

    def begin_stage(self):
        self.is_second = True
        self.move_to(torch.full_like(self.alpha, 0.25))

    def load_state_dict(self, state):
        plain_load(self, state)
        self.is_second = state["is_second"]

    plain_load, plain_state = FirstOrder.load_state_dict, FirstOrder.state_dict
    changes = {
        "stages": classmethod(stages),
        "begin_stage": begin_stage,
        "kept": property(lambda self: KEPT if self.is_second else None),
        "skip_dropout": property(lambda self: 0.5 if self.is_second else 0.0),
        "is_second": False,
        "state_dict": lambda self: plain_state(self) | {"is_second": self.is_second},
        "load_state_dict": load_state_dict,
    }
    for name, value in changes.items():
        monkeypatch.setattr(FirstOrder, name, value, raising=False)


@pytest.fixture
def config(search_config, two_stages):
    return search_config("darts1", epochs=5, warmup_epochs=1, auxiliary_skip=0.8, drop_path=0.4)


def searched(config) -> tuple[Search, list[dict]]:
    """The search, and what is seen before each of its weight steps."""
    seen = []

    class Watched(Search):
        def train_step(self):
            optimizer = self._optimizer
            seen.append(
                {
                    "epoch": self.epoch,
                    "lr": optimizer.param_groups[0]["lr"],
                    "drop_path": self.supernet.drop_path_probability,
                    "auxiliary": float(self.supernet.auxiliary_weight),
                    "has_momentum": len(optimizer.state) > 0,
                    "n_cells": len(self.supernet.cells),
                    "images": self._streams["train"].peek()[0],
                    "seeds": self._objective.state_dict()["seeds"],
                }
            )
            return super().train_step()

    search = Watched(config, prepare(config))
    search.run()
    return search, seen


def test_schedules_run_once_in_each_stage(config):
    search, seen = searched(config)
    by_epoch = {one["epoch"]: one for one in reversed(seen)}  # the first step of each epoch
    assert [by_epoch[e]["n_cells"] for e in range(5)] == [1, 1, 3, 3, 3]
    assert [by_epoch[e]["has_momentum"] for e in range(5)] == [False, True, False, True, True]
    fractions = [0, 1 / 2, 0, 1 / 3, 2 / 3]
    lr = [0.001 + 0.024 * (1 + math.cos(math.pi * t)) / 2 for t in fractions]
    assert [by_epoch[e]["lr"] for e in range(5)] == pytest.approx(lr)
    assert [by_epoch[e]["drop_path"] for e in range(5)] == pytest.approx([0, 0.4, 0, 0.2, 0.4])
    auxiliary = [0.8 * (1 - t) for t in fractions]
    assert [by_epoch[e]["auxiliary"] for e in range(5)] == pytest.approx(auxiliary)
    # Two weight steps an epoch, each with an update after the warm-up of the stage.
    assert [row["updates"] for row in search.rows] == [0, 2, 0, 2, 2]


def test_batches_go_on_from_stage_to_stage(config):
    """As in a search with one stage."""
    _, seen = searched(config)
    with pytest.MonkeyPatch.context() as patch:
        one = (SearchStage(0, 5, 1, SPACES["small_s3"].sizes),)
        patch.setattr(FirstOrder, "stages", classmethod(lambda *_: one))
        _, expected = searched(config)
    assert len(seen) == len(expected) == 10
    for one_step, other in zip(seen, expected, strict=True):
        assert one_step["images"].equal(other["images"])


def test_the_draws_of_an_objective_go_on_from_stage_to_stage(config):
    _, seen = searched(config)
    updates = [one["seeds"].numpy().tobytes() for one in seen if one["epoch"] in (1, 3, 4)]
    assert len(set(updates)) == len(updates) == 6


def test_each_stage_has_initial_weights_of_its_own(config):
    def start(search, stage, kept=None):
        return next(search._supernets.build(stage, kept).parameters())

    search = Search(config, prepare(config))
    first, second = search._stages
    assert start(search, first).equal(next(search.supernet.parameters()))
    assert start(search, second).equal(start(search, second, KEPT))
    assert not start(search, second).equal(start(search, first))
    other = Search(config.replace(seed=1), prepare(config))
    assert not start(other, second).equal(start(search, second))


def test_a_row_is_written_before_the_next_stage_begins(config, tmp_path):
    run_search(config, run_dir=tmp_path / "run")
    rows = RunFolder.open(tmp_path / "run").rows("architectures.jsonl")
    assert len(rows) == 5
    assert rows[1]["alpha"] != [0.25] * 30  # the last alpha of the first stage
    assert rows[2]["alpha"] == [0.25] * 30  # warm-up


@pytest.mark.parametrize("n_steps", [3, 4, 5, 9])  # two an epoch; a stage begins after four
def test_a_search_resumes_bit_for_bit_in_each_stage(n_steps, config, tmp_path, without_seconds):
    whole = run_search(config, run_dir=tmp_path / "whole")
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=StopAt(n_steps))
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, whole.alpha)
    assert again.genotype == whole.genotype
    assert without_seconds(again.metrics) == without_seconds(whole.metrics)
    states = [
        RunFolder.open(tmp_path / name).load_checkpoint(torch.device("cpu"))["own"]["supernet"]
        for name in ("whole", "run")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_snapshot_has_the_supernet_of_the_last_stage_without_dropout(config, tmp_path):
    run_search(config, run_dir=tmp_path / "run")
    search = Snapshot(RunFolder.open(tmp_path / "run"))
    assert len(search.supernet.cells) == 3
    objective = search.objective("first", search.draws(1, n_train=1, n_val=1, noise_seed=0))
    values = [float(objective(search.alpha[None])) for _ in range(2)]
    assert values[0] == values[1]


def test_the_estimate_of_the_memory_is_that_of_the_largest_stage(config, search_config):
    dataset = prepare(config).dataset
    found = estimate_search(config, dataset)
    search = Search(config, prepare(config))
    largest = list(search._supernets.largest_after(search._stages[0]))
    assert len(largest) == 1
    assert len(largest[0].cells) == 3
    kept = heaviest_kept(SPACES["small_s3"], N_KEPT)
    assert count_parameters(largest[0]) == count_parameters(
        search._supernets.build(search._stages[1], kept)
    )
    with pytest.MonkeyPatch.context() as patch:
        one = (SearchStage(0, 5, 1, SPACES["small_s3"].sizes),)
        patch.setattr(FirstOrder, "stages", classmethod(lambda *_: one))
        assert estimate_search(config, dataset).total < found.total


def test_the_heaviest_candidates():
    """none and skip_connect have no parameters; of equals the first is kept."""
    space = SPACES["s3"]
    assert heaviest_kept(space, (2,) * 28) == ((0, 2),) * 28
    assert heaviest_kept(space, (1, 3) * 14) == ((2,), (0, 1, 2)) * 14


def test_which_stage_an_epoch_belongs_to():
    stages = [SearchStage(0, 2, 1, ()), SearchStage(2, 3, 2, ()), SearchStage(5, 1, 3, ())]
    assert [stage_at(stages, epoch).n_cells for epoch in range(8)] == [1, 1, 2, 2, 2, 3, 3, 3]


def test_workers_are_refused_because_they_keep_one_supernet(search_config, monkeypatch):
    stages = (SearchStage(0, 1, 1, N_KEPT), SearchStage(1, 1, 3, N_KEPT))
    monkeypatch.setattr(METHODS["mgs"], "stages", classmethod(lambda cls, config, space: stages))
    config = search_config(space="small_s3", algo="mgs", epochs=2, candidate_devices="cpu,cpu")
    with pytest.raises(InvalidValueError) as caught:
        run_search(config)
    expected = "candidate_devices must be empty for mgs, which has several stages"
    assert str(caught.value) == expected
