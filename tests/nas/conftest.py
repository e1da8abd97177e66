"""What several tests of the search share: a simulated CUDA device, and a run that was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from simulated_device import Device, simulated_device
from stopping import StopAt

from zoopt_nas.errors import RunInterrupted
from zoopt_nas.nas.data import loading
from zoopt_nas.nas.runs import setup
from zoopt_nas.nas.search.run import run_search


@pytest.fixture
def device(monkeypatch) -> Iterator[Device]:
    for module in (loading, setup):
        monkeypatch.setattr(module, "free_memory", lambda device: None)  # only a driver knows
    with simulated_device() as device:
        yield device


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def stopped(stopped_run, search_config, tmp_path):
    """A copy of a search that was stopped in its second epoch."""
    if not stopped_run.exists():
        with pytest.raises(RunInterrupted):
            run_search(search_config("gld"), run_dir=stopped_run, observer=StopAt(3))
    return shutil.copytree(stopped_run, tmp_path / "run")
