"""A retraining in two processes: the batches, the gradients, the folder, and resuming."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.data.augmentation import Augmentation, RankSlice, Transform
from zoopt_nas.nas.data.batches import BatchStream
from zoopt_nas.nas.data.image_sets import ImageSet
from zoopt_nas.nas.retraining.processes import Processes
from zoopt_nas.nas.retraining.retrain import _shared, resume_training
from zoopt_nas.nas.settings.config import TrainConfig
from zoopt_nas.nas.steps.execution import Execution

TRANSFORMS = {
    "cifar": (Augmentation(crop_padding=2, flip=True, cutout=3), 8),
    "imagenet": (
        Augmentation(flip=True, resized_crop=6, colour_jitter=(0.4, 0.4, 0.4, 0.2)),
        6,
    ),
}

# What each of two processes does, one thing after another, since to start them takes seconds.
SCRIPT = """
import json
import sys
from pathlib import Path
import torch
from torch import nn
from zoopt_nas.errors import RunInterrupted
from zoopt_nas.nas.retraining import retrain
from zoopt_nas.nas.settings.config import TrainConfig
from zoopt_nas.nas.retraining.processes import Processes
from zoopt_nas.nas.retraining import training as training_module
from zoopt_nas.nas.retraining.retrain import resume_training
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.steps.execution import Execution

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
config = TrainConfig.from_toml(open(folder + "/config.toml").read())

ports = iter(sys.argv[3:])

def meet():
    return Processes(rank, 2, rank, f"tcp://127.0.0.1:{next(ports)}")

def threads():
    return [
        path.read_text() for path in Path("/proc/self/task").glob("*/comm")
        if "gloo" in path.read_text()
    ]

class StopAt(Observer):
    def __init__(self, n):
        self.n = n
    def should_stop(self):
        self.n -= rank  # process 1 alone is asked to stop
        alive["in a run"] = len(threads())
        return self.n == 0

# As a run of one process, but for the statistics of BatchNorm, which are held.
build = training_module.build_network
def held(*args, **more):
    network = build(*args, **more)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True: None
    return network
training_module.build_network = held
plain = config.replace(drop_path=0.0)
retrain.run_training(plain, run_dir=folder + "/held", processes=meet())
if rank == 0:
    retrain.run_training(plain, run_dir=folder + "/held-alone")
training_module.build_network = build

class Weights(Observer):
    def on_epoch(self, row):
        network = training[0].network
        weights = [x.detach().clone() for x in network.parameters()]
        torch.save(weights, f"{folder}/weights-{row['epoch']}-{rank}.pt")
alive = {}
training = []
original = retrain.Training
def kept(*args, **more):
    training[:] = [original(*args, **more)]
    return training[0]
retrain.Training = kept
whole = retrain.run_training(
    config, run_dir=folder + "/whole", processes=meet(), observer=Weights()
)
alive["after a run"] = len(threads())  # while its Training is referred to
retrain.Training = original
try:
    retrain.run_training(
        config, run_dir=folder + "/cut", processes=meet(), observer=StopAt(7)
    )
    raise SystemExit("not stopped")
except RunInterrupted:
    alive["as it ends by an error"] = len(threads())
resumed = retrain.resume_training(folder + "/cut", processes=meet())
Path(folder, f"threads-{rank}.json").write_text(json.dumps(alive))
print({"whole": whole, "resumed": resumed})
"""


def stream_of(images, labels, transform, rank_slice, batch_size=8):
    generator = torch.Generator().manual_seed(3)
    return BatchStream(
        ImageSet(images, labels),
        torch.arange(len(labels)),
        batch_size,
        transform=transform,
        generator=generator,
        rank_slice=rank_slice,
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_shares_of_a_batch_are_the_whole_batch(name):
    augmentation, size = TRANSFORMS[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (22, 3, 8, 8), dtype=torch.uint8, generator=generator)
    transform = Transform(
        (0.5,) * 3, (0.25,) * 3, augmentation, image_size=size, device=torch.device("cpu")
    )
    whole, *shares = (
        stream_of(images, torch.arange(22), transform, rank_slice)
        for rank_slice in (RankSlice(), RankSlice(0, 2), RankSlice(1, 2))
    )
    assert [stream.n_batches for stream in (whole, *shares)] == [3, 3, 3]
    for _ in range(6):  # two epochs
        batch, labels = whole.next_batch()
        for first, stream in enumerate(shares):
            own, own_labels = stream.next_batch()
            assert torch.equal(own_labels, labels[first::2])
            assert torch.allclose(own, batch[first::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "sizes"), [(8, [4]), (10, [4]), (11, [4]), (12, [4, 2]), (13, [4, 2])]
)
def test_a_last_batch_has_equal_shares_or_is_left_out(n, sizes):
    transform = Transform((0.0,), (1.0,), image_size=2, device=torch.device("cpu"))
    images, labels = torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.arange(n)
    streams = [stream_of(images, labels, transform, RankSlice(i, 2)) for i in (0, 1)]
    for stream in streams:
        assert [len(stream.next_batch()[1]) for _ in range(stream.n_batches)] == sizes


def test_batches_must_be_shared_evenly():
    assert Processes(1, 4).share_of_batch(96) == 24
    assert Processes().share_of_batch(1) == 1
    for batch_size in (97, 4):
        with pytest.raises(InvalidValueError, match="multiple of the 4 processes, with at least 2"):
            Processes(1, 4).share_of_batch(batch_size)
    with pytest.raises(InvalidValueError, match=r"rank must lie in 0..1, got 2"):
        Processes(2, 2)


def free_ports(n: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [str(opened.getsockname()[1]) for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture(scope="module")
def two(tmp_path_factory, npz):
    """The folder in which two processes have worked."""
    folder = tmp_path_factory.mktemp("two")
    config = TrainConfig(
        dataset=str(npz),
        device="cpu",
        epochs=3,
        batch_size=16,
        init_channels=2,
        n_cells=2,
        cutout=2,
        lr=0.1,
        drop_path=0.3,
    )
    (folder / "config.toml").write_text(config.to_toml())
    ports = free_ports(4)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(folder), *ports],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]  # both return the result
    return folder


def weights_of(run):
    return torch.load(run / "weights.pt", weights_only=True)["network"]


def rows_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_with_held_statistics_two_processes_do_what_one_does(two):
    both, alone = weights_of(two / "held"), weights_of(two / "held-alone")
    for name, value in alone.items():
        assert torch.allclose(both[name], value, rtol=1e-4, atol=1e-5), name
    for row, expected in zip(rows_of(two / "held"), rows_of(two / "held-alone"), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_both_processes_have_the_same_weights_after_every_epoch(two):
    for epoch in range(3):
        first, second = (torch.load(two / f"weights-{epoch}-{rank}.pt") for rank in (0, 1))
        assert all(map(torch.equal, first, second))


def test_a_run_of_two_resumes_bit_for_bit(two):
    whole, resumed = weights_of(two / "whole"), weights_of(two / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert rows_of(two / "whole") == rows_of(two / "cut")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have no names here")
def test_no_thread_of_the_exchange_outlives_a_run(two):
    # One that did has aborted the process as the interpreter ended: gloo's threads free tensors.
    for rank in (0, 1):
        alive = json.loads((two / f"threads-{rank}.json").read_text())
        assert alive.pop("in a run") > 0
        assert alive == {"after a run": 0, "as it ends by an error": 0}


def test_a_run_of_two_is_not_resumed_by_one(two):
    with pytest.raises(RunError, match="a run of 2 processes must be resumed with as many, got 1"):
        resume_training(two / "whole")


def test_steps_of_several_processes_are_not_recorded(train_config):
    cpu = torch.device("cpu")
    execution = Execution(cpu, compile=True)
    with pytest.raises(InvalidValueError, match="compile must be auto or off in 2 processes"):
        _shared(execution, train_config(compile="on"), Processes(0, 2))
    assert _shared(execution, train_config(compile="on"), Processes()).compile
    assert Processes(3, 8, 1).device(torch.device("cuda")) == torch.device("cuda", 1)
    assert Processes().device(cpu) == cpu


def test_torchrun_starts_the_command(npz, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    few = ["--epochs", "1", "--init-channels", "2", "--n-cells", "1", "--batch-size", "16"]
    train = ["-m", "zoopt_nas_cli", "train", "DARTS_V2", "--dataset", str(npz), "--device", "cpu"]

    def start(*arguments):
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    done = start(*train, *few, "--run-dir", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1  # process 0 alone speaks
    result = json.loads(done.stdout)
    assert result["run_dir"] == str(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("checkpoint.pt", "config.toml", "data.json", "genotype.json", "machine.json"),
        *("metrics.jsonl", "result.json", "weights.pt"),
    ]
    again = start(*train, *few, "--run-dir", str(tmp_path / "run"))
    assert again.returncode != 0
    assert again.stderr.count("exists already") == 1
