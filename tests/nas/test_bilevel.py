"""The bilevel objective against SGD written out by hand, and everything that it must not touch."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.bilevel import BilevelObjective, Draw
from zoopt_nas.nas.config import SearchConfig
from zoopt_nas.nas.operations import Noise, seed_noise
from zoopt_nas.nas.spaces import SPACES, SearchSpace
from zoopt_nas.nas.supernet import Supernet
from zoopt_nas.nas.training import weight_step

# One intermediate node: the smallest cell that has mixed edges.
TINY = SearchSpace(
    "tiny",
    normal=(("none", "skip_connect", "sep_conv_3x3"),) * 2,
    reduce=(("max_pool_3x3", "dil_conv_3x3"), ("skip_connect", "sep_conv_3x3")),
    n_nodes=1,
)
NOISY = SearchSpace(
    "noisy",
    normal=(("noise", "sep_conv_3x3"),) * 2,
    reduce=(("noise", "sep_conv_3x3"),) * 2,
    n_nodes=1,
)
# Both sides are float64 and do the same sums in another order.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@dataclass
class FakeStream:
    """Random batches; counts how many were taken."""

    seed: int
    n_taken: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        self.n_taken += 1
        images = torch.randn(6, 1, 6, 6, generator=self.generator, dtype=torch.float64)
        return images, torch.randint(3, (6,), generator=self.generator)


@dataclass
class Setup:
    net: Supernet
    optimizer: torch.optim.SGD
    noise: torch.Generator

    def objective(self, *, seed: int = 0, streams: int = 0, **options) -> BilevelObjective:
        options = {"inner_steps": 3} | options
        return BilevelObjective(
            self.net,
            self.optimizer,
            FakeStream(streams),
            FakeStream(streams + 1),
            seed=seed,
            **options,
        )

    def alphas(self, n: int = 3, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, self.net.space.dim, generator=generator, dtype=torch.float64)

    def train(self, n_steps: int = 2) -> None:
        stream = FakeStream(77)
        for _ in range(n_steps):
            images, labels = stream.next_batch()
            loss = F.cross_entropy(self.net(images, self.alphas(1)[0]), labels)
            weight_step(loss, self.net, self.optimizer, 5.0)


def setup(
    space: SearchSpace = TINY, *, momentum: float = 0.9, trained: bool = True, **sgd
) -> Setup:
    torch.manual_seed(0)
    net = Supernet(space, 3, 2, 3, in_channels=1).double()
    noise = torch.Generator().manual_seed(123)
    seed_noise(net, noise)
    sgd = {"lr": 0.05, "weight_decay": 1e-2} | sgd
    made = Setup(net, torch.optim.SGD(net.parameters(), momentum=momentum, **sgd), noise)
    if trained:
        made.train()
    return made


def plain_value(
    made: Setup,
    alpha: Tensor,
    draw: Draw,
    *,
    clip: float | None = 5.0,
    lr: float | None = None,
    with_momentum: bool = True,
) -> float:
    """L_val(omega*(alpha), alpha) with SGD written out: no torch.optim, no clip_grad_norm_."""
    net = copy.deepcopy(made.net).train()
    group = made.optimizer.param_groups[0]
    lr = group["lr"] if lr is None else lr
    momenta: list[Tensor | None] = []
    for parameter in made.net.parameters():
        buffer = made.optimizer.state.get(parameter, {}).get("momentum_buffer")
        momenta.append(buffer.clone() if buffer is not None and with_momentum else None)
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


# --- What must stay as it is ---------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["sgd", "second", "first"])
@pytest.mark.parametrize("space", [TINY, NOISY, SPACES["s3"]], ids=lambda space: space.name)
def test_the_main_training_is_untouched(space: SearchSpace, inner: str):
    made = setup(space)
    objective = made.objective(inner=inner)
    for parameter in made.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    alphas = made.alphas()
    before_alphas = alphas.clone()
    state = copy.deepcopy(made.net.state_dict())
    momenta = [made.optimizer.state[p]["momentum_buffer"].clone() for p in made.net.parameters()]
    groups = copy.deepcopy(made.optimizer.state_dict()["param_groups"])
    noise, rng = made.noise.get_state(), torch.get_rng_state()
    objective(alphas)
    objective.alpha_gradient(alphas[0], objective.draw())
    assert list(made.net.state_dict()) == list(state)
    for name, tensor in made.net.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for parameter, momentum in zip(made.net.parameters(), momenta, strict=True):
        assert torch.equal(made.optimizer.state[parameter]["momentum_buffer"], momentum)
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert made.optimizer.state_dict()["param_groups"] == groups
    assert torch.equal(made.noise.get_state(), noise)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(alphas, before_alphas)
    own = {id(p) for p in made.net.parameters()} | {id(b) for b in made.net.buffers()}
    assert not any(id(p) in own for p in objective.start().parameters())
    assert all(
        module.generator is made.noise for module in made.net.modules() if isinstance(module, Noise)
    )


def test_an_unstepped_optimizer_stays_empty():
    made = setup(trained=False)
    made.objective()(made.alphas())
    assert len(made.optimizer.state) == 0


@pytest.mark.parametrize(
    ("space", "trained"),
    [(TINY, True), (TINY, False), (NOISY, True), (NOISY, False), (SPACES["s4"], True)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_value_does_not_depend_on_its_neighbours(space: SearchSpace, trained: bool):
    made = setup(space, trained=trained)
    objective = made.objective()
    draw, alphas = objective.draw(), made.alphas(4)
    together = objective(alphas, draw)
    assert torch.equal(objective(alphas.flip(0), draw).flip(0), together)
    assert torch.equal(torch.cat([objective(alpha[None], draw) for alpha in alphas]), together)
    doubled = objective(torch.cat([alphas[:1], alphas[:1]]), draw)
    assert torch.equal(doubled, together[[0, 0]])
    assert len(set(together.tolist())) == 4


@pytest.mark.parametrize("bad", [math.nan, 1e308, -math.inf])
@pytest.mark.parametrize("trained", [True, False], ids=["buffers", "fresh"])
def test_a_failed_candidate_does_not_leak(trained: bool, bad: float):
    made = setup(trained=trained)
    objective = made.objective()
    draw, alphas = objective.draw(), made.alphas(3)
    alone = objective(alphas, draw)
    alphas[1] = bad
    values = objective(alphas, draw)
    assert torch.equal(values[[0, 2]], alone[[0, 2]])
    if bad != 1e308:  # equal huge logits are a uniform softmax, and fine
        assert not bool(torch.isfinite(values[1]))


def test_exploding_steps_do_not_leak_either():
    made = setup()
    objective = made.objective(grad_clip=None)
    draw, alphas = objective.draw(), made.alphas(2)
    calm = objective(alphas, draw)
    made.optimizer.param_groups[0]["lr"] = 1e200
    assert not bool(torch.isfinite(objective(alphas, draw)).any())
    made.optimizer.param_groups[0]["lr"] = 0.05
    assert torch.equal(objective(alphas, draw), calm)


# --- Draws, noise, bookkeeping -------------------------------------------------------------------


@pytest.mark.parametrize("space", [TINY, NOISY], ids=lambda space: space.name)
def test_seeds(space: SearchSpace):
    made = setup(space)
    alphas = made.alphas()
    first, again = (made.objective(seed=3) for _ in range(2))
    values = [first(alphas), first(alphas)]
    assert torch.equal(again(alphas), values[0])
    assert torch.equal(again(alphas), values[1])
    assert not torch.allclose(values[0], values[1])  # other batches
    other = made.objective(seed=4)(alphas)
    assert torch.equal(other, values[0]) == (space is TINY)  # the seed is that of the noise


def test_every_candidate_sees_the_same_batches():
    made = setup()
    objective = made.objective(inner_steps=4, val_batches=2)
    objective(made.alphas(5))
    assert (objective._train_stream.n_taken, objective._val_stream.n_taken) == (4, 2)
    objective(made.alphas(1))
    assert (objective._train_stream.n_taken, objective._val_stream.n_taken) == (8, 4)
    twins = made.alphas(1).repeat(3, 1)
    assert len(set(objective(twins).tolist())) == 1
    assert objective.n_evaluations == 9


def test_noise_of_inner_steps_and_of_validation_are_not_the_same_draws():
    made = setup(NOISY)
    objective = made.objective(inner="second")
    draw, alpha = objective.draw(), made.alphas(1)[0]
    same = Draw(draw.train, draw.train, draw.noise_seed)
    network = objective.start()
    with torch.no_grad():
        assert objective.train_loss(network, alpha, same) != objective.val_loss(
            network, alpha, same
        )


@pytest.mark.parametrize("space", [TINY, NOISY], ids=lambda space: space.name)
def test_state_dict_goes_on_bit_for_bit(space: SearchSpace, tmp_path):
    made = setup(space)
    alphas = made.alphas()
    objective = made.objective(seed=3)
    objective(alphas)
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    expected = objective(alphas)
    other = made.objective(seed=99)
    other.draw()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.n_evaluations == 3
    other._train_stream, other._val_stream = FakeStream(0), FakeStream(1)
    for _ in range(3):
        other._train_stream.next_batch()
    other._val_stream.next_batch()
    assert torch.equal(other(alphas), expected)
    assert other.n_evaluations == objective.n_evaluations == 6


class OnAnotherDevice:
    """Stands for a tensor of a checkpoint that was loaded onto a GPU: only a copy can be read."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def cpu(self) -> Tensor:
        return self._tensor


def test_state_dict_loads_from_a_gpu():
    made = setup()
    objective = made.objective(seed=3)
    state = objective.state_dict()
    expected = objective.draw().noise_seed
    other = made.objective(seed=4)
    other.load_state_dict(state | {"seeds": OnAnotherDevice(state["seeds"])})
    assert other.draw().noise_seed == expected


@pytest.mark.parametrize("n_val", [1, 2])
@pytest.mark.parametrize("space", [TINY, NOISY], ids=lambda space: space.name)
def test_alpha_gradient_against_finite_differences(space: SearchSpace, n_val: int):
    """Of L_val(omega, alpha), which is what an objective with inner="first" evaluates."""
    made = setup(space)
    objective = made.objective(val_batches=n_val)
    draw, alpha = objective.draw(), made.alphas(1)[0]
    gradient = objective.alpha_gradient(alpha, draw)
    assert not alpha.requires_grad
    first = made.objective(inner="first")
    direct = Draw([], draw.val, draw.noise_seed)
    step = 1e-5
    shifts = step * torch.eye(len(alpha), dtype=torch.float64)
    slopes = (first(alpha + shifts, direct) - first(alpha - shifts, direct)) / (2 * step)
    # The third derivative times step^2 / 6 is about 1e-10, rounding 1e-16 / step = 1e-11.
    torch.testing.assert_close(gradient, slopes, rtol=1e-6, atol=1e-8)
    assert float(gradient.abs().max()) > 1e-3


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


def test_mistakes_are_refused():
    made = setup()
    with pytest.raises(InvalidValueError, match="inner must be one of first, second, sgd, got 3"):
        made.objective(inner="3")
    with pytest.raises(InvalidValueError, match=r"inner_steps must be at least 0 .* got -1 and 1"):
        made.objective(inner_steps=-1)
    with pytest.raises(InvalidValueError, match="val_batches at least 1, got 3 and 0"):
        made.objective(val_batches=0)
    dim = made.net.space.dim
    for shape in ((dim,), (2, dim + 1), (1, 2, dim), (0, dim)):
        objective = made.objective()
        with pytest.raises(InvalidValueError, match=rf"alphas must have shape \(n, {dim}\)"):
            objective(torch.zeros(shape, dtype=torch.float64))
        assert objective._val_stream.n_taken == objective.n_evaluations == 0
