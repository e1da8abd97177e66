"""ZeroOrderSGD as an optimizer of torch: state, groups, schedulers, memory, and a task."""

from __future__ import annotations

import copy
import importlib
import io
import math
import runpy
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoopt_nas.errors import InvalidValueError, MissingDependencyError
from zoopt_nas.integrations import torch as module
from zoopt_nas.integrations.torch import ZeroOrderSGD

ROOT = Path(__file__).parents[2]
SEED = 7


def make_weights(*shapes):
    rng = np.random.default_rng(5)
    return [nn.Parameter(torch.from_numpy(rng.standard_normal(s))) for s in shapes]


def run(optimizer, weights, n_steps):
    for _ in range(n_steps):
        optimizer.step(lambda: (weights[0] ** 4).sum())
    return weights[0].detach().clone()


def test_a_resumed_run_continues_bitwise():
    weights = make_weights((6,))
    optimizer = ZeroOrderSGD(
        weights, 0.01, n_directions=3, estimator="one_sided", direction="rademacher", rng=SEED
    )
    middle = run(optimizer, weights, 4)
    state = optimizer.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    end = run(optimizer, weights, 4)
    assert not torch.equal(middle, end)
    file.seek(0)
    for saved in (torch.load(file, weights_only=True), state):  # later steps did not change it
        fresh = [nn.Parameter(middle.clone())]
        other = ZeroOrderSGD(fresh, 9.0, 9.0, rng=None)
        other.load_state_dict(saved)
        assert torch.equal(run(other, fresh, 4), end)


def test_a_copied_optimizer_continues_bitwise():
    weights = make_weights((6,))
    optimizer = ZeroOrderSGD(weights, 0.01, n_directions=2, rng=SEED)
    run(optimizer, weights, 2)
    other, other_weights = copy.deepcopy((optimizer, weights))  # by way of __getstate__
    assert torch.equal(run(other, other_weights, 3), run(optimizer, weights, 3))


def test_a_foreign_state_is_refused_and_changes_nothing():
    weights = make_weights((6,))
    optimizer = ZeroOrderSGD(weights, 0.01, rng=SEED)
    foreign = torch.optim.SGD(make_weights((6,)), 0.5).state_dict()
    with pytest.raises(InvalidValueError, match="state_dict must come from a ZeroOrderSGD"):
        optimizer.load_state_dict(foreign)
    assert optimizer.param_groups[0]["lr"] == 0.01
    run(optimizer, weights, 1)


def test_the_seed_decides():
    def end(rng):
        weights = make_weights((6,))
        return run(ZeroOrderSGD(weights, 0.01, rng=rng), weights, 2)

    assert torch.equal(end(3), end(np.random.default_rng(3)))
    assert not torch.equal(end(3), end(4))
    assert not torch.equal(end(None), end(None))


def test_shared_parameters_move_once():
    tied, alone = make_weights((6,)), make_weights((6,))
    twin = nn.Parameter(torch.empty(0, dtype=torch.float64))
    twin.data = tied[0].data  # another parameter with the same memory
    optimizer = ZeroOrderSGD(
        [{"params": tied}, {"params": [twin], "lr": 5.0}], 0.01, n_directions=2, rng=SEED
    )
    expected = run(ZeroOrderSGD(alone, 0.01, n_directions=2, rng=SEED), alone, 3)
    assert torch.equal(run(optimizer, tied, 3), expected)
    assert torch.equal(twin.detach(), expected)


def test_frozen_and_empty_parameters_stay():
    frozen, weight, empty = make_weights((4,), (5,), (0, 3))
    frozen.requires_grad_(False)
    integers = nn.Parameter(torch.arange(3), requires_grad=False)
    base = frozen.detach().clone()
    optimizer = ZeroOrderSGD([frozen, weight, empty, integers], 0.01, weight_decay=0.1, rng=SEED)
    alone = [nn.Parameter(weight.detach().clone())]
    run(optimizer, [weight], 2)
    assert torch.equal(weight, run(ZeroOrderSGD(alone, 0.01, weight_decay=0.1, rng=SEED), alone, 2))
    assert torch.equal(frozen, base)
    frozen.requires_grad_(True)
    run(optimizer, [frozen], 1)
    assert not torch.equal(frozen, base)
    for parameter in (frozen, weight, empty):
        parameter.requires_grad_(False)
    with pytest.raises(InvalidValueError, match="params must have an entry with requires_grad"):
        run(optimizer, [weight], 1)


def test_schedulers_of_torch_set_the_step():
    scheduled, manual = make_weights((6,)), make_weights((6,))
    optimizer, other = (ZeroOrderSGD(w, 0.1, rng=SEED) for w in (scheduled, manual))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for lr in (0.1, 0.05, 0.025):
        run(optimizer, scheduled, 1)
        scheduler.step()
        other.param_groups[0]["lr"] = lr
        run(other, manual, 1)
    assert torch.equal(scheduled[0], manual[0])


def test_dropout_is_the_same_within_a_step_and_new_in_the_next():
    weights = make_weights((6,))
    optimizer = ZeroOrderSGD(weights, 0.0, n_directions=2, rng=SEED)
    masks = []

    def closure():
        masks.append(nn.functional.dropout(torch.ones(64), 0.5))
        return 0.0

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        closure()
        after_one_call = torch.get_rng_state()
        torch.default_generator.manual_seed(0)
        optimizer.step(closure)
        assert torch.equal(torch.get_rng_state(), after_one_call)
        optimizer.step(closure)
    assert all(torch.equal(mask, masks[0]) for mask in masks[:5])
    assert not torch.equal(masks[5], masks[0])
    assert all(torch.equal(mask, masks[5]) for mask in masks[5:])


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside have made and nobody has freed.

    An operation in place returns what it was given: ``given`` are the tensors from outside.
    """

    def __init__(self, given):
        super().__init__()
        self.live = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_directions", [1, 8])
def test_a_step_holds_one_copy_of_the_parameters(monkeypatch, dtype, n_directions):
    monkeypatch.setattr(module, "_CHUNK", 2**10)
    weights = [nn.Parameter(torch.ones(128, 128, dtype=dtype)) for _ in range(8)]
    n_bytes = sum(w.nbytes for w in weights)
    optimizer = ZeroOrderSGD(weights, 0.1, n_directions=n_directions, rng=SEED)
    with LiveBytes(weights) as memory:
        optimizer.step(lambda: 1.0)
    chunk = 4 * 2**10  # bytes, in float32 for both
    rng_states = 2 * torch.get_rng_state().nbytes
    assert n_bytes <= memory.peak <= n_bytes + 3 * chunk + rng_states
    assert memory.live == 0
    assert all(isinstance(v, int | str | bool) for v in optimizer.state["zero_order"].values())


def test_the_count_of_live_bytes_can_fail():
    weights = [nn.Parameter(torch.ones(128, 128)) for _ in range(8)]
    with LiveBytes(weights) as memory:
        copies = [w.detach().clone() + 1 for w in weights]
        assert memory.live == sum(w.nbytes for w in weights)
        del copies
    assert memory.live == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr must be a finite number of at least 0, got -1"),
        ({"smoothing": 0}, "smoothing must be a positive finite number, got 0"),
        ({"n_directions": 0}, "n_directions must be a positive integer, got 0"),
        ({"estimator": "both"}, "estimator must be one of central, one_sided, got 'both'"),
        ({"direction": "cube"}, "direction must be one of gaussian, rademacher, got 'cube'"),
        ({"normalize": 1}, "normalize must be True or False, got 1"),
        (
            {"normalize": True, "estimator": "one_sided"},
            "n_directions must be at least 2 to normalize one-sided losses, got 1",
        ),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number of at least 0, got -0.1"),
        (
            {"rng": -1},
            "rng must be None, a non-negative integer or a numpy.random.Generator, got -1",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InvalidValueError) as caught:
        ZeroOrderSGD(make_weights((2,)), **{"lr": 0.1, **options})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.eye(2).to_sparse(), "params must be dense and real, got torch.sparse_coo"),
        (torch.ones(2, dtype=torch.complex64), "params must be dense and real, got torch.strided"),
    ],
)
def test_sparse_and_complex_parameters_are_refused(parameter, message):
    optimizer = ZeroOrderSGD(make_weights((2,)), 0.1, rng=SEED)
    with pytest.raises(InvalidValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(parameter)]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(InvalidValueError, match=message):
        ZeroOrderSGD([nn.Parameter(parameter)], 0.1)


def test_options_of_a_group_are_checked():
    optimizer = ZeroOrderSGD(make_weights((2,)), 0.1, rng=SEED)
    with pytest.raises(InvalidValueError, match="smoothing must be a positive finite number"):
        optimizer.add_param_group({"params": make_weights((3,)), "smoothing": 0})
    with pytest.raises(InvalidValueError, match="n_directions must be the same for all groups"):
        optimizer.add_param_group({"params": make_weights((3,)), "n_directions": 4})
    assert len(optimizer.param_groups) == 1


def test_named_parameters_are_taken():
    model = nn.Linear(3, 2)
    optimizer = ZeroOrderSGD(model.named_parameters(), 0.1, rng=SEED)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    before = model.weight.detach().clone()
    optimizer.step(lambda: (model.weight**2).sum())
    assert not torch.equal(model.weight, before)


def test_without_torch_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "zoopt_nas.integrations.torch")
    with pytest.raises(MissingDependencyError, match=r"pip install 'zoopt-nas\[torch\]'"):
        importlib.import_module("zoopt_nas.integrations.torch")


def test_fine_tuning_a_small_network_on_real_digits():
    script = runpy.run_path(str(ROOT / "benchmarks" / "zero_order_sgd.py"))
    data = script["load_split"](0)
    model = script["pretrain"](data.train, 0)
    before = script["accuracy"](model, data.test)
    assert before < 0.6  # five of ten digits are known
    script["fine_tune"](model, data.train, script["METHODS"]["FZOO, q = 16"], 0, n_steps=100)
    assert script["accuracy"](model, data.test) > 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_each_device_has_its_own_draws():
    weights = [nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.zeros(1000, device="cuda"))]
    losses = iter([1.0, 0.0])
    ZeroOrderSGD(weights, 1e-3, rng=SEED).step(lambda: next(losses))
    a, b = (w.detach().cpu().numpy() for w in weights)
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(1000)
    assert a.std() == pytest.approx(b.std(), rel=0.2)
