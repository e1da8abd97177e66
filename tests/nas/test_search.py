"""The search loop: what it records, when alpha moves, which images it uses, what seeds decide."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import defaultdict

import numpy as np
import pytest
import torch

from zoopt_nas import SOLVERS
from zoopt_nas.errors import DataError, DivergedError, InvalidValueError, UnknownNameError
from zoopt_nas.nas.data.augmentation import Augmentation
from zoopt_nas.nas.data.image_sets import Dataset, ImageSet
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import METHODS, Search
from zoopt_nas.nas.search.methods import describe_method
from zoopt_nas.nas.search.methods.darts import GradientUpdater
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater

ALGOS = ("rs", "mgs", "gld", "darts1", "darts2")
COLUMNS = {
    *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "sigma"),
    *("n_effective", "skip_connections", "seconds", "evaluations", "updates", "failures"),
}
EXTRA_COLUMNS = {
    "rs": {"gradient_norm"},
    "mgs": {"effective_ratio", "selection_ratio"},
    "gld": set(),
    "darts1": {"gradient_norm"},
    "darts2": {"gradient_norm"},
}
# With N = 2: pairs, samples, radii and x itself. A gradient is no evaluation of a candidate.
EVALUATIONS_PER_UPDATE = {"rs": 4, "mgs": 2, "gld": 3, "darts1": 0, "darts2": 0}


def search_on(config, dataset, *more):
    return Search(config, prepare(config, dataset=dataset), *more)


class Alphas(Observer):
    """Keeps alpha as it is after every step."""

    def __init__(self) -> None:
        self.search: Search | None = None
        self.seen: dict[int, list[torch.Tensor]] = defaultdict(list)

    def on_step(self, progress):
        self.seen[progress.epoch].append(self.search.alpha.clone())


def numbered(n: int = 64, test: int = 4) -> Dataset:
    """A data set in which every pixel of image i is i, and no augmentation changes that."""

    def images(count: int) -> ImageSet:
        values = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
        return ImageSet(values.expand(-1, 1, 8, 8).contiguous(), torch.arange(count) % 3)

    return Dataset("numbered", 3, 1, 8, (0.0,), (1 / 255,), Augmentation(), images(n), images(test))


def searched(config, observer=None) -> Search:
    search = search_on(config, numbered(), observer)
    search.run()
    return search


def weights(search: Search) -> dict[str, torch.Tensor]:
    state = {f"net.{k}": v.clone() for k, v in search.supernet.state_dict().items()}
    for index, entry in search._optimizer.state_dict()["state"].items():
        state |= {f"sgd.{index}.{k}": torch.as_tensor(v).clone() for k, v in entry.items()}
    return state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("algo", ALGOS)
def test_each_method_searches_the_digits_and_records_the_documented_columns(algo, search_config):
    config = search_config(algo, dataset="digits", space="s3", n_train=64)
    result = run_search(config)

    rows = result.metrics
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    # Epoch 0 is a warm-up: nothing was updated, so no update measured anything.
    assert rows[0].keys() == COLUMNS
    assert all(row.keys() == COLUMNS | EXTRA_COLUMNS[algo] for row in rows[1:])
    # 32 images in batches of 16: 2 steps, an update before each (M = 1).
    assert [row["updates"] for row in rows] == [0, 2, 2]
    per_epoch = 2 * EVALUATIONS_PER_UPDATE[algo]
    assert [row["evaluations"] for row in rows] == [0, per_epoch, 2 * per_epoch]
    lr = [0.001 + 0.024 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert [row["lr"] for row in rows] == pytest.approx(lr, rel=1e-12)
    assert [row["failures"] for row in rows] == [0, 0, 0]
    for row in rows:
        assert 0 < row["train_loss"] < 5
        assert 0 < row["val_loss"] < 5
        # 32 images in each half: a whole number of right answers.
        assert (row["train_accuracy"] * 32).is_integer()
        assert (row["val_accuracy"] * 32).is_integer()
        assert 0 <= row["val_accuracy"] <= 1
    assert rows[-1]["skip_connections"] == result.genotype.count("skip_connect")
    assert result.genotype == SPACES["s3"].discretize(result.alpha)
    assert result.run_dir is None
    if algo == "mgs":
        # One of the two alpha epochs has passed at epoch 2: half a cosine of sigma = 0.2.
        assert [row["sigma"] for row in rows] == [None, 0.2, pytest.approx(0.1, rel=1e-12)]
        assert all(1 <= row["n_effective"] <= 2 for row in rows[1:])
    else:
        assert [row["sigma"] for row in rows] == [None, None, None]


def test_a_method_may_derive_the_architecture_in_its_own_way(search_config, tmp_path, monkeypatch):
    """Here that of minus alpha, in every row and in the result."""
    monkeypatch.setattr(
        GradientUpdater, "architecture", lambda self, space: space.discretize(-self.alpha)
    )
    result = run_search(search_config("darts1"), run_dir=tmp_path / "run")
    space = SPACES["small_s3"]
    assert result.genotype == space.discretize(-result.alpha) != space.discretize(result.alpha)
    assert RunFolder.open(tmp_path / "run").genotype() == result.genotype
    rows = RunFolder.open(tmp_path / "run").rows("architectures.jsonl")
    found = [space.discretize(-torch.tensor(row["alpha"])) for row in rows]
    assert [row["genotype"] for row in rows] == [one.to_dict() for one in found]
    counts = [one.count("skip_connect") for one in found]
    assert [row["skip_connections"] for row in result.metrics] == counts


@pytest.mark.parametrize("algo", ALGOS)
def test_alpha_is_frozen_in_warm_up_and_moves_after_it(algo, search_config):
    config = search_config(algo, solver={"smoothing": 0.5} if algo == "rs" else {})
    observer = Alphas()
    observer.search = search = search_on(config, numbered(), observer)
    start = search.alpha.clone()
    search.run()
    assert [len(observer.seen[epoch]) for epoch in range(3)] == [2, 2, 2]
    assert all(torch.equal(alpha, start) for alpha in observer.seen[0])
    assert not torch.equal(observer.seen[1][-1], start)
    if algo != "gld":  # which stays where no candidate is better
        assert not torch.equal(observer.seen[2][-1], observer.seen[1][-1])
    assert torch.isfinite(search.alpha).all()


@pytest.mark.parametrize(
    ("algo", "inner_steps", "per_epoch"),
    [("gld", 1, 4), ("gld", 2, 2), ("gld", 3, 2), ("gld", 0, 4), ("darts1", 3, 4)],
)
def test_alpha_is_updated_every_m_steps_or_at_each_step(
    algo, inner_steps, per_epoch, search_config
):
    config = search_config(algo, inner_steps=inner_steps, batch_size=8, epochs=2)
    search = searched(config)
    assert search.n_steps == 4
    assert [row["updates"] for row in search.rows] == [0, per_epoch]


def test_a_constant_schedule_leaves_sigma_alone(search_config):
    rows = searched(search_config("mgs", sigma_schedule="constant")).rows
    assert [row["sigma"] for row in rows] == [None, 0.2, 0.2]


@pytest.mark.parametrize(("n_samples", "evaluations"), [(1, 2 * 2), (3, 2 * 4)])
def test_n_samples_counts_radii_of_gld(n_samples, evaluations, search_config):
    config = search_config("gld", epochs=2, solver={"n_samples": n_samples})
    assert searched(config).rows[-1]["evaluations"] == evaluations


def test_the_same_seed_gives_the_same_result_and_another_one_does_not(
    search_config, without_seconds
):
    first, again, other = (
        run_search(search_config("mgs", space="small_s4", seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first.alpha, again.alpha)
    assert first.genotype == again.genotype
    assert without_seconds(first.metrics) == without_seconds(again.metrics)
    assert not torch.equal(first.alpha, other.alpha)
    assert first.metrics[0]["train_loss"] != other.metrics[0]["train_loss"]


def test_weights_and_inner_steps_see_one_half_of_the_images_and_scores_the_other(
    search_config, monkeypatch
):
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)
    mix = DartsSupernet.mix  # all forward passes end up there

    def recording(network, images, weights):
        if network is search.supernet:
            role = "weights" if network.training else "epoch end"
        else:
            role = "inner" if torch.is_grad_enabled() else "score"
        seen[role].append(images[:, 0, 0, 0].round().to(torch.int64))
        return mix(network, images, weights)

    monkeypatch.setattr(DartsSupernet, "mix", recording)
    search = search_on(search_config("gld", epochs=4), numbered())
    search.run()

    used = {role: set(torch.cat(batches).tolist()) for role, batches in seen.items()}
    assert len(used["weights"]) == len(used["epoch end"]) == 32
    assert used["weights"] | used["epoch end"] == set(range(64))  # hence disjoint
    assert used["inner"] == used["weights"]
    assert used["score"] == used["epoch end"]
    # Each epoch's weight steps use each image of their half once.
    for epoch in range(4):
        images = torch.cat(seen["weights"][2 * epoch : 2 * epoch + 2]).tolist()
        assert sorted(images) == sorted(used["weights"])
    # 3 alpha epochs x 2 updates x 3 candidates x one inner step and one score.
    assert len(seen["inner"]) == len(seen["score"]) == 18


def test_global_random_numbers_are_left_alone(search_config):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generator is what this is about
    random.seed(5)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    run_search(search_config("mgs", space="small_s4"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


@pytest.mark.parametrize("algo", ALGOS)
def test_an_update_of_alpha_leaves_weights_and_optimizer_bitwise_alone(
    algo, search_config, monkeypatch
):
    updater = GradientUpdater if algo.startswith("darts") else ZeroOrderUpdater
    step = updater.step
    checked = []

    def checking(self, objective, progress):
        before = weights(search)
        metrics = step(self, objective, progress)
        checked.append(equal(before, weights(search)))
        return metrics

    monkeypatch.setattr(updater, "step", checking)
    search = search_on(search_config(algo, epochs=2), numbered())
    search.run()
    assert checked == [True, True]


def test_evaluating_candidates_does_not_change_how_the_weights_train(search_config, monkeypatch):
    def only_evaluate(self, objective, progress):
        objective(self.alpha.repeat(3, 1))
        return {}

    config = search_config("gld")
    moved = searched(config)
    monkeypatch.setattr(ZeroOrderUpdater, "step", only_evaluate)
    evaluated = searched(config)
    monkeypatch.setattr(ZeroOrderUpdater, "step", lambda *args: {})
    idle = searched(config)
    assert evaluated.rows[-1]["evaluations"] == 12
    assert idle.rows[-1]["evaluations"] == 0
    assert equal(weights(evaluated), weights(idle))
    # The comparison can fail: where alpha moves, the weights go another way.
    assert not equal(weights(moved), weights(idle))


def test_images_of_at_least_128_pixels_get_the_imagenet_stem(search_config):
    small = numbered()
    large = dataclasses.replace(
        small,
        image_size=128,
        train=ImageSet(torch.zeros(16, 1, 128, 128, dtype=torch.uint8), small.train.labels[:16]),
    )
    search = search_on(search_config(), large)
    assert type(search.supernet.stem).__name__ == "ImageNetStem"
    assert type(search_on(search_config(), small).supernet.stem).__name__ == "CifarStem"


def test_every_solver_is_a_method():
    assert list(METHODS)[: len(SOLVERS) + 2] == [*SOLVERS, "darts1", "darts2"]
    assert all("\n" not in describe_method(name) for name in METHODS)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"algo": "mgd"}, UnknownNameError, "unknown method 'mgd'; did you mean 'mgs'?"),
        ({"space": "s33"}, UnknownNameError, "unknown space 's33'; did you mean 's3'?"),
        ({"dataset": "digit"}, UnknownNameError, "unknown dataset 'digit'; did you mean 'digits'?"),
        ({"dataset": "no/such.npz"}, DataError, "no/such.npz: no such file"),
        ({"solver": {"max_radus": 1.0}}, UnknownNameError, "did you mean 'max_radius'?"),
        ({"solver": {"max_radius": -1.0}}, InvalidValueError, "max_radius must be"),
        ({"solver": {"n_samples": 0}}, InvalidValueError, "n_samples must be a positive integer"),
        ({"device": "gpu"}, InvalidValueError, "got gpu"),
        ({"train_portion": 1e-6}, InvalidValueError, "train_portion"),
    ],
)
def test_a_wrong_setting_is_named_and_leaves_no_folder(
    changes, error, message, search_config, tmp_path
):
    config = search_config().replace(**changes)
    with pytest.raises(error, match=r".") as caught:
        run_search(config, run_dir=tmp_path / "a" / "run")
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algo", ALGOS)
def test_divergence_is_an_error_and_keeps_the_last_checkpoint(algo, search_config, tmp_path):
    class Explode(Observer):
        """Makes the weights infinite in the second epoch."""

        def on_step(self, progress):
            if progress.epoch == 1:
                checkpoint.append((tmp_path / "run" / "checkpoint.pt").read_bytes())
                with torch.no_grad():
                    search.supernet.head.classifier.weight.fill_(math.inf)

    checkpoint: list[bytes] = []
    search = search_on(search_config(algo), numbered(), Explode())
    search.folder = RunFolder.create(tmp_path / "run", search.config)
    with pytest.raises(DivergedError, match="not finite in epoch 2"):
        search.run()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == checkpoint[0]
    assert [row["epoch"] for row in search.folder.rows("metrics.jsonl")] == [0]


def test_a_finished_search_gives_its_result_again(search_config, tmp_path, without_seconds):
    first = run_search(search_config(), run_dir=tmp_path / "run")
    files = {path.name: path.read_bytes() for path in first.run_dir.iterdir()}
    assert set(files) == {
        *("config.toml", "data.json", "metrics.jsonl", "architectures.jsonl"),
        *("genotype.json", "checkpoint.pt", "machine.json"),
    }
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, first.alpha)
    assert (again.genotype, again.metrics) == (first.genotype, first.metrics)
    assert files == {path.name: path.read_bytes() for path in first.run_dir.iterdir()}
    architectures = RunFolder(first.run_dir).rows("architectures.jsonl")
    assert [row["epoch"] for row in architectures] == [0, 1, 2]
    assert architectures[-1]["genotype"] == first.genotype.to_dict()
    assert torch.equal(torch.tensor(architectures[-1]["alpha"]), first.alpha)
    assert architectures[0]["alpha"] != architectures[1]["alpha"]
