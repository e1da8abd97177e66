"""Candidates evaluated at once against candidates evaluated one by one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_supernets import NOISY, TINY, Setup, flat_weights, setup
from torch import Tensor

from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.objective import Draw
from zoopt_nas.nas.steps.execution import Execution

# Both sides are float64 and do the same sums in another order; BatchNorm and steps amplify it.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def values(made: Setup, alphas: Tensor, draw: Draw, size: int | None, **options) -> Tensor:
    return made.objective(candidates_per_batch=size, **options)(alphas, draw)


def assert_same(made: Setup, n: int = 3, size: int = 3, **options) -> Tensor:
    """The same losses and the same fitted weights, and candidates that differ."""
    serial = made.objective(candidates_per_batch=1, **options)
    together = made.objective(candidates_per_batch=size, **options)
    draw, alphas = serial.draw(), made.alphas(n)
    expected = serial(alphas, draw)
    torch.testing.assert_close(together(alphas, draw), expected, **CLOSE)
    weights = together.fit_together(alphas, draw)
    for row, alpha in zip(weights, alphas, strict=True):
        fitted = [p.detach().flatten() for p in serial.fit(alpha, draw).parameters()]
        torch.testing.assert_close(row, torch.cat(fitted), **CLOSE)
    assert float(expected.std()) > 1e-4
    return expected


# --- Losses and weights --------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["s1", "s3", "s4", "darts", "nasbench201"])
def test_spaces(space: str):
    assert_same(setup(SPACES[space]), grad_clip=0.3, inner_steps=2)


@pytest.mark.parametrize("space", [TINY, SPACES["nasbench201"]], ids=lambda space: space.name)
def test_nesterov(space: SearchSpace):
    made = setup(space, nesterov=True)
    found = assert_same(made, inner_steps=2)
    plain = assert_same(setup(space), inner_steps=2)
    assert float((found - plain).abs().max()) > 1e-6  # the setting counts


@pytest.mark.parametrize("trained", [True, False], ids=["buffers", "fresh"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("clip", [None, 5.0, 0.3])
@pytest.mark.parametrize("space", [TINY, NOISY], ids=lambda space: space.name)
def test_momentum_and_clipping(
    space: DartsSpace, clip: float | None, momentum: float, trained: bool
):
    assert_same(setup(space, momentum=momentum, trained=trained), grad_clip=clip)


def test_clipping_is_by_candidate():
    """One gradient is clipped, the others are not: a common norm would clip all or none."""
    made = setup()
    objective = made.objective(inner_steps=1)
    draw, alphas = objective.draw(), made.alphas()
    objective.start()
    norms = []
    for alpha in alphas:
        weights = list(objective._training.scratch.parameters())
        loss = objective.train_loss(objective._training.scratch, alpha, draw)
        parts = torch.autograd.grad(loss, weights)
        norms.append(float(torch.cat([part.flatten() for part in parts]).norm()))
    least, middle, _ = sorted(norms)
    clip = (least + middle) / 2
    assert least < clip < middle
    clipped = assert_same(made, grad_clip=clip, inner_steps=1)
    free = assert_same(made, grad_clip=None, inner_steps=1)
    assert (clipped == free).tolist() == [norm < clip for norm in norms]


@pytest.mark.parametrize("trained", [True, False], ids=["buffers", "fresh"])
@pytest.mark.parametrize(
    "settings",
    [{"nesterov": True}, {"dampening": 0.4}, {"weight_decay": 0.5}, {"lr": 0.2}],
    ids=lambda settings: "-".join(settings),
)
def test_settings_of_the_optimizer(settings: dict, trained: bool):
    made = setup(trained=trained)
    before = assert_same(made)
    made.optimizer.param_groups[0].update(settings)
    changed = not torch.allclose(assert_same(made), before)
    # Dampening does not touch the gradient that makes the momentum, only the two after it.
    assert changed


def test_options_of_the_objective():
    made = setup()
    usual = assert_same(made)
    for options in (
        {"inner_lr": 0.2},
        {"inner_momentum": False},
        {"inner_average": 0.15},
        {"inner": "second"},
    ):
        assert not torch.allclose(assert_same(made, **options), usual)


@pytest.mark.parametrize("dampening", [0.0, 0.4])
def test_some_parameters_without_momentum(dampening: float):
    made = setup()
    del made.optimizer.state[next(made.net.parameters())]
    made.optimizer.param_groups[0]["dampening"] = dampening
    draw, alphas = made.objective().draw(), made.alphas()
    serial = values(made, alphas, draw, 1)
    torch.testing.assert_close(values(made, alphas, draw, 3), serial, **CLOSE)


@pytest.mark.parametrize("options", [{"inner_steps": 0}, {"inner": "first"}], ids=str)
@pytest.mark.parametrize("n_val", [1, 3])
def test_no_inner_step(n_val: int, options: dict):
    assert_same(setup(NOISY), val_batches=n_val, **options)


@pytest.mark.parametrize(("n", "size"), [(5, 2), (3, 8), (4, 3), (1, 4)])
def test_a_last_batch_of_another_size(n: int, size: int, monkeypatch: pytest.MonkeyPatch):
    made = setup(NOISY)
    objective = made.objective(candidates_per_batch=size, val_batches=2)
    draw, alphas = objective.draw(), made.alphas(n)
    sizes = []
    plain = objective.evaluation._values
    monkeypatch.setattr(
        objective.evaluation, "_values", lambda a, *more: sizes.append(len(a)) or plain(a, *more)
    )
    got = objective(alphas, draw)
    assert sizes == [size] * (n // size) + [n % size] * (n % size > 0)
    torch.testing.assert_close(got, values(made, alphas, draw, 1, val_batches=2), **CLOSE)
    assert objective.n_evaluations == n


# --- What must stay as it is ---------------------------------------------------------------------


@pytest.mark.parametrize("space", [TINY, NOISY], ids=lambda space: space.name)
def test_the_main_training_is_untouched(space: DartsSpace):
    made = setup(space)
    objective = made.objective(candidates_per_batch=4)
    state = copy.deepcopy(made.net.state_dict())
    optimizer = copy.deepcopy(made.optimizer.state_dict())
    noise, rng = made.noise.get_state(), torch.get_rng_state()
    alphas = made.alphas(4)
    before = alphas.clone()
    result = objective(alphas)
    assert not result.requires_grad
    assert torch.equal(alphas, before)
    for name, tensor in made.net.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    after = made.optimizer.state_dict()
    assert after["param_groups"] == optimizer["param_groups"]
    for index, entry in after["state"].items():
        assert torch.equal(entry["momentum_buffer"], optimizer["state"][index]["momentum_buffer"])
    assert all(parameter.grad is None for parameter in objective._training.scratch.parameters())
    assert torch.equal(made.noise.get_state(), noise)
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_call_at_once_leaves_nothing_for_the_next_one_by_one():
    made = setup(NOISY)
    objective = made.objective(candidates_per_batch=4)
    draw, alphas = objective.draw(), made.alphas(4)
    before = objective(alphas[:1], draw)
    objective(alphas, draw)
    assert torch.equal(objective(alphas[:1], draw), before)
    assert torch.equal(objective(alphas, draw), objective(alphas, draw))


def test_draws_and_state_do_not_depend_on_the_batch():
    made = setup(NOISY)
    one, four = (made.objective(candidates_per_batch=size, seed=3) for size in (1, 4))
    for _ in range(2):
        torch.testing.assert_close(one(made.alphas(4)), four(made.alphas(4)), **CLOSE)
    assert torch.equal(one.state_dict()["seeds"], four.state_dict()["seeds"])
    assert one.state_dict()["n_evaluations"] == four.state_dict()["n_evaluations"] == 8
    assert one._train_stream.n_taken == four._train_stream.n_taken == 6


@pytest.mark.parametrize("trained", [True, False], ids=["buffers", "fresh"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_failed_candidate_does_not_leak(bad: float, trained: bool):
    made = setup(NOISY, trained=trained)
    objective = made.objective(candidates_per_batch=3)
    draw, alphas = objective.draw(), made.alphas(3)
    calm = objective(alphas, draw)
    alphas[1] = bad
    got = objective(alphas, draw)
    assert torch.equal(got[[0, 2]], calm[[0, 2]])
    assert not bool(torch.isfinite(got[1]))


# --- The forward pass ----------------------------------------------------------------------------


BF16 = Execution(torch.device("cpu"), autocast=torch.bfloat16)


def test_fits_at_once_have_the_precision_of_the_settings():
    made = setup(SPACES["s3"])
    made.net.float()
    made.optimizer.state.clear()  # in float64
    draw = made.objective(inner_steps=1).draw()
    draw = Draw([(x.float(), y) for x, y in draw.train], [], 0)
    alphas = made.alphas(2).float()
    start = flat_weights(made.net)
    plain = made.objective().fit_together(alphas, draw) - start
    coarse = made.objective(execution=BF16).fit_together(alphas, draw) - start
    alone = [flat_weights(made.objective(execution=BF16).fit(a, draw)) - start for a in alphas]
    assert coarse.dtype == torch.float32
    for step, exact, expected in zip(coarse, plain, alone, strict=True):
        # Both round to 8 bits at each operation, in another order.
        error, usual = ((x - exact).norm() / exact.norm() for x in (step, expected))
        assert float(usual) > 2**-8
        assert 0.5 < float(error / usual) < 2


def test_losses_at_once_are_plain_ones_in_any_precision():
    made = setup(SPACES["s3"])
    options = {"inner": "first", "candidates_per_batch": 3}
    plain = made.objective(**options)(made.alphas())
    assert torch.equal(made.objective(execution=BF16, **options)(made.alphas()), plain)
