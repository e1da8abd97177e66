"""A replica of a search in another process, which evaluates candidates on a device of its own.

``pack`` runs in the process of the search: it puts everything on which the values of some
candidates depend into bytes. The rest runs in the process of the replica.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError, WorkerError, ZooptNasError
from zoopt_nas.nas.data.batches import split_indices
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.build import build_supernet
from zoopt_nas.nas.networks.spaces import space_from_json
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.runs.memory import explain_out_of_memory
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.candidates import Batch, flat
from zoopt_nas.nas.search.evaluation import Draw, Points
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.streams import AheadStream, Replayed, make_streams
from zoopt_nas.nas.settings.config import FRESH, SearchConfig
from zoopt_nas.nas.steps.devices import free_memory, pick_device
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.seeds import generator
from zoopt_nas.nas.steps.weight_step import make_sgd

VALUES, VALUES_BY_BATCH, CELLS = "values", "values by batch", "cells"
_SGD = ("lr", "momentum", "weight_decay", "dampening", "nesterov")


class Plan(NamedTuple):
    """What a replica is built from.

    Attributes:
        config: the settings.
        space: the search space, as JSON.
        record: the record of the data set, as JSON.
        seeds: the seeds of the streams.
        folder: the working directory of the search, where relative paths begin.
        device: the name of the device.
        threads: CPU threads.
    """

    config: SearchConfig
    space: str
    record: str
    seeds: Mapping[str, int]
    folder: str
    device: str
    threads: int


class Job(NamedTuple):
    """The candidates ``first`` to ``last - 1`` of a call; ``call`` None is the call before."""

    call: bytes | None
    first: int
    last: int


def pack(
    supernet: Supernet, optimizer: torch.optim.SGD, points: Points, draw: Draw, what: str
) -> bytes:
    """Return a call: candidates, the weights they start from, and the batches they see."""
    parameters = list(supernet.parameters())
    momenta = [optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]
    # A missing momentum counts as 0 (``start_momentum``).
    filled = [
        torch.zeros_like(parameter) if momentum is None else momentum
        for parameter, momentum in zip(parameters, momenta, strict=True)
    ]
    group, train = optimizer.param_groups[0], draw.train
    batches: Any
    if isinstance(train, Replayed):  # too many to be sent
        batches = {"position": train.position, "n": len(train)}
    else:
        batches = list(train)
    call = {
        "what": what,
        "points": points if isinstance(points, Tensor) else list(points),
        "weights": flat(parameters),
        "momentum": None if all(m is None for m in momenta) else flat(filled),
        "sgd": {name: group[name] for name in _SGD},
        "drop_path": supernet.drop_path_probability,
        "auxiliary_weight": float(supernet.auxiliary_weight),
        "train": batches,
        "val": list(draw.val),
        "noise_seed": draw.noise_seed,
    }
    file = io.BytesIO()
    torch.save(call, file)
    return file.getvalue()


class Replica:
    """The supernet of a search on another device, with the settings that candidates depend on.

    Attributes:
        free: free bytes of the device before the replica was built; None if unknown.

    Raises:
        InvalidValueError: this machine has no such device.
        DataError: the images cannot be read, or have changed.
    """

    def __init__(self, plan: Plan) -> None:
        device = _device(plan.device)
        config, record = plan.config, DataRecord.from_json(plan.record)
        self._config, self._device = config, device
        self.free = free_memory(device)
        self._streams: Mapping[str, AheadStream] = {}
        if config.weights == FRESH:  # a call then has positions of streams in place of batches
            dataset = prepare(config, record=record, device=device).dataset
            split = generator(plan.seeds["split"])
            parts = split_indices(len(dataset.train), config.train_portion, split)
            self._streams = make_streams(config, dataset, *parts, plan.seeds)
        execution = Execution.from_config(config, device)
        self._supernet = build_supernet(
            config, record, seed=0, execution=execution, space=space_from_json(plan.space)
        )
        self._optimizer = make_sgd(self._supernet, config)
        self._objective = BilevelObjective.from_config(
            self._supernet,
            self._optimizer,
            _NoBatches(),
            _NoBatches(),
            config,
            seed=0,  # not used, since calls have their draws
            execution=execution,
        )
        self._call: dict[str, Any] = {}
        self._draw = Draw((), (), 0)

    def evaluate(self, job: Job) -> list[Any]:
        """Return one item for each candidate, of numbers as arrays: its values, or its cell's."""
        where = "while candidates were evaluated"
        with explain_out_of_memory(self._config, self._device, lambda: where):
            if job.call is not None:
                self._load(job.call)
            return self._evaluate(self._call["points"][job.first : job.last])

    def _evaluate(self, points: Points) -> list[Any]:
        evaluation, what = self._objective.evaluation, self._call["what"]
        if what == CELLS:
            assert not isinstance(points, Tensor)
            cells = evaluation.measure(points, self._draw)
            return [[number.cpu().numpy() for number in cell] for cell in cells]
        by_batch = what == VALUES_BY_BATCH
        return list(evaluation.values(points, self._draw, by_batch=by_batch).cpu().numpy())

    def _load(self, data: bytes) -> None:
        """Take in a call: its weights, settings, batches and candidates."""
        call = torch.load(io.BytesIO(data), map_location=self._device, weights_only=True)
        parameters: list[Tensor] = list(self._supernet.parameters())
        with torch.no_grad():
            torch._foreach_copy_(parameters, _like(parameters, call["weights"]))
        self._optimizer.state.clear()
        if call["momentum"] is not None:
            momenta = _like(parameters, call["momentum"])
            for parameter, momentum in zip(parameters, momenta, strict=True):
                self._optimizer.state[parameter]["momentum_buffer"] = momentum
        self._optimizer.param_groups[0].update(call["sgd"])
        # A search of one stage, as all with workers, has no dropout on skip connections.
        self._objective.set_schedules(call["drop_path"], call["auxiliary_weight"], 0.0)
        train: Sequence[Batch] | Mapping[str, Any] = call["train"]
        if isinstance(train, Mapping):
            train = Replayed(self._streams["inner"], train["n"], train["position"])
        self._call, self._draw = call, Draw(train, call["val"], call["noise_seed"])


class _NoBatches:
    """A stream for an objective whose calls have their batches."""

    def next_batch(self) -> Batch:
        """Refuse."""
        raise RuntimeError("a replica draws no batches")


def _device(name: str) -> torch.device:
    try:
        device = pick_device(name)
    except InvalidValueError as error:
        raise InvalidValueError(f"candidate_devices: {error}") from error
    if device.type == "cuda":  # or staging buffers would take memory of the first GPU
        torch.cuda.set_device(device)
    return device


def _like(parameters: Sequence[Tensor], values: Tensor) -> list[Tensor]:
    """Return the parts of a flat tensor in the shapes of parameters."""
    parts = torch.split(values, [parameter.numel() for parameter in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


# --- The process ---------------------------------------------------------------------------------

_HERE: list[Replica] = []  # the replica of this process


def begin_process(threads: int) -> None:
    """Prepare a new process, which ends with the process of the search.

    A terminal sends Ctrl-C to all its processes, and the search decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def build(plan: Plan) -> int | None:
    """Build the replica of this process; return the free bytes before."""
    with _in_one_line(plan.device):
        os.chdir(plan.folder)  # a new process begins where Python was started
        _HERE[:] = [Replica(plan)]
        return _HERE[0].free


def evaluate(job: Job) -> list[Any]:
    """Evaluate candidates; see ``Replica.evaluate``."""
    (replica,) = _HERE
    with _in_one_line(str(replica._device)):
        return replica.evaluate(job)


@contextmanager
def _in_one_line(device: str) -> Iterator[None]:
    """Turn an unexpected error into one that survives the way to the search."""
    try:
        yield
    except ZooptNasError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise WorkerError(f"candidates cannot be evaluated on {device}: {reason}") from error
