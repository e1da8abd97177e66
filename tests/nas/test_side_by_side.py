"""Runs in several threads of one process: each gives what it gives alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
import torch

from zoopt_nas.nas.networks.counting import count_multiply_adds
from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.retraining.retrain import run_training
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.search.run import run_search

NOISY = Genotype((("noise", 0), ("sep_conv_3x3", 1)) * 4, (("noise", 0), ("skip_connect", 1)) * 4)


class ByTurns(Observer):
    """No run takes its next step before the others have taken theirs, as long as they run."""

    def __init__(self, turns: threading.Barrier) -> None:
        self.turns = turns

    def on_step(self, progress: object) -> None:
        try:
            self.turns.wait(60)
        except threading.BrokenBarrierError:  # another run has ended
            return


def results_of(runs: dict[str, Callable[[Observer | None], Any]]) -> dict[str, Any]:
    """What the runs give side by side."""
    turns = threading.Barrier(len(runs))

    def whole(run: Callable[[Observer | None], Any]) -> Any:
        turns.wait(60)
        try:
            return run(ByTurns(turns))
        finally:
            turns.abort()

    with ThreadPoolExecutor(len(runs)) as pool:
        futures = {name: pool.submit(whole, run) for name, run in runs.items()}
        while wait(futures.values(), timeout=0.01).not_done:
            torch.manual_seed(0)  # as a thread of someone else may
        return {name: future.result() for name, future in futures.items()}


@pytest.mark.parametrize(
    ("algos", "cpu_kernels"), [(("gld", "darts1"), "off"), (("mgs", "sdarts_rs"), "auto")]
)
def test_two_searches_give_what_each_gives_alone(
    algos, cpu_kernels, search_config, without_seconds
):
    common = {
        "space": "small_s4",
        "drop_path": 0.3,
        "cutout": 2,
        "cpu_kernels": cpu_kernels,
        "epochs": 2,
    }
    configs = {
        algo: search_config(algo, seed=seed, threads=threads, **common)
        for algo, seed, threads in zip(algos, (0, 1), (2, None), strict=True)
    }
    alone = {algo: run_search(config) for algo, config in configs.items()}
    runs = {
        algo: (lambda observer, config=config: run_search(config, observer=observer))
        for algo, config in configs.items()
    }
    for algo, found in results_of(runs).items():
        assert torch.equal(found.alpha, alone[algo].alpha)
        assert without_seconds(found.metrics) == without_seconds(alone[algo].metrics)


def test_two_retrainings_give_what_each_gives_alone(train_config):
    configs = {
        seed: train_config(genotype=str(NOISY), drop_path=0.4, cutout=2, epochs=2, seed=int(seed))
        for seed in ("0", "1")
    }
    alone = {seed: run_training(config) for seed, config in configs.items()}
    runs = {
        seed: (lambda observer, config=config: run_training(config, observer=observer))
        for seed, config in configs.items()
    }
    for seed, result in results_of(runs).items():
        for name in ("test_accuracy", "test_loss", "train_accuracy"):
            assert getattr(result, name) == getattr(alone[seed], name)


def test_counting_multiply_adds_draws_nothing_from_the_default_generator():
    torch.manual_seed(0)
    network = DartsNetwork(NOISY, 3, 2, 2, in_channels=1)
    before = torch.get_rng_state()
    assert count_multiply_adds(network, 8, 1) > 0
    assert torch.equal(torch.get_rng_state(), before)
