"""What the bilevel objective must not touch, what a value must not depend on, and its draws."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_supernets import NOISY, TINY, FakeStream, OnAnotherDevice, setup

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.operations import Noise
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.objective import Draw

# --- What must stay as it is ---------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["sgd", "second", "first"])
@pytest.mark.parametrize("space", [TINY, NOISY, SPACES["s3"]], ids=lambda space: space.name)
def test_the_main_training_is_untouched(space: DartsSpace, inner: str):
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
def test_a_value_does_not_depend_on_its_neighbours(space: DartsSpace, trained: bool):
    made = setup(space, trained=trained)
    objective = made.objective(candidates_per_batch=1)
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
def test_seeds(space: DartsSpace):
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
def test_state_dict_goes_on_bit_for_bit(space: DartsSpace, tmp_path):
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
def test_alpha_gradient_against_finite_differences(space: DartsSpace, n_val: int):
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
