"""The weight step: its parts, its precision, and compilation that works or does not."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from tiny_supernets import NOISY, TINY, FakeStream, setup
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.schedules import set_lr
from zoopt_nas.nas.steps.weight_step import Losses, WeightStep, cross_entropy_of, weight_step

CPU = torch.device("cpu")
BF16 = Execution(CPU, autocast=torch.bfloat16)
COMPILED = Execution(CPU, compile=True)
ROUNDING = 2.0**-9  # of bf16: 8 significant bits, to the nearest


def linear(seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear model with a batch of 5 images of 40 numbers, labels of 3 classes."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(40, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images = torch.randn(5, 40, generator=generator)
    return model, images, torch.randint(3, (5,), generator=generator)


def sgd_of(model: nn.Module, lr: float = 0.125) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-2)


def supernet(space=TINY, seed: int = 0) -> DartsSupernet:
    torch.manual_seed(seed)
    return DartsSupernet(space, 3, 2, 1, in_channels=1)


def batches(n: int, n_images: int = 6) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and alpha in float32."""
    stream = FakeStream(4, n_images)
    generator = torch.Generator().manual_seed(8)
    found = []
    for _ in range(n):
        images, labels = stream.next_batch()
        found.append((images.float(), labels, torch.randn(TINY.dim, generator=generator)))
    return found


def test_a_step_is_loss_gradient_clipping_and_update():
    net, twin = supernet(), supernet()
    optimizers = [sgd_of(net), sgd_of(twin)]
    step = WeightStep(cross_entropy_of(net), net, optimizers[0], 0.5)
    for k, (images, labels, alpha) in enumerate(batches(3)):
        for optimizer in optimizers:
            set_lr(optimizer, 0.1 / (k + 1))
        loss, logits = step(images, labels, alpha)
        expected = twin(images, alpha)
        expected_loss = F.cross_entropy(expected, labels)
        weight_step(expected_loss, optimizers[1], 0.5)
        assert torch.equal(loss, expected_loss)
        assert torch.equal(logits, expected)
        assert not loss.requires_grad
        assert not logits.requires_grad
        assert all(
            torch.equal(a, b)
            for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True)
        )


def test_the_total_is_minimised_and_the_loss_reported():
    model, images, labels = linear()

    def compute(images: Tensor, labels: Tensor, scale: Tensor) -> Losses:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        return Losses(scale * loss, loss, logits)

    expected = F.cross_entropy(model(images), labels)
    (gradient,) = torch.autograd.grad(expected, model.weight)
    before = model.weight.detach().clone()
    step = WeightStep(compute, model, torch.optim.SGD(model.parameters(), lr=0.5), None)
    loss, _ = step(images, labels, torch.tensor(3.0))
    assert loss == expected
    torch.testing.assert_close(model.weight.detach(), before - 0.5 * 3.0 * gradient)


def test_the_learning_rate_is_that_of_the_moment():
    model, images, labels = linear()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    step = WeightStep(cross_entropy_of(model), model, sgd, None)
    for lr in (0.5, 0.25, 0.0):
        set_lr(sgd, lr)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), model.weight)
        before = model.weight.detach().clone()
        step(images, labels)
        assert torch.equal(model.weight.detach(), before - lr * gradient)


# --- Precision -----------------------------------------------------------------------------------


def test_bf16_rounds_as_much_as_it_may():
    """A product of two rounded factors, summed in float32, and the sum rounded: 3 roundings."""
    model, images, labels = linear()
    with torch.no_grad():
        exact = F.linear(images.double(), model.weight.double(), model.bias.double())
        size = F.linear(images.abs(), model.weight.abs(), model.bias.abs()).double()
    step = WeightStep(cross_entropy_of(model), model, sgd_of(model), None, execution=BF16)
    loss, logits = step(images, labels)
    assert logits.dtype == torch.bfloat16
    error = (logits.double() - exact).abs()
    assert bool((error <= 3.05 * ROUNDING * size).all())
    assert bool((error > 0).any())  # it was computed in bf16
    # The loss itself is float32, of rounded logits: it moves by at most the largest error.
    assert loss.dtype == torch.float32
    assert abs(loss.double() - F.cross_entropy(exact, labels)) <= 2 * error.max() + 1e-6


@pytest.mark.parametrize("space", [TINY, NOISY], ids=["tiny", "noisy"])
def test_bf16_leaves_weights_gradients_and_statistics_in_float32(space):
    net = supernet(space)
    seed_noise(net, torch.Generator().manual_seed(0))
    sgd = sgd_of(net)
    images, labels, _ = batches(1)[0]
    alpha = torch.zeros(space.dim)
    step = WeightStep(cross_entropy_of(net), net, sgd, 5.0, execution=BF16)
    loss, _ = step(images, labels, alpha)
    assert loss.dtype == torch.float32
    floats = [x for x in net.state_dict().values() if x.is_floating_point()]
    floats += [p.grad for p in net.parameters() if p.grad is not None]
    floats += [sgd.state[p]["momentum_buffer"] for p in net.parameters() if p.grad is not None]
    assert {x.dtype for x in floats} == {torch.float32}
    assert all(bool(torch.isfinite(x).all()) for x in floats)


def test_bf16_trains_as_float32_does():
    """The losses of six steps differ, by less than rounding accounts for."""
    losses = {}
    for execution in (BF16, None):
        net = supernet()
        step = WeightStep(cross_entropy_of(net), net, sgd_of(net), 5.0, execution=execution)
        losses[execution] = torch.stack([step(*batch)[0] for batch in batches(6)])
    difference = (losses[BF16] - losses[None]).abs()
    # A forward pass of 1 cell: below 20 roundings of numbers of size 1, added up over the steps.
    assert 0 < difference.max() < 6 * 20 * ROUNDING
    assert difference[0] < 20 * ROUNDING


@pytest.mark.parametrize("execution", [None, BF16], ids=["float32", "bf16"])
def test_the_gradient_that_is_clipped_is_the_one_that_steps(execution):
    """With lr 1 and nothing else, the weights move by the bound: no loss scale is in the way."""
    model, images, labels = linear()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    WeightStep(cross_entropy_of(model), model, sgd, 0.25, execution=execution)(images, labels)
    moved = [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]
    norm = torch.cat([x.flatten() for x in moved]).norm()
    assert float(norm) == pytest.approx(0.25, rel=1e-5)


def test_candidates_are_scored_in_full_precision():
    """Without inner steps there is nothing that the setting may change."""
    made = setup()
    alphas = made.alphas(3)
    plain = made.objective(inner="first")(alphas)
    assert torch.equal(made.objective(inner="first", execution=BF16)(alphas), plain)
    gradients = []
    for execution in (None, BF16):
        objective = made.objective(inner="first", execution=execution)
        gradients.append(objective.alpha_gradient(alphas[0], objective.draw()))
    assert torch.equal(*gradients)


def test_inner_steps_have_the_precision_of_weight_steps():
    values = {}
    for execution in (None, BF16):
        made = setup()
        made.net.float()
        made.optimizer.state.clear()  # in float64
        objective = made.objective(execution=execution)
        for stream in (objective._train_stream, objective._val_stream):
            next_batch = stream.next_batch
            stream.next_batch = lambda take=next_batch: _as_float32(take())
        values[execution] = objective(made.alphas(2).float())
    assert values[BF16].dtype == torch.float32
    assert not torch.equal(values[BF16], values[None])
    torch.testing.assert_close(values[BF16], values[None], rtol=0, atol=3 * 20 * ROUNDING)


def _as_float32(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].float(), batch[1]


# --- Compilation on a CPU ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_steps_are_the_plain_ones_within_rounding(monkeypatch):
    torch._dynamo.reset()
    backend = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", backend)
    results = []
    for execution in (None, COMPILED):
        net = supernet()
        step = WeightStep(cross_entropy_of(net), net, sgd_of(net), 0.5, execution=execution)
        found = [step(*batch)[0] for batch in batches(2)]
        found += [step(*batch)[0] for batch in batches(1, n_images=4)]
        results.append((torch.stack(found), net.state_dict()))
    assert step._compiled is not None
    # Float32 rounds by 2^-24; a dozen BatchNorms over few pixels enlarge it.
    plain, compiled = results
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled[1], plain[1], rtol=1e-3, atol=1e-4)


def test_off_compiles_nothing(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: pytest.fail("compiled"))
    net = supernet()
    step = WeightStep(cross_entropy_of(net), net, sgd_of(net), 5.0, execution=Execution(CPU))
    step(*batches(1)[0])


def failing(after: int):
    """A compiler whose functions do their work ``after`` times and then fail with two lines."""

    def compile_it(function, **options):
        left = [after]

        def compiled(*inputs):
            result = function(*inputs)
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("no compiler\nfor this machine")
            return result

        return compiled

    return compile_it


@pytest.mark.parametrize("fails", ["in the first step", "before"])
def test_where_compilation_fails_steps_are_plain_after_one_warning(fails, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no compiler\nfor this machine")

    monkeypatch.setattr(torch, "compile", refuse if fails == "before" else failing(0))
    nets, noises = [], []
    for _ in range(2):
        net = supernet(NOISY)
        nets.append(net)
        noises.append(torch.Generator().manual_seed(1))
        seed_noise(net, noises[-1])
    plain = WeightStep(cross_entropy_of(nets[0]), nets[0], sgd_of(nets[0]), 0.5)
    alpha = torch.zeros(NOISY.dim)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = WeightStep(
            *(cross_entropy_of(nets[1]), nets[1], sgd_of(nets[1]), 0.5),
            execution=COMPILED,
            generators=noises[1:],
        )
        results = [step(images, labels, alpha) for images, labels, _ in batches(3)]
    assert [str(warning.message) for warning in caught] == [
        "weight steps are not compiled: no compiler for this machine"
    ]
    # What the failed step had drawn and measured is taken back.
    expected = [plain(images, labels, alpha) for images, labels, _ in batches(3)]
    assert all(
        torch.equal(a, b)
        for one, other in zip(results, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    assert torch.equal(*(noise.get_state() for noise in noises))
    states = [copy.deepcopy(net.state_dict()) for net in nets]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_error_of_a_compiled_step_that_has_worked_is_an_error(monkeypatch):
    monkeypatch.setattr(torch, "compile", failing(1))
    net = supernet()
    step = WeightStep(cross_entropy_of(net), net, sgd_of(net), 0.5, execution=COMPILED)
    first, second = batches(2)
    step(*first)
    with pytest.raises(RuntimeError, match="no compiler"):
        step(*second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bf16_in_a_cuda_graph():
    device = torch.device("cuda")
    losses = []
    for is_captured in (False, True):
        net = supernet().to(device)
        execution = Execution(device, torch.bfloat16, is_captured)
        step = WeightStep(cross_entropy_of(net), net, sgd_of(net), 0.5, execution=execution)
        moved = [[x.to(device) for x in batch] for batch in batches(8)]
        losses.append(torch.stack([step(*batch)[0].clone() for batch in moved]))
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=8 * 20 * ROUNDING)
