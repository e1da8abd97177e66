"""Fits of candidates that the supernet takes over in place of weight steps."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_supernets import NOISY, TINY, FakeStream, Setup, fixed_draw, setup
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas import GLD, MGS, Solver
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.bilevel import BilevelObjective, Draw
from zoopt_nas.nas.loop import load_run_dataset
from zoopt_nas.nas.operations import seed_noise
from zoopt_nas.nas.reuse import Fits, check_reuse, renew_statistics
from zoopt_nas.nas.search import Search, run_search
from zoopt_nas.nas.supernet import Supernet
from zoopt_nas.nas.training import Meter, weight_step
from zoopt_nas.nas.updaters import ZeroOrderUpdater

GLD_SEARCH = GLD(schedule="search", max_radius=2.0, min_radius=0.5)
MGS_PAPER = MGS(sigma=0.2, temperature=0.05, n_samples=3)


@dataclass
class Plain:
    """A fit by a copy of the network and SGD of its own."""

    net: Supernet
    optimizer: torch.optim.SGD
    meter: Meter

    @property
    def weights(self) -> Tensor:
        return flat_weights(self.net)

    @property
    def momentum(self) -> Tensor:
        return flat_momentum(self.net, self.optimizer)


def flat_weights(net: Supernet) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def flat_momentum(net: Supernet, optimizer: torch.optim.SGD) -> Tensor:
    buffers = [optimizer.state[p]["momentum_buffer"] for p in net.parameters()]
    return torch.cat([buffer.flatten() for buffer in buffers])


def plain_fit(
    net: Supernet, optimizer: torch.optim.SGD, alpha: Tensor, draw: Draw, clip: float = 5.0
) -> Plain:
    """What the training batches of ``draw`` make of the weights at ``alpha``."""
    noise = torch.Generator().manual_seed(draw.noise_seed)
    own = {id(m.generator): m.generator for m in net.modules() if hasattr(m, "generator")}
    network = copy.deepcopy(net, own).train()
    seed_noise(network, noise)
    sgd = torch.optim.SGD(network.parameters(), lr=1.0)
    sgd.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    meter = Meter(torch.device("cpu"))
    for images, labels in draw.train:
        logits = network(images, alpha)
        loss = F.cross_entropy(logits, labels)
        weight_step(loss, network, sgd, clip)
        meter.update(loss, logits, labels)
    return Plain(network, sgd, meter)


def plain_fits(made: Setup, alphas: Tensor, draw: Draw) -> list[Plain]:
    return [plain_fit(made.net, made.optimizer, alpha, draw) for alpha in alphas]


# --- What is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [TINY, NOISY], ids=lambda space: space.name)
@pytest.mark.parametrize("trained", [True, False], ids=["momentum", "fresh"])
def test_each_fit_is_where_its_candidate_ended(space, trained):
    made = setup(space, trained=trained)
    objective = made.objective(keep_fits=True)
    draw, alphas = objective.draw(), made.alphas(3)
    objective(alphas, draw)
    fits = objective.fits
    for k, plain in enumerate(plain_fits(made, alphas, draw)):
        assert torch.equal(fits.weights[k], plain.weights)
        assert torch.equal(fits.momentum[k], plain.momentum)
        assert torch.equal(fits.measured[k], plain.meter.sums)
    assert fits.measured[:, 2].tolist() == [18.0] * 3  # 3 batches of 6 images
    assert not torch.equal(fits.weights[0], fits.weights[1])


def test_keeping_fits_changes_no_value():
    made = setup()
    objective, keeping = made.objective(), made.objective(keep_fits=True)
    draw = objective.draw()
    assert torch.equal(objective(made.alphas(), draw), keeping(made.alphas(), draw))
    assert objective.fits is None


def test_without_momentum_there_is_none_to_take():
    made = setup(momentum=0.0)
    objective = made.objective(keep_fits=True)
    objective(made.alphas(2))
    assert objective.fits.momentum is None
    objective.fits.give(torch.tensor([0.0, 1.0]), made.net, made.optimizer)
    buffers = [state.get("momentum_buffer") for state in made.optimizer.state.values()]
    assert all(buffer is None for buffer in buffers)
    assert torch.equal(flat_weights(made.net), objective.fits.weights[1])


# --- What an update makes of them ----------------------------------------------------------------


def updated(
    made: Setup, solver: Solver, monkeypatch: pytest.MonkeyPatch, failed: tuple[int, ...] = ()
) -> tuple[BilevelObjective, ZeroOrderUpdater, Draw, dict[str, Tensor]]:
    """An update of alpha, in which the candidates ``failed`` end in NaN."""
    objective = made.objective(keep_fits=True)
    draw = fixed_draw(objective, monkeypatch)
    seen: dict[str, Tensor] = {}
    evaluate = BilevelObjective.__call__

    def recording(self, alphas: Tensor, draw: Draw | None = None) -> Tensor:
        alphas = alphas.clone()
        alphas[list(failed)] = math.nan
        seen["candidates"], seen["values"] = alphas, evaluate(self, alphas, draw)
        return seen["values"]

    monkeypatch.setattr(BilevelObjective, "__call__", recording)
    updater = ZeroOrderUpdater(solver, made.alphas(1)[0], seed=1, schedule="constant")
    updater.step(objective, 0.0)
    return objective, updater, draw, seen


@pytest.mark.parametrize("trained", [True, False], ids=["momentum", "fresh"])
def test_gld_gives_the_fit_of_the_candidate_that_it_chose(trained, monkeypatch):
    made = setup(trained=trained)
    objective, updater, draw, seen = updated(made, GLD_SEARCH, monkeypatch)
    best = int(seen["values"].argmin())
    assert best > 0  # it moved
    assert torch.equal(updater.alpha, seen["candidates"][best])
    assert updater.candidate_weights.tolist() == [float(k == best) for k in range(4)]
    plain = plain_fit(made.net, made.optimizer, updater.alpha, draw)
    measured = objective.fits.give(updater.candidate_weights, made.net, made.optimizer)
    assert torch.equal(flat_weights(made.net), plain.weights)
    assert torch.equal(flat_momentum(made.net, made.optimizer), plain.momentum)
    assert torch.equal(measured, plain.meter.sums)


@pytest.mark.parametrize("schedule", ["search", "fast", "adaptive"])
def test_where_gld_stays_its_own_fit_is_taken(schedule):
    solver = GLD(schedule=schedule)
    state = solver.init(torch.ones(4, dtype=torch.float64), rng=0)
    candidates = solver.ask(state)
    assert torch.equal(candidates[0], state.x)
    solver.tell(state, candidates, torch.arange(len(candidates), dtype=torch.float64))
    assert torch.equal(state.x, torch.ones(4, dtype=torch.float64))
    assert state.weights.tolist() == [1.0] + [0.0] * (len(candidates) - 1)


def test_an_iterate_that_was_not_evaluated_has_no_fit():
    solver = GLD(schedule="search", deterministic=True)
    state = solver.init(torch.ones(4), rng=0)
    for value in (0.0, 1.0):  # x is a row of the first batch only
        candidates = solver.ask(state)
        solver.tell(state, candidates, torch.full((len(candidates),), value))
    assert state.weights.tolist() == [0.0] * len(candidates)
    solver.tell(state, solver.ask(state), torch.full((len(candidates),), -1.0))
    assert state.weights.tolist() == [1.0] + [0.0] * (len(candidates) - 1)


def test_mgs_gives_the_mean_by_its_weights(monkeypatch):
    made = setup()
    objective, updater, draw, seen = updated(made, MGS_PAPER, monkeypatch)
    c = torch.softmax(-seen["values"] / 0.05, dim=0)  # Eq. 10 without q
    assert (c > 1e-3).all()  # each counts
    torch.testing.assert_close(updater.candidate_weights, c, rtol=1e-12, atol=0)
    torch.testing.assert_close(updater.alpha, c @ seen["candidates"], rtol=1e-12, atol=1e-12)
    plain = plain_fits(made, seen["candidates"], draw)
    measured = objective.fits.give(updater.candidate_weights, made.net, made.optimizer)
    for got, rows in (
        (flat_weights(made.net), [p.weights for p in plain]),
        (flat_momentum(made.net, made.optimizer), [p.momentum for p in plain]),
        (measured, [p.meter.sums for p in plain]),
    ):
        torch.testing.assert_close(got, c @ torch.stack(rows), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("solver", [GLD_SEARCH, MGS_PAPER], ids=lambda solver: solver.name)
def test_a_failed_fit_is_never_taken(solver, monkeypatch):
    made = setup()
    objective, updater, _, _ = updated(made, solver, monkeypatch, failed=(0, 2))
    assert not torch.isfinite(objective.fits.weights[[0, 2]]).all()
    weights = updater.candidate_weights
    assert weights[[0, 2]].tolist() == [0.0, 0.0]
    assert float(weights.sum()) == pytest.approx(1.0)
    fits = objective.fits
    alive = [k for k in range(len(weights)) if k not in (0, 2)]
    measured = fits.give(weights, made.net, made.optimizer)
    expected = weights[alive] @ fits.weights[alive]
    torch.testing.assert_close(flat_weights(made.net), expected, rtol=1e-11, atol=1e-13)
    assert torch.isfinite(flat_momentum(made.net, made.optimizer)).all()
    assert torch.isfinite(measured).all()


@pytest.mark.parametrize("solver", [GLD_SEARCH, MGS_PAPER], ids=lambda solver: solver.name)
def test_where_all_failed_no_candidate_has_a_share(solver, monkeypatch):
    everything = tuple(range(4 if solver is GLD_SEARCH else 3))
    _, updater, _, _ = updated(setup(), solver, monkeypatch, failed=everything)
    assert float(updater.candidate_weights.sum()) == 0


def test_the_mean_of_fits_is_the_fit_of_the_mean_up_to_second_order():
    made = setup()
    objective = made.objective(keep_fits=True, inner_lr=1e-3)
    draw, centre = objective.draw(), made.alphas(1)[0]
    directions = made.alphas(3, seed=1)
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    gaps = []
    for distance in (2e-5, 1e-5):  # so near that no ReLU switches between them
        alphas = centre + distance * directions
        objective(torch.cat([alphas, (shares @ alphas)[None]]), draw)
        rows = objective.fits.weights
        gaps.append(float(torch.linalg.vector_norm(shares @ rows[:3] - rows[3])))
        first_order = float(torch.linalg.vector_norm(rows[0] - rows[3]))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)
    assert gaps[1] < 1e-2 * first_order


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


def test_joined_fits_keep_their_order():
    rows = [torch.full((1, 2), float(k)) for k in range(3)]
    fits = Fits.join([Fits(row, -row, row.repeat(1, 2)[:, :3]) for row in rows])
    assert fits.weights.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert fits.momentum[2].tolist() == [-2, -2]
    assert fits.measured.shape == (3, 3)
