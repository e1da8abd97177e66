"""The batches of a search: the unrolled step of Eq. 2 sees the batch of the next weight step."""

from __future__ import annotations

import pytest
import torch

from zoopt_nas.errors import RunInterrupted
from zoopt_nas.nas.data.loading import load_dataset
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.search.streams import AheadStream, Peeked, Replayed, make_streams
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps import weight_step as steps

SEEDS = {"train": 1, "inner": 2, "val": 3}


def search_on(config, dataset, *more):
    return Search(config, prepare(config, dataset=dataset), *more)


def few_digits():
    return load_dataset("digits", data_dir=None, device=torch.device("cpu"), n_train=16)


def train_stream(batch_size: int = 4) -> AheadStream:
    """Of 10 images: batches of 4, 4 and 2."""
    config = SearchConfig.for_dataset("digits", batch_size=batch_size)
    return make_streams(config, few_digits(), torch.arange(10), torch.arange(10, 16), SEEDS)[
        "train"
    ]


def same(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_batch_is_the_same_whether_it_was_seen_before_or_not():
    seen, plain = train_stream(), train_stream()
    ahead = Peeked(seen)
    assert seen.n_batches == 3
    for k in range(8):  # over two shuffles
        expected = plain.next_batch()
        for _ in range(k % 3):
            assert same(ahead.next_batch(), expected)
        assert same(seen.next_batch(), expected)


def test_batches_are_replayed_from_a_position_of_an_equal_stream():
    one, other = train_stream(), train_stream()
    for _ in range(4):
        one.next_batch()
    replayed = Replayed(one, 5)
    again = Replayed(other, len(replayed), replayed.position)
    assert all(map(same, again, replayed))
    assert all(map(same, again, [one.next_batch() for _ in range(5)]))
    assert same(other.next_batch(), train_stream().next_batch())  # it stays where it was


@pytest.mark.parametrize("name", ["train", "inner", "val"])
def test_without_augmentation_batches_hold_the_images_themselves(name):
    data = few_digits()
    plain = data.transform(augment=False)(data.train.images)

    def n_unchanged(**settings) -> int:
        config = SearchConfig.for_dataset("digits", batch_size=4, cutout=3, **settings)
        streams = make_streams(config, data, torch.arange(10), torch.arange(10, 16), SEEDS)
        images, _ = streams[name].next_batch()
        return sum(any(torch.equal(image, one) for one in plain) for image in images)

    assert n_unchanged(augment=False) == 4
    assert n_unchanged() < 4


@pytest.mark.parametrize("n_taken", [0, 2, 3])
def test_a_stream_goes_on_where_it_was_although_a_batch_was_seen(n_taken):
    stream = train_stream()
    for _ in range(n_taken):
        stream.next_batch()
    before = stream.state_dict()
    first = stream.peek()
    state = stream.state_dict()
    assert state["n_used"] == before["n_used"]
    other = train_stream()
    other.load_state_dict(state)
    assert same(other.next_batch(), first)
    assert same(stream.next_batch(), first)
    assert same(other.peek(), stream.peek())
    stream.load_state_dict(state)  # which forgets what was seen
    assert same(stream.next_batch(), first)


class Batches(Observer):
    """Keeps the training batches of each draw, and those of the weight steps, in their order."""

    def __init__(self, monkeypatch, n_steps: int | None = None) -> None:
        self.seen: list[tuple[str, torch.Tensor]] = []
        self.n_left = n_steps
        draw, step = BilevelObjective.draw, steps.WeightStep.__call__

        def recording_draw(objective):
            drawn = draw(objective)
            self.seen += [("unrolled", images.clone()) for images, _ in drawn.train]
            return drawn

        def recording_step(weight_step, images, labels, *more):
            if weight_step._model is self.search.supernet:
                self.seen.append(("weights", images.clone()))
            return step(weight_step, images, labels, *more)

        monkeypatch.setattr(BilevelObjective, "draw", recording_draw)
        monkeypatch.setattr(steps.WeightStep, "__call__", recording_step)

    def pairs(self):
        names = [name for name, _ in self.seen]
        assert names == ["unrolled", "weights"] * (len(names) // 2)
        return list(zip(self.seen[::2], self.seen[1::2], strict=True))


@pytest.mark.parametrize("algo", ["darts2", "l2", "dp"])
def test_the_unrolled_step_is_the_next_weight_step(algo, search_config, monkeypatch):
    """20 images fit weights, in batches of 8, 8 and 4."""
    config = search_config(algo, n_train=40, batch_size=8, epochs=3, warmup_epochs=0)
    data = load_dataset(config.dataset, data_dir=None, device=torch.device("cpu"), n_train=40)
    seen = Batches(monkeypatch)
    seen.search = search = search_on(config, data)
    search.run()
    pairs = seen.pairs()
    assert len(pairs) == 9
    for (_, unrolled), (_, weights) in pairs:
        assert torch.equal(unrolled, weights)
    assert [len(weights) for _, (_, weights) in pairs] == [8, 8, 4] * 3


def test_the_weights_see_the_batches_of_every_other_method(search_config, monkeypatch):
    first, second = (
        run_search(search_config(algo, epochs=1, warmup_epochs=0, alpha_lr=1e-12)).metrics[0]
        for algo in ("darts1", "darts2")
    )
    # Alpha stays in both, so that the same batches give the same losses.
    assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-6)


def test_candidates_unrolled_by_a_solver_see_it_too(search_config, monkeypatch):
    config = search_config("gld", inner="second", update_period=1, warmup_epochs=0, epochs=2)
    data = load_dataset(config.dataset, data_dir=None, device=torch.device("cpu"))
    seen = Batches(monkeypatch)
    seen.search = search = search_on(config, data)
    search.run()
    assert len(seen.pairs()) == 4
    assert all(torch.equal(unrolled, weights) for (_, unrolled), (_, weights) in seen.pairs())


def test_measuring_the_eigenvalue_takes_no_batch(search_config, without_seconds):
    plain, tracked = (
        run_search(search_config("darts2", track_eigenvalue=on)) for on in (False, True)
    )
    assert torch.equal(plain.alpha, tracked.alpha)
    rows = [{k: v for k, v in row.items() if k != "eigenvalue"} for row in tracked.metrics]
    assert without_seconds(rows) == without_seconds(plain.metrics)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_a_stopped_search_sees_the_same_batches(n_steps, search_config, tmp_path, without_seconds):
    class Stop(Observer):
        n_left = n_steps

        def on_step(self, progress):
            self.n_left -= 1

        def should_stop(self):
            return self.n_left == 0

    config = search_config("darts2", track_eigenvalue=True, warmup_epochs=0)
    whole = run_search(config)
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=Stop())
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, whole.alpha)
    assert without_seconds(again.metrics) == without_seconds(whole.metrics)
