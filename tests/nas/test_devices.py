"""Runs on a CUDA device that is simulated: tensors where they belong, and nothing that waits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from simulated_device import CUDA, Device, OnDevice, kinds, on
from tiny_supernets import supernet_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from zoopt_nas import Solver, minimize
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.networks.operations import Noise, seed_noise
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.retraining.training import Training
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.methods import METHODS, random_search
from zoopt_nas.nas.search.methods.darts import first_order_gradient, second_order_gradient
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.search.zero_order import config_solver
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.meter import Meter
from zoopt_nas.nas.steps.seeds import seeded_init
from zoopt_nas.nas.steps.weight_step import WeightStep, cross_entropy_of
from zoopt_nas.solvers import SOLVERS

CPU = torch.device("cpu")
ON_A_GPU = {"device": "cuda", "amp": "off", "compile": "off", "candidates_per_batch": 2}
CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64: the same operators, in another order


# --- Batches -------------------------------------------------------------------------------------


def supernet(space: str, where: torch.device, drop: float = 0.2) -> Supernet:
    with seeded_init(0):
        net = supernet_of(SPACES[space], 3, 4, 3, in_channels=1).double().to(where)
    seed_noise(net, torch.Generator(where).manual_seed(0))
    net.drop_path_probability = drop
    return net


def numbers(space: str, where: torch.device, n: int = 2) -> list[tuple[Tensor, ...]]:
    """Batches of images, labels and alpha."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(n):
        images = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (4,), generator=generator)
        alpha = torch.randn(SPACES[space].dim, generator=generator, dtype=torch.float64)
        made.append(tuple(on(where, images, labels, alpha)))
    return made


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("space", SPACES)
def test_weight_steps_wait_for_nothing(space, device: Device):
    read = {}
    for where in (CPU, CUDA):
        net, batches, meter = supernet(space, where), numbers(space, where), Meter(where)
        step = WeightStep(cross_entropy_of(net), net, sgd(net), 5.0)
        device.forget()
        for images, labels, alpha in batches:
            meter.update(*step(images, labels, alpha), labels)
        found = kinds(device)
        read[where] = (meter.loss, meter.accuracy)
    assert found == []
    assert read[CUDA] == pytest.approx(read[CPU], rel=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_pytorch_finds_no_mismatch_in_a_forward_pass(space):
    """By PyTorch's own rules for devices: shapes and devices without numbers."""
    with FakeTensorMode(), CUDA:
        # Noise draws from a generator of its device, which needs a driver.
        net = supernet_of(SPACES[space], 3, 4, 3, in_channels=1).eval()
        alpha = torch.zeros(SPACES[space].dim)
        if any(isinstance(module, Noise) for module in net.modules()):
            seed_noise(net, None)
        logits = net(torch.zeros(4, 1, 8, 8), alpha)
        assert (tuple(logits.shape), logits.device) == ((4, 3), CUDA)
        with pytest.raises(RuntimeError, match="device"):
            net(torch.zeros(4, 1, 8, 8, device="cpu"), alpha)


class Stream:
    """The same batches on any device."""

    def __init__(self, seed: int, where: torch.device) -> None:
        self.generator, self.where = torch.Generator().manual_seed(seed), where

    def next_batch(self) -> tuple[Tensor, Tensor]:
        images = torch.randn(4, 1, 8, 8, generator=self.generator, dtype=torch.float64)
        labels = torch.randint(3, (4,), generator=self.generator)
        return images.to(self.where), labels.to(self.where)


# The operations of a cell of space S4: two edges into each node, each with its second operation.
PATH = SPACES["s4"].path(SPACES["s4"].discretize(torch.arange(SPACES["s4"].dim).double()))


def objective(inner: str, where: torch.device, **options: Any) -> tuple[BilevelObjective, Draw]:
    net = supernet("s4", where, drop=0.0)
    optimizer = sgd(net)
    step = WeightStep(cross_entropy_of(net), net, optimizer, 5.0)
    for images, labels, alpha in numbers("s4", where):
        step(images, labels, alpha)
    streams = Stream(1, where), Stream(2, where)
    made = BilevelObjective(
        net, optimizer, *streams, seed=0, inner=inner, inner_steps=2, val_batches=2, **options
    )
    return made, made.draw()


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("per_batch", [1, 3])
@pytest.mark.parametrize("inner", ["sgd", "second", "first"])
def test_candidates_wait_for_nothing(inner, per_batch, device: Device):
    values = {}
    for where in (CPU, CUDA):
        made, draw = objective(inner, where, candidates_per_batch=per_batch)
        (alphas,) = on(where, torch.stack([numbers("s4", CPU, 3)[k][2] for k in range(3)]))
        device.forget()
        values[where] = made(alphas, draw)
        made.path_loss(PATH, draw)
        assert kinds(device) == []
    assert values[CUDA].device == CUDA
    torch.testing.assert_close(values[CUDA].cpu(), values[CPU], **CLOSE)


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("order", ["first", "second"])
def test_gradients_in_alpha_wait_for_nothing(order, device: Device, monkeypatch):
    gradient = first_order_gradient if order == "first" else second_order_gradient
    found = {}
    for where in (CPU, CUDA):
        made, draw = objective(order, where)
        monkeypatch.setattr(made, "draw", lambda draw=draw: draw)
        ((_, _, alpha),) = numbers("s4", where, 1)
        device.forget()
        found[where] = gradient(made, alpha)
        assert kinds(device) == []
    # The second order divides a difference by a small radius.
    torch.testing.assert_close(found[CUDA].cpu(), found[CPU], rtol=1e-6, atol=1e-8)


# --- Solvers -------------------------------------------------------------------------------------

# What an update of a solver with a form for searches waits for. LIZO: which of its points to reuse,
# once there are some, decides how many new ones there are, and the pseudoinverse that it solves for
# the gradient by looks at whether it has converged.
ALLOWED: dict[str, list[str]] = {"rs": [], "mgs": [], "gld": [], "lizo": ["to host", "value"]}
ALLOWED |= {"zo_signsgd": [], "zo_adamm": []}


def solver_of(name: str) -> Solver:
    return config_solver(SearchConfig.for_dataset("digits", name))


@pytest.mark.parametrize("name", SOLVERS)
def test_an_update_waits_as_often_as_is_said(name, device: Device):
    """Those without a form for searches compute on the host: only their devices are looked at."""
    allowed = ALLOWED.get(name)
    solver = solver_of(name)
    points = {}
    for where in (CPU, CUDA):
        (x0,) = on(where, torch.linspace(-1, 1, 6, dtype=torch.float64))
        state = solver.init(x0, rng=0)
        guide = -x0 if solver.uses_guide else None
        for k in range(3):
            device.forget()
            candidates = solver.ask(state, guide=guide)
            solver.tell(state, candidates, ((candidates - 0.5) ** 2).sum(1))
            found = kinds(device)
            if where == CPU:
                assert found == []
            elif allowed is not None:
                assert found == (allowed if k > 0 else [x for x in allowed if x != "to host"])
        assert state.x.device == candidates.device == where
        points[where] = state.x.cpu()
    torch.testing.assert_close(points[CUDA], points[CPU], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bounds", [None, [(-0.5, 1.0)] * 4], ids=["free", "bounds"])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_function_of_the_device_is_minimized_as_one_of_the_cpu(name, bounds, device: Device):
    """Long enough for restarts and changes of phase."""

    def fun(x: Tensor) -> Tensor:
        return ((x - 0.25) ** 2).sum() + x[0] * x[1]

    found = {}
    for where in (CPU, CUDA):
        (x0,) = on(where, torch.linspace(-0.5, 0.75, 4, dtype=torch.float64))
        found[where] = minimize(fun, x0, name, maxfev=200, rng=0, bounds=bounds)
        assert found[where].x.device == where
    torch.testing.assert_close(found[CUDA].x.cpu(), found[CPU].x, rtol=1e-6, atol=1e-8)
    assert found[CUDA].nfev == found[CPU].nfev


# --- Runs ----------------------------------------------------------------------------------------


def search_of(algo: str, search_config: Any, **options: Any) -> Search:
    # PC-DARTS has four parts of the channels.
    space = "s1" if algo == "merge_nas" else "small_s4"  # which has nothing to merge
    config = search_config(algo, space=space, init_channels=4, **ON_A_GPU, **options)
    n_epochs = 6 if algo == "p_darts" else 2  # in three stages
    config = config.replace(epochs=n_epochs, warmup_epochs=1, inner_steps=2, cutout=2, batch_size=8)
    return Search(config, prepare(config))


def take_step(search: Search) -> None:
    search._meter.update(*search.train_step())
    search.step += 1


# A search refuses the solvers that compare values of different updates; auto is a race of others.
REFUSED = {name for name in SOLVERS if solver_of(name).compares_batches} - {"auto"}
TRAINING = [name for name in METHODS if METHODS[name].trains and name not in REFUSED]


@pytest.mark.parametrize("algo", TRAINING)
def test_a_search_waits_in_no_step(algo, search_config, device: Device, monkeypatch):
    monkeypatch.setattr(random_search, "N_SAMPLES", 12)
    # Solvers that compute on the host ask for many candidates: what fits them is tested by others.
    options = {"inner": "first"} if algo in SOLVERS and algo not in ALLOWED else {}
    search = search_of(algo, search_config, **options)
    device.forget()
    for epoch in (0, 1):  # a warm-up, and one with updates
        search.epoch, search.step = epoch, 0
        search.begin_epoch()
        for _ in range(4):
            take_step(search)
    allowed = ALLOWED.get(algo, [])
    by_solver = [e for e in device.waits() if e.place.startswith(("solvers/", "_arrays"))]
    others = [event for event in device.waits() if event not in by_solver]
    # GDAS and ROME read what they sampled: for eight weight steps and four updates.
    n_sampled = 8 + 4 if algo in ("gdas", "rome") else 0
    assert len(others) == n_sampled
    assert all(event.place.startswith("nas/search/methods/gdas") for event in others)
    if algo in ALLOWED or algo not in SOLVERS:
        assert len(by_solver) <= 2 * len(allowed)  # two updates
    assert all(x.device == CUDA for x in (search.alpha, *search.supernet.parameters()))

    device.forget()
    n_measured = sum(isinstance(x, Tensor) for update in search._updates for x in update.values())
    search.end_epoch()
    assert search.alpha.device == CUDA
    looking = ("es", "ada", "random_ws", "sgas", "sgas2", "darts_pt")
    if algo not in looking:  # which look at values of their own then
        # What is written down of an epoch is read once it is over: its loss (twice) and accuracy,
        # alpha for the genotype and for the row, and what the updates measured.
        assert len(device.waits()) <= 5 + n_measured

    # A checkpoint comes back onto the device with all its tensors.
    state = tree_map(
        lambda x: x.to(CUDA) if isinstance(x, Tensor) else x, copy.deepcopy(search.own_state())
    )
    other = search_of(algo, search_config, **options)
    other.load_own_state(state)
    other.epoch, other.step = 1, 0
    other.begin_epoch()
    take_step(other)
    assert other.alpha.device == CUDA


def test_an_update_by_accuracy_waits_for_nothing(search_config, device: Device):
    search = search_of("gld", search_config, score="accuracy")
    search.epoch = 1
    search.begin_epoch()
    device.forget()
    take_step(search)
    assert device.waits() == []
    assert search._objective.n_evaluations == 3  # two at once, and one


def test_the_eigenvalue_is_measured_on_the_device(search_config, device: Device):
    search = search_of("gld", search_config, track_eigenvalue=True)
    search.epoch = 1
    search.begin_epoch()
    row, _ = search.end_epoch()
    assert np.isfinite(row["eigenvalue"])
    assert all(x.device == CUDA for x in search.supernet.parameters())


@pytest.mark.parametrize("genotype", ["DARTS_V2", "noisy"])
def test_a_retraining_waits_in_no_step(genotype, train_config, device: Device):
    cell = (("noise", 0), ("sep_conv_3x3", 1)) * 4
    named = genotype if genotype != "noisy" else str(Genotype(cell, cell))
    options = {key: value for key, value in ON_A_GPU.items() if key != "candidates_per_batch"}
    config = train_config(
        **options,
        genotype=named,
        auxiliary=True,
        drop_path=0.3,
        cutout=2,
        label_smoothing=0.1,
    )
    training = Training(config, prepare(config, ("train", "test")))
    training.epoch = 1
    training.begin_epoch()
    device.forget()
    for _ in range(3):
        training._meter.update(*training.train_step())
    assert device.waits() == []
    tested = training.test()
    assert device.counts()["value"] == 2  # loss and accuracy, at the end
    assert 0 < tested.loss < 100
    assert all(isinstance(x, OnDevice) for x in training.network.state_dict().values())
