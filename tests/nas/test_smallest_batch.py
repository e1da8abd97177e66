"""Batches of one image: they work, or one line refuses them before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.build import build_network, build_supernet, check_smallest_batch
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.retraining.retrain import run_training
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.steps.execution import Execution

CPU = torch.device("cpu")


def images_of(side: int) -> SimpleNamespace:
    return SimpleNamespace(n_classes=3, in_channels=1, image_size=side)


def refuses(config, side: int) -> bool:
    return raises(
        lambda: check_smallest_batch(config, images_of(side), 1),
        InvalidValueError,
        f"on {side}x{side} images",
    )


def fails(step) -> bool:
    return raises(step, ValueError, "Expected more than 1 value per channel")


def raises(call, kind, message) -> bool:
    try:
        call()
    except kind as error:
        return message in str(error)
    return False


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8, 16, 128])
@pytest.mark.parametrize(("auxiliary", "n_cells"), [(True, 1), (True, 3), (False, 2), (False, 5)])
@pytest.mark.parametrize("genotype", ["DARTS_V1", "DARTS_V2"])
def test_a_retraining_is_refused_exactly_where_a_step_fails(genotype, auxiliary, n_cells, side):
    config = TrainConfig(
        genotype=genotype, auxiliary=auxiliary, n_cells=n_cells, init_channels=2, batch_size=1
    )
    network = build_network(config, images_of(side), seed=0, execution=Execution(CPU))
    enable_kernels(network, False)

    def step():
        x = torch.randn(1, 1, side, side)
        outputs = network.forward_with_auxiliary(x) if auxiliary else [network(x)]
        sum(F.cross_entropy(out, torch.tensor([1])) for out in outputs).backward()

    assert refuses(config, side) is fails(step)
    if auxiliary:  # the head has BatchNorm behind a 1x1 map, but for ImageNet's
        assert refuses(config, side) is (side < 128)
    check_smallest_batch(config, images_of(side), 2)


@pytest.mark.parametrize("side", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("n_cells", [1, 2, 3])
@pytest.mark.parametrize("space", ["s2", "s4"])
def test_a_search_is_refused_exactly_where_a_step_fails(space, n_cells, side):
    config = SearchConfig(space=space, n_cells=n_cells, init_channels=2, batch_size=1)
    supernet = build_supernet(config, images_of(side), seed=0, execution=Execution(CPU))
    enable_kernels(supernet, False)
    alpha = torch.zeros(supernet.space.dim)
    assert refuses(config, side) is fails(lambda: supernet(torch.randn(1, 1, side, side), alpha))


def test_the_check_draws_no_global_random_number():
    before = torch.get_rng_state()
    check_smallest_batch(SearchConfig(space="s4", n_cells=1, init_channels=2), images_of(8), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_refusal_is_one_line_and_leaves_no_folder(train_config, search_config, tmp_path):
    config = train_config(auxiliary=True, batch_size=1)
    with pytest.raises(InvalidValueError) as caught:
        run_training(config, run_dir=tmp_path / "run")
    assert str(caught.value) == (
        "batches must have at least 2 images with the auxiliary head on 8x8 images, where "
        "BatchNorm gets one number of a channel from one image, got 1: raise batch_size or train "
        "without auxiliary"
    )
    with pytest.raises(InvalidValueError, match="got 1: raise n_train or train without auxiliary"):
        run_training(config.replace(batch_size=8, n_train=1))
    deep = search_config(n_cells=3, image_size=4)
    for changes, fix in (
        ({"batch_size": 1}, "batch_size"),
        ({"n_train": 2}, "n_train"),
        ({"n_train": 4, "train_portion": 0.75}, "n_train"),  # three fit weights, one scores
    ):
        with pytest.raises(InvalidValueError, match=f"3 cells on 4x4 images, .* raise {fix}$"):
            run_search(deep.replace(**changes), run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_batches_of_one_image_train(train_config, search_config):
    result = run_training(train_config(batch_size=1, n_train=5, epochs=1))
    assert 0 <= result.train_accuracy * 5 <= 5
    # A rest of one image is left out, with the auxiliary head too.
    rest = run_training(train_config(auxiliary=True, batch_size=4, n_train=9, epochs=1))
    assert (rest.train_accuracy * 8).is_integer()
    for algo in ("gld", "darts2"):
        found = run_search(search_config(algo, batch_size=1, n_train=4, epochs=2))
        assert [row["updates"] for row in found.metrics] == [0, 2]
        assert torch.isfinite(found.alpha).all()
