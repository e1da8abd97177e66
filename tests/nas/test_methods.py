"""The baselines: what distinguishes each, beside the maths of DARTS."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from tiny_supernets import TINY, setup

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.search import algorithm as search
from zoopt_nas.nas.search import methods
from zoopt_nas.nas.search.methods import METHODS, random_search
from zoopt_nas.nas.search.methods.random_search import (
    RandomArchitecture,
    WeightSharingSearch,
)
from zoopt_nas.nas.search.methods.robust import EPOCHS_BACK, has_grown
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.search.updater import EpochEnd
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.methods import kind_of

# --- Early stopping and adaptive regularization --------------------------------------------------


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        ([1.0] * 5 + [1.33] * 5, False),  # 1 / 1.33 = 0.752
        ([1.0] * 5 + [1.34] * 5, True),  # 0.746
        ([9.0] * 3 + [1.0] * 5 + [1.34] * 5, True),  # only the last ten count
        ([1.0] * 4 + [2.0] * 5, False),  # too early to tell
        ([1.0, 2.0, 0.0, 1.0, 1.0, 0.0, 5.0, 1.0, 0.5, 0.5], True),  # averages of 1 and 1.4
        ([-1.0] * 5 + [0.0] * 5, False),
        ([1.0] * 5 + [-2.0] * 5, False),
        ([1.0] * 9 + [math.nan], False),
    ],
)
def test_when_the_eigenvalue_has_grown(eigenvalues: list[float], expected: bool):
    assert has_grown(eigenvalues) is expected


class Recorder(Observer):
    """Keeps the alpha of every epoch; stops a search when ``n_steps`` steps are taken."""

    def __init__(self, n_steps: int | None = None) -> None:
        self.n_left = n_steps

    def on_step(self, progress):
        if self.n_left is not None:
            self.n_left -= 1

    def should_stop(self):
        return self.n_left is not None and self.n_left <= 0


@pytest.fixture
def growing(monkeypatch):
    """Eigenvalues by epoch: 1 for five, then 2, until the weights are decayed by more than that."""

    def install(start: float = 3e-4) -> None:
        def eigenvalue(loss, alpha):
            current = looked_at[-1]
            decay = current._optimizer.param_groups[0]["weight_decay"]
            is_calm = current.epoch < 5 or decay > start
            return 1.0 if is_calm else 2.0

        looked_at = []
        plain = search.Search._judge_epoch

        def judge(self):
            looked_at.append(self)
            return plain(self)

        monkeypatch.setattr(search.Search, "_judge_epoch", judge)
        monkeypatch.setattr(search, "dominant_eigenvalue", eigenvalue)

    return install


def test_early_stopping_gives_the_alpha_of_before(growing, search_config, tmp_path):
    growing()
    config = search_config("es", epochs=20, min_return_epoch=0)
    result = run_search(config, run_dir=tmp_path / "run")
    lines = (tmp_path / "run" / "architectures.jsonl").read_text().splitlines()
    alphas = [json.loads(line)["alpha"] for line in lines]
    # Five epochs of 1 and five of 2 are known after epoch 9; the averages are centred at 2 and 7.
    assert [row["epoch"] for row in result.metrics] == list(range(10))
    assert EPOCHS_BACK == 7
    assert torch.equal(result.alpha, torch.tensor(alphas[2]))
    assert alphas[9] == alphas[2]  # the last row has what the search gives
    assert alphas[8] not in (alphas[2], alphas[7])
    assert [row["eigenvalue"] for row in result.metrics] == [1.0] * 5 + [2.0] * 5
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, result.alpha)
    assert len(again.metrics) == 10


def test_adaptive_regularization_goes_back_and_decays_more(growing, search_config, tmp_path):
    growing()
    config = search_config("ada", epochs=12, min_return_epoch=0)
    result = run_search(config, run_dir=tmp_path / "run")
    rows = result.metrics
    assert [row["epoch"] for row in rows] == list(range(12))
    # Back to the end of epoch 2 once; from epoch 3 on with ten times the decay.
    assert [row["weight_decay"] for row in rows] == [3e-4] * 3 + [pytest.approx(3e-3)] * 9
    assert [row["eigenvalue"] for row in rows] == [1.0] * 12
    discarded = [
        json.loads(line) for line in (tmp_path / "run" / "discarded.jsonl").read_text().splitlines()
    ]
    assert [row["epoch"] for row in discarded] == list(range(3, 10))
    assert [row["eigenvalue"] for row in discarded] == [1.0] * 2 + [2.0] * 5


def test_the_weights_of_before_are_those_that_go_on(growing, search_config):
    """With no more decay than before, the epochs after going back start as they started then."""
    growing()
    states = {}
    plain = search.Search.after_epoch

    def after_epoch(self):
        plain(self)
        states.setdefault(self.epoch, []).append(
            {name: value.clone() for name, value in self.supernet.state_dict().items()}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.Search, "after_epoch", after_epoch)
        run_search(search_config("ada", epochs=11, min_return_epoch=0))
    first, second = states[3]  # after epoch 2, and after going back to it
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert len(states[4]) == 2


def test_the_decay_has_a_limit(growing, search_config):
    growing(start=1.0)  # never calm
    result = run_search(search_config("ada", epochs=11, min_return_epoch=0))
    decays = [row["weight_decay"] for row in result.metrics]
    assert decays == [3e-4] * 3 + [pytest.approx(3e-2)] * 8


@pytest.mark.parametrize(
    ("algo", "n_steps"),  # two an epoch; of ada's, the last comes after it has gone back
    [("es", 8), ("es", 19), ("ada", 8), ("ada", 19), ("ada", 23)],
)
def test_stopping_and_going_back_resume_bit_for_bit(
    algo, n_steps, growing, search_config, tmp_path, without_seconds
):
    growing()
    config = search_config(algo, epochs=11, min_return_epoch=0)
    whole = run_search(config)
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=Recorder(n_steps))
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, whole.alpha)
    assert without_seconds(again.metrics) == without_seconds(whole.metrics)


COMPARATORS = ["fair_darts", "darts_minus", "beta_darts", "drnas", "snas", "amended_darts", "sgas2"]


@pytest.mark.parametrize(
    "algo", ["dp", "l2", "pc", *COMPARATORS, "sdarts_rs", "sdarts_adv", "random_ws"]
)
@pytest.mark.parametrize("n_steps", [1, 3])  # in the first epoch and in the second
def test_the_others_resume_bit_for_bit(
    algo, n_steps, search_config, tmp_path, monkeypatch, without_seconds
):
    monkeypatch.setattr(random_search, "N_SAMPLES", 5)
    size = {"init_channels": 4, "partial_channels": 2} if algo == "pc" else {}
    config = search_config(algo, warmup_epochs=0, **size)
    whole = run_search(config)
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=Recorder(n_steps))
    again = resume_search(tmp_path / "run")
    assert torch.equal(again.alpha, whole.alpha)
    assert without_seconds(again.metrics) == without_seconds(whole.metrics)
    assert again.genotype == whole.genotype


def test_any_method_can_track_the_eigenvalue(search_config):
    plain = run_search(search_config("gld"))
    tracked = run_search(search_config("gld", track_eigenvalue=True))
    assert all("eigenvalue" not in row for row in plain.metrics)
    values = [row["eigenvalue"] for row in tracked.metrics]
    assert all(math.isfinite(value) and value != 0 for value in values)
    assert len(set(values)) == len(values)
    assert torch.equal(tracked.alpha, plain.alpha)  # to measure is not to take part
    assert tracked.metrics[-1]["train_loss"] == plain.metrics[-1]["train_loss"]


# --- Random baselines ----------------------------------------------------------------------------


def test_a_random_architecture_trains_nothing(search_config, tmp_path):
    config = search_config("random", epochs=5)
    result = run_search(config, run_dir=tmp_path / "run")
    assert result.metrics == []
    assert result.genotype == SPACES[config.space].discretize(result.alpha)
    assert result.genotype == run_search(config.replace(epochs=3)).genotype
    others = {str(run_search(config.replace(seed=seed)).genotype) for seed in range(4)}
    assert len(others) == 4
    assert resume_search(tmp_path / "run").genotype == result.genotype


def test_random_architectures_are_uniform():
    n, space = 3000, SPACES["s3"]
    config = SearchConfig.for_dataset(algo="random")
    operations, sources = Counter(), Counter()
    for seed in range(n):
        genotype = space.discretize(RandomArchitecture(config, torch.zeros(space.dim), seed).alpha)
        edges = genotype.edges("normal")
        operations[edges[7][0]] += 1
        sources[frozenset(source for _, source in edges[2:4])] += 1
    # Binomial: five standard deviations.
    bound = 5 * math.sqrt(n / 4)
    assert abs(operations["skip_connect"] - n / 2) < bound
    assert sum(operations.values()) == n
    assert len(sources) == 3
    bound = 5 * math.sqrt(n * 2 / 9)
    assert all(abs(count - n / 3) < bound for count in sources.values())


def test_weights_are_shared_by_random_architectures():
    made = setup()
    updater = WeightSharingSearch(SearchConfig.for_dataset(algo="random_ws"), made.alphas(1)[0], 0)
    paths = [path for _ in range(30) for path in updater.training_paths(made.net.space, 0.0)]
    assert len(paths) == 30
    assert all(sum(choice != UNUSED for choice in path) == 4 for path in paths)  # two in each cell
    assert len(set(paths)) > 5


class Judge:
    """An objective whose least loss has the first candidates; one architecture fails."""

    def __init__(self, supernet) -> None:
        self.supernet = supernet
        self.asked: list[int] = []  # the batch of each call

    def draw(self):
        return Draw([], [batch_of(-1)], 0)

    def path_loss(self, path, draw):
        ((images, _),) = draw.val
        self.asked.append(int(images[0]))
        return torch.tensor(math.nan if len(self.asked) == 3 else score(path))


def batch_of(number: int, size: int = 4):
    return torch.full((size,), number), torch.zeros(size, dtype=torch.int64)


def judged(is_last: bool, sizes=(256, 256, 3, 1)):
    made = setup()
    updater = WeightSharingSearch(SearchConfig.for_dataset(algo="random_ws"), made.alphas(1)[0], 0)
    judge = Judge(made.net)
    batches = [batch_of(k, size) for k, size in enumerate(sizes)]
    verdict = updater.end_epoch(EpochEnd(judge, is_last, 0.0, None, lambda: iter(batches)))
    return updater, judge, verdict


def score(path) -> float:
    return float(sum(choice for choice in path if choice != UNUSED))


def path_of(alpha):
    return TINY.path(TINY.discretize(alpha))


def test_the_best_architecture_of_many_is_given():
    updater, judge, verdict = judged(True, sizes=(256, 8, 256, 1))
    others = [path_of(updater._draw(updater.alpha)) for _ in range(300)]
    assert score(path_of(updater.alpha)) <= min(map(score, others))
    # 1000 on one batch of L_val, ten on the whole part, but for a rest of one image.
    assert Counter(judge.asked) == {-1: 1000, 0: 10, 1: 10, 2: 10}
    assert (verdict.n_tried, verdict.n_failed) == (1000, 1)


def test_finalists_are_compared_by_the_mean_over_images():
    """Loss of path (t,) on batch b: t + 10 b; b has as many images as it is said below."""
    made = setup()
    paths = [(1,), (3,)]

    class Linear(Judge):
        def path_loss(self, path, draw):
            return torch.tensor(path[0] + 10.0 * int(draw.val[0][0][0]))

    def losses(sizes):
        batches = [batch_of(k, size) for k, size in enumerate(sizes)]
        end = EpochEnd(Linear(made.net), True, 0.0, None, lambda: iter(batches))
        return random_search._final_losses(paths, end)

    # The mean of b over the images: (8 + 2 * 4) / 16.
    torch.testing.assert_close(losses([4, 8, 4]), torch.tensor([11.0, 13.0]))
    torch.testing.assert_close(losses([30, 10]), torch.tensor([3.5, 5.5]))
    torch.testing.assert_close(losses([30, 10, 1]), torch.tensor([3.5, 5.5]))
    torch.testing.assert_close(losses([1]), torch.tensor([1.0, 3.0]))


def test_in_between_a_few_are_compared_on_a_few_batches():
    _, judge, verdict = judged(False)
    assert Counter(judge.asked) == {-1: 10 + 9 * 10}  # one has failed
    assert (verdict.n_tried, verdict.n_failed) == (10, 1)


def test_the_finalists_of_a_search_see_every_image_that_scores_alpha(search_config, monkeypatch):
    monkeypatch.setattr(random_search, "N_SAMPLES", 12)
    monkeypatch.setattr(search, "EVAL_BATCH_SIZE", 10)
    seen = []
    plain = BilevelObjective.path_loss

    def path_loss(self, path, draw):
        seen.append(sum(len(labels) for _, labels in draw.val))
        return plain(self, path, draw)

    monkeypatch.setattr(BilevelObjective, "path_loss", path_loss)
    # 31 images score alpha, of which the last is a batch by itself.
    run_search(search_config("random_ws", epochs=1, warmup_epochs=0, n_train=62))
    assert seen == [16] * 12 + [10] * 30


def test_a_search_with_shared_weights(search_config, monkeypatch):
    monkeypatch.setattr(random_search, "N_SAMPLES", 20)
    result = run_search(search_config("random_ws"))
    assert len(result.metrics) == 3
    assert result.genotype == SPACES["small_s3"].discretize(result.alpha)
    assert result.metrics[-1]["updates"] > 0


@pytest.mark.parametrize("algo", ["random", "random_ws", "sdarts_adv", "es", "pc"])
def test_solver_options_are_refused(algo, search_config):
    with pytest.raises(InvalidValueError, match=f"solver must have no options with {algo}"):
        run_search(search_config(algo, partial_channels=1, solver={"sigma": 1.0}))


def test_every_method_says_what_it_is():
    names = ["dp", "l2", "es", "ada", "pc", "sdarts_rs", "sdarts_adv", "random", "random_ws"]
    assert [name for name in METHODS if name in names] == names
    texts = [methods.describe_method(name) for name in METHODS]
    assert len(set(texts)) == len(METHODS)
    assert methods.describe_method("gld") == "zero-order: the solver gld on alpha (paper, Alg. 1)"
    assert methods.describe_method("random") == "random: A random architecture; nothing is trained."


@pytest.mark.parametrize("name", list(METHODS))
def test_the_class_of_a_method_is_of_the_kind_that_its_line_says(name):
    assert METHODS[name].kind == kind_of(name)


def test_what_methods_are_defined_with():
    def config(algo, dataset="cifar10", **own):
        return SearchConfig.for_dataset(dataset, algo, **own)

    assert (config("dp").drop_path, config("dp").cutout) == (0.2, 16)
    assert config("dp", "digits").cutout == 4
    assert config("l2").weight_decay == 81e-4
    assert config("l2", weight_decay=9e-4).weight_decay == 9e-4
    pc = config("pc")
    assert (pc.partial_channels, pc.edge_normalization, pc.warmup_epochs) == (4, True, 15)
    for algo in ("darts2", "dp", "l2", "es", "ada", "sdarts_rs", "sdarts_adv", "random_ws"):
        assert config(algo).warmup_epochs == 0
    assert config("darts2") == config("es").replace(algo="darts2")


def test_a_baseline_says_that_it_hides_a_solver(search_config, third_party):
    alpha = torch.zeros(SPACES["small_s3"].dim)
    third_party("zoopt_nas.solvers", es="zoopt_nas.solvers:RS")
    assert list(METHODS).count("es") == 1
    with pytest.warns(UserWarning, match="es is the built-in baseline, not the solver es of"):
        method = METHODS["es"]
    assert method.build(search_config("es"), alpha, 0).wants_eigenvalue
    METHODS["ada"].build(search_config("ada"), alpha, 0)  # warnings are errors here
