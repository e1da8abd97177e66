"""A run decides its device, execution, solver, updater and model once each."""

from __future__ import annotations

from collections import Counter

import pytest

from zoopt_nas.nas.networks import build
from zoopt_nas.nas.retraining import retrain
from zoopt_nas.nas.retraining.retrain import run_training
from zoopt_nas.nas.runs import setup
from zoopt_nas.nas.search import zero_order
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater
from zoopt_nas.nas.steps.execution import Execution


@pytest.fixture
def made(monkeypatch) -> Counter[str]:
    """How often each thing was decided or built."""
    counts: Counter[str] = Counter()

    def count(owner, name, what):
        original = getattr(owner, name)
        call = original.__func__ if isinstance(original, type(Execution.from_config)) else original

        def counted(*args, **options):
            counts[what] += 1
            return call(*args, **options)

        bound = classmethod(counted) if call is not original else counted
        monkeypatch.setattr(owner, name, bound)

    for module in (setup, retrain):
        count(module, "pick_device", "device")
    count(Execution, "from_config", "execution")
    count(zero_order, "make_solver", "solver")
    count(ZeroOrderUpdater, "__init__", "updater")
    count(build, "DartsSupernet", "supernet")
    count(build, "DartsNetwork", "network")
    count(setup, "load_dataset", "dataset")
    return counts


@pytest.mark.parametrize("algo", ["rs", "mgs", "gld"])
def test_a_search_decides_once(algo, search_config, made, tmp_path):
    once = dict.fromkeys(("device", "execution", "solver", "updater", "supernet", "dataset"), 1)
    run_search(search_config(algo, epochs=1, warmup_epochs=0), run_dir=tmp_path / "run")
    assert made == once
    made.clear()
    resume_search(tmp_path / "run")
    assert made == once


def test_a_retraining_decides_once(train_config, made):
    run_training(train_config(epochs=1))
    assert made == {"device": 1, "execution": 1, "network": 1, "dataset": 1}


def test_the_counter_can_fail(search_config, made):
    config = search_config()
    setup.prepare(config)
    setup.prepare(config)
    assert made == {"device": 2, "execution": 2, "dataset": 2}
