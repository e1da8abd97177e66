"""Several observers of one run, and the log for TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stopping import StopAt

from zoopt_nas.errors import MissingDependencyError, RunError, RunInterrupted
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.observers import Observers, TensorBoardLog
from zoopt_nas.nas.search.run import resume_search, run_search

# TensorBoard and protobuf import modules that warn of their end.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in a log, as TensorBoard shows them: ``(step, value)`` by name."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


class Counter(Observer):
    """Counts steps and epochs."""

    def __init__(self) -> None:
        self.counts = [0, 0]

    def on_step(self, progress):
        self.counts[0] += 1

    def on_epoch(self, row):
        self.counts[1] += 1


def test_all_observers_see_the_run_and_one_can_stop_it(search_config, tmp_path):
    first, second = Counter(), Counter()
    with pytest.raises(RunInterrupted):
        run_search(search_config(), observer=Observers(first, StopAt(3), second))
    assert first.counts == second.counts == [3, 1]


def test_the_log_has_every_number_of_the_metrics(search_config, tmp_path):
    run = tmp_path / "run"
    result = run_search(search_config(), run_dir=run, observer=TensorBoardLog(run / "tensorboard"))
    found = logged(run / "tensorboard")
    numbers = {n for n, x in result.metrics[0].items() if isinstance(x, int | float)} - {"epoch"}
    assert set(found) == numbers >= {"val_accuracy", "skip_connections", "seconds"}
    for name in numbers:
        expected = [(row["epoch"], row[name]) for row in result.metrics]
        assert [step for step, _ in found[name]] == [0, 1, 2]
        assert [x for _, x in found[name]] == pytest.approx([x for _, x in expected], rel=1e-6)


def test_a_resumed_run_overwrites_the_epochs_that_it_repeats(search_config, tmp_path):
    run, log = tmp_path / "run", tmp_path / "run" / "tensorboard"
    with pytest.raises(RunInterrupted):
        run_search(search_config(), run_dir=run, observer=Observers(TensorBoardLog(log), StopAt(3)))
    # As a process killed after it had logged an epoch, and before it saved that.
    lost = TensorBoardLog(log)
    lost.on_epoch({"epoch": 1, "val_accuracy": 77.0})
    result = resume_search(run, observer=TensorBoardLog(log))
    accuracies = {row["epoch"]: row["val_accuracy"] for row in result.metrics}
    assert dict(logged(log)["val_accuracy"]) == pytest.approx(accuracies, rel=1e-6)


def test_without_tensorboard_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'zoopt-nas\[tensorboard\]'"):
        TensorBoardLog(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(search_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot make the folder .*file/log: Not a directory"):
        run_search(search_config(), observer=TensorBoardLog(tmp_path / "file" / "log"))
