"""The protocols of a retraining, against the published numbers."""

from __future__ import annotations

import pytest

from zoopt_nas.errors import InvalidValueError, ZooptNasError
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig


@pytest.mark.parametrize("protocol", ["darts", "sdarts"])
def test_the_darts_protocol_is_the_default_of_a_retraining(protocol: str):
    for dataset in ("cifar10", "svhn", "digits"):  # it replaces the digits' own defaults
        config = TrainConfig.for_dataset(dataset, "DARTS_V2", protocol=protocol)
        assert config == TrainConfig(dataset="cifar10").replace(dataset=dataset)
    assert TrainConfig(dataset="cifar10").batch_size == 96


@pytest.mark.parametrize(
    ("dataset", "space", "size"),
    [
        ("cifar10", "s1", (20, 36)),
        ("cifar10", "s2", (20, 16)),
        ("cifar10", "s3", (20, 36)),
        ("cifar10", "s4", (20, 16)),
        *(("cifar100", f"s{i}", (8, 16)) for i in (1, 2, 3, 4)),
        *(("svhn", f"s{i}", (8, 16)) for i in (1, 2, 3, 4)),
    ],
)
def test_rdarts_has_its_sizes_by_data_set_and_space(dataset: str, space: str, size):
    config = TrainConfig.for_dataset(dataset, "DARTS_V2", protocol="rdarts", space=space)
    assert (config.n_cells, config.init_channels) == size
    assert config == TrainConfig(dataset=dataset, n_cells=size[0], init_channels=size[1])


def test_imagenet_is_trained_as_smoothdarts_does():
    config = TrainConfig.for_dataset("imagenet", "DARTS_V2")
    published = {
        "n_cells": 14,
        "init_channels": 48,
        "epochs": 250,
        "batch_size": 1024,
        "lr": 0.5,
        "lr_min": 0.0,
        "schedule": "linear",
        "warmup_epochs": 5,
        "weight_decay": 3e-5,
        "momentum": 0.9,
        "grad_clip": 5.0,
        "label_smoothing": 0.1,
        "auxiliary": True,
        "auxiliary_weight": 0.4,
        "drop_path": 0.0,
        "cutout": 0,
    }
    assert {name: getattr(config, name) for name in published} == published
    assert config == TrainConfig.for_dataset("imagenet", "DARTS_V2", protocol="imagenet")
    # A warm-up takes at most a fifth, unless it is asked for.
    assert TrainConfig.for_dataset("imagenet", "DARTS_V2", epochs=11).warmup_epochs == 2
    asked = TrainConfig.for_dataset("imagenet", "DARTS_V2", epochs=11, warmup_epochs=7)
    assert asked.warmup_epochs == 7


def test_a_protocol_gives_way_to_what_is_asked_for():
    changed = {"epochs": 3, "n_cells": 5, "cutout": 0}
    config = TrainConfig.for_dataset(
        "cifar10", "DARTS_V2", protocol="rdarts", space="s2", **changed
    )
    assert config == TrainConfig(dataset="cifar10", init_channels=16, **changed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"protocol": "rdart", "dataset": "cifar10"}, "unknown protocol 'rdart'; did you mean"),
        (
            {"protocol": "rdarts", "dataset": "cifar10"},
            "space must be one of s1, s2, s3, s4 for protocol rdarts, got none",
        ),
        (
            {"protocol": "rdarts", "dataset": "svhn", "space": "darts"},
            "for protocol rdarts, got darts",
        ),
        (
            {"protocol": "rdarts", "dataset": "digits", "space": "s1"},
            "dataset must be one of cifar10, cifar100, svhn for protocol rdarts, got digits",
        ),
        ({"dataset": "cifar10", "schedule": "step"}, "unknown schedule 'step'"),
        ({"dataset": "cifar10", "report": "bes"}, "unknown report 'bes'; did you mean 'best'"),
        ({"dataset": "cifar10", "warmup_epochs": -1}, "warmup_epochs must be at least 0, got -1"),
    ],
)
def test_wrong_protocols(fields, message: str):
    with pytest.raises(ZooptNasError, match=message):
        TrainConfig.for_dataset(genotype="DARTS_V2", **fields)


def test_a_protocol_a_space_and_a_preset_are_names():
    for fields in ({"protocol": 3}, {"protocol": "rdarts", "space": 1}):
        with pytest.raises(InvalidValueError, match="must be of type str"):
            TrainConfig.for_dataset("cifar10", "DARTS_V2", **fields)
    with pytest.raises(InvalidValueError, match="preset must be of type str, got 1"):
        SearchConfig.for_dataset(preset=1)
