"""How a run is executed: what the settings come to on a device, threads, and waiting for values."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.retraining.retrain import run_training
from zoopt_nas.nas.retraining.training import Training
from zoopt_nas.nas.runs.loop import EpochLoop
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.execution import Execution, cpu_threads, silenced

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [
        (CPU, True, (None, False, True)),
        (MPS, True, (None, False, False)),
        (CUDA, True, (torch.bfloat16, True, True)),
        (CUDA, False, (None, True, True)),
    ],
)
def test_automatic_settings(device, has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    found = Execution.from_config(SearchConfig(), device)
    assert (found.autocast, found.compile, found.channels_last) == expected
    off = SearchConfig(amp="off", compile="off", channels_last="off", cpu_kernels="off")
    assert Execution.from_config(off, device) == Execution(device, None, False, False)
    on = SearchConfig(amp="off", compile="on", channels_last="on", cpu_kernels="off")
    assert Execution.from_config(on, device) == Execution(device, None, True, True)


def test_emulated_bf16_is_taken_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert Execution.from_config(SearchConfig(), CUDA).autocast is None
    assert Execution.from_config(SearchConfig(amp="bf16"), CUDA).autocast == torch.bfloat16


def test_a_device_without_bf16_refuses_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(InvalidValueError, match=r"amp must be off on cuda, .* got bf16"):
        Execution.from_config(SearchConfig(amp="bf16"), CUDA)
    assert Execution.from_config(SearchConfig(amp="bf16"), CPU).autocast == torch.bfloat16


def test_inner_steps_have_a_precision_of_their_own(monkeypatch):
    coarse = Execution(CPU, torch.bfloat16, compile=True, channels_last=False)
    fine = dataclasses.replace(coarse, autocast=None)
    assert SearchConfig().inner_amp == "off"
    for outer in (coarse, fine):
        assert outer.of_inner_steps("off") == fine
        assert outer.of_inner_steps("bf16") == coarse
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert Execution(CUDA).of_inner_steps("off").autocast is None
    with pytest.raises(InvalidValueError, match=r"inner_amp must be off on cuda, .* got bf16"):
        Execution(CUDA).of_inner_steps("bf16")


class Products(TorchDispatchMode):
    """The types in which convolutions and linear layers are computed, forward and backward."""

    NAMES = ("convolution", "convolution_backward", "addmm", "mm")

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::") in self.NAMES:
            self.dtypes |= {x.dtype for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out


WIDE, NARROW = {torch.float32}, {torch.bfloat16}


@pytest.mark.parametrize("per_batch", [1, 2])
@pytest.mark.parametrize("algo", ["rs", "mgs", "gld", "lizo", "darts1", "darts2", "sdarts_adv"])
def test_what_compares_candidates_is_float32(algo, per_batch, search_config):
    """On a CPU, with the weights' own steps in bfloat16, as on CUDA by default."""
    options = {
        "amp": "bf16",
        "cpu_kernels": "off",
        "inner_steps": 2,
        "candidates_per_batch": per_batch,
    }
    seen = {}
    for inner_amp in ("off", "bf16"):
        config = search_config(algo, inner_amp=inner_amp, **options)
        search = Search(config, prepare(config))
        search.begin_epoch()
        with Products() as weight_step:
            search.train_step()  # of the warm-up, or with its update
        objective, draw = search._objective, search._objective.draw()
        with Products() as fits:
            objective.fit(search.alpha, draw)
            objective.fit_together(torch.stack([search.alpha, search.alpha]), draw)
        with Products() as losses:
            objective.val_loss(objective.start(), search.alpha, draw)
            objective.alpha_gradient(search.alpha, draw)
            if config.partial_channels == 1:
                objective.path_loss(search.supernet.space.path(search.genotype), draw)
        with Products() as update:
            search._updater.step(objective, 0.0)
        if not algo.startswith(("darts", "sdarts")):
            assert weight_step.dtypes == NARROW  # the head adds its bias in bfloat16, too
        assert losses.dtypes == WIDE
        seen[inner_amp] = (fits.dtypes, update.dtypes)
    has_fits = algo not in ("darts1", "sdarts_adv")
    assert seen["off"] == (WIDE if has_fits else set(), WIDE)
    fitted, updated = seen["bf16"]
    assert (torch.bfloat16 in fitted, torch.bfloat16 in updated) == (has_fits, has_fits)
    assert torch.float32 in updated  # its losses are float32 even then


def test_inner_steps_in_float32_give_the_losses_of_a_search_in_float32(search_config):
    """At the same weights the losses of candidates do not depend on ``amp``, bit for bit."""
    losses = {}
    for amp, inner_amp in (("off", "off"), ("bf16", "off"), ("bf16", "bf16")):
        config = search_config("gld", amp=amp, inner_amp=inner_amp, inner_steps=3)
        search = Search(config, prepare(config))
        search.begin_epoch()
        alphas = torch.stack([search.alpha, search.alpha + 0.1])
        losses[amp, inner_amp] = search._objective(alphas)
    assert torch.equal(losses["bf16", "off"], losses["off", "off"])
    assert not torch.equal(losses["bf16", "bf16"], losses["off", "off"])


def test_threads_are_set_inside_and_given_back():
    assert torch.get_num_threads() == 1  # conftest.py
    with cpu_threads(2):
        assert torch.get_num_threads() == 2
        with cpu_threads(None):
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError), cpu_threads(2):
        _ = 1 / 0
    assert torch.get_num_threads() == 1


def test_the_number_of_threads_is_that_of_the_calling_thread():
    with ThreadPoolExecutor(1) as early:
        assert early.submit(torch.get_num_threads).result() == 1
        with cpu_threads(2), ThreadPoolExecutor(1) as late:
            assert torch.get_num_threads() == 2
            assert early.submit(torch.get_num_threads).result() == 1
            assert late.submit(torch.get_num_threads).result() == 1  # it begins now
    with ThreadPoolExecutor(1) as late:
        assert late.submit(torch.get_num_threads).result() == 1


def test_threads_that_silence_warnings_leave_the_filters_as_they_were():
    before = list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with silenced():
            inside.set()
            leave.wait(60)

    def second() -> bool:
        inside.wait(60)
        with silenced(r"not a \w+"):
            warnings.warn("not a fault", stacklevel=1)
            return leave.is_set()  # the first has to end before

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(first), pool.submit(second)]
        assert wait(runs, timeout=0.2).done == set()
        leave.set()
        assert [run.result(60) for run in runs] == [None, True]
    assert list(warnings.filters) == before
    with pytest.raises(UserWarning, match="a fault"), silenced("b fault"):
        warnings.warn("a fault", stacklevel=1)


def test_runs_that_overlap_give_back_the_number_that_was():
    first, second = cpu_threads(2), cpu_threads(3)

    def enter_and_leave(context, entered, leave):
        with context:
            entered.set()
            leave.wait(60)
            return torch.get_num_threads()

    with ThreadPoolExecutor(2) as pool:
        inside, leave = ([threading.Event(), threading.Event()] for _ in range(2))
        runs = []
        for context, entered, left in zip((first, second), inside, leave, strict=True):
            runs.append(pool.submit(enter_and_leave, context, entered, left))
            entered.wait(60)
        for left in leave:  # the first to begin is the first to end
            left.set()
        assert [run.result(60) for run in runs] == [2, 3]
        assert {pool.submit(torch.get_num_threads).result() for _ in range(4)} == {1}
    with ThreadPoolExecutor(1) as late:
        assert late.submit(torch.get_num_threads).result() == 1


@pytest.mark.parametrize("kind", ["search", "training"])
def test_a_run_has_its_threads_to_the_end(kind, search_config, train_config, monkeypatch):
    seen = []
    run = EpochLoop.run

    def recording(self):
        seen.append(torch.get_num_threads())
        run(self)

    monkeypatch.setattr(EpochLoop, "run", recording)
    for threads in (2, None):
        if kind == "search":
            run_search(search_config(epochs=1, warmup_epochs=0, threads=threads))
        else:
            run_training(train_config(epochs=1, threads=threads))
    assert seen == [2, 1]
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("setting", ["on", "off"])
def test_the_memory_order_reaches_the_cells(setting, search_config, train_config):
    configs = (
        (Search, search_config(channels_last=setting), "supernet"),
        (Training, train_config(channels_last=setting), "network"),
    )
    for cls, config, name in configs:
        loop = cls(config, prepare(config))
        seen = []
        net = getattr(loop, name)
        net.cells[0].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))  # noqa: B023
        loop.begin_epoch()
        loop.train_step()
        assert seen[0].is_contiguous(memory_format=torch.channels_last) == (setting == "on")
        assert net.channels_last == (setting == "on")


# --- Waiting for values --------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts the operators that wait for a device: those whose value or shape Python must know."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.n: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        # A single number written by a mask is a masked_fill, which waits for nothing.
        by_mask = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2])
        )
        by_mask = by_mask and not (len(args) > 2 and args[2].numel() == 1)
        if name in self.NAMES or by_mask:
            self.n[name] += 1
        return func(*args, **(kwargs or {}))


def waits_of_a_step(loop: EpochLoop) -> int:
    with Waits() as waits:
        loop._meter.update(*loop.train_step())
    loop.step += 1
    return waits.n.total()


def test_waits_are_counted():
    x = torch.arange(3.0)
    with Waits() as waits:
        float(x[1])
        if x[1] > 0:
            _ = x[x > 1]
    assert dict(waits.n) == {"_local_scalar_dense": 2, "index": 1}


# Of an update, whatever the number of candidates and inner steps. Here all is on the CPU, and none
# of these would wait for a GPU: each draws the seed of its noise from a CPU generator; a solver
# looks at its iterate on a CPU only; Adam's step count is on the CPU. test_devices.py has the rest.
WAITS_OF_AN_UPDATE = {"rs": 2, "mgs": 2, "gld": 2, "lizo": 2, "darts1": 2, "darts2": 2}


@pytest.mark.parametrize("algo", WAITS_OF_AN_UPDATE)
def test_a_weight_step_of_a_search_waits_for_no_value(algo, search_config):
    config = search_config(algo, inner_steps=3, warmup_epochs=1, batch_size=8)
    if algo.startswith("darts"):
        config = dataclasses.replace(config, inner_steps=3)
    search = Search(config, prepare(config))
    search.begin_epoch()
    assert [waits_of_a_step(search) for _ in range(2)] == [0, 0]  # the warm-up: no update
    search.epoch, search.step = 1, 0
    n = WAITS_OF_AN_UPDATE[algo]
    rest = n if algo.startswith("darts") else 0  # which updates at every step
    assert [waits_of_a_step(search) for _ in range(3)] == [n, rest, rest]


@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_step_of_a_retraining_waits_for_no_value(auxiliary, train_config):
    config = train_config(auxiliary=auxiliary, drop_path=0.3, cutout=2, label_smoothing=0.1)
    training = Training(config, prepare(config))
    training.epoch = 1
    training.begin_epoch()
    assert training.network.drop_path_probability > 0
    assert [waits_of_a_step(training) for _ in range(2)] == [0, 0]
