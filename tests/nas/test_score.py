"""The value of a candidate: the loss, or errors with ties broken by the loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_supernets import setup
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.analyses.landscape.compute import _updater
from zoopt_nas.nas.analyses.snapshot import Snapshot
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.search.score import Scored, error_then_loss, value_of

losses = st.floats(min_value=2.0**-13, max_value=2.0**13, width=32)


def value(n_errors: int, loss: float, n_images: int) -> float:
    return float(error_then_loss(torch.tensor(n_errors), torch.tensor(loss), n_images))


def test_values_by_hand():
    assert value(1, 1.0, 2) == 0.75  # one image of two, and half of the other one
    assert value(0, 3.0, 4) == 3 / 16
    assert value(3, 0.0, 4) == 0.75
    assert value(0, 1e30, 8) < value(1, 0.0, 8)  # even then less than an image
    assert math.isnan(value(3, math.nan, 4))
    assert math.isnan(value(3, math.inf, 4))


@given(n_images=st.integers(1, 50_000), data=st.data())
def test_the_order_is_by_errors_and_then_by_loss(n_images, data):
    pairs = [(data.draw(st.integers(0, n_images)), data.draw(losses)) for _ in range(2)]
    if data.draw(st.booleans(), label="tie"):
        pairs[1] = (pairs[0][0], pairs[1][1])
    first, second = (value(*pair, n_images) for pair in pairs)
    assert (first < second) == (pairs[0] < pairs[1])
    assert (first == second) == (pairs[0] == pairs[1])


def test_float32_could_not_hold_it():
    near = torch.tensor(1.0), torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    exact = [error_then_loss(torch.tensor(25_000), loss, 50_000) for loss in near]
    assert exact[0].dtype == torch.float64
    assert exact[0] < exact[1]
    assert exact[0].float() == exact[1].float()


@pytest.mark.parametrize("n", [None, 3], ids=["one", "several"])
def test_errors_are_counted_over_all_images_of_all_batches(n):
    """Batches of 2 and 4 images: every image counts the same."""
    labels = [torch.tensor([0, 1]), torch.tensor([1, 1, 0, 0])]
    told = [torch.tensor([0, 0]), torch.tensor([1, 0, 0, 1])]  # 1 and 2 errors
    logits = [F.one_hot(one, 2).double() for one in told]
    losses = torch.tensor(1.0, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    if n is not None:
        logits = [one.expand(n, -1, -1) for one in logits]
        losses = tuple(one.expand(n) for one in losses)
    batches = [Scored(*parts) for parts in zip(losses, logits, labels, strict=True)]
    expected = (3 + 3 / 4) / 6
    found = value_of("accuracy", batches)
    assert found.tolist() == (expected if n is None else [expected] * n)
    assert value_of("loss", batches).tolist() == (3.0 if n is None else [3.0] * n)


@pytest.mark.parametrize("score", ["loss", "accuracy"])
def test_the_objective_scores_candidates_alone_and_together(score):
    made = setup()
    alphas = made.alphas(3)
    found = {}
    for size in (1, 3):
        objective = made.objective(score=score, val_batches=2, candidates_per_batch=size)
        draw = objective.draw()
        found[size] = objective(alphas, draw)
        by_batch = objective.batch_values(alphas, draw)
        assert by_batch.shape == (3, 2)
        assert objective.n_evaluations == 6
        if score == "loss":
            torch.testing.assert_close(by_batch.mean(1), found[size], rtol=1e-12, atol=0)
        else:  # batches of the same size: errors add up, tie-breaks are of other losses
            errors = torch.floor(by_batch * 6).sum(1)
            assert torch.equal(torch.floor(found[size] * 12), errors)
    torch.testing.assert_close(found[1], found[3], rtol=1e-9, atol=1e-11)

    expected = []
    for alpha in alphas:
        network = objective.fit(alpha, draw)
        outputs = [(network(images, alpha), labels) for images, labels in draw.val]
        loss = sum(F.cross_entropy(x, y).item() for x, y in outputs) / 2
        n_errors = sum(int((x.argmax(1) != y).sum()) for x, y in outputs)
        expected.append(loss if score == "loss" else (n_errors + loss / (1 + loss)) / 12)
    assert found[1].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_candidate_that_fails_has_no_value():
    made = setup()
    with torch.no_grad():
        made.net.head.classifier.weight.fill_(math.nan)
    objective = made.objective(score="accuracy")
    assert not torch.isfinite(objective(made.alphas(2))).any()


def test_unknown_scores_are_refused(search_config):
    with pytest.raises(InvalidValueError, match="score must be one of loss, accuracy, got acc"):
        setup().objective(score="acc")
    with pytest.raises(UnknownNameError, match="unknown score 'acuracy'; did you mean 'accuracy'"):
        search_config(score="acuracy")


@pytest.mark.parametrize(
    ("algo", "kind"), [("darts1", "gradient"), ("random", "random"), ("random_ws", "random")]
)
def test_methods_that_follow_no_values_refuse_the_accuracy(algo, kind, search_config):
    with pytest.raises(InvalidValueError, match=r".") as caught:
        run_search(search_config(algo, score="accuracy"))
    assert str(caught.value) == f"score must be loss with {algo}, a {kind} method, got accuracy"


def test_a_search_by_accuracy_and_its_landscape(search_config, tmp_path):
    """The landscape is one of losses, also for the paths of gradient methods."""
    config = search_config("mgs", score="accuracy", epochs=2)
    run_search(config, run_dir=tmp_path / "run")
    (row,) = [row for row in RunFolder(tmp_path / "run").rows("metrics.jsonl") if row["updates"]]
    assert (row["evaluations"], row["failures"]) == (4, 0)
    search = Snapshot(RunFolder.open(tmp_path / "run"))
    assert search._objective.evaluation._score == "accuracy"
    (draw,) = search.draws(1, n_train=1, n_val=1, noise_seed=0)
    network = (objective := search.objective("1", [draw])).fit(search.alpha, draw)
    loss = objective.val_loss(network, search.alpha, draw)
    assert objective(search.alpha[None]).item() == pytest.approx(loss.item(), rel=1e-6)
    assert _updater(search, "darts1", 0.1, 0).kind == "gradient"
