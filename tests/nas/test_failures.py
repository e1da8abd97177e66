"""Candidates and gradients without a finite loss: counted by epoch, and the end if all fail."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_supernets import setup

from zoopt_nas.errors import DivergedError, RunInterrupted
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.search.methods import darts, random_search
from zoopt_nas.nas.search.methods.darts import FirstOrder
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.search.updater import N_FAILED, N_TRIED
from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater, config_solver
from zoopt_nas.nas.settings.config import SearchConfig

# With N = 2: samples, pairs, radii and x itself; in two steps an epoch.
PER_EPOCH = {"mgs": 4, "rs": 8, "gld": 6, "lizo": 10}


class Stop(Observer):
    """Stops before the step that follows ``n_steps``."""

    def __init__(self, n_steps: int) -> None:
        self.n_left = n_steps

    def on_step(self, progress):
        self.n_left -= 1

    def should_stop(self):
        return self.n_left <= 0


@pytest.mark.parametrize("algo", PER_EPOCH)
@pytest.mark.parametrize("at_once", [1, 4])
def test_an_epoch_whose_candidates_all_fail_ends_the_search(algo, at_once, search_config, tmp_path):
    config = search_config(algo, inner_lr=1e30, candidates_per_batch=at_once)
    n = PER_EPOCH[algo]
    message = rf"^all {n} candidates of epoch 2 failed: none is finite; start again with a lower "
    with pytest.raises(DivergedError, match=message):
        run_search(config, run_dir=tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    for name in ("metrics.jsonl", "architectures.jsonl"):
        assert [row["epoch"] for row in folder.rows(name)] == [0]
    assert not (folder.path / "genotype.json").exists()
    assert folder.load_checkpoint(torch.device("cpu"))["epoch"] == 1
    with pytest.raises(DivergedError, match=message):  # where it stood
        resume_search(tmp_path / "run")


def test_a_search_that_fails_in_its_first_epoch_has_a_folder_that_can_be_resumed(
    search_config, tmp_path
):
    config = search_config("gld", inner_lr=1e30, warmup_epochs=0)
    with pytest.raises(DivergedError, match="all 6 candidates of epoch 1 failed"):
        run_search(config, run_dir=tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").rows("metrics.jsonl") == []
    with pytest.raises(DivergedError, match="all 6 candidates of epoch 1 failed"):
        resume_search(tmp_path / "run")


@pytest.fixture
def failing(monkeypatch):
    """Every call of the objective after the third one loses its first candidate."""
    plain = BilevelObjective.__call__

    def call(self, alphas, draw=None):
        values = plain(self, alphas, draw)
        if self.n_evaluations > 3 * len(values):
            values = torch.where(torch.arange(len(values)) == 0, math.inf, values)
        return values

    monkeypatch.setattr(BilevelObjective, "__call__", call)


def test_failed_candidates_are_counted_by_epoch(failing, search_config, tmp_path):
    config = search_config("gld", epochs=4)  # 2 updates an epoch after the warm-up
    whole = run_search(config)
    assert [row["failures"] for row in whole.metrics] == [0, 0, 1, 2]
    for n_steps in (5, 7):
        path = tmp_path / f"run{n_steps}"
        with pytest.raises(RunInterrupted):
            run_search(config, run_dir=path, observer=Stop(n_steps))
        again = resume_search(path)
        assert [row["failures"] for row in again.metrics] == [0, 0, 1, 2]
        assert torch.equal(again.alpha, whole.alpha)


def test_a_guide_that_is_not_finite_does_not_spoil_the_candidates(monkeypatch):
    made = setup()
    objective, alpha = made.objective(), made.alphas(1)[0]
    solver = config_solver(SearchConfig.for_dataset(algo="mgs", solver={"mixing": 0.0}))
    updater = ZeroOrderUpdater(solver, alpha, seed=0, schedule="constant")
    asked = []
    plain = type(solver).ask

    def ask(self, state, *, guide=None):
        asked.append((guide, plain(self, state, guide=guide)))
        return asked[-1][1]

    monkeypatch.setattr(type(solver), "ask", ask)
    gradient = torch.zeros_like(alpha)
    gradient[3] = math.nan
    monkeypatch.setattr(objective, "alpha_gradient", lambda alpha, draw: gradient)
    metrics = updater.step(objective, 0.0)
    assert torch.equal(asked[0][0], torch.zeros_like(alpha))
    assert torch.isfinite(asked[0][1]).all()
    assert (int(metrics[N_TRIED]), int(metrics[N_FAILED])) == (4, 0)
    assert torch.isfinite(updater.alpha).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_gradient_that_is_not_finite_moves_nothing(bad, at, monkeypatch):
    made = setup()
    config = SearchConfig.for_dataset(algo="darts1", alpha_lr=0.1)
    updater = FirstOrder(config, made.alphas(1)[0])
    gradients = list(made.alphas(3, seed=1))
    gradients[at][2] = bad
    monkeypatch.setattr(updater, "gradient", lambda objective: gradients[step])
    for step in range(3):
        before = {name: value.clone() for name, value in updater._moving().items()}
        metrics = updater.step(None, 0.0)
        assert (metrics[N_TRIED], int(metrics[N_FAILED])) == (1, step == at)
        for name, value in updater._moving().items():
            assert torch.isfinite(value).all()
            old = before.get(name, torch.zeros_like(value))
            assert torch.equal(value, old) == (step == at), (step, name)


@pytest.mark.parametrize("algo", ["darts1", "darts2", "l2", "es", "pc", "sdarts_rs"])
def test_gradients_that_all_fail_end_the_search(algo, search_config, monkeypatch):
    for name in ("first_order_gradient", "second_order_gradient"):
        monkeypatch.setattr(darts, name, lambda objective, alpha: alpha * math.nan)
    size = {"init_channels": 4, "partial_channels": 2} if algo == "pc" else {}
    with pytest.raises(DivergedError, match=r"^all 2 gradients in alpha of epoch 2 failed"):
        run_search(search_config(algo, warmup_epochs=1, **size))


def test_an_unrolled_step_that_overflows_ends_the_search(search_config):
    with pytest.raises(DivergedError, match=r"^all 2 gradients in alpha of epoch 2 failed"):
        run_search(search_config("darts2", inner_lr=1e30))


def test_weights_that_diverge_are_said_to_be_the_cause(search_config):
    with pytest.raises(DivergedError, match="training loss is not finite in epoch 1"):
        run_search(search_config("gld", lr=1e30, warmup_epochs=0, grad_clip=1e30))


@pytest.mark.parametrize("is_last", [True, False])
def test_random_search_counts_failures_and_ends_if_all_fail(is_last, search_config, monkeypatch):
    monkeypatch.setattr(random_search, "N_SAMPLES", 10)
    plain = BilevelObjective.path_loss
    calls: list[float] = []

    def path_loss(self, path, draw):
        calls.append(math.nan if len(calls) in failing_calls else float(plain(self, path, draw)))
        return torch.tensor(calls[-1])

    monkeypatch.setattr(BilevelObjective, "path_loss", path_loss)
    config = search_config("random_ws", epochs=1 if is_last else 2, warmup_epochs=0)
    failing_calls = {2, 5, 6}
    assert run_search(config).metrics[0]["failures"] == 3
    calls.clear()
    failing_calls = set(range(10))
    with pytest.raises(DivergedError, match=r"^all 10 candidates of epoch 1 failed"):
        run_search(config)
    calls.clear()
    failing_calls = set(range(10, 1000))  # on the batches of the second round
    with pytest.raises(DivergedError, match=r"^all 10 candidates of epoch 1 failed"):
        run_search(config)


def test_a_solver_sees_no_counts(search_config):
    """They are sums, not means, and no columns of their own."""
    search = run_search(search_config("mgs"))
    assert all({N_TRIED, N_FAILED}.isdisjoint(row) for row in search.metrics)
    assert isinstance(search.metrics[-1]["failures"], int)
