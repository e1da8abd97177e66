"""Stopping and going on: a resumed run is bit for bit the one that was never stopped."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from stopping import StopAt

from zoopt_nas.errors import DivergedError, RunError, RunInterrupted
from zoopt_nas.nas.retraining.retrain import resume_training, run_training
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import EpochLoop, Observer
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.steps.meter import Meter

# 3 epochs of 2 steps, the first of them warm-up, alpha updates before every step after it.
SEARCHES = {
    "gld": {"algo": "gld"},
    "rs": {"algo": "rs"},
    "mgs-s4": {"algo": "mgs", "space": "small_s4"},
    "mgs-m2": {"algo": "mgs", "inner_steps": 2, "val_batches": 2},
    "darts2": {"algo": "darts2"},
}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested checkpoint as one flat mapping; tensors become bytes."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, torch.Tensor):
        return {prefix: (value.dtype, tuple(value.shape), value.numpy().tobytes())}
    else:
        return {prefix: value}
    return {key: leaf for k, v in items for key, leaf in flat(v, f"{prefix}/{k}").items()}


def end_of(path) -> dict[str, Any]:
    """All that a finished run leaves, except how long it took."""
    folder = RunFolder(path)
    rows = [{**row, "seconds": None} for row in folder.rows("metrics.jsonl")]
    checkpoint = flat(folder.load_checkpoint(torch.device("cpu")))
    left = {"rows": rows, "checkpoint": {k: v for k, v in checkpoint.items() if k != "/elapsed"}}
    for name in ("architectures.jsonl", "genotype.json", "config.toml"):
        if (path / name).exists():
            left[name] = (path / name).read_bytes()
    if (path / "weights.pt").exists():
        left["weights.pt"] = flat(torch.load(path / "weights.pt", weights_only=True))
    left["files"] = sorted(entry.name for entry in path.iterdir())
    return left


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """``uninterrupted(key, run)``: the end of a run that is made once for all stop positions."""

    @functools.cache
    def make(key):
        return {}

    def end(key, run) -> dict[str, Any]:
        kept = make(key)
        if not kept:
            path = tmp_path_factory.mktemp("whole") / "run"
            run(path)
            kept |= end_of(path)
        return kept

    return end


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        *(("gld", stop) for stop in (0, 1, 2, 3, 5)),
        *(("mgs-s4", stop) for stop in (1, 3, 4)),
        *(("mgs-m2", stop) for stop in (2, 3)),
        *(("rs", stop) for stop in (3, 5)),
        *(("darts2", stop) for stop in (3, 5)),
    ],
)
def test_a_stopped_search_goes_on_bit_for_bit(name, stop, search_config, tmp_path, uninterrupted):
    config = search_config(**SEARCHES[name])
    path = tmp_path / "run"
    stopped = rf"stopped in epoch {stop // 2 + 1} of 3 and saved in .*run$"
    with pytest.raises(RunInterrupted, match=stopped):
        run_search(config, run_dir=path, observer=StopAt(stop))
    rows = RunFolder(path).rows("metrics.jsonl")
    assert [row["epoch"] for row in rows] == list(range(stop // 2))
    assert not (path / "genotype.json").exists()

    torch.manual_seed(99)  # the state of the global generator must not matter
    result = resume_search(path)
    whole = uninterrupted(name, lambda where: run_search(config, run_dir=where))
    assert end_of(path) == whole
    assert [row["epoch"] for row in result.metrics] == [0, 1, 2]


def test_a_search_stopped_at_every_step_goes_on_bit_for_bit(search_config, tmp_path, uninterrupted):
    config = search_config(**SEARCHES["gld"])
    path = tmp_path / "run"
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=path, observer=StopAt(1))
    for _ in range(4):
        with pytest.raises(RunInterrupted):
            resume_search(path, observer=StopAt(1))
    resume_search(path)
    assert end_of(path) == uninterrupted("gld", lambda where: run_search(config, run_dir=where))


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_a_stopped_retraining_goes_on_bit_for_bit(stop, train_config, tmp_path, uninterrupted):
    config = train_config(
        epochs=3, auxiliary=True, drop_path=0.3, cutout=3, label_smoothing=0.1, n_cells=1
    )
    path = tmp_path / "run"
    with pytest.raises(RunInterrupted, match=rf"stopped in epoch {stop // 4 + 1} of 3 and saved"):
        run_training(config, run_dir=path, observer=StopAt(stop))
    assert not (path / "weights.pt").exists()
    torch.manual_seed(99)
    result = resume_training(path)
    whole = uninterrupted("train", lambda where: run_training(config, run_dir=where))
    assert end_of(path) == whole
    assert result.train_accuracy == whole["rows"][-1]["train_accuracy"]


EXECUTIONS = [{"amp": "bf16"}, {"compile": "on"}, {"channels_last": "off"}, {"threads": 2}]


# Dynamo looks at the gradients of whatever it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("setting", EXECUTIONS, ids=lambda setting: next(iter(setting)))
@pytest.mark.parametrize("kind", ["search", "training"])
def test_how_a_run_is_executed_does_not_disturb_going_on(
    kind, setting, search_config, train_config, tmp_path, monkeypatch
):
    # Inductor takes minutes; this back end traces as it does.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    if kind == "search":
        config, run, resume = search_config("gld", epochs=2, **setting), run_search, resume_search
    else:
        config = train_config(epochs=2, n_cells=1, batch_size=24, **setting)
        run, resume = run_training, resume_training
    run(config, run_dir=tmp_path / "whole")
    with pytest.raises(RunInterrupted):
        run(config, run_dir=tmp_path / "run", observer=StopAt(3))
    resume(tmp_path / "run")
    assert end_of(tmp_path / "run") == end_of(tmp_path / "whole")
    assert torch.get_num_threads() == 1  # conftest.py


def test_the_checks_above_can_fail(search_config, tmp_path, uninterrupted):
    """Another seed ends elsewhere, in the checkpoint as in the rows."""
    config = search_config(**SEARCHES["gld"])
    whole = uninterrupted("gld", lambda where: run_search(config, run_dir=where))
    run_search(config.replace(seed=1), run_dir=tmp_path / "run")
    other = end_of(tmp_path / "run")
    assert other["rows"] != whole["rows"]
    assert other["checkpoint"] != whole["checkpoint"]
    assert other["checkpoint"].keys() == whole["checkpoint"].keys()


def test_a_stop_without_a_folder_says_that_nothing_is_saved(search_config):
    with pytest.raises(RunInterrupted, match="stopped in epoch 1 of 3; nothing is saved"):
        run_search(search_config(), observer=StopAt(1))


def test_observers_see_every_step_and_every_row_after_its_checkpoint(search_config, tmp_path):
    class Recorder(Observer):
        def __init__(self):
            self.steps, self.rows, self.asked, self.saved = [], [], 0, []

        def on_step(self, progress):
            where = (progress.epoch, progress.step, progress.n_epochs, progress.n_steps)
            self.steps.append((*where, progress.meter.loss))

        def on_epoch(self, row):
            self.rows.append(dict(row))
            state = RunFolder(tmp_path / "run").load_checkpoint(torch.device("cpu"))
            self.saved.append((state["epoch"], state["step"]))

        def should_stop(self):
            self.asked += 1
            return False

    seen = Recorder()
    result = run_search(search_config(), run_dir=tmp_path / "run", observer=seen)
    places = [(epoch, step, 3, 2) for epoch in range(3) for step in (1, 2)]
    assert [step[:4] for step in seen.steps] == places
    assert seen.asked == 6
    assert seen.rows == result.metrics
    assert seen.saved == [(1, 0), (2, 0), (3, 0)]
    # The meter is the mean over the epoch so far: at its end, the row's loss.
    assert [seen.steps[i][4] for i in (1, 3, 5)] == [row["train_loss"] for row in seen.rows]


# ------------------------------------------------------------------------ crashes between writes


def test_rows_that_the_checkpoint_does_not_know_are_written_again(
    search_config, tmp_path, uninterrupted
):
    """A kill after the rows of an epoch and before its checkpoint."""
    config = search_config(**SEARCHES["gld"])
    path = tmp_path / "run"
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=path, observer=StopAt(3))
    old = (path / "checkpoint.pt").read_bytes()
    with pytest.raises(RunInterrupted):
        resume_search(path, observer=StopAt(2))  # ends epoch 1, begins epoch 2
    (path / "checkpoint.pt").write_bytes(old)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_lo')
    assert [row["epoch"] for row in RunFolder(path).rows("architectures.jsonl")] == [0, 1]
    resume_search(path)
    assert end_of(path) == uninterrupted("gld", lambda where: run_search(config, run_dir=where))


def test_a_run_without_a_checkpoint_starts_anew(search_config, tmp_path, uninterrupted):
    config = search_config(**SEARCHES["gld"])
    path = tmp_path / "run"
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=path, observer=StopAt(1))
    (path / "checkpoint.pt").unlink()
    folder = RunFolder(path)
    folder.append("metrics.jsonl", {"epoch": 0, "stale": True})
    resume_search(path)
    assert end_of(path) == uninterrupted("gld", lambda where: run_search(config, run_dir=where))


def resume_is_refused(path, message: str) -> None:
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    with pytest.raises(RunError, match=message) as caught:
        resume_search(path)
    assert "\n" not in str(caught.value)
    assert before == {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_a_stream_of_other_batches_is_refused(stopped):
    state = RunFolder(stopped).load_checkpoint(torch.device("cpu"))
    state["own"]["streams"]["train"]["n_used"] = 3  # an epoch has two
    RunFolder(stopped).save_checkpoint(state)
    resume_is_refused(stopped, r"checkpoint in .*run does not belong to its config\.toml")


def test_a_checkpoint_of_the_right_format_with_other_contents_is_refused(stopped):
    RunFolder(stopped).save_checkpoint({"network": {"w": torch.zeros(2)}})  # as weights.pt is
    resume_is_refused(stopped, "does not belong to its config")


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1}\n'])
def test_missing_rows_are_noticed(content, stopped):
    path = stopped / "metrics.jsonl"
    path.unlink() if content is None else path.write_text(content)
    resume_is_refused(stopped, r"metrics\.jsonl must have a row for each of the 1 epochs")


def test_seconds_count_the_time_before_a_stop(search_config, stopped):
    state = RunFolder(stopped).load_checkpoint(torch.device("cpu"))
    assert state["elapsed"] > 0
    RunFolder(stopped).save_checkpoint({**state, "elapsed": 1000.0})
    rows = resume_search(stopped).metrics
    assert rows[1]["seconds"] > 1000
    assert rows[2]["seconds"] < 500


# ------------------------------------------------------------------------ the loop by itself


class Counting(EpochLoop):
    """Two steps an epoch, whose losses are given."""

    def __init__(self, config, losses):
        super().__init__(config, None, torch.device("cpu"))
        self.losses, self.began = list(losses), []

    n_steps = 2

    def begin_epoch(self):
        self.began.append(self.epoch)

    def train_step(self):
        loss = torch.tensor(self.losses.pop(0))
        return loss, torch.eye(2), torch.tensor([0, 0])

    def end_epoch(self):
        return {"infinite": float("inf"), "not": float("nan"), "word": "x"}, None

    def own_state(self):
        return {}

    def load_own_state(self, state):
        pass


def test_rows_hold_means_and_no_number_that_json_lacks(train_config):
    loop = Counting(train_config(epochs=2), [1.0, 2.0, 3.0, 5.0])
    loop.run()
    assert loop.began == [0, 1]
    assert [row["train_loss"] for row in loop.rows] == [1.5, 4.0]
    assert [row["train_accuracy"] for row in loop.rows] == [0.5, 0.5]
    assert all(row["infinite"] is row["not"] is None for row in loop.rows)
    assert loop.rows[0]["word"] == "x"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_non_finite_loss_ends_the_run_at_its_epoch(bad, train_config):
    loop = Counting(train_config(epochs=3), [1.0, 2.0, bad, 1.0, 1.0, 1.0])
    with pytest.raises(DivergedError, match="not finite in epoch 2; start again with a lower lr"):
        loop.run()
    assert [row["epoch"] for row in loop.rows] == [0]


def test_resume_without_a_folder_has_nothing_to_go_back_to(train_config):
    assert Counting(train_config(), []).resume() is False


def test_a_meter_comes_back():
    meter = Meter(torch.device("cpu"))
    meter.update(torch.tensor(0.1), torch.eye(3), torch.tensor([0, 1, 0]))
    other = Meter(torch.device("cpu"))
    other.load_state_dict(meter.state_dict())
    assert (other.loss, other.accuracy) == (meter.loss, 2 / 3)


def test_a_class_with_three_methods_observes(search_config):
    class Three:
        rows = 0

        def on_step(self, progress):
            pass

        def on_epoch(self, row):
            self.rows += 1

        def should_stop(self):
            return False

    watch = Three()
    run_search(search_config(), observer=watch)
    assert watch.rows == 3
