"""Schedules, one weight step by hand, meters and evaluation."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.devices import pick_device
from zoopt_nas.nas.steps.meter import Meter, evaluate
from zoopt_nas.nas.steps.schedules import cosine, set_lr
from zoopt_nas.nas.steps.seeds import seeded_init
from zoopt_nas.nas.steps.weight_step import make_sgd, weight_step

CPU = torch.device("cpu")


def test_cosine_values():
    assert cosine(0, 50, 0.025, 0.001) == pytest.approx(0.025)
    assert cosine(25, 50, 0.025, 0.001) == pytest.approx(0.013)
    assert cosine(50, 50, 0.025, 0.001) == pytest.approx(0.001)
    assert cosine(10, 40, 1.0, 0.0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert cosine(-3, 50, 2.0, 1.0) == 2.0
    assert cosine(99, 50, 2.0, 1.0) == 1.0


@settings(deadline=None, derandomize=True, max_examples=50)
@given(n_steps=st.integers(1, 500), step=st.integers(0, 499))
def test_cosine_is_the_usual_recursion_and_falls(n_steps: int, step: int):
    step = min(step, n_steps - 1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR
    formula = 0.1 + 0.9 * (1 + math.cos(math.pi * step / n_steps)) / 2
    assert cosine(step, n_steps, 1.0, 0.1) == pytest.approx(formula)
    assert cosine(step + 1, n_steps, 1.0, 0.1) < cosine(step, n_steps, 1.0, 0.1)
    parameter = nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=1.0)
    closed_form = scheduler(sgd, n_steps, eta_min=0.1)
    closed_form.last_epoch = step
    assert closed_form._get_closed_form_lr()[0] == pytest.approx(formula)


def test_set_lr_sets_every_group():
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    sgd = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 3.0}], lr=1.0)
    set_lr(sgd, 0.5)
    assert [group["lr"] for group in sgd.param_groups] == [0.5, 0.5]


def test_make_sgd_takes_the_configs_settings():
    model = nn.Linear(2, 3)
    config = SearchConfig(lr=0.3, momentum=0.7, weight_decay=0.01)
    (group,) = make_sgd(model, config).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.7, 0.01)
    assert not group["nesterov"]
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_pick_device():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    for name in ("nonsense", "cuda:99", "meta", ""):
        with pytest.raises(InvalidValueError, match="device must be auto or a device"):
            pick_device(name)


def test_seeded_init_reproduces_and_gives_the_generator_back():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with seeded_init(5):
        first = nn.Linear(4, 4)
    with seeded_init(5):
        second = nn.Linear(4, 4)
    with seeded_init(6):
        third = nn.Linear(4, 4)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, third.weight)
    torch.manual_seed(5)
    assert torch.equal(first.weight, nn.Linear(4, 4).weight)


def test_seeded_init_gives_the_generator_back_after_an_error():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative dimension"), seeded_init(5):
        nn.Linear(4, 4, device="cpu").weight.new_empty(-1)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_init_is_that_of_its_own_thread():
    """Two threads build by turns, while a third draws from the default generator."""

    def alone(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [nn.Conv2d(3, 4, 3).weight.detach(), nn.Linear(4, 4).bias.detach()]

    expected = [alone(5), alone(6)]
    turns = threading.Barrier(3)
    built: dict[int, list[Tensor]] = {5: [], 6: []}

    def build(seed: int) -> None:
        with seeded_init(seed):
            for make in (lambda: nn.Conv2d(3, 4, 3).weight, lambda: nn.Linear(4, 4).bias):
                turns.wait(60)
                built[seed].append(make().detach())

    threads = [threading.Thread(target=build, args=(seed,)) for seed in built]
    for thread in threads:
        thread.start()
    torch.manual_seed(11)
    drawn = []
    for _ in range(2):
        turns.wait(60)
        drawn.append(torch.rand(3))
    for thread in threads:
        thread.join(60)
    for found, usual in zip(built.values(), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, usual, strict=True))
    torch.manual_seed(11)
    assert torch.equal(torch.cat(drawn), torch.cat([torch.rand(3), torch.rand(3)]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(2, 3),
        lambda: torch.randn(4),
        lambda: torch.randint(10, (5,)),
        lambda: torch.randperm(7),
        lambda: torch.empty(3).normal_(),
        lambda: torch.empty(3).bernoulli_(0.5),
        lambda: nn.init.trunc_normal_(torch.empty(3, 3)),
        lambda: nn.init.orthogonal_(torch.empty(3, 3)),
        lambda: nn.init.xavier_uniform_(torch.empty(3, 3)),
    ],
)
def test_what_a_module_of_someone_else_draws_is_seeded_too(draw):
    torch.manual_seed(3)
    expected = draw()
    before = torch.get_rng_state()
    with seeded_init(3):
        assert torch.equal(draw(), expected)
        own = torch.Generator().manual_seed(8)
        given = torch.rand(2, generator=own)
    assert torch.equal(given, torch.rand(2, generator=torch.Generator().manual_seed(8)))
    assert torch.equal(torch.get_rng_state(), before)


# --- One weight step -----------------------------------------------------------------------------


@pytest.mark.parametrize("grad_clip", [None, 1e9, 0.05])
def test_weight_steps_by_hand(grad_clip: float | None):
    """lr 0.1, momentum 0.9, weight decay 0.01: three steps of a linear model, in plain algebra."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    with seeded_init(0):
        model = nn.Linear(3, 2).double()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    weight, bias = (p.detach().clone() for p in (model.weight, model.bias))
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    clipped = False
    for _ in range(3):
        residual = x @ weight.T + bias - y
        gradients = [residual.T @ x / 5, residual.sum(dim=0) / 5]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        if grad_clip is not None and norm > grad_clip:
            gradients = [g * (grad_clip / (norm + 1e-6)) for g in gradients]  # torch's 1e-6
            clipped = True
        for value, gradient, momentum in zip((weight, bias), gradients, momenta, strict=True):
            momentum.mul_(0.9).add_(gradient + 0.01 * value)
            value.sub_(0.1 * momentum)
        loss = ((model(x) - y) ** 2).sum() / 10
        weight_step(loss, sgd, grad_clip)
        torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.bias.detach(), bias, rtol=1e-12, atol=1e-12)
    assert clipped == (grad_clip == 0.05)


def test_weight_step_drops_old_gradients():
    model = nn.Linear(2, 1, bias=False).double()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full_like(model.weight, 1e3)
    weight_step(model(torch.tensor([[1.0, 2.0]], dtype=torch.float64)).sum(), sgd, None)
    expected = before - torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(model.weight.detach(), expected)


# --- Meters and evaluation -----------------------------------------------------------------------


def batches(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 4, generator=generator),
            torch.randint(3, (size,), generator=generator),
        )
        for size in sizes
    ]


@pytest.mark.parametrize("sizes", [[7], [5, 5, 2], [1, 9]])
def test_evaluate_against_all_images_at_once(sizes: list[int]):
    with seeded_init(0):
        model = nn.Linear(4, 3)
    data = batches(sizes)
    meter = evaluate(model, data, CPU)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    logits = (images @ model.weight.T + model.bias).detach().double()
    chosen = logits[torch.arange(len(labels)), labels]
    loss = (torch.logsumexp(logits, dim=1) - chosen).mean()
    assert meter.loss == pytest.approx(float(loss), rel=1e-5)
    right = [max(range(3), key=row.__getitem__) for row in logits.tolist()]
    n_right = sum(r == label for r, label in zip(right, labels.tolist(), strict=True))
    assert meter.accuracy == n_right / len(labels)
    assert model.weight.grad is None


def test_evaluate_builds_no_graph():
    model = nn.Linear(4, 3)
    seen: list[bool] = []

    def forward(images: Tensor) -> Tensor:
        logits = model(images)
        seen.append(logits.requires_grad)
        return logits

    evaluate(forward, batches([2, 2]), CPU)
    assert seen == [False, False]


def test_meter_weighs_batches_by_their_size_and_resumes():
    meter = Meter(CPU)
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    meter.update(torch.tensor(1.0, requires_grad=True), logits, torch.tensor([0, 1, 1]))
    state = meter.state_dict()
    meter.update(torch.tensor(5.0), logits[:1], torch.tensor([1]))
    assert meter.loss == (3 * 1.0 + 5.0) / 4
    assert meter.accuracy == 2 / 4
    other = Meter(CPU)
    other.load_state_dict(state)
    assert (other.loss, other.accuracy) == (1.0, 2 / 3)
    other.update(torch.tensor(5.0), logits[:1], torch.tensor([1]))
    assert (other.loss, other.accuracy) == (meter.loss, meter.accuracy)


def test_gradients_are_clipped_by_row():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    before = rows.detach().clone()
    sgd = torch.optim.SGD([rows], lr=1.0)
    weight_step((rows**2).sum() / 2, sgd, 1.0, by_row=True)  # the gradient is the row itself
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(before - rows.detach(), expected, rtol=1e-6, atol=0)


def test_an_empty_meter_is_nan():
    assert math.isnan(Meter(CPU).loss)
    assert math.isnan(Meter(CPU).accuracy)


def test_meter_shows_divergence():
    meter = Meter(CPU)
    for loss in (1.0, math.nan, 1.0):
        meter.update(torch.tensor(loss), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    assert math.isnan(meter.loss)


def test_meter_counts_past_float32():
    meter = Meter(CPU)
    meter.sums[1:] = 2.0**24
    zero = torch.zeros(1, dtype=torch.long)
    meter.update(F.cross_entropy(torch.zeros(1, 2), zero), torch.zeros(1, 2), zero)
    assert meter.sums[2] == 2.0**24 + 1
