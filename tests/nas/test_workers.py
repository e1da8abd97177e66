"""Candidates evaluated by replicas: the same run, what is sent, and what happens when one dies.

The processes are simulated in this one; ``test_worker_runs`` has real ones.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from typing import Any, ClassVar

import pytest
import torch

from zoopt_nas import _processes
from zoopt_nas.errors import (
    DivergedError,
    InvalidValueError,
    NotEnoughMemoryError,
    WorkerError,
)
from zoopt_nas.nas import SPACES, Dataset, SearchConfig, resume_search, run_search
from zoopt_nas.nas.analyses.snapshot import Snapshot
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.runs import memory, setup
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.memory import MemoryEstimate
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search import replica
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.evaluation import Evaluation
from zoopt_nas.nas.search.run import estimate_search
from zoopt_nas.nas.search.workers import CandidateWorkers, worker_devices

CPU = torch.device("cpu")


def copied(message: Any) -> Any:
    """What comes out of a pipe."""
    return pickle.loads(pickle.dumps(message))  # noqa: S301 (pickled in this line)


class Simulated:
    """Stands for a process with a replica."""

    made: ClassVar[list[Simulated]] = []

    def __init__(self, context: Any, initializer: Any, initargs: tuple[int]) -> None:
        self.here: list[replica.Replica] = []
        self.jobs: list[replica.Job] = []
        self.is_alive, self.answers = True, []
        self.made.append(self)

    def send(self, message: Any) -> bool:
        if self.is_alive:
            function, argument = copied(message)
            if isinstance(argument, replica.Job):
                self.jobs.append(argument)
            replica._HERE[:] = self.here
            try:
                self.answers.append((function(argument), None))
            except Exception as error:  # noqa: BLE001 (raised by the search)
                self.answers.append((None, error))
            self.here = list(replica._HERE)
        return self.is_alive

    def receive(self) -> Any:
        return copied(self.answers.pop(0)) if self.is_alive else None

    def kill(self) -> None:
        self.is_alive = False


@pytest.fixture
def simulated(monkeypatch) -> list[Simulated]:
    """The processes that a search has started."""
    monkeypatch.setattr(Simulated, "made", [])
    monkeypatch.setattr(_processes, "Process", Simulated)
    monkeypatch.setattr(_processes, "wait", lambda processes, seconds: set(processes))
    yield Simulated.made
    replica._HERE.clear()


def config(**settings: Any) -> SearchConfig:
    fields = {"dataset": "digits", "epochs": 2, "warmup_epochs": 0, "init_channels": 2}
    sizes = {"n_train": 96, "batch_size": 16, "n_cells": 1, "inner_steps": 2, "threads": 1}
    # Candidates of this size would be evaluated at once, by a single process.
    kind = {"space": "small_s3", "algo": "gld", "device": "cpu", "candidates_per_batch": 1}
    return SearchConfig(**{**fields, **sizes, **kind, **settings})


NB201 = {"space": "nasbench201", "n_cells": 3}
FRESH = {**NB201, "paths": "fair", "weights": "fresh", "lr": 0.1, "inner_steps": 4}


# --- The same run --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"algo": "mgs", "space": "small_s4", "drop_path": 0.3, "auxiliary_skip": 0.5, "epochs": 3},
        {"algo": "rs", "score": "accuracy", "inner_momentum": False, "momentum": 0.5},
        {"algo": "mgs", "noise_aware": True},
        {"algo": "auto", "inner": "second", "grad_clip": 0.1},
        {"algo": "lizo", "inner": "first", "weight_decay": 0.1},
        {"algo": "gld", "inner_average": 0.5, "val_batches": 2, "space": "small_s4"},
        {"algo": "gld", "space": "s4", "paths": "uniform", "update_period": 2, "drop_path": 0.3},
        {**NB201, "paths": "fair", "noise_aware": True},
        {"weights": "fresh", "space": "small_s4"},
        {**FRESH, "extrapolate": True, "surrogate": True, "inner_average": 0.9, "epochs": 3},
        {**FRESH, "algo": "mgs", "solver": {"n_samples": 3}},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_search_with_workers_is_the_search_without(
    settings, small_spaces, simulated, without_seconds
):
    series = run_search(config(**settings))
    assert simulated == []
    workers = run_search(config(**settings, candidate_devices="cpu, cpu:0,auto"))
    assert len(simulated) == 3
    assert not any(process.is_alive for process in simulated)
    assert sum(bool(process.jobs) for process in simulated) >= 2  # there may be two paths only
    assert workers.alpha.equal(series.alpha)
    assert workers.genotype == series.genotype
    assert without_seconds(workers.metrics) == without_seconds(series.metrics)


@pytest.mark.parametrize(
    ("given", "parts"),
    [(1, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]), (3, [(0, 3), (3, 5)]), (None, [(0, 5)])],
)
def test_candidates_at_once_stay_together(
    given, parts, small_spaces, simulated, no_kernels, without_seconds
):
    """Their values differ from those of single candidates by rounding."""
    settings = config(candidates_per_batch=given, epochs=1, update_period=100, cpu_kernels="off")
    series = run_search(settings)
    workers = run_search(settings.replace(candidate_devices="cpu,cpu"))
    jobs = [job for process in simulated for job in process.jobs]
    assert sorted((job.first, job.last) for job in jobs) == parts
    assert without_seconds(workers.metrics) == without_seconds(series.metrics)


def test_a_process_gets_each_call_once(small_spaces, simulated):
    run_search(config(algo="mgs", epochs=1, candidate_devices="cpu,cpu"))
    for process in simulated:
        n_calls = sum(job.call is not None for job in process.jobs)
        assert n_calls == 2  # an update every second of three steps
        assert len(process.jobs) == 2 * n_calls
        assert process.jobs[0].call is not None


def test_cells_of_an_update_are_measured_side_by_side(simulated):
    settings = config(**FRESH, epochs=1, update_period=3)
    run_search(settings.replace(candidate_devices="cpu,cpu,cpu"))
    n_cells = Counter(len(process.jobs) for process in simulated)
    # The ten cells of the start: the first to be free takes the next one.
    assert sum(n * k for n, k in n_cells.items()) >= 10
    assert min(n_cells) >= 3


def test_a_space_of_ones_own_goes_to_the_replicas(small_spaces, simulated):
    mine = dataclasses.replace(SPACES["small_s3"], name="mine", edge_normalization=True)
    series = run_search(config(), space=mine)
    assert run_search(config(candidate_devices="cpu"), space=mine).alpha.equal(series.alpha)


def test_an_analysis_of_a_run_with_workers_needs_none(small_spaces, simulated, tmp_path):
    run_search(config(epochs=1, candidate_devices="cpu"), run_dir=tmp_path / "run")
    simulated.clear()
    snapshot = Snapshot(RunFolder.open(tmp_path / "run"))
    draws = snapshot.draws(1, n_train=1, n_val=1, noise_seed=0)
    assert torch.isfinite(snapshot.objective("1", draws)(snapshot.alpha[None])).all()
    assert simulated == []


# --- Processes that die or fail ------------------------------------------------------------------


class Dying:
    """Kills the process that makes the n-th evaluation, for some n from 1."""

    def __init__(self, monkeypatch, *at: int) -> None:
        self.n, receive = 0, Simulated.receive

        def receive_or_die(process: Simulated) -> Any:
            self.n += bool(process.jobs)
            if process.jobs and self.n in at:
                process.kill()
            return receive(process)

        monkeypatch.setattr(Simulated, "receive", receive_or_die)


@pytest.mark.parametrize("at", [(1,), (2, 5), (8,)])
def test_a_process_that_dies_is_replaced_and_its_part_repeated(
    at, small_spaces, simulated, monkeypatch, without_seconds
):
    settings = config(algo="mgs", space="small_s4")
    series = run_search(settings)
    Dying(monkeypatch, *at)
    message = "^the process that evaluates candidates on cpu died; a new one replaces it$"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        workers = run_search(settings.replace(candidate_devices="cpu,cpu"))
    assert len(warned) == len(at)
    assert len(simulated) == 2 + len(at)
    assert not any(process.is_alive for process in simulated)
    assert workers.alpha.equal(series.alpha)
    assert without_seconds(workers.metrics) == without_seconds(series.metrics)


def test_a_part_that_kills_two_processes_ends_the_search(small_spaces, simulated, monkeypatch):
    Dying(monkeypatch, 1, 2)
    with pytest.warns(RuntimeWarning), pytest.raises(WorkerError) as caught:
        run_search(config(candidate_devices="cpu"))
    assert str(caught.value) == (
        "the process that evaluates candidates on cpu died 2 times in the same evaluation; resume "
        "the run with fewer candidate_devices or where more memory is free"
    )
    assert not any(process.is_alive for process in simulated)


def test_a_process_that_is_not_ready_is_not_replaced(small_spaces, simulated, monkeypatch):
    monkeypatch.setattr(Simulated, "receive", lambda process: None)
    with pytest.raises(WorkerError, match=r"^the process .* on cpu ended before it was ready; "):
        run_search(config(candidate_devices="cpu,cpu"))
    assert [process.is_alive for process in simulated] == [False, False]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            IndexError("a\nb"),
            WorkerError,
            r"^candidates cannot be evaluated on cpu: IndexError: a b$",
        ),
        (DivergedError("too far"), DivergedError, "^too far$"),
        (
            MemoryError(),
            NotEnoughMemoryError,
            r"^out of memory while candidates were evaluated on cpu: start again and lower "
            r"batch_size \(16\) or init_channels \(2\), or raise partial_channels \(1\), or name "
            "fewer candidate_devices, or resume where more memory is free$",
        ),
    ],
)
def test_an_error_in_a_process_is_one_line_and_the_run_can_go_on(
    error, kind, message, small_spaces, simulated, monkeypatch, tmp_path, without_seconds
):
    settings = config(candidate_devices="cpu,cpu")
    whole = run_search(settings)
    values, calls = Evaluation.values, []

    def failing(self, *args, **options):
        calls.append(args)
        if len(calls) == 6:
            raise error
        return values(self, *args, **options)

    simulated.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "values", failing)
        with pytest.raises(kind, match=message):
            run_search(settings, run_dir=tmp_path / "run")
    assert [process.is_alive for process in simulated] == [False, False]
    rest = resume_search(tmp_path / "run")
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)


def test_a_call_after_an_error_gets_its_own_answers(small_spaces, simulated, monkeypatch):
    settings = config(candidate_devices="cpu,cpu")
    search = Search(settings, prepare(settings))
    objective = search._objective
    alphas = torch.randn(3, search.supernet.space.dim, generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "values", lambda *args, **options: torch.ones(0)[0])
        with pytest.raises(WorkerError, match="IndexError"):
            objective(alphas)
    draw = objective.draw()
    assert objective(alphas, draw).equal(objective.evaluation.values(alphas, draw))
    assert len(simulated) == 4


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " ", "cpu,", "cpu,,cpu"])
def test_devices_have_commas_between_them(value):
    with pytest.raises(InvalidValueError) as caught:
        config(candidate_devices=value)
    assert str(caught.value) == (
        f"candidate_devices must be devices with commas between them, got {value}"
    )


def test_the_device_of_the_search_has_a_number():
    settings = config(candidate_devices="auto,cuda:1, cuda,cuda:0")
    found = worker_devices(settings, torch.device("cuda"))
    assert found == [torch.device("cuda", k) for k in (0, 1, 0, 0)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cpu,cuda:0", "of the same kind as the device of the search, cpu, got cuda:0"),
        ("cpu,gpu", "devices of torch, got gpu"),
    ],
)
def test_devices_of_another_kind_are_refused(value, message, small_spaces, tmp_path):
    with pytest.raises(InvalidValueError) as caught:
        run_search(config(candidate_devices=value), run_dir=tmp_path / "run")
    assert str(caught.value) == f"candidate_devices must be {message}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algo", ["darts1", "random_ws", "random"])
def test_methods_without_candidates_have_no_workers(algo, small_spaces):
    with pytest.raises(InvalidValueError) as caught:
        run_search(config(algo=algo, candidate_devices="cpu"))
    assert str(caught.value) == (
        f"candidate_devices must be left out with {algo}, which evaluates no candidates, got cpu"
    )


def test_replicas_cannot_load_a_data_set_that_is_an_object(small_spaces, simulated):
    data = prepare(config()).dataset
    assert isinstance(data, Dataset)
    settings = config(candidate_devices="cpu", n_train=None, epochs=1)
    with pytest.raises(InvalidValueError) as caught:
        run_search(settings.replace(weights="fresh"), dataset=data)
    assert str(caught.value) == (
        "candidate_devices must be left out with fresh weights and a data set that is passed as an "
        "object, which their processes cannot load, got cpu"
    )
    assert simulated == []
    run_search(settings, dataset=data)  # shared weights: the batches are sent
    assert len(simulated) == 1


# --- Memory --------------------------------------------------------------------------------------


def test_the_estimate_has_the_workers_on_the_same_device(small_spaces):
    settings = config(algo="mgs", cpu_kernels="off", inner_average=0.5)
    data = prepare(settings).dataset
    alone = estimate_search(settings, data)
    one, three = (
        estimate_search(settings.replace(candidate_devices=devices), data)
        for devices in ("cpu", "cpu,cpu,cpu")
    )
    # The weight step of the search, and in a worker a candidate, which has no evaluation.
    assert (one.parameters, one.activations) == (alone.parameters, alone.activations)
    assert one.data == alone.data
    batches = alone.data - data.train.nbytes
    process = alone.libraries + memory.PROCESS["cpu"]
    assert one.workers == alone.parameters + alone.activations + batches + process
    assert three.workers == 3 * one.workers
    assert three.total == one.total + 2 * one.workers
    fresh = settings.replace(weights="fresh", candidate_devices="cpu")
    several = settings.replace(candidate_devices="cpu", candidates_per_batch=4)
    n_inner = settings.inner_steps - 1  # with fresh weights the batches are read anew
    batch = 16 * 8 * 8 * 4
    assert estimate_search(fresh, data).workers == one.workers + data.train.nbytes - n_inner * batch
    assert estimate_search(several, data).activations == alone.activations
    extra = 3 * alone.activations  # and weights, gradients and momentum for each of the four
    assert estimate_search(several, data).workers > one.workers + extra


def test_workers_that_do_not_fit_are_refused(small_spaces, simulated, tmp_path, monkeypatch):
    settings = config(candidate_devices="cpu,cpu")
    needed = estimate_search(settings, prepare(settings).dataset).total
    monkeypatch.setattr(setup, "free_memory", lambda device: needed - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"or name fewer candidate_devices$"):
        run_search(settings, run_dir=tmp_path / "run")
    assert simulated == list(tmp_path.iterdir()) == []
    run_search(settings.replace(candidate_devices="cpu"))


@pytest.mark.parametrize("free", [1999, 2000])
def test_the_memory_of_other_devices_is_checked(free):
    """Two workers on ``cuda:1``; the search has ``cuda:0`` and checks it itself."""
    net = DartsSupernet(SPACES["s3"], 3, 2, 1)
    plan = replica.Plan(config(), "", "", {}, "", device="cuda:0", threads=1)
    plans = [plan._replace(device=name) for name in ("cuda:0", "cuda:1", "cuda:1")]
    workers = CandidateWorkers(plans, torch.device("cuda"), net, None)
    on_0, on_1, also_on_1 = workers._workers
    found = {on_0: 0, on_1: free, also_on_1: 1500}  # the second sees what the first has taken
    needs = MemoryEstimate(parameters=400, activations=300, evaluation=200, data=300)
    if free == 2000:
        workers._check_memory(found, needs)
        workers._check_memory({on_0: 0, on_1: None, also_on_1: None}, needs)
    else:
        with pytest.raises(NotEnoughMemoryError, match="are free on cuda:1: lower batch_size"):
            workers._check_memory(found, needs)
