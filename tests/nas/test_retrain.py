"""Retraining: all training images, the test set once, the last epoch, the published protocol."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from zoopt_nas import nas
from zoopt_nas.errors import (
    DivergedError,
    InvalidValueError,
    RunError,
    RunInterrupted,
    UnknownNameError,
)
from zoopt_nas.nas.data.augmentation import Augmentation
from zoopt_nas.nas.data.batches import sequential_batches
from zoopt_nas.nas.data.image_sets import Dataset, ImageSet
from zoopt_nas.nas.data.loading import load_dataset
from zoopt_nas.nas.networks import darts_network as network_module
from zoopt_nas.nas.networks.counting import count_parameters
from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.retraining import retrain
from zoopt_nas.nas.retraining.retrain import resume_training, run_training
from zoopt_nas.nas.retraining.training import Training
from zoopt_nas.nas.runs import setup
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.steps import weight_step as steps_module
from zoopt_nas.nas.steps.schedules import scheduled_lr

CPU = torch.device("cpu")


def training_on(config, dataset, *more):
    return Training(config, prepare(config, dataset=dataset), *more)


class Recorded(ImageSet):
    """An image set that remembers which images were fetched."""

    def __init__(self, images, labels):
        super().__init__(images, labels)
        self.fetched = []

    def fetch(self, indices, moved=None):
        self.fetched.append(indices.tolist())
        return super().fetch(indices, moved)


def numbered(n: int = 64, n_test: int = 24) -> Dataset:
    def images(count: int) -> Recorded:
        values = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
        return Recorded(values.expand(-1, 1, 8, 8).contiguous(), torch.arange(count) % 3)

    return Dataset("numbered", 3, 1, 8, (0.5,), (0.25,), Augmentation(), images(n), images(n_test))


@pytest.fixture
def dataset(monkeypatch):
    data = numbered()
    monkeypatch.setattr(setup, "load_dataset", lambda *args, **kwargs: data)
    return data


def test_every_training_image_is_used_in_every_epoch_and_the_test_set_once_at_the_end(
    dataset, train_config
):
    class Watching(Observer):
        def on_epoch(self, row):
            tested.append(len(dataset.test.fetched))

    tested: list[int] = []
    run_training(train_config(), observer=Watching())
    assert tested == [0, 0, 0]  # no test image before the last epoch has ended
    assert [i for batch in dataset.test.fetched for i in batch] == list(range(24))
    assert len(dataset.train.fetched) == 3 * 4
    fetched = dataset.train.fetched
    epochs = [[i for batch in fetched[4 * e : 4 * e + 4] for i in batch] for e in range(3)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_without_augmentation_no_square_is_cut_out(dataset, train_config):
    def loss(**settings) -> float:
        return run_training(train_config().replace(**settings)).test_loss

    assert loss(augment=False, cutout=4) == loss(augment=False, cutout=0)
    assert loss(cutout=4) != loss(cutout=0)


def test_the_last_epoch_counts_even_if_an_earlier_one_was_better(dataset, train_config):
    class Spoil(Observer):
        """Makes the network answer class 2, whatever it sees, in the last step."""

        def on_step(self, progress):
            if (progress.epoch, progress.step) == (2, 4):
                training.network.head.classifier.bias.data = torch.tensor([0.0, 0.0, 1e6])

    training = training_on(train_config(), dataset, Spoil())
    result = retrain._finish(training)
    assert result.test_accuracy == 8 / 24
    assert result.test_loss == pytest.approx(1e6 * 2 / 3, rel=1e-3)


def test_the_best_epoch_counts_only_when_asked_and_is_labelled(dataset, train_config, tmp_path):
    class Scripted(Observer):
        """Makes the network answer class 0, 1 or 2, whatever it sees, at the end of each epoch."""

        def on_step(self, progress):
            if progress.step == 4:
                bias = torch.zeros(3)
                bias[progress.epoch] = 1e6
                training.network.head.classifier.bias.data = bias

    dataset.test.labels = torch.tensor([0] * 6 + [1] * 10 + [2] * 8)
    training = training_on(train_config(report="best"), dataset, Scripted())
    training.folder = retrain.RunFolder.create(tmp_path / "run", training.config)
    result = retrain._finish(training)
    assert (result.test_accuracy, result.epoch, result.last_test_accuracy) == (10 / 24, 1, 8 / 24)
    assert result.selected_on_test_set
    assert [row["test_accuracy"] for row in training.rows] == [6 / 24, 10 / 24, 8 / 24]
    assert [row["best_on_test_set"] for row in training.rows] == [6 / 24, 10 / 24, 10 / 24]
    saved = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)["network"]
    assert saved["head.classifier.bias"].argmax() == 1  # the weights of the reported epoch
    assert json.loads((tmp_path / "run" / "result.json").read_text())["selected_on_test_set"]

    last = retrain._finish(training_on(train_config(), dataset))
    assert (last.selected_on_test_set, last.epoch) == (False, 2)
    assert last.test_accuracy == last.last_test_accuracy


def test_the_best_epoch_survives_a_resumption(train_config, tmp_path, without_seconds):
    class Stop(Observer):
        def __init__(self):
            self.n = 0

        def should_stop(self):
            self.n += 1
            return self.n == 10  # in the third epoch

    config = train_config(report="best", lr=0.1, epochs=4, n_cells=1)
    whole = run_training(config, run_dir=tmp_path / "whole")
    with pytest.raises(RunInterrupted):
        run_training(config, run_dir=tmp_path / "cut", observer=Stop())
    resumed = resume_training(tmp_path / "cut")
    assert without_seconds([vars(resumed)]) == without_seconds([vars(whole)])
    first, second = (
        torch.load(tmp_path / name / "weights.pt", weights_only=True)["network"]
        for name in ("whole", "cut")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_testing_every_epoch_changes_no_step(train_config):
    """Also where an operation draws in evaluation, as noise does."""
    edges = [("noise", 0), ("sep_conv_3x3", 1)] * 4
    noisy = str(nas.Genotype(normal=tuple(edges), reduce=tuple(edges)))
    last, best = (
        run_training(train_config(report=report, genotype=noisy, drop_path=0.3))
        for report in ("last", "best")
    )
    assert last.train_accuracy == best.train_accuracy
    assert last.test_accuracy == best.last_test_accuracy


def test_linear_decay_of_the_published_length_ends_flatter(train_config):
    config = train_config(epochs=250, schedule="linear", warmup_epochs=5, lr=0.5, lr_min=0.0)
    rates = [scheduled_lr(config, epoch) for epoch in range(250)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5:7] == pytest.approx([0.5 * 240 / 245, 0.5 * 239 / 245])
    end = 0.5 / 245
    assert rates[243:] == pytest.approx(
        [2 * end, end, end, end * 4 / 5, end * 3 / 5, end * 2 / 5, end / 5]
    )


def test_linear_decay_after_a_warm_up(dataset, train_config):
    config = train_config(epochs=5, schedule="linear", warmup_epochs=2, lr=0.5, lr_min=0.1)
    training = training_on(config, dataset)
    training.run()
    # Grows to lr; then falls along the line from lr at epoch 0 to lr_min at epoch 5.
    expected = [0.25, 0.5, 0.34, 0.26, 0.18]
    assert [row["lr"] for row in training.rows] == pytest.approx(expected, rel=1e-12)


def test_rows_and_schedules(dataset, train_config):
    config = train_config(epochs=4, drop_path=0.3, lr=0.1, lr_min=0.0)
    training = training_on(config, dataset)
    training.run()
    assert all(
        row.keys() == {"epoch", "train_loss", "train_accuracy", "lr", "drop_path", "seconds"}
        for row in training.rows
    )
    assert [row["drop_path"] for row in training.rows] == pytest.approx([0, 0.075, 0.15, 0.225])
    lr = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [row["lr"] for row in training.rows] == pytest.approx(lr, rel=1e-12)


def test_drop_path_is_applied_with_the_schedule_and_in_training_only(
    dataset, train_config, monkeypatch
):
    used: list[float] = []
    original = network_module.drop_path

    def recording(x, probability, generator):
        used.append(probability)
        assert generator is training._drop_path
        return original(x, probability, generator)

    monkeypatch.setattr(network_module, "drop_path", recording)
    training = training_on(train_config(drop_path=0.3, n_cells=1), dataset)
    retrain._finish(training)
    # DARTS_V2's normal cell has 6 edges that are no identity; epoch 0 drops nothing.
    assert used == pytest.approx([0.1] * 6 * 4 + [0.2] * 6 * 4)


def test_the_auxiliary_loss_is_added_with_its_weight_and_not_reported(
    dataset, train_config, monkeypatch
):
    steps: list[float] = []
    monkeypatch.setattr(
        steps_module, "weight_step", lambda loss, *args, **more: steps.append(float(loss.detach()))
    )
    config = train_config(auxiliary=True, auxiliary_weight=0.25, label_smoothing=0.1)
    training = training_on(config, dataset)
    training.begin_epoch()
    seen = []
    forward = training.network.forward_with_auxiliary

    def recording(images):
        seen.append(forward(images))
        return seen[-1]

    monkeypatch.setattr(training.network, "forward_with_auxiliary", recording)
    loss, logits, labels = training.train_step()
    main, auxiliary = (
        float(F.cross_entropy(x.detach(), labels, label_smoothing=0.1)) for x in seen[0]
    )
    assert auxiliary != main
    assert float(loss.detach()) == main
    assert torch.equal(logits, seen[0][0])
    assert steps == [pytest.approx(main + 0.25 * auxiliary, rel=1e-6)]


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_weights_give_the_reported_accuracy(auxiliary, npz, train_config, tmp_path):
    config = train_config(epochs=4, init_channels=4, n_cells=1, lr=0.1, auxiliary=auxiliary)
    result = run_training(config, run_dir=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("checkpoint.pt", "config.toml", "data.json", "genotype.json", "machine.json"),
        *("metrics.jsonl", "result.json", "weights.pt"),
    ]
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved == vars(result)
    assert nas.Genotype.from_string(saved["genotype"]) == GENOTYPES["DARTS_V2"]

    state = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)
    network = nas.DartsNetwork(GENOTYPES["DARTS_V2"], 3, 4, 1, in_channels=1, auxiliary=auxiliary)
    network.load_state_dict(state["network"])
    data = load_dataset(str(npz), data_dir=Path("unused"), device=CPU)
    right, loss = 0, 0.0
    with torch.no_grad():
        for images, labels in sequential_batches(data.test, None, 7, data.transform(augment=False)):
            logits = network.eval()(images)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    assert result.test_accuracy == right / 24
    assert result.test_loss == pytest.approx(loss / 24, rel=1e-5)
    assert result.n_parameters == count_parameters(network)
    assert result.n_parameters == sum(
        p.numel() for name, p in network.named_parameters() if "auxiliary" not in name
    )
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result.train_accuracy == rows[-1]["train_accuracy"]
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in rows), abs=2e-3)


def test_retraining_learns(train_config):
    """Three bars in noise: what it learns is not chance."""
    result = run_training(train_config(epochs=8, init_channels=4, n_cells=1, lr=0.1, batch_size=8))
    assert result.test_accuracy > 0.8


def test_the_same_seed_gives_the_same_network(train_config, without_seconds):
    first, again, other = (
        run_training(train_config(epochs=1, n_cells=1, seed=seed)) for seed in (3, 3, 4)
    )
    assert first.test_loss == again.test_loss
    assert first.test_loss != other.test_loss


def test_a_finished_retraining_gives_its_result_again(train_config, tmp_path):
    first = run_training(train_config(epochs=1, n_cells=1), run_dir=tmp_path / "run")
    weights = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)["network"]
    again = resume_training(tmp_path / "run")
    assert again == first
    kept = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)["network"]
    assert all(torch.equal(weights[key], kept[key]) for key in weights)


def test_a_genotype_comes_as_name_string_or_file(train_config, tmp_path, dataset):
    genotype = GENOTYPES["DARTS_V1"]
    (tmp_path / "g.json").write_text(genotype.to_json())
    (tmp_path / "g.txt").write_text(str(genotype))
    sources = ["DARTS_V1", str(genotype), str(tmp_path / "g.json"), str(tmp_path / "g.txt")]
    for source in sources:
        training = training_on(train_config(genotype=source, n_cells=1), dataset)
        assert training.network.genotype == genotype


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"genotype": "DARTS_V3"}, UnknownNameError, "unknown genotype 'DARTS_V3'; did you mean"),
        ({"genotype": "Genotype(normal=3)"}, InvalidValueError, "genotype must have the fields"),
        ({"dataset": "digts"}, UnknownNameError, "did you mean 'digits'?"),
        ({"n_train": 65}, InvalidValueError, "n_train must be at most 64"),
    ],
)
def test_a_wrong_setting_leaves_no_folder(changes, error, message, train_config, tmp_path):
    with pytest.raises(error) as caught:
        run_training(train_config(**changes), run_dir=tmp_path / "a" / "run")
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_never_overwritten(train_config, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="exists already"):
        run_training(train_config(), run_dir=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_divergence_keeps_the_last_checkpoint_and_writes_no_result(dataset, train_config, tmp_path):
    class Explode(Observer):
        def on_step(self, progress):
            if progress.epoch == 1:
                saved.append((path / "checkpoint.pt").read_bytes())
                training.network.head.classifier.weight.data.fill_(math.nan)

    path = tmp_path / "run"
    saved: list[bytes] = []
    training = training_on(train_config(), dataset, Explode())
    training.folder = retrain.RunFolder.create(path, training.config)
    with pytest.raises(DivergedError, match="not finite in epoch 2"):
        retrain._finish(training)
    assert (path / "checkpoint.pt").read_bytes() == saved[0]
    assert dataset.test.fetched == []
    assert sorted(entry.name for entry in path.iterdir()) == [
        *("checkpoint.pt", "config.toml", "metrics.jsonl")
    ]


def test_divergence_in_the_very_last_step_is_noticed_too(dataset, train_config, tmp_path):
    class Explode(Observer):
        def on_step(self, progress):
            if (progress.epoch, progress.step) == (2, 4):
                training.network.head.classifier.weight.data.fill_(math.nan)

    training = training_on(train_config(n_cells=1), dataset, Explode())
    training.folder = retrain.RunFolder.create(tmp_path / "run", training.config)
    with pytest.raises(DivergedError, match="the test loss is not finite"):
        retrain._finish(training)
    assert not (tmp_path / "run" / "result.json").exists()  # JSON has no NaN


def test_a_network_is_built_with_the_stem_for_its_images(train_config):
    data = numbered(8)
    assert type(training_on(train_config(), data).network.stem).__name__ == "CifarStem"
    assert isinstance(training_on(train_config(), data).network, DartsNetwork)
