"""The values of the bilevel objective against SGD written out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from tiny_supernets import FakeStream, Setup, setup
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.settings.config import SearchConfig

# Both sides are float64 and do the same sums in another order.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def plain_value(
    made: Setup,
    alpha: Tensor,
    draw: Draw,
    *,
    clip: float | None = 5.0,
    lr: float | None = None,
    with_momentum: bool = True,
    decays: Sequence[float] | None = None,
) -> float:
    """L_val(omega*(alpha), alpha) with SGD written out: no torch.optim, no clip_grad_norm_."""
    net = copy.deepcopy(made.net).train()
    group = made.optimizer.param_groups[0]
    lr = group["lr"] if lr is None else lr
    momenta: list[Tensor | None] = []
    for parameter in made.net.parameters():
        buffer = made.optimizer.state.get(parameter, {}).get("momentum_buffer")
        momenta.append(buffer.clone() if buffer is not None and with_momentum else None)
    path = [[parameter.detach().clone() for parameter in net.parameters()]]
    for images, labels in draw.train:
        loss = F.cross_entropy(net(images, alpha), labels)
        parameters = list(net.parameters())
        gradients = list(torch.autograd.grad(loss, parameters))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        factor = 1.0 if clip is None or norm + 1e-6 <= clip else clip / (norm + 1e-6)
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                step = gradients[i] * factor + group["weight_decay"] * parameter
                before = momenta[i]
                if group["momentum"]:
                    step = step if before is None else group["momentum"] * before + step
                    momenta[i] = step
                parameter -= lr * step
        path.append([parameter.detach().clone() for parameter in net.parameters()])
    if decays is not None:  # the average written as one sum over all steps
        shares = [(1 - d) * math.prod(decays[k + 1 :]) for k, d in enumerate(decays)]
        shares.insert(0, math.prod(decays))
        for i, parameter in enumerate(net.parameters()):
            parameter.data = sum(share * at[i] for share, at in zip(shares, path, strict=True))
    with torch.no_grad():
        losses = [F.cross_entropy(net(images, alpha), labels) for images, labels in draw.val]
    return sum(float(loss) for loss in losses) / len(losses)


def assert_plain(made: Setup, objective: BilevelObjective, **how) -> Tensor:
    draw, alphas = objective.draw(), made.alphas()
    values = objective(alphas, draw)
    expected = [plain_value(made, alpha, draw, **how) for alpha in alphas]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), **CLOSE)
    assert float(values.std()) > 1e-4  # the candidates do differ
    return values


# --- The value -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False], ids=["buffers", "fresh"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("clip", [None, 5.0, 0.3])
def test_m_steps_against_plain_sgd(clip: float | None, momentum: float, trained: bool):
    made = setup(momentum=momentum, trained=trained)
    assert_plain(made, made.objective(grad_clip=clip), clip=clip)


def test_clipping_is_at_work_in_that_test():
    made = setup()
    objective = made.objective()
    draw, alpha = objective.draw(), made.alphas(1)[0]
    tight, loose = (plain_value(made, alpha, draw, clip=clip) for clip in (0.3, 5.0))
    assert abs(tight - loose) > 1e-5


def test_a_fresh_torch_sgd_gives_the_same():
    """The inner loop of the paper with torch's own optimizer, built on the copy's parameters."""
    made = setup()
    objective = made.objective(grad_clip=0.3)
    draw, alpha = objective.draw(), made.alphas(1)[0]
    net = copy.deepcopy(made.net)
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    for mine, theirs in zip(net.parameters(), made.net.parameters(), strict=True):
        sgd.state[mine]["momentum_buffer"] = made.optimizer.state[theirs]["momentum_buffer"].clone()
    for images, labels in draw.train:
        sgd.zero_grad()
        F.cross_entropy(net(images, alpha), labels).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        sgd.step()
    images, labels = draw.val[0]
    expected = F.cross_entropy(net(images, alpha), labels).detach()
    torch.testing.assert_close(objective(alpha[None], draw)[0], expected, **CLOSE)


def test_the_weights_of_a_candidate_move_and_the_first_step_is_not_lost():
    made = setup()
    objective = made.objective(inner_steps=1)
    draw, alpha = objective.draw(), made.alphas(1)[0]
    fitted = [p.detach().clone() for p in objective.fit(alpha, draw).parameters()]
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(fitted, made.net.parameters(), strict=True)
    ]
    assert min(moved) > 0
    start = objective.start()
    assert all(
        torch.equal(a, b) for a, b in zip(start.parameters(), made.net.parameters(), strict=True)
    )


@pytest.mark.parametrize("n_val", [1, 3])
def test_no_inner_step_is_a_direct_evaluation(n_val: int):
    made = setup()
    alphas = made.alphas()
    for options in ({"inner_steps": 0}, {"inner": "first"}):
        objective = made.objective(val_batches=n_val, **options)
        draw = objective.draw()
        assert (len(draw.train), len(draw.val)) == (0, n_val)
        net = copy.deepcopy(made.net).train()
        with torch.no_grad():
            expected = torch.stack(
                [
                    torch.stack([F.cross_entropy(net(x, alpha), y) for x, y in draw.val]).mean()
                    for alpha in alphas
                ]
            )
        torch.testing.assert_close(objective(alphas, draw), expected, **CLOSE)


def test_second_is_one_unclipped_step():
    made = setup()
    objective = made.objective(inner="second", inner_steps=7, grad_clip=1e-6)
    assert len(objective.draw().train) == 1
    assert_plain(made, objective, clip=None)
    once_clipped = made.objective(inner_steps=1, grad_clip=1e-6)
    alphas = made.alphas()
    assert not torch.allclose(once_clipped(alphas), made.objective(inner="second")(alphas))


def test_inner_lr_and_momentum_options():
    made = setup()
    values = assert_plain(made, made.objective(inner_lr=0.2), lr=0.2)
    others = assert_plain(made, made.objective(inner_momentum=False), with_momentum=False)
    assert not torch.allclose(values, others)
    assert made.objective(inner_lr=0.2).lr == 0.2
    assert made.objective().lr == 0.05


@pytest.mark.parametrize("average", [0.99, 0.15])
def test_the_average_of_the_weights_over_the_inner_steps(average: float):
    made = setup()
    decays = [min(average, k / (k + 9)) for k in (1, 2, 3)]  # 0.1, 0.18, 0.25
    objective = made.objective(inner_average=average)
    assert len(objective.draw().train) == len(decays)
    averaged = assert_plain(made, objective, decays=decays)
    assert not torch.allclose(averaged, made.objective()(made.alphas()), atol=1e-6)
    # The unrolled step of Eq. 2 is one step, and no average.
    second = made.objective(inner="second")(made.alphas())
    again = made.objective(inner="second", inner_average=average)(made.alphas())
    assert torch.equal(second, again)


@pytest.mark.parametrize(
    "changes",
    [{"lr": 0.2}, {"weight_decay": 0.5}, {"momentum": 0.3}, {"momentum": 0.0}],
    ids=lambda changes: "-".join(changes),
)
def test_settings_follow_the_main_optimizer(changes: dict[str, float]):
    made = setup()
    objective = made.objective()
    before = objective(made.alphas(), objective.draw())
    made.optimizer.param_groups[0].update(changes)
    after = assert_plain(made, objective)
    assert not torch.allclose(before, after)


def test_weights_and_momentum_follow_the_main_training():
    made = setup(trained=False)
    objective = made.objective()
    assert_plain(made, objective)
    made.train(1)
    assert_plain(made, objective)
    made.train(2)
    assert_plain(made, objective)
    made.optimizer.state.clear()  # as a restart of the optimizer would
    assert_plain(made, objective)


def test_some_parameters_without_momentum():
    made = setup()
    first = next(made.net.parameters())
    del made.optimizer.state[first]
    objective = made.objective()
    assert_plain(made, objective)
    assert first not in made.optimizer.state
    assert_plain(made, objective)


def test_batch_norm_uses_batch_statistics_even_if_the_supernet_evaluates():
    made = setup()
    objective = made.objective()
    draw, alphas = objective.draw(), made.alphas()
    expected = objective(alphas, draw)
    made.net.eval()
    assert torch.equal(objective(alphas, draw), expected)
    assert torch.equal(made.objective()(alphas, draw), expected)
    assert not made.net.training


def test_from_config():
    made = setup()
    config = SearchConfig(
        inner="sgd", inner_steps=2, inner_lr=0.3, inner_momentum=False, grad_clip=0.2, val_batches=2
    )
    streams = FakeStream(0), FakeStream(1)
    objective = BilevelObjective.from_config(made.net, made.optimizer, *streams, config, seed=0)
    draw = objective.draw()
    assert (len(draw.train), len(draw.val)) == (2, 2)
    assert_plain(made, objective, clip=0.2, lr=0.3, with_momentum=False)
    for inner, n_train in (("first", 0), ("second", 1)):
        objective = BilevelObjective.from_config(
            made.net, made.optimizer, *streams, config, seed=0, inner=inner
        )
        assert len(objective.draw().train) == n_train
