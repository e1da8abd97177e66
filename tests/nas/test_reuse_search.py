"""Searches that take over fits of candidates in place of weight steps."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import pytest
import torch
from tiny_supernets import FakeStream, fixed_draw, flat_momentum, flat_weights, plain_fit, setup

from zoopt_nas import GLD
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.runs.loop import load_run_dataset
from zoopt_nas.nas.search import algorithm as search_module
from zoopt_nas.nas.search.algorithm import Search, run_search
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.reuse import check_reuse, renew_statistics
from zoopt_nas.nas.search.updater import ZeroOrderUpdater

# --- BatchNorm's running statistics --------------------------------------------------------------


def test_statistics_are_the_mean_over_the_batches():
    made = setup()
    alpha = made.alphas(1)[0]
    norm = next(m for m in made.net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    inputs = []
    norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for buffer in (norm.running_mean, norm.running_var):
        buffer.fill_(1e6)
    before = flat_weights(made.net)
    stream = FakeStream(3)
    made.net.eval()
    renew_statistics(
        made.net,
        lambda images: made.net(images, alpha),
        (stream.next_batch() for _ in range(4)),
    )
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-9, atol=1e-9)
    momenta = {m.momentum for m in made.net.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}
    assert made.net.training
    assert torch.equal(flat_weights(made.net), before)


# --- The search ----------------------------------------------------------------------------------

# 32 images in batches of 8: 4 weight steps an epoch, updates before steps 0 and 2.
PERIODS = {"batch_size": 8, "inner_steps": 2, "epochs": 3, "warmup_epochs": 1, "reuse_fits": True}


def new_search(config) -> Search:
    return Search(config, load_run_dataset(config, ("train",)))


def state_of(search: Search) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "weights": flat_weights(search.supernet),
            "momentum": flat_momentum(search.supernet, search._optimizer),
            "alpha": search.alpha,
            "train": search._streams["train"].state_dict()["n_used"],
            "inner": search._streams["inner"].state_dict()["n_used"],
        }
    )


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key in before if torch.equal(*map(torch.as_tensor, (before[key], after[key])))}


def test_a_search_takes_the_fit_and_no_step_until_the_next_update(search_config, monkeypatch):
    search = new_search(search_config("gld", **PERIODS))
    search.begin_epoch()
    for _ in range(4):  # the warm-up
        assert search.train_step() is not None
        search.step += 1
    search.epoch, search.step = 1, 0
    draw = fixed_draw(search._objective, monkeypatch)
    before = state_of(search)
    net = copy.deepcopy(search.supernet)
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    sgd.load_state_dict(copy.deepcopy(search._optimizer.state_dict()))
    buffers = copy.deepcopy(dict(search.supernet.named_buffers()))

    assert search.train_step() is None
    after = state_of(search)
    plain = plain_fit(net, sgd, search.alpha, draw)
    assert torch.equal(after["weights"], plain.weights)
    assert torch.equal(after["momentum"], plain.momentum)
    assert torch.equal(search._meter.sums, plain.meter.sums)
    assert after["train"] == before["train"]
    assert all(torch.equal(b, buffers[name]) for name, b in search.supernet.named_buffers())
    assert search._objective.fits is None  # it is not kept longer than it must

    search.step = 1
    assert search.train_step() is None
    assert unchanged(after, state_of(search)) == set(after)
    search.step = 2
    search.train_step()
    assert not {"weights", "momentum"} & unchanged(after, state_of(search))


@pytest.mark.parametrize("algo", ["gld", "mgs"])
def test_rows_of_a_search(algo, search_config):
    rows = run_search(search_config(algo, **PERIODS)).metrics
    plain = run_search(search_config(algo, **(PERIODS | {"reuse_fits": False}))).metrics
    for name in ("updates", "evaluations", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in plain]
    assert ["fits_taken" in row for row in rows] == [False, True, True]
    assert [row["fits_taken"] for row in rows[1:]] == [1.0, 1.0]
    assert not any("fits_taken" in row for row in plain)
    assert rows[0]["train_loss"] == plain[0]["train_loss"]  # the warm-up is the same
    assert all(0 < row["train_loss"] < 5 and 0 < row["val_loss"] < 5 for row in rows)
    # 2 updates of 2 steps with 8 images each have measured it.
    share = rows[1]["train_accuracy"] * 32
    assert share.is_integer() or algo == "mgs"


def test_statistics_follow_the_weights_that_were_taken(search_config):
    search = new_search(search_config("gld", **PERIODS))
    search.run()
    alpha = search.alpha
    statistics = dict(search.supernet.named_buffers())
    kept = {name: buffer.clone() for name, buffer in statistics.items()}
    stream = search._streams["train"]
    for _ in range(3):  # over other batches of the same images they are about the same
        renew_statistics(
            search.supernet,
            lambda images: search.supernet(images, alpha),
            [stream.next_batch() for _ in range(4)],
        )
    norms = [name for name in kept if name.endswith("running_mean")]
    for name in norms:
        variance = kept[name.replace("mean", "var")]
        distance = (statistics[name] - kept[name]).abs() / (variance + 1e-5).sqrt()
        assert float(distance.max()) < 0.5, name
    assert norms


@pytest.mark.parametrize("reason", ["no weights", "all failed"])
def test_where_nothing_can_be_taken_the_run_is_the_ordinary_one(
    reason, search_config, monkeypatch, without_seconds
):
    def fail(self, network, alpha, draw):
        return torch.tensor(math.nan)

    if reason == "no weights":
        monkeypatch.setattr(ZeroOrderUpdater, "candidate_weights", None)
    else:
        monkeypatch.setattr(BilevelObjective, "val_loss", fail)
        # Such an epoch ends a search (test_failures); here it goes on.
        monkeypatch.setattr(search_module, "count_failures", lambda *args: (0, 0))
    ends = []
    for reuse in (True, False):
        search = new_search(search_config("gld", **(PERIODS | {"reuse_fits": reuse})))
        search.run()
        rows = without_seconds(search.rows)
        assert [row.pop("fits_taken", None) for row in rows[1:]] == [0.0 if reuse else None] * 2
        ends.append((rows, state_of(search)))
    assert ends[0][0] == ends[1][0]
    assert unchanged(ends[0][1], ends[1][1]) == set(ends[0][1])


@pytest.mark.parametrize("algo", ["rs", "lizo", "cma", "darts1", "darts2"])
def test_a_method_that_does_not_weigh_candidates_is_refused(algo, search_config, tmp_path):
    able = r"needs a solver that chooses or weighs its candidates \(mgs, gld\)"
    with pytest.raises(InvalidValueError, match=rf"^reuse_fits {able}, got {algo}$"):
        run_search(search_config(algo, reuse_fits=True), run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("inner", "n_steps"), [("first", 2), ("second", 2), ("sgd", 0)])
def test_without_inner_steps_there_is_nothing_to_reuse(inner, n_steps, search_config):
    config = search_config("gld", reuse_fits=True, inner=inner, inner_steps=n_steps)
    message = f"inner = sgd and inner_steps of at least 1, got {inner} and {n_steps}"
    with pytest.raises(InvalidValueError, match=message):
        run_search(config)


def test_a_solver_from_elsewhere_says_for_itself(search_config):
    class Other(GLD):
        name: ClassVar[str] = "other"

    class Silent(GLD):
        name: ClassVar[str] = "silent"
        weighs_candidates: ClassVar[bool] = False

    config = search_config("gld", reuse_fits=True)
    check_reuse(config, Other())
    with pytest.raises(InvalidValueError, match="reuse_fits needs a solver"):
        check_reuse(config, Silent())
    check_reuse(config.replace(reuse_fits=False), Silent())
