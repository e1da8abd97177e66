"""The estimate of a run's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from zoopt_nas.nas.data.image_sets import HostImageSet
from zoopt_nas.nas.data.loading import load_dataset
from zoopt_nas.nas.kernels.library import library
from zoopt_nas.nas.networks import joined_edges
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.retraining.retrain import estimate_training
from zoopt_nas.nas.runs import memory
from zoopt_nas.nas.runs.memory import (
    peak_bytes,
)
from zoopt_nas.nas.search.run import estimate_search

CPU = torch.device("cpu")
GB = 10**9


def data_of(config):
    return load_dataset(config.dataset, data_dir=Path("unused"), device=CPU)


# ------------------------------------------------------------------------ counting


def test_the_peak_counts_what_lives_at_a_time_with_the_rows_of_a_batch():
    images = torch.zeros(memory.N_IMAGES, 10)

    def function():
        a = images + 1
        b = a.view(-1, 5, 2) * 2  # a view is no memory of its own
        del a
        c = torch.cat([b, b], dim=1)
        torch.zeros(10**6)  # has no row for each image
        return c

    # b and c: 30 numbers of 4 bytes for each image; a and b were 20.
    assert peak_bytes(function, 64) == 64 * 30 * 4


def loss_of(n_images: int, cpu_kernels: bool = False):
    """A cell of S3 with two nodes on 32x32 images, 8 channels, and its loss."""
    torch.manual_seed(0)
    space = SPACES["small_s3"]
    supernet = DartsSupernet(space, 10, 8, 1)
    enable_kernels(supernet, cpu_kernels)
    images = torch.zeros(n_images, 3, 32, 32)
    labels = torch.zeros(n_images, dtype=torch.int64)
    return lambda: F.cross_entropy(supernet(images, torch.zeros(space.dim)), labels)


@pytest.mark.parametrize("cpu_kernels", [True, False])
@pytest.mark.parametrize("batch_size", [15, 30])  # convolutions joined, and one by one
def test_two_images_stand_for_a_batch(batch_size, cpu_kernels, small_spaces, monkeypatch):
    assert (batch_size * 8 * 32 * 32 <= joined_edges.MAX_NUMBERS_ON_CPU) == (batch_size == 15)
    estimate = peak_bytes(loss_of(memory.N_IMAGES, cpu_kernels), batch_size)
    monkeypatch.setattr(memory, "N_IMAGES", batch_size)
    # Not equal: a few weights have as many rows as there are images.
    assert estimate == pytest.approx(
        peak_bytes(loss_of(batch_size, cpu_kernels), batch_size), rel=1e-3
    )


@pytest.mark.skipif(library(torch.float32) is None, reason="no C compiler")
def test_own_kernels_keep_less(small_spaces):
    plain, cpu_kernels = (peak_bytes(loss_of(memory.N_IMAGES, own), 30) for own in (False, True))
    # Of an edge with a separable convolution two tensors in place of five, and no sums of edges.
    assert 0.4 * plain < cpu_kernels < 0.6 * plain


def test_the_way_that_a_whole_batch_takes_matters(small_spaces, monkeypatch):
    estimate = peak_bytes(loss_of(memory.N_IMAGES), 32)
    monkeypatch.setattr(joined_edges, "MAX_NUMBERS_ON_CPU", 2**30)
    assert peak_bytes(loss_of(memory.N_IMAGES), 32) > 1.05 * estimate


def test_candidates_at_once_and_kept_fits_take_their_share(search_config):
    options = {"n_samples": 3}  # radii
    config = search_config(
        "gld", init_channels=4, solver=options, candidates_per_batch=1, cpu_kernels="off"
    )
    data = data_of(config)
    one = estimate_search(config, data)
    n = 4  # with alpha
    for given in (3, n, 100):
        several = estimate_search(config.replace(candidates_per_batch=given), data)
        at_once = min(given, n)
        assert several.activations == at_once * one.activations
        assert several.parameters == one.parameters * (2 + at_once) // 2
        assert (several.evaluation, several.data) == (one.evaluation, one.data)
        # The CPU kernels take candidates one by one only.
        same = config.replace(candidates_per_batch=given, cpu_kernels="auto")
        assert estimate_search(same, data) == several
    # Automatic: all of them at this size, one by one where they do not pay.
    automatic = estimate_search(config.replace(candidates_per_batch=None), data)
    assert automatic.activations == n * one.activations
    gradient = search_config("darts1", init_channels=4, candidates_per_batch=3)
    alone = gradient.replace(candidates_per_batch=1)
    assert estimate_search(gradient, data) == estimate_search(alone, data)


def test_methods_on_single_paths_need_the_memory_of_one_path(search_config):
    def activations(algo: str, **fields) -> int:
        config = search_config(algo, space="darts", init_channels=4, n_cells=1, **fields)
        return estimate_search(config, data_of(config)).activations

    mixture, cell = activations("darts1"), activations("gld", paths="fair", inner="first")
    # A separable convolution, the heaviest operation, on 14 edges; on 8 of them with a copy of
    # each output, which its factor multiplies; and on 8 of them.
    gdas, rome = activations("gdas"), activations("rome", edge_normalization=True)
    assert mixture > 1.7 * gdas  # the stem has its share
    assert gdas > 1.4 * rome
    assert rome > cell
    assert activations("random_ws") == cell
    assert activations("gdas", sampled_paths=3) == gdas  # one path after the other
    # The eigenvalue is that of the mixture, whatever is trained.
    with_eigenvalue = activations("gdas", track_eigenvalue=True)
    assert with_eigenvalue == activations("darts1", track_eigenvalue=True)


@pytest.mark.parametrize(
    ("settings", "n_kept"),
    [
        # Two returns of 7 epochs, one epoch apart: 13 epochs back, and the last one itself.
        ({}, 14),
        ({"weight_decay": 3e-3}, 8),  # one return
        ({"weight_decay": 3e-2}, 0),  # none
        ({"weight_decay": 3e-5}, 20),
        ({"weight_decay": 1e-30}, 30),  # no more than the epochs from 10 to 39
        ({"min_return_epoch": 35}, 5),
        ({"epochs": 3}, 0),
    ],
)
def test_epochs_to_go_back_to_are_kept(settings, n_kept, search_config):
    config = search_config("darts2", **{"epochs": 40, **settings})
    data = data_of(config)
    plain = estimate_search(config.replace(track_eigenvalue=True), data)
    ada = estimate_search(config.replace(algo="ada"), data)
    supernet = DartsSupernet(SPACES["small_s3"], 3, 2, 1, in_channels=1)
    weights = sum(parameter.nbytes for parameter in supernet.parameters())
    assert ada.parameters - plain.parameters == n_kept * 2 * weights
    assert ada.activations == plain.activations


def test_the_hessian_has_a_graph_of_its_own(search_config):
    config = search_config("darts2")
    data = data_of(config)
    plain = estimate_search(config, data)
    watched = estimate_search(config.replace(track_eigenvalue=True), data)
    assert watched.activations > 1.2 * plain.activations
    assert watched.parameters == plain.parameters


def test_bfloat16_halves_what_convolutions_keep(search_config):
    config = search_config(init_channels=8, cpu_kernels="off")  # whose kernels are of float32
    data = data_of(config)
    plain = estimate_search(config, data)
    halved = estimate_search(config.replace(amp="bf16", inner_amp="bf16"), data)
    # BatchNorm and the sums of edges stay in float32.
    assert 0.4 * plain.activations < halved.activations < 0.9 * plain.activations
    assert halved.evaluation == plain.evaluation
    assert halved.parameters == plain.parameters
    # One pass in float32 beside the others is the largest.
    for algo, changes, is_wide in (
        ("gld", {}, True),
        ("gld", {"inner": "second"}, True),
        ("darts1", {"inner_amp": "bf16"}, True),  # gradients in alpha
        ("mgs", {"inner_amp": "bf16"}, True),  # its guide
        ("gld", {"inner": "first"}, False),
        ("random_ws", {}, False),
    ):
        config = search_config(algo, init_channels=8, cpu_kernels="off", **changes)
        coarse, fine = (estimate_search(config.replace(amp=amp), data) for amp in ("bf16", "off"))
        assert (coarse.activations == fine.activations) == is_wide
        assert coarse.activations <= fine.activations


def test_an_estimate_disturbs_no_random_numbers(search_config):
    config = search_config(space="small_s4")  # which draws noise
    before = torch.get_rng_state()
    first = estimate_search(config, data_of(config))
    assert torch.equal(torch.get_rng_state(), before)
    assert estimate_search(config, data_of(config)) == first


def test_the_parts_of_an_estimate(search_config, train_config, monkeypatch):
    config = search_config(init_channels=4, inner_steps=3, val_batches=2)
    data = data_of(config)
    found = estimate_search(config, data)
    supernet = DartsSupernet(SPACES["small_s3"], 3, 4, 1, in_channels=1)
    weights = sum(parameter.nbytes for parameter in supernet.parameters())
    buffers = sum(buffer.nbytes for buffer in supernet.buffers())
    assert found.parameters == 2 * (4 * weights + buffers)
    images, batch = 64 * 8 * 8 + 64 * 8, 16 * 8 * 8 * 4
    assert found.data == images + 24 * (8 * 8 + 8) + (1 + 3 + 2 + 1) * batch
    assert found.total == found.parameters + found.activations + found.data + found.libraries
    assert found.evaluation < found.activations  # 32 images against 16, without gradients

    larger = estimate_search(config.replace(batch_size=32), data)
    assert larger.activations == pytest.approx(2 * found.activations, abs=2)
    assert larger.evaluation == found.evaluation
    monkeypatch.setattr(joined_edges, "MAX_NUMBERS_ON_CPU", 0)
    pools = config.replace(space="darts", n_cells=4)
    one_by_one = estimate_search(pools, data).activations
    # A gradient in alpha keeps the output of every pool.
    gradient = pools.replace(algo="darts1", solver={})
    assert estimate_search(gradient, data).activations > 1.01 * one_by_one

    config = train_config(n_cells=3)
    plain = estimate_training(config, data).activations
    assert estimate_training(config.replace(drop_path=0.2), data).activations > plain
    assert estimate_training(config.replace(auxiliary=True), data).activations > plain


def test_images_that_stay_on_the_host_take_no_device_memory(search_config):
    images = data_of(search_config()).train
    host = HostImageSet(images.images, images.labels)
    assert (images.nbytes, host.nbytes) == (64 * (64 + 8), 64 * 8)


_CHILD = """
import sys
import torch
from zoopt_nas.nas.runs import loop
from zoopt_nas.nas.retraining import retrain
from zoopt_nas.nas.search import run as search
from zoopt_nas.nas.settings.config import SearchConfig
torch.set_num_threads(1)

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

class Watch(loop.Observer):
    def on_start(self, start):
        self.total = start.memory.total

before, watch = peak(), Watch()
search.run_search(SearchConfig.for_dataset(
    sys.argv[1], "gld", space="s3", device="cpu", image_size=32, epochs=1, warmup_epochs=0,
    batch_size=32, init_channels=16, n_cells=3, inner_steps=1, solver={"n_samples": 1},
    track_eigenvalue=len(sys.argv) > 2,
), observer=watch)
print(watch.total, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("more", [[], ["eigenvalue"]])
def test_a_search_grows_by_what_was_estimated(npz, more):
    command = [sys.executable, "-c", _CHILD, str(npz), *more]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    estimated, grown = map(int, found.stdout.split())
    assert 0.7 < estimated / grown < 1.3, (estimated, grown)
    assert grown > 3e8
