"""Two processes never write to one run."""

from __future__ import annotations

import subprocess
import sys

import pytest
from stopping import StopAt

from zoopt_nas.errors import RunError, RunInterrupted
from zoopt_nas.nas.retraining.retrain import resume_training, run_training
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.search.run import resume_search, run_search

pytest.importorskip("fcntl")  # there is no lock on Windows
HELD = r"^cannot continue .*run: another process is writing to it$"


class ResumesInside(Observer):
    """Tries to resume the run that it watches."""

    def __init__(self, resume, folder) -> None:
        self.resume, self.folder, self.refused = resume, folder, 0

    def on_epoch(self, row):
        before = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        with pytest.raises(RunError, match=HELD):
            self.resume(self.folder)
        assert before == {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.refused += 1


@pytest.mark.parametrize("kind", ["search", "train"])
def test_a_run_is_not_resumed_while_it_runs(kind, search_config, train_config, tmp_path):
    run, resume, config = {
        "search": (run_search, resume_search, search_config()),
        "train": (run_training, resume_training, train_config()),
    }[kind]
    observer = ResumesInside(resume, tmp_path / "run")
    run(config, run_dir=tmp_path / "run", observer=observer)
    assert observer.refused == 3
    resume(tmp_path / "run")  # it has ended


def test_a_resumed_run_is_held_as_well(search_config, tmp_path):
    with pytest.raises(RunInterrupted):
        run_search(search_config(), run_dir=tmp_path / "run", observer=StopAt(3))
    observer = ResumesInside(resume_search, tmp_path / "run")
    resume_search(tmp_path / "run", observer=observer)
    assert observer.refused == 2


_HOLD = """
import sys, time
from zoopt_nas._files import holding
from pathlib import Path
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing(search_config, tmp_path):
    with pytest.raises(RunInterrupted):
        run_search(search_config(), run_dir=tmp_path / "run", observer=StopAt(3))
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=HELD):
            resume_search(tmp_path / "run")
    finally:
        other.kill()
        other.communicate()
    assert len(resume_search(tmp_path / "run").metrics) == 3


def test_a_folder_without_locks_is_used_without(monkeypatch, tmp_path):
    import fcntl

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    entered = []
    with RunFolder(tmp_path).held(), RunFolder(tmp_path).held():
        entered.append(True)
    assert entered == [True]


def test_a_run_that_is_gone_is_one_line(tmp_path):
    with (
        pytest.raises(RunError, match=r"cannot continue .*gone: No such file"),
        RunFolder(tmp_path / "gone").held(),
    ):
        pass
